"""Softmax losses: one pass over the logits for all that are asked of them, one for the gradient."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import reference
from denseloss.primitives.fused import layout, second
from denseloss.primitives.fused.layout import plain
from denseloss.primitives.overlap import Overlap, of_images, ratio
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

    def definition(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The loss that is this term, in plain torch."""
        value: Tensor
        if self.by_class:
            value = reference("cross_entropy_loss")(
                logits,
                target,
                class_weight=self.class_weight,
                label_smoothing=self.smoothing,
                **options,
            )
        else:
            value = reference("focal_loss")(
                logits, target, gamma=self.gamma, alpha=self.class_weight, **options
            )
        return value


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
        by_class: tuple[bool, ...],
    ) -> tuple[Tensor, ...]:
        """What is asked for, in this order: the K sums, or the ``values`` [n *s]; I and P [n c].

        Then, without gradient, the K counts, T [n c] and the weights [n 2].
        """
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
        ctx.definition = definition
        ctx.options = (gamma, smoothing, ignore, overlap, values, size, align_corners)
        ctx.save_for_backward(logits, target, weight, class_weight)
        # No output is a view of another: `loss += other` may write into it.
        results, counts = [each] if values else [], []
        if gamma and not values:
            totals = entropy[0] if len(entropy) == 1 else entropy.sum(0)
            results = [total[0].clone() for total in totals]
            counts = [
                total[1].clone() if classes else weights[:, 0].sum()
                for total, classes in zip(totals, by_class, strict=True)
            ]
        if overlap:
            both, predicted, true = (x.clone() for x in sums.unbind(-1))
            results += [both, predicted]
            counts.append(true)
        ctx.mark_non_differentiable(*counts, weights)
        return (*results, *counts, weights)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """The gradient by the logits."""
        logits, target, weight, class_weight = ctx.saved_tensors
        gamma, smoothing, ignore, overlap, values, size, align_corners = ctx.options
        nothing = (None,) * 12
        terms = 1 if values else len(gamma)
        if (by_definition := second.gradient(ctx, logits, upstream)) is not None:
            return (*by_definition, *nothing)
        entropy = sums = each = None
        if values:
            each = upstream[0].float().contiguous()
        elif terms:
            up = upstream[0] if terms == 1 else torch.stack(upstream[:terms])
            entropy = up.float().reshape(1, terms).expand(len(logits), terms).contiguous()
        if overlap:
            sums = torch.stack(upstream[terms : terms + 2], -1).float()
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
    values: Sequence[Tensor]
    """the sum of each term, or the value of each pixel"""
    counts: Sequence[Tensor]
    overlap: Sequence[Tensor]
    """I, P and T, [n c] each, where asked for"""
    weights: Tensor
    resized: bool = False

    def term(self, wanted: Term) -> int | None:
        """The place of a term among those of the pass."""
        for i, term in enumerate(self.terms):
            if term.same(wanted):
                return i
        return None


# The passes that each thread is inside of.
_shared: dict[int, list[Pass]] = {0: []}


def _passes() -> list[Pass]:
    # Compiled code cannot ask for its thread, and has no pass left over when it runs.
    thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
    if thread not in _shared:
        _shared[thread] = []
    return _shared[thread]


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
    n = logits.shape[0]
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
    definition: Callable[[Tensor], tuple[Tensor, ...]],
    *,
    overlap: bool = False,
    values: bool = False,
) -> Pass:
    logits, target, weight, ignore, size, align_corners = pixels
    class_weight = None
    if any(term.class_weight is not None for term in terms):
        ones = logits.new_ones(key[0].shape[1], dtype=torch.float32)
        class_weight = torch.stack(
            [ones if t.class_weight is None else t.class_weight.float() for t in terms]
        )
    *results, weights = Columns.apply(
        logits,
        second.kept(definition, logits),
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
        tuple(t.by_class for t in terms),
    )
    k = len(terms)
    if values:
        return Pass(key, terms, results, [], [], weights)
    both, counts = results[k : k + 2 * overlap], results[k + 2 * overlap :]
    return Pass(key, terms, results[:k], counts[:k], [*both, *counts[k:]], weights)


