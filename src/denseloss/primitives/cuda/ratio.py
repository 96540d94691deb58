"""`ratio`: one linear form of a few sums over another, and its gradient, row by row."""

# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import TINY, load, quotient

__all__ = ["ratio", "ratio_backward"]

BLOCK = 128
WIDTH = tl.constexpr(8)  # of a tile
MOST = 5  # sums of a row: their factors come one by one, since Triton 3.2 takes no tuples


@triton.jit
def _factors(f0, f1, f2, f3, f4):
    """The factors of the sums, as a row of a tile."""
    k = tl.arange(0, WIDTH)
    behind = tl.where(k == 3, f3, tl.where(k == 4, f4, 0.0))
    return tl.where(k == 0, f0, tl.where(k == 1, f1, tl.where(k == 2, f2, behind)))[None, :]


@triton.jit
def _rows(sums, rows, K: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of the rows of a program, [BLOCK WIDTH], and where they lie."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, WIDTH)[None, :]
    i = row[:, None] * K + k
    mask = (row < rows)[:, None] & (k < K)
    return load(sums + i, mask), row, i, mask


@triton.jit
def _ratio(
    sums,
    out,
    rows,
    empty,
    a0,
    a1,
    a2,
    a3,
    a4,
    a,
    b0,
    b1,
    b2,
    b3,
    b4,
    b,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x, row, _, _ = _rows(sums, rows, K, BLOCK)
    above = tl.sum(x * _factors(a0, a1, a2, a3, a4), 1) + a
    below = tl.sum(x * _factors(b0, b1, b2, b3, b4), 1) + b
    tl.store(out + row, quotient(above, below, empty), row < rows)


@triton.jit
def _slope(
    sums,
    upstream,
    grad,
    rows,
    stride,
    a0,
    a1,
    a2,
    a3,
    a4,
    a,
    b0,
    b1,
    b2,
    b3,
    b4,
    b,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    x, row, i, mask = _rows(sums, rows, K, BLOCK)
    up, down = _factors(a0, a1, a2, a3, a4), _factors(b0, b1, b2, b3, b4)
    below = tl.sum(x * down, 1) + b
    value = quotient(tl.sum(x * up, 1) + a, below, 0.0)
    share = quotient(load(upstream + row * stride, row < rows), below, 0.0)
    slope = share[:, None] * (up - value[:, None] * down)
    tl.store(grad + i, tl.where((tl.abs(below) < TINY)[:, None], 0.0, slope), mask)


def ratio(sums: Tensor, above: Sequence[float], below: Sequence[float], empty: float) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    sums = sums.contiguous()
    *rows, k = sums.shape
    out = sums.new_empty(rows)
    launch(
        _ratio,
        (triton.cdiv(out.numel(), BLOCK),),
        sums,
        sums,
        out,
        out.numel(),
        empty,
        *_form(k, above),
        *_form(k, below),
        K=k,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


def ratio_backward(
    upstream: Tensor, sums: Tensor, above: Sequence[float], below: Sequence[float]
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    sums = sums.contiguous()
    grad = torch.empty_like(sums)
    # The gradient of a mean is one number that only looks like many: copying it were a launch.
    same = not any(upstream.stride())
    launch(
        _slope,
        (triton.cdiv(upstream.numel(), BLOCK),),
        sums,
        sums,
        upstream if same else upstream.contiguous(),
        grad,
        upstream.numel(),
        0 if same else 1,
        *_form(sums.shape[-1], above),
        *_form(sums.shape[-1], below),
        K=sums.shape[-1],
        BLOCK=BLOCK,
        num_warps=4,
    )
    return grad


def _form(k: int, factors: Sequence[float]) -> tuple[float, ...]:
    """The factors of `MOST` sums, 0 for those that are not there, then the number without one."""
    if k > MOST:
        raise ValueError(f"ratio: {k} sums; there may be {MOST}")
    return (*map(float, factors[:k]), *[0.0] * (MOST - k), float(factors[k]))
