"""Exact means over ranks and over gradient-accumulation steps.

A mean of means is not the mean: when ranks or micro-batches hold different numbers of valid
pixels (or of boxes), averaging their losses weighs pixels unequally, and a Dice that pools the
batch is a different function of each part. Inside `exact`, every loss divides by the count of all
ranks and pools the sums of all ranks:

    with denseloss.distributed.exact():
        loss = criterion(logits, target)      # DDP averages the gradients: they come out exact

The values of the ranks then average to the loss of the whole batch, and DDP's average of the
gradients is its gradient. One small all-reduce per mean, none in the backward pass. Where
torch.distributed is not initialised, `exact` does nothing.

`accumulate` does the same for a batch that goes through the model in parts, on one rank or many:

    for loss in denseloss.distributed.accumulate(model, criterion, micro_batches):
        loss.backward()
    optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["SumCount", "accumulate", "exact", "sum_and_count"]


class SumCount(NamedTuple):
    """A loss as the pair that every mean is made of: ``mean = sum / count``.

    For a sum of several means both are vectors with one entry for each of them, and the value is
    ``(sum / count).sum()``.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment] # shadows tuple.count, which nobody calls here


class _World(NamedTuple):
    group: dist.ProcessGroup | None
    size: int


class _Mean(NamedTuple):
    """A mean as it was asked for."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment] # as in SumCount
    value: Tensor
    """what was answered: a leaf, so that the factor of this mean in a value can be told"""


class _Parts:
    """The means of one call of a criterion on one part of a batch.

    Without totals they are only noted. With totals, one for each mean in the order in which the
    criterion takes them, each part is divided by the total.
    """

    def __init__(self, totals: Sequence[Tensor | float] | None = None, factor: float = 1.0) -> None:
        self.totals = totals
        self.factor = factor
        self.means: list[_Mean] = []

    def mean(self, total_value: Tensor, count: Tensor, least: float, ranks: int) -> Tensor:
        if self.totals is None:
            value = _ratio(total_value.detach(), count).requires_grad_()
        else:
            position = len(self.means)
            if position >= len(self.totals):
                raise ValueError(_several(len(self.totals)))
            whole = torch.as_tensor(self.totals[position]).to(total_value)
            value = _ratio(ranks * self.factor * total_value, whole, least)
        self.means.append(_Mean(total_value, count, value))
        return value

    def counts(self) -> Tensor:
        """What each mean counted, [means]: without the graphs of their sums."""
        return torch.stack([mean.count for mean in self.means])


def _ratio(total_value: Tensor, count: Tensor, least: float = 0.0) -> Tensor:
    """``sum / count``, the count at least ``least``; 0 where nothing counts."""
    return total_value / (count.clamp_min(least) if least else torch.where(count == 0, 1, count))


def _number(count: Tensor | float, like: Tensor) -> Tensor:
    """What somebody counted (in integers, in floats) in the dtype of a sum."""
    if isinstance(count, Tensor):
        return count.to(like.dtype)
    return torch.full((), count, dtype=like.dtype, device=like.device)


def _several(given: int) -> str:
    return (
        f"accumulate: total has {given} {'number' if given == 1 else 'numbers'}, but the loss "
        "takes more means than that: give one total for each, such as the sums over the parts of "
        "sum_and_count(...).count"
    )


_world: _World | None = None
_parts: _Parts | None = None


def _ranks(group: dist.ProcessGroup | None, caller: str) -> _World | None:
    """The ranks of a group; None where there is only this process."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    size = dist.get_world_size(group)
    if size < 1:  # torch answers -1
        raise ValueError(
            f"{caller}: rank {dist.get_rank()} is not in the group; call it on its members alone"
        )
    return _World(group, size)


def _everywhere(local: Tensor, world: _World) -> Tensor:
    """The sum over ranks, without a graph.

    It travels in float64 whatever it came in: ranks whose dtypes differ (one under autocast, say)
    sum in different ones, and a collective of two dtypes answers with noise, or never.
    """
    whole = local.detach().to(torch.float64, copy=True)
    dist.all_reduce(whole, group=world.group)
    return whole.to(local.dtype)


