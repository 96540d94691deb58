"""Softmax losses: one pass over the logits for all that are asked of them, one for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import reference
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.layout import learns, plain
from denseloss.primitives.overlap import Overlap, ratio
from denseloss.primitives.together import Call, resized

__all__ = [
    "balanced_cross_entropy",
    "cross_entropy",
    "focal",
    "overlap",
    "together",
]

NO_LABEL = -(2**63)  # stands for ignore_index=None: no label is this


class Term(NamedTuple):
    """One entropy term of a pass; see ``column`` in ops.py."""

    gamma: float
    smoothing: float
    class_weight: Tensor | None
    by_class: bool
    """whether the class weights count in the mean"""

    def same(self, other: Term) -> bool:
        """Whether one stands for the other. Tensors are the same only if they are one object."""
        return (
            self.gamma == other.gamma
            and self.smoothing == other.smoothing
            and self.class_weight is other.class_weight
            and self.by_class == other.by_class
        )


class Pixels(NamedTuple):
    """What a pass reads, in the form that the operators take."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    ignore: int
    size: tuple[int, ...]
    align_corners: bool


class Columns(torch.autograd.Function):
    """The sums over pixels, with the gradient in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        definition: Callable[[Tensor], tuple[Tensor, ...]] | None,
        target: Tensor,
        weight: Tensor | None,
        class_weight: Tensor | None,
        gamma: tuple[float, ...],
        smoothing: tuple[float, ...],
        ignore: int,
        overlap: bool,
        values: bool,
        size: tuple[int, ...],
        align_corners: bool,
    ) -> tuple[Tensor, ...]:
        """Entropies [K], I and P [n c], values [n *s]; then counts [K], T [n c], weights [n 2]."""
        options = (gamma, smoothing, ignore, overlap, values, size, align_corners)
        entropy, sums, weights, each = torch.ops.denseloss.column(
            logits,
            target,
            weight,
            class_weight,
            gamma,
            smoothing,
            ignore,
            overlap,
            values,
            size,
            align_corners,
        )
        ctx.definition, ctx.options = definition, options
        ctx.save_for_backward(logits, target, weight, class_weight)
        ctx.set_materialize_grads(False)
        totals = entropy.sum(0)
        both, predicted, true = sums.unbind(-1) if overlap else (sums, sums, sums)
        count, true = totals[:, 1].clone(), true.clone()
        ctx.mark_non_differentiable(count, true, weights)
        return totals[:, 0].clone(), both.clone(), predicted.clone(), each, count, true, weights

    @staticmethod
    def backward(
        ctx: Any,
        entropy: Tensor | None,
        both: Tensor | None,
        predicted: Tensor | None,
        each: Tensor | None,
        *_: Tensor | None,
    ) -> tuple[Any, ...]:
        """The gradient by the logits."""
        logits, target, weight, class_weight = ctx.saved_tensors
        nothing = (None,) * 11
        upstream = entropy, both, predicted, each
        if torch.is_grad_enabled() and ctx.definition is not None:
            # With create_graph, the gradient must have a graph: that of the definition.
            pairs = [
                (value, up)
                for value, up in zip(ctx.definition(logits), upstream, strict=True)
                if up is not None and value.requires_grad
            ]
            outputs, ups = zip(*pairs, strict=True)
            return (*torch.autograd.grad(outputs, logits, ups, create_graph=True), *nothing)
        gamma, smoothing, ignore, overlap, values, size, align_corners = ctx.options
        n, c = logits.shape[:2]
        # Compiled, what no gradient reaches has one of zeros, not None.
        sums = None
        if overlap and (both is not None or predicted is not None):
            zeros = logits.new_zeros(n, c, dtype=torch.float32)
            sums = torch.stack(
                [zeros if both is None else both, zeros if predicted is None else predicted], -1
            ).float()
        each = each.float().contiguous() if values and each is not None else None
        if not gamma or each is not None:
            entropy = None
        if entropy is not None:
            entropy = entropy.float().expand(n, len(gamma)).contiguous()
        grad = torch.ops.denseloss.column_backward(
            logits,
            target,
            weight,
            class_weight,
            gamma,
            smoothing,
            ignore,
            entropy,
            sums,
            each,
            size,
            align_corners,
        )
        return (grad, *nothing)


class Pass(NamedTuple):
    """The results of a pass, to be found again by the losses that share it."""

    key: tuple[Any, ...]
    terms: tuple[Term, ...]
    entropy: Tensor
    count: Tensor
    both: Tensor | None
    predicted: Tensor | None
    true: Tensor | None
    weights: Tensor
    values: Tensor

    def term(self, wanted: Term) -> int | None:
        """The place of a term among those of the pass."""
        for i, term in enumerate(self.terms):
            if term.same(wanted):
                return i
        return None


_shared: list[Pass] = []


def _key(logits: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None) -> Any:
    return logits, target, weight, ignore


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    logits, target, weight, ignore = one
    return logits is other[0] and target is other[1] and weight is other[2] and ignore == other[3]


def _pixels(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: int | None,
    *,
    alone: bool = False,
    align_corners: bool = False,
) -> Pixels | None:
    """What a pass reads; None where it cannot. ``alone``: sums are wanted over the whole batch."""
    axes = logits.ndim - 2
    where = layout.scores(logits)
    if where is None or target.is_floating_point() or not plain(weight) or target.numel() == 0:
        return None
    n, c = logits.shape[:2]
    shape = (n, *target.shape[target.ndim - axes :]) if axes else (n,)
    size: tuple[int, ...] = ()
    if shape[1:] != logits.shape[2:]:
        if axes != 2:
            return None
        size = shape[1:]
    label, counted = layout.labels(target, shape), layout.weights(weight, shape)
    if axes == 0 and alone:
        # Rows of scores are the pixels of one image whose classes lie innermost.
        logits, label = logits.t().unsqueeze(0), label.unsqueeze(0)
        counted = None if counted is None else counted.unsqueeze(0)
    ignored = NO_LABEL if ignore is None else ignore
    return Pixels(logits, label, counted, ignored, size, align_corners)


def _run(
    key: tuple[Any, ...],
    pixels: Pixels,
    terms: tuple[Term, ...],
    overlap: bool,
    definition: Callable[[Tensor], tuple[Tensor, ...]],
    values: bool = False,
) -> Pass:
    logits, target, weight, ignore, size, align_corners = pixels
    class_weight = None
    if any(term.class_weight is not None for term in terms):
        ones = logits.new_ones(key[0].shape[1], dtype=torch.float32)
        class_weight = torch.stack(
            [ones if t.class_weight is None else t.class_weight.float() for t in terms]
        )
    again = definition if learns(logits) and not torch.compiler.is_compiling() else None
    entropy, both, predicted, each, count, true, weights = Columns.apply(
        logits,
        again,
        target,
        weight,
        class_weight,
        tuple(float(t.gamma) for t in terms),
        tuple(float(t.smoothing) for t in terms),
        ignore,
        overlap,
        values,
        size,
        align_corners,
    )
    plain_count = weights[:, 0].sum() if any(not t.by_class for t in terms) else None
    counts = (
        torch.stack([count[k] if t.by_class else plain_count for k, t in enumerate(terms)])
        if plain_count is not None
        else count
    )
    sums = (both, predicted, true) if overlap else (None, None, None)
    return Pass(key, terms, entropy, counts, *sums, weights, each)


def _definition(
    key: tuple[Any, ...], terms: tuple[Term, ...], overlap: bool, align_corners: bool, each: bool
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What `Columns` returns, from the definitions; for gradients of gradients."""
    _, target, weight, ignore = key

    def run(z: Tensor) -> tuple[Tensor, ...]:
        z = resized(z, target, align_corners)
        likely = reference("softmax_likelihood")(z, target, weight, ignore)
        nothing = z.new_zeros(0)
        values = []
        for term in terms:
            focal = likely.miss**term.gamma * -likely.log_p
            if term.class_weight is not None:
                focal = likely.per_class(term.class_weight) * focal
            value = focal.sum(1)
            if term.smoothing:
                cw = torch.ones(()) if term.class_weight is None else term.class_weight
                cw = cw.to(z).expand(z.shape[1]).reshape(-1, *[1] * (z.ndim - 2))
                clear = torch.where(likely.valid.unsqueeze(1) != 0, z, 0)
                spread = -(cw * clear.log_softmax(1)).mean(1)
                value = (1 - term.smoothing) * value + term.smoothing * spread
            values.append(likely.weight * value)
        entropy = torch.stack([value.sum() for value in values]) if values else nothing
        both = predicted = nothing
        if overlap:
            sums = reference("softmax_overlap")(z, target, weight, ignore, pool="image")
            both, predicted = sums.both, sums.predicted
        return entropy, both, predicted, values[0] if each else nothing

    return run


