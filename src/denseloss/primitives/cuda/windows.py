"""`edge`: window means by running sums, and the weight that is high near the edges of a mask."""

# ruff: noqa: N803
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.elementwise import counted, share
from denseloss.primitives.cuda.launch import launch, readable
from denseloss.primitives.cuda.numbers import load

__all__ = ["edge"]

ROWS, ALONG_ROWS = 8, 128
COLUMNS, ALONG_COLUMNS = 32, 32


@triton.jit
def _sum_rows(
    target,
    weight,
    sums,
    rows,
    width,
    reach,
    ignore,
    ROWS: tl.constexpr,
    ALONG: tl.constexpr,
):
    """The sum of 2 reach + 1 pixels around each, along the last axis."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (row < rows)[:, None]
    start = row[:, None] * width
    # A window slides in from outside: the sum grows by what enters and shrinks by what leaves. In
    # float64 that is exact for masks of 0 and 1, and as good as exact for any other.
    carry = tl.zeros([ROWS], tl.float64)
    for first in range(-reach, width, ALONG):
        x = first + tl.arange(0, ALONG)[None, :]
        enters, leaves = x + reach, x - reach - 1
        new, _ = counted(target, weight, start + enters, there & (enters < width), ignore)
        old, _ = counted(
            target, weight, start + leaves, there & (leaves >= 0) & (leaves < width), ignore
        )
        change = new.to(tl.float64) - old.to(tl.float64)
        sliding = carry[:, None] + tl.cumsum(change, 1)
        carry += tl.sum(change, 1)
        tl.store(sums + start + x, sliding.to(tl.float32), there & (x >= 0) & (x < width))


@triton.jit
def _sum_columns(
    target,
    weight,
    sums,
    out,
    height,
    width,
    across,
    reach,
    reach_x,
    area,
    gamma,
    ignore,
    INSIDE: tl.constexpr,
    WEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALONG: tl.constexpr,
):
    """As `_sum_rows` along the columns of its sums, then the mean and the weight."""
    program = tl.program_id(0).to(tl.int64)
    x = (program % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    there = x < width
    start = program // across * height * width + x
    carry = tl.zeros([COLUMNS], tl.float64)
    for first in range(-reach, height, ALONG):
        y = (first + tl.arange(0, ALONG))[:, None]
        enters, leaves = y + reach, y - reach - 1
        new = load(sums + start + enters.to(tl.int64) * width, there & (enters < height))
        old = load(
            sums + start + leaves.to(tl.int64) * width, there & (leaves >= 0) & (leaves < height)
        )
        change = new.to(tl.float64) - old.to(tl.float64)
        sliding = carry[None, :] + tl.cumsum(change, 0)
        carry += tl.sum(change, 0)
        if INSIDE:
            high = tl.minimum(y + reach, height - 1) - tl.maximum(y - reach, 0) + 1
            wide = tl.minimum(x + reach_x, width - 1) - tl.maximum(x - reach_x, 0) + 1
            mean = tl.div_rn(sliding.to(tl.float32), high.to(tl.float32) * wide.to(tl.float32))
        else:
            mean = tl.div_rn(sliding.to(tl.float32), area)
        i = start + y.to(tl.int64) * width
        mask = there & (y >= 0) & (y < height)
        if WEIGHT:
            t, w = counted(target, weight, i, mask, ignore)
            mean = tl.where(w != 0, w * (1 + gamma * tl.abs(mean - share(t))), 0.0)
        tl.store(out + i, mean, mask)


def edge(
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    gamma: float,
    window: int,
    inside: bool,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    *images, height, width = target.shape
    rows = target.numel() // max(width, 1)
    across = triton.cdiv(width, COLUMNS)
    # A window that is wider than the image holds no more of it.
    reach_y, reach_x = (min(window // 2, max(size - 1, 0)) for size in (height, width))
    target = readable(target)
    sums = torch.empty_like(target, dtype=torch.float32)
    out = torch.empty_like(sums)
    launch(
        _sum_rows,
        (triton.cdiv(rows, ROWS),),
        target,
        target,
        weight,
        sums,
        rows,
        width,
        reach_x,
        ignore,
        ROWS=ROWS,
        ALONG=ALONG_ROWS,
        num_warps=4,
    )
    launch(
        _sum_columns,
        (math.prod(images) * across if height else 0,),
        target,
        target,
        weight,
        sums,
        out,
        height,
        width,
        across,
        reach_y,
        reach_x,
        float(window**2),
        gamma,
        ignore,
        INSIDE=inside,
        WEIGHT=gamma >= 0,
        COLUMNS=COLUMNS,
        ALONG=ALONG_COLUMNS,
        num_warps=4,
    )
    return out
