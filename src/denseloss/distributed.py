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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["SumCount", "exact", "sum_and_count"]


class SumCount(NamedTuple):
    """A loss as the pair that every mean is made of: ``mean = sum / count``."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment] # shadows tuple.count, which nobody calls here


class _World(NamedTuple):
    group: dist.ProcessGroup | None
    size: int


_world: _World | None = None
_record: list[SumCount] | None = None


@contextmanager
def exact(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Make each mean and each pooled sum inside exact over the ranks of a group.

    Weights are taken as constants: no gradient flows to a ``weight`` through the count.

    Args:
        group: the ranks that share a batch; None is all of them.

    Raises:
        ValueError: this rank is not in the group.
    """
    global _world
    before = _world
    if dist.is_available() and dist.is_initialized():
        size = dist.get_world_size(group)
        if size < 1:  # torch answers -1
            raise ValueError(
                f"exact: rank {dist.get_rank()} is not in the group; call it on its members alone"
            )
        _world = _World(group, size)
    try:
        yield
    finally:
        _world = before


def sum_and_count(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> SumCount:
    """The sum and the count whose ratio is the mean of a loss, for gradient accumulation.

    Only for losses whose value is a mean over elements or images: one that pools the batch
    (``pool="batch"``, balanced cross entropy, ``variant="released"`` or ``"class_mean"``) is
    another function of each part, and cannot be accumulated exactly.

    Call ``backward`` on each micro-batch's ``sum``, add up the counts, and divide the gradients
    by the total before the optimiser's step: the same gradient as that of one large batch.

    Args:
        loss: a loss with ``reduction="mean"`` that takes one mean (a single function or Module,
            not a weighted sum of several, whose terms have counts of their own).
        inputs: its tensors.
        options: its keywords.

    Raises:
        ValueError: the loss took no mean, or more than one.

    Example:
        >>> logits = torch.zeros(1, 2, 3)
        >>> from denseloss.functional import cross_entropy_loss
        >>> sum_and_count(cross_entropy_loss, logits, torch.tensor([[0, 1, -100]]))
        SumCount(sum=tensor(1.3863), count=tensor(2.))
    """
    global _record
    before, _record = _record, []
    try:
        loss(*inputs, **options)
        found = _record
    finally:
        _record = before
    if len(found) != 1:
        raise ValueError(
            f"sum_and_count: loss must take exactly one mean, it took {len(found)}; "
            'use reduction="mean", and call it for each term of a sum'
        )
    return found[0]


def alone() -> bool:
    """Whether a mean here is that of the caller's own elements, which nobody counts."""
    return _world is None and _record is None


def total(local: Tensor) -> Tensor:
    """The sum over ranks. Its gradient is ``size`` times the local one, which DDP averages away."""
    if _record is not None:
        raise ValueError(
            "sum_and_count: the loss pools the whole batch (pool='batch', balanced cross entropy, "
            "variant='released' or 'class_mean'), so it is another function of each part of it and "
            "cannot be accumulated exactly"
        )
    if _world is None:
        return local
    everywhere = local.detach().clone()
    dist.all_reduce(everywhere, group=_world.group)
    scaled = _world.size * local
    # An exact straight-through: `everywhere + (scaled - scaled)` has the value of the first and
    # the gradient of the second.
    return everywhere + (scaled - scaled.detach())


def mean(total_value: Tensor, count: Tensor | float, *, least: float = 0.0) -> Tensor:
    """``sum / count`` over all ranks, the count at least ``least``; 0 where nothing counts."""
    if isinstance(count, Tensor):
        count = count.to(total_value.dtype)  # ranks may count in integers and in floats
    elif alone() and not torch.compiler.is_compiling():
        return total_value / (max(count, least) or 1)
    else:
        count = torch.full((), count, dtype=total_value.dtype, device=total_value.device)
    if _record is not None:
        _record.append(SumCount(total_value, count.detach()))
    if _world is not None:
        total_value, count = _world.size * total_value, count.detach().clone()
        dist.all_reduce(count, group=_world.group)
    if least:
        return total_value / count.clamp_min(least)
    return total_value / torch.where(count == 0, 1, count)