def _found(key: tuple[Any, ...]) -> Pass | None:
    for shared in _shared:
        if _same(shared.key, key):
            return shared
    return None


def _entropy(
    term: Term,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: int | None,
    reduction: str,
    factor: float = 1.0,
) -> Tensor:
    """A loss that is one entropy term."""
    key = _key(logits, target, weight, ignore)
    shared = _found(key) if reduction != "none" else None
    at = shared.term(term) if shared is not None else None
    if shared is not None and at is not None:
        value, count = shared.entropy[at], shared.count[at]
    else:
        each = reduction == "none"
        pixels = _pixels(logits, target, weight, ignore, alone=not each)
        if pixels is None or not plain(term.class_weight):
            return NotImplemented
        definition = _definition(key, (term,), False, False, each)
        if logits.ndim == 2 and not each:
            whole = definition

            def definition(z: Tensor) -> tuple[Tensor, ...]:
                return whole(z.squeeze(0).t())

        done = _run(key, pixels, (term,), False, definition, each)
        if each:
            return factor * done.values
        value, count = done.entropy[0], done.count[0]
    if factor != 1.0:
        value = factor * value
    return value if reduction == "sum" else distributed.mean(value, count)


def _cross_entropy_term(
    class_weight: Tensor | None = None, label_smoothing: float = 0.0, **_: Any
) -> Term:
    return Term(0.0, label_smoothing, class_weight, True)