@contextmanager
def exact(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Make each mean and each pooled sum inside exact over the ranks of a group.

    Weights are taken as constants: no gradient flows to a ``weight`` through the count. Values
    with ``reduction="sum"`` or ``"none"`` stay those of the rank itself.

    Args:
        group: the ranks that share a batch; None is all of them.

    Raises:
        ValueError: this rank is not in the group.
    """
    with _on(_ranks(group, "exact") or _world):
        yield


@contextmanager
def _on(world: _World | None) -> Iterator[None]:
    global _world
    before, _world = _world, world
    try:
        yield
    finally:
        _world = before


@contextmanager
def _into(parts: _Parts) -> Iterator[None]:
    global _parts
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


@contextmanager
def _divided(totals: Sequence[Tensor | float] | None, steps: int) -> Iterator[_Parts]:
    """Each mean inside is divided by its total; None changes nothing."""
    parts = _Parts(totals, steps)
    if totals is None:
        yield parts
        return
    with _into(parts):
        yield parts
    if len(parts.means) < len(totals):
        raise ValueError(
            f"accumulate: there are {len(totals)} totals, but the loss took {len(parts.means)} "
            "means of this library"
        )


def sum_and_count(loss: Callable[..., Tensor], *inputs: Any, **options: Any) -> SumCount:
    """The sums and the counts whose ratios are the means of a loss, for gradient accumulation.

    Each is that of the caller's own elements, also inside `exact`. Add up the sums and the counts
    of all parts; ``(sum / count).sum()`` is then the loss of the whole batch. Where `count=` was
    given to a loss, keep the total at least 1. `accumulate` does all this.

    Only for losses that are means over elements or images, and sums of such: one that pools the
    batch (``pool="batch"``, balanced cross entropy, ``variant="released"`` or ``"class_mean"``) is
    another function of each part, and cannot be accumulated exactly.

    Args:
        loss: a function, Module or weighted sum of this library with ``reduction="mean"``, also
            resized or deeply supervised.
        inputs: its tensors.
        options: its keywords.

    Returns:
        Numbers for one mean, vectors for several; the weights of a sum are in the sums.

    Raises:
        ValueError: the loss took no mean, pools the batch, or something is added to its means.

    Example:
        >>> logits = torch.zeros(1, 2, 3)
        >>> from denseloss.functional import cross_entropy_loss
        >>> sum_and_count(cross_entropy_loss, logits, torch.tensor([[0, 1, -100]]))
        SumCount(sum=tensor(1.3863), count=tensor(2.))
    """
    parts = _Parts()
    with _into(parts), torch.enable_grad():
        value = loss(*inputs, **options)
    name = getattr(loss, "__name__", type(loss).__name__)
    if not parts.means:
        raise ValueError(
            f"sum_and_count: {name} takes no mean of this library; it must be a loss of denseloss "
            'with reduction="mean", or a sum of such'
        )
    leaves = [mean.value for mean in parts.means]
    if value.ndim:
        raise ValueError(f"sum_and_count: the value of {name} must be one number")
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    factors = [torch.zeros_like(x) if f is None else f for f, x in zip(found, leaves, strict=True)]
    shares = torch.stack([f * x.detach() for f, x in zip(factors, leaves, strict=True)])
    rest = (value.detach() - shares.sum()).abs()
    if rest > 1e-5 * (shares.abs().sum() + value.detach().abs()):  # NaN is not
        raise ValueError(
            f"sum_and_count: {name} is not a weighted sum of means of this library: it adds "
            "something to them, or is no linear function of them"
        )
    sums = [f * mean.sum for f, mean in zip(factors, parts.means, strict=True)]
    if not torch.is_grad_enabled():
        sums = [x.detach() for x in sums]
    counts = [mean.count for mean in parts.means]
    if len(sums) == 1:
        return SumCount(sums[0], counts[0])
    return SumCount(torch.stack(sums), torch.stack(counts))


Counting = Literal["targets", "forward"]


class accumulate:  # noqa: N801 - reads as a verb, as `exact` does
    """Exact gradient accumulation: the gradient of the whole batch from its parts.

    As a loop it is the whole recipe, on one rank or under DDP or FSDP2: what each mean of the
    criterion counts is added up over all parts and ranks first, gradients are exchanged with the
    last part only, and each part is divided by the whole::

        for loss in accumulate(model, criterion, [(images, labels), (images, labels)]):
            loss.backward()          # or scaler.scale(loss).backward(), accelerator.backward(loss)
        optimizer.step()

    The losses add up to the value of the whole batch (over ranks, their mean is). The first part
    goes through the model before anything is counted; the counts of the others come from their
    targets and weights, with zeros in place of the outputs.

    In a loop that is not yours, divide by a total that somebody else has counted::

        with accumulate(total=num_items_in_batch):
            loss = criterion(logits, labels)

    Args:
        model: called with the first entry of each part (``model(*inputs)`` for a tuple,
            ``model(**inputs)`` for a dict).
        criterion: called as ``criterion(outputs, target, **options)``: a loss, a weighted sum,
            also resized or deeply supervised, or a function of yours around one.
        batches: the parts: ``(inputs, target)`` or ``(inputs, target, options)`` each, where
            options are keywords of the criterion, such as ``weight``. Any number, at least one
            on each rank, of any sizes.
        total: what the means divide by, over all parts and ranks: one number for one mean, or
            one for each in the order of the criterion. None in a ``with`` block changes nothing,
            for trainers that have no total when they evaluate.
        steps: what a trainer divides each loss by afterwards (Lightning and accelerate divide by
            their accumulation steps); each loss is multiplied by it.
        counting: ``"targets"``, or ``"forward"`` where counts depend on predictions, such as a
            sum of qualities: every part then goes through the model once more, without gradients
            and with its buffers put back.
        group: the ranks that share the batch; None is all of them.

    Raises:
        ValueError: a rank has no parts, the loss pools the batch, the totals are not as many as
            the means, or counts turn out to depend on predictions (after the last part: zero the
            gradients and use ``counting="forward"``).

    In a ``with`` block values are those of one process: multiply by the number of ranks, or add
    `exact`, where gradients are averaged over ranks and the trainer does not do it.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        criterion: Callable[..., Tensor] | None = None,
        batches: Iterable[Sequence[Any]] | None = None,
        *,
        total: Tensor | float | Sequence[Tensor | float] | None = None,
        steps: int = 1,
        counting: Counting = "targets",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if counting not in ("targets", "forward"):
            raise ValueError(
                f"accumulate: counting must be 'targets' or 'forward', got {counting!r}"
            )
        if steps < 1:
            raise ValueError(f"accumulate: steps must be at least 1, got {steps}")
        given = [x is not None for x in (model, criterion, batches)]
        if any(given) and not all(given):
            raise TypeError("accumulate: model, criterion and batches go together")
        self._model, self._criterion, self._batches = model, criterion, batches
        self._totals = _listed(total)
        self._steps, self._counting, self._group = steps, counting, group
        self._entered: list[AbstractContextManager[_Parts]] = []

    # ------------------------------------------------------------ a block in somebody else's loop

    def __enter__(self) -> None:
        if self._model is not None:
            raise TypeError("accumulate: with a model it is a loop: for loss in accumulate(...)")
        block = _divided(self._totals, self._steps)
        block.__enter__()
        self._entered.append(block)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)

    # ------------------------------------------------------------ the whole loop

    def __iter__(self) -> Iterator[Tensor]:
        model, criterion = self._model, self._criterion
        if model is None or criterion is None or self._batches is None:
            raise TypeError(
                "accumulate: a loop needs model, criterion and batches; with a total alone it is "
                "a block: with accumulate(total=...)"
            )
        parts = [_part(batch) for batch in self._batches]
        world = _ranks(self._group, "accumulate")
        device = _device(model)
        if _any_rank(world, device, here=not parts):
            raise ValueError("accumulate: each rank must have at least one part; one has none")
        counted: list[Tensor] = []
        totals = self._totals
        if totals is None and self._counting == "forward":
            counted = _forward_counts(model, criterion, parts)
        taken: list[Tensor] = []
        for position, (inputs, target, options) in enumerate(parts):
            with _without_exchange(model, wanted=position + 1 < len(parts)):
                outputs = _called(model, inputs)
                if totals is None:
                    if not counted:
                        counted = _target_counts(criterion, outputs, parts)
                    totals = _summed(counted, world)
                with _divided(totals, self._steps) as scope, _on(world):
                    loss = criterion(outputs, target, **options)
                taken.append(scope.counts())
                yield loss
        if _any_rank(world, device, here=bool(counted) and _differ(counted, taken)):
            raise ValueError(
                "accumulate: what the means divide by depends on the predictions of the model, so "
                "it could not be counted from the targets, and the gradients are not right: set "
                'them to zero and use counting="forward"'
            )


