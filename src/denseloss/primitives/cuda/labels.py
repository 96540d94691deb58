"""`label_count`: pixels of each class."""

# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import load

__all__ = ["label_count"]

BLOCK = 4096
MOST_BINS = 4096  # of a histogram in shared memory


@triton.jit
def _count(
    target,
    weight,
    counts,
    size,
    ignore,
    classes,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    label = tl.load(target + i, mask=mask, other=0).to(tl.int64)
    counted = mask & (label != ignore)
    if weight is not None:
        counted &= load(weight + i, mask) != 0
    # Labels that are no class share the bin behind the classes.
    label = tl.where((label < 0) | (label >= classes), classes, label)
    if BINS == 0:
        tl.atomic_add(counts + label, tl.full([BLOCK], 1, tl.int64), counted)
    else:
        bins = tl.arange(0, BINS)
        here = tl.histogram(tl.where(counted, label, BINS - 1).to(tl.int32), BINS)
        tl.atomic_add(counts + bins, here.to(tl.int64), (bins <= classes) & (here > 0))


@triton.jit
def _publish(counts, out, classes, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + i, i < classes, other=0).to(tl.float32)
    outside = tl.load(counts + classes) > 0
    tl.store(out + i, tl.where(outside, float("nan"), count), i < classes)


def label_count(target: Tensor, weight: Tensor | None, ignore: int, classes: int) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    counts = target.new_zeros(classes + 1, dtype=torch.int64)
    out = target.new_empty(classes, dtype=torch.float32)
    # One bin more than the labels need, for pixels that do not count.
    bins = max(triton.next_power_of_2(classes + 2), 32)
    launch(
        _count,
        (triton.cdiv(target.numel(), BLOCK),),
        target,
        target,
        weight,
        counts,
        target.numel(),
        ignore,
        classes,
        BINS=bins if bins <= MOST_BINS else 0,
        BLOCK=BLOCK,
        num_warps=8,
    )
    launch(_publish, (triton.cdiv(classes, 1024),), target, counts, out, classes, BLOCK=1024)
    return out