def _focal_term(gamma: float = 2.0, alpha: Tensor | float | None = None, **_: Any) -> Term:
    return Term(gamma, 0.0, alpha if isinstance(alpha, Tensor) else None, False)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`cross_entropy_loss`."""
    term = _cross_entropy_term(class_weight, label_smoothing)
    return _entropy(term, logits, target, weight, ignore_index, reduction)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`focal_loss`."""
    factor = 1.0 if alpha is None or isinstance(alpha, Tensor) else alpha
    term = _focal_term(gamma, alpha)
    return _entropy(term, logits, target, weight, ignore_index, reduction, factor)


def balanced_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`balanced_cross_entropy_loss`."""
    pixels = _pixels(logits, target, weight, ignore_index)
    if pixels is None:
        return NotImplemented
    count = torch.ops.denseloss.label_count(
        pixels.target, pixels.weight, pixels.ignore, logits.shape[1]
    )
    # Labels that are no class are not counted here: the pass makes their pixels NaN.
    count = distributed.total(count)
    class_weight = ratio(torch.ones_like(count), count, empty=0)
    return cross_entropy(
        logits,
        target,
        class_weight=class_weight,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def overlap(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    threshold: float | None = None,
) -> Overlap:
    """`softmax_overlap`."""
    if threshold is not None:
        return NotImplemented
    key = _key(logits, target, weight, ignore_index)
    found = _found(key)
    if found is None or found.both is None:
        pixels = _pixels(logits, target, weight, ignore_index)
        if pixels is None:
            return NotImplemented
        found = _run(key, pixels, (), True, _definition(key, (), True, False, False))
    both, predicted, true, weights = found.both, found.predicted, found.true, found.weights
    present = weights[:, 1]
    if both is None or predicted is None or true is None:  # for the type checker
        return NotImplemented
    if pool == "image":
        return Overlap(both, predicted, true, (present > 0).unsqueeze(1).expand(both.shape))
    both, predicted, true, present = (
        distributed.total(x.sum(0)) for x in (both, predicted, true, present)
    )
    return Overlap(both, predicted, true, (present > 0).expand(both.shape))


# What each loss asks of a pass: a term, or the overlap sums (None).
REQUESTS: dict[str, Callable[..., Term | None]] = {
    "cross_entropy_loss": _cross_entropy_term,
    "focal_loss": _focal_term,
    "dice_loss": lambda **_: None,
    "jaccard_loss": lambda **_: None,
    "tversky_loss": lambda **_: None,
}


class Sharing:
    """Passes that losses find while inside."""

    def __init__(self, logits: Tensor, passes: list[Pass]) -> None:
        self.logits, self.passes = logits, passes

    def __enter__(self) -> Tensor:
        _shared.extend(self.passes)
        return self.logits

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del _shared[len(_shared) - len(self.passes) :]


def together(
    logits: Tensor, target: Tensor, calls: Sequence[Call], *, align_corners: bool = False
) -> AbstractContextManager[Tensor]:
    """`denseloss.primitives.together.together`: one pass for each void rule and weight."""
    if not isinstance(target, Tensor) or logits.ndim < 2 or target.is_floating_point():
        return NotImplemented
    groups: list[tuple[Any, Any, list[Term], bool, int]] = []
    served = 0
    for function, options in calls:
        request = REQUESTS.get(function.__name__)
        if request is None or options.get("reduction", "mean") == "none":
            continue
        term = request(**options)
        if term is not None and not plain(term.class_weight):
            continue
        served += 1
        weight, ignore = options.get("weight"), options.get("ignore_index", -100)
        for i, (known, label, terms, overlap, asked) in enumerate(groups):
            if known is weight and label == ignore:
                break
        else:
            i = len(groups)
            groups.append((weight, ignore, [], False, 0))
            known, label, terms, overlap, asked = groups[i]
        if term is not None and not any(term.same(t) for t in terms):
            terms = [*terms, term]
        groups[i] = (weight, ignore, terms, overlap or term is None, asked + 1)
    axes = logits.ndim - 2
    small = axes > 0 and target.shape[target.ndim - axes :] != logits.shape[2:]
    if small and (served < len(calls) or axes != 2):
        # A loss that needs the logits at full size is there: then they are made for all.
        return NotImplemented
    ahead = []
    for weight, ignore, terms, overlap, asked in groups:
        if asked > 1 or small:
            pixels = _pixels(logits, target, weight, ignore, align_corners=align_corners)
            if pixels is None or len(terms) > 8:
                return NotImplemented
            ahead.append((weight, ignore, pixels, tuple(terms), overlap))
    # Of full size, but without memory: the losses inside only look at its shape, and find the pass.
    stand_in = logits
    if small:
        size = target.shape[target.ndim - axes :]
        stand_in = logits.detach().new_zeros(()).expand(*logits.shape[:2], *size)
    passes = []
    for weight, ignore, pixels, terms, overlap in ahead:
        key = _key(stand_in, target, weight, ignore)
        definition = _definition(key, terms, overlap, align_corners, False)
        passes.append(_run(key, pixels, terms, overlap, definition))
    return Sharing(stand_in, passes)