def _listed(total: Any) -> Sequence[Tensor | float] | None:
    if total is None or isinstance(total, list | tuple):
        return total
    if isinstance(total, Tensor) and total.ndim == 1:
        return list(total.unbind())
    return [total]


def _part(batch: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    if not isinstance(batch, list | tuple) or len(batch) not in (2, 3):
        raise TypeError(
            "accumulate: each part must be (inputs, target) or (inputs, target, options), got "
            f"{type(batch).__name__}" + (f" of {len(batch)}" if hasattr(batch, "__len__") else "")
        )
    inputs, target, *options = batch
    return inputs, target, options[0] if options else {}


def _called(model: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _device(model: Any) -> torch.device:
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _any_rank(world: _World | None, device: torch.device, *, here: bool) -> bool:
    """Whether it is so on any rank."""
    if world is None or world.size == 1:
        return here
    return _everywhere(torch.tensor(float(here), device=device), world).item() > 0


@contextmanager
def _without_exchange(model: Any, *, wanted: bool) -> Iterator[None]:
    """Gradients stay on their rank, where a model would exchange them."""
    if wanted and hasattr(model, "no_sync"):  # DDP, and what wraps it
        with model.no_sync():
            yield
    elif wanted and hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


def _noted(criterion: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    """What each mean of a criterion counts."""
    parts = _Parts()
    with torch.no_grad(), _into(parts), _on(None):
        criterion(*inputs, **options)
    if not parts.means:
        raise ValueError(
            "accumulate: the criterion takes no mean of this library; it must be made of losses "
            'of denseloss with reduction="mean"'
        )
    return parts.counts()


def _target_counts(
    criterion: Callable[..., Tensor], outputs: Any, parts: Sequence[tuple[Any, Any, Any]]
) -> list[Tensor]:
    """The counts of every part: of the first from its outputs, of others from zeros."""
    _, first, options = parts[0]
    found = [_noted(criterion, outputs, first, **options)]
    for _, target, options in parts[1:]:
        zeros = _zeros(outputs, first, target)
        try:
            found.append(_noted(criterion, zeros, target, **options))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "accumulate: the counts of a part cannot be told from its target alone "
                f'({error}); use counting="forward"'
            ) from error
    return found


def _zeros(outputs: Any, first: Any, target: Any) -> Any:
    """Zeros in the shape that the outputs for another target have."""
    old, new = (
        [x.shape for x in pytree.tree_leaves(t) if isinstance(x, Tensor)] for t in (first, target)
    )

    def like(x: Any) -> Any:
        if not isinstance(x, Tensor) or not old or not new:
            return x
        shape = x.shape
        space = max(x.ndim - 2, 0)
        if shape == old[0]:
            shape = new[0]
        elif shape[:-1] == old[0]:  # an axis of classes or bins comes last
            shape = torch.Size((*new[0], shape[-1]))
        elif x.ndim and shape[0] == old[0][0]:
            whole = space and shape[2:] == old[0][len(old[0]) - space :]
            axes = new[0][len(new[0]) - space :] if whole else shape[2:]
            shape = torch.Size((new[0][0], *shape[1:2], *axes))
        return x.new_zeros(shape)

    return pytree.tree_map(like, outputs)


def _forward_counts(
    model: Callable[..., Any],
    criterion: Callable[..., Tensor],
    parts: Sequence[tuple[Any, Any, Any]],
) -> list[Tensor]:
    """The counts of every part from its outputs, with nothing changed in the model."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    device = _device(model)
    devices = [device] if device.type == "cuda" else []
    found = []
    # The same random numbers come again in the pass with gradients: dropout predicts alike.
    with torch.random.fork_rng(devices), torch.no_grad(), _without_exchange(model, wanted=True):
        for inputs, target, options in parts:
            found.append(_noted(criterion, _called(model, inputs), target, **options))
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return found


def _summed(counted: Sequence[Tensor], world: _World | None) -> list[Tensor]:
    """The count of each mean over all parts and ranks."""
    several = sorted({len(counts) for counts in counted})
    if len(several) > 1:
        raise ValueError(
            f"accumulate: the criterion takes {' or '.join(map(str, several))} means, not the same "
            "number for each part"
        )
    whole = torch.stack(list(counted)).sum(0)
    return list((whole if world is None else _everywhere(whole, world)).unbind())


def _differ(counted: Sequence[Tensor], taken: Sequence[Tensor]) -> bool:
    """Whether the counts of the parts were not those that had been told before."""
    told, came = (torch.cat(list(counts)).double() for counts in (counted, taken))
    return not torch.allclose(told, came, rtol=1e-4, atol=0, equal_nan=True)


# ---------------------------------------------------------------- what losses call


@contextmanager
def apart() -> Iterator[None]:
    """Each mean inside is that of the caller's own elements, whatever is around it."""
    global _parts
    before, _parts = _parts, None
    try:
        with _on(None):
            yield
    finally:
        _parts = before


def alone() -> bool:
    """Whether a mean here is that of the caller's own elements, which nobody counts."""
    return _world is None and _parts is None


def total(local: Tensor) -> Tensor:
    """The sum over ranks. Its gradient is ``size`` times the local one, which DDP averages away."""
    if _parts is not None:
        raise ValueError(
            "sum_and_count, accumulate: the loss pools the whole batch (pool='batch', balanced "
            "cross entropy, variant='released' or 'class_mean'), so it is another function of each "
            "part of it and cannot be accumulated exactly"
        )
    if _world is None:
        return local
    everywhere = _everywhere(local, _world)
    scaled = _world.size * local
    # An exact straight-through: `everywhere + (scaled - scaled)` has the value of the first and
    # the gradient of the second.
    return everywhere + (scaled - scaled.detach())


def mean(total_value: Tensor, count: Tensor | float, *, least: float = 0.0) -> Tensor:
    """``sum / count`` over all ranks, the count at least ``least``; 0 where nothing counts."""
    if not isinstance(count, Tensor) and alone():
        if torch.compiler.is_compiling():
            # No branch on the number, and no tensor of it: each size would make a new graph.
            # (A count below 1 is that of nothing, or has a least of 1.)
            return total_value / max(count, 1)
        return total_value / (max(count, least) or 1)
    count = _number(count, total_value)
    if _parts is not None:
        ranks = 1 if _world is None else _world.size
        return _parts.mean(total_value, count.detach(), least, ranks)
    if _world is not None:
        total_value, count = _world.size * total_value, _everywhere(count, _world)
    return _ratio(total_value, count, least)


def mean_of_one(value: Tensor, number: Tensor | float, count: Tensor | float | None) -> Tensor:
    """The mean of ``number`` elements of all ranks that have one value, the same on every rank.

    Each rank gives the whole of it: what a rank has of the elements is no share of its gradient.
    With a ``count`` the sum is divided by that of all ranks, at least 1.
    """
    if count is None:
        return (number > 0) * value
    return number / total(_number(count, value)).clamp_min(1) * value


def means() -> int:
    """How many means were noted so far, where they are."""
    return 0 if _parts is None else len(_parts.means)


def learn(value: Tensor, since: int) -> bool:
    """Whether a value (and the sums of the means noted since) is differentiated."""
    if _parts is None or len(_parts.means) == since:
        return value.requires_grad
    return any(mean.sum.requires_grad for mean in _parts.means[since:])


def forget(since: int) -> None:
    """Forget the means noted since: they are taken once more."""
    if _parts is not None:
        del _parts.means[since:]
