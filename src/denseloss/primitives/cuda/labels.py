"""`label_count`: pixels of each class; `class_values`: the value of the class of each pixel."""

# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import load

__all__ = ["class_values", "label_count"]

BLOCK = 4096
SHORT = 1024
ALONE = 8  # blocks that one program goes through faster than a second kernel starts
PROGRAMS = 256
PARTIAL = 2**17  # numbers that the programs leave, or one program
MOST_BINS = 4096  # of a histogram in shared memory
TILE = 64


@triton.jit
def _label(target, weight, i, size, ignore, classes):
    """Labels at ``i``, and which count; those that are no class are the one behind the classes."""
    mask = i < size
    label = tl.load(target + i, mask=mask, other=0).to(tl.int64)
    counted = mask & (label != ignore)
    if weight is not None:
        counted &= load(weight + i, mask) != 0
    return tl.where((label < 0) | (label >= classes), classes, label), counted


@triton.jit
def _count(
    target,
    weight,
    counts,
    out,
    size,
    ignore,
    classes,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The counts of a program, [programs BINS]; if it is alone, the results in ``out``."""
    program = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int32)
    for first in range(program * BLOCK, size, tl.num_programs(0) * BLOCK):
        i = first + tl.arange(0, BLOCK)
        label, counted = _label(target, weight, i, size, ignore, classes)
        total += tl.histogram(tl.where(counted, label, BINS - 1).to(tl.int32), BINS)
    if out is None:
        tl.store(counts + program * BINS + bins, total)
    else:
        outside = tl.sum(tl.where(bins == classes, total, 0), 0) > 0
        tl.store(out + bins, tl.where(outside, float("nan"), total.to(tl.float32)), bins < classes)


@triton.jit
def _count_many(target, weight, counts, size, ignore, classes, BLOCK: tl.constexpr):
    """As `_count`, where the classes are too many for a histogram: one row for all programs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    label, counted = _label(target, weight, i, size, ignore, classes)
    tl.atomic_add(counts + label, tl.full([BLOCK], 1, tl.int32), counted)


@triton.jit
def _publish(counts, out, rows, bins, classes, TILE: tl.constexpr):
    """The sums over the rows of counts [rows bins]."""
    number = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = number < classes
    total = tl.zeros([TILE], tl.int64)
    outside = tl.zeros([TILE], tl.int64)
    for first in range(0, rows, TILE):
        row = first + tl.arange(0, TILE)
        mask = row < rows
        tile = tl.load(
            counts + row[:, None] * bins + number[None, :],
            mask=mask[:, None] & there[None, :],
            other=0,
        )
        total += tl.sum(tile.to(tl.int64), 0)
        outside += tl.load(counts + row * bins + classes, mask=mask, other=0)
    wrong = tl.sum(outside, 0) > 0
    tl.store(out + number, tl.where(wrong, float("nan"), total.to(tl.float32)), there)


@triton.jit
def _look_up(target, values, out, size, classes, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    label = tl.load(target + i, mask=mask, other=0).to(tl.int64)
    known = mask & (label >= 0) & (label < classes)
    tl.store(out + i, load(values + label, known), mask)


def label_count(target: Tensor, weight: Tensor | None, ignore: int, classes: int) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    out = target.new_empty(classes, dtype=torch.float32)
    inputs = (target.numel(), ignore, classes)
    blocks = triton.cdiv(target.numel(), BLOCK)
    # One bin more than the labels need, for pixels that do not count.
    bins = max(triton.next_power_of_2(classes + 2), 32)
    if bins > MOST_BINS:
        counts = target.new_zeros(1, classes + 1, dtype=torch.int32)
        launch(
            _count_many,
            (blocks,),
            target,
            target,
            weight,
            counts,
            *inputs,
            BLOCK=BLOCK,
            num_warps=8,
        )
    else:
        alone = blocks <= ALONE
        programs = 1 if alone else min(blocks, PROGRAMS, PARTIAL // bins)
        counts = target.new_empty(programs, bins, dtype=torch.int32)
        launch(
            _count,
            (programs,),
            target,
            target,
            weight,
            counts,
            out if alone else None,
            *inputs,
            BINS=bins,
            BLOCK=BLOCK,
            num_warps=8,
        )
        if alone:
            return out
    launch(
        _publish,
        (triton.cdiv(classes, TILE),),
        target,
        counts,
        out,
        *counts.shape,
        classes,
        TILE=TILE,
        num_warps=4,
    )
    return out


def class_values(target: Tensor, values: Tensor) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    out = torch.empty_like(target, dtype=torch.float32)
    launch(
        _look_up,
        (triton.cdiv(target.numel(), SHORT),),
        target,
        target,
        values,
        out,
        target.numel(),
        values.numel(),
        BLOCK=SHORT,
        num_warps=4,
    )
    return out