def _definition(
    key: tuple[Any, ...],
    terms: tuple[Term, ...],
    *,
    overlap: bool = False,
    align_corners: bool = False,
    each: bool = False,
    rows: bool = False,
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What `Columns` returns, from the definitions; for gradients of gradients."""
    _, target, weight, ignore = key

    def run(z: Tensor) -> tuple[Tensor, ...]:
        z = resized(z.squeeze(0).t() if rows else z, target, align_corners=align_corners)
        counted = {"weight": weight, "ignore_index": ignore}
        reduction = "none" if each else "sum"
        found = [term.definition(z, target, **counted, reduction=reduction) for term in terms]
        if overlap:
            sums = reference("softmax_overlap")(z, target, weight, ignore, pool="image")
            found += [sums.both, sums.predicted]
        return tuple(found)

    return run


def _found(key: tuple[Any, ...], serves: Callable[[Pass], bool]) -> Pass | None:
    """The pass, among those that this thread is inside of, that has what is asked for."""
    for shared in _passes():
        if _same(shared.key, key) and serves(shared):
            return shared
    for shared in _passes():
        # What stands for resized logits holds no scores: a loss of it must find its pass.
        if shared.key[0] is key[0] and shared.resized:
            raise RuntimeError(
                "denseloss: a loss inside AtTargetSize asked for what its pass has not computed; "
                'please report it, and use backend.use("reference") meanwhile'
            )
    return None


def _entropy(
    term: Term,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: int | None,
    reduction: str,
    factor: float = 1.0,
) -> Tensor | None:
    """A loss that is one entropy term."""
    key = _key(logits, target, weight, ignore)
    each = reduction == "none"
    found = _found(key, lambda done: not each and done.term(term) is not None)
    at = 0 if found is None else found.term(term)
    if found is None:
        pixels = _pixels(logits, target, weight, ignore, alone=not each)
        if pixels is None or not plain(term.class_weight):
            return None
        definition = _definition(key, (term,), each=each, rows=logits.ndim == 2 and not each)
        found = _run(key, pixels, (term,), definition, values=each)
    assert at is not None
    value = found.values[at]
    if factor != 1.0:
        value = factor * value
    return value if reduction != "mean" else distributed.mean(value, found.counts[at])


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
) -> Tensor | None:
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
) -> Tensor | None:
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
) -> Tensor | None:
    """`balanced_cross_entropy_loss`."""
    pixels = _pixels(logits, target, weight, ignore_index)
    if pixels is None:
        return None
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
) -> Overlap | None:
    """`softmax_overlap`."""
    if threshold is not None:
        return None
    key = _key(logits, target, weight, ignore_index)
    found = _found(key, lambda done: bool(done.overlap))
    if found is None:
        pixels = _pixels(logits, target, weight, ignore_index)
        if pixels is None:
            return None
        found = _run(key, pixels, (), _definition(key, (), overlap=True), overlap=True)
    both, predicted, true = found.overlap
    present = found.weights[:, 1:].expand(both.shape)
    return of_images(both, predicted, true, present, pool=pool)


# What each loss asks of a pass: a term, or the overlap sums (None).
REQUESTS: dict[str, Callable[..., Term | None]] = {
    "cross_entropy_loss": _cross_entropy_term,
    "focal_loss": _focal_term,
    "dice_loss": lambda **_: None,
    "jaccard_loss": lambda **_: None,
    "tversky_loss": lambda **_: None,
}


class Group:
    """The losses of a sum that one pass can serve: they count the same pixels."""

    def __init__(self, weight: Tensor | None, ignore: int) -> None:
        self.weight, self.ignore = weight, ignore
        self.terms: list[Term] = []
        self.overlap = False
        self.asked = 0

    def add(self, term: Term | None) -> None:
        """One more loss, which asks for a term or for the overlap sums."""
        self.asked += 1
        if term is None:
            self.overlap = True
        elif not any(term.same(known) for known in self.terms):
            self.terms.append(term)


class Sharing:
    """Passes that losses find while inside."""

    def __init__(self, logits: Tensor, passes: list[Pass]) -> None:
        self.logits, self.passes = logits, passes

    def __enter__(self) -> Tensor:
        _passes().extend(self.passes)
        return self.logits

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        mine = _passes()
        del mine[len(mine) - len(self.passes) :]


def together(
    logits: Tensor, target: Tensor, calls: Sequence[Call], *, align_corners: bool = False
) -> AbstractContextManager[Tensor] | None:
    """`denseloss.primitives.together.together`: one pass for each void rule and weight."""
    if not isinstance(target, Tensor) or logits.ndim < 2 or target.is_floating_point():
        return None
    if any(shared.key[0] is logits for shared in _passes()):
        return None  # the pass has been taken, outside
    groups: list[Group] = []
    served = 0
    for function, options in calls:
        request = REQUESTS.get(getattr(function, "__name__", ""))
        if request is None or options.get("reduction", "mean") == "none":
            continue
        term = request(**options)
        if term is not None and not plain(term.class_weight):
            continue
        served += 1
        weight, ignore = options.get("weight"), options.get("ignore_index", -100)
        group = None
        for known in groups:
            if known.weight is weight and known.ignore == ignore:
                group = known
        if group is None:
            group = Group(weight, ignore)
            groups.append(group)
        group.add(term)
    axes = logits.ndim - 2
    size = target.shape[target.ndim - axes :]
    small = axes > 0 and size != logits.shape[2:]
    if small and (served < len(calls) or axes != 2):
        # A loss that needs the logits at full size is there: then they are made for all.
        return None
    ahead = []
    for group in groups:
        if group.asked > 1 or small:
            pixels = _pixels(
                logits, target, group.weight, group.ignore, align_corners=align_corners
            )
            if pixels is None:
                return None
            ahead.append((group, pixels))
    # Of full size, but without memory: the losses inside only look at its shape, and find the pass.
    stand_in = logits
    if small:
        stand_in = logits.detach().new_zeros(()).expand(*logits.shape[:2], *size)
    passes = []
    for group, pixels in ahead:
        key = _key(stand_in, target, group.weight, group.ignore)
        terms, overlap = tuple(group.terms), group.overlap
        definition = _definition(key, terms, overlap=overlap, align_corners=align_corners)
        done = _run(key, pixels, terms, definition, overlap=overlap)
        passes.append(done._replace(resized=small))
    return Sharing(stand_in, passes)
