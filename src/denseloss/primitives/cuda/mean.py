"""`weighted_mean`: the mean of a map under weights, and its gradient."""

# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import load

__all__ = ["weighted_mean", "weighted_mean_backward"]

BLOCK = 4096
ALONE = 8  # blocks that one program goes through faster than a second kernel starts
PROGRAMS = 1024


@triton.jit
def _store(mean, total, value, count, DIVIDE: tl.constexpr):
    tl.store(total, count)
    tl.store(mean, tl.div_rn(value, tl.where(count == 0, 1.0, count)) if DIVIDE else value)


@triton.jit
def _sums(values, weight, count, mean, total, size, DIVIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The two sums of a program, [2 programs] in ``mean``; if it is alone, the results."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)
    value = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.float32)
    for first in range(program * BLOCK, size, programs * BLOCK):
        i = first + tl.arange(0, BLOCK)
        mask = i < size
        w = load(weight + i, mask)
        value += tl.where(w != 0, w * load(values + i, mask), 0.0)
        counted += w if count is None else load(count + i, mask)
    if total is None:
        tl.store(mean + program, tl.sum(value, 0))
        tl.store(mean + programs + program, tl.sum(counted, 0))
    else:
        _store(mean, total, tl.sum(value, 0), tl.sum(counted, 0), DIVIDE)


@triton.jit
def _mean(partial, mean, total, programs, DIVIDE: tl.constexpr, SPAN: tl.constexpr):
    i = tl.arange(0, SPAN)
    value = tl.load(partial + i, mask=i < programs, other=0).to(tl.float64)
    count = tl.load(partial + programs + i, mask=i < programs, other=0).to(tl.float64)
    _store(
        mean,
        total,
        tl.sum(value, 0).to(tl.float32),
        tl.sum(count, 0).to(tl.float32),
        DIVIDE,
    )


@triton.jit
def _backward(upstream, total, weight, grad, size, DIVIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    share = tl.load(upstream)
    if DIVIDE:
        count = tl.load(total)
        share /= tl.where(count == 0, 1.0, count)
    w = load(weight + i, mask)
    tl.store(grad + i, tl.where(w != 0, w * share, 0.0), mask)


def weighted_mean(
    values: Tensor, weight: Tensor, count: Tensor | None, divide: bool
) -> tuple[Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    mean, total = values.new_empty(()), values.new_empty(())
    blocks = triton.cdiv(values.numel(), BLOCK)
    programs = 1 if blocks <= ALONE else min(blocks, PROGRAMS)
    partial = None if programs == 1 else values.new_empty(2, programs)
    launch(
        _sums,
        (programs,),
        values,
        values,
        weight,
        count,
        mean if partial is None else partial,
        total if partial is None else None,
        values.numel(),
        DIVIDE=divide,
        BLOCK=BLOCK,
        num_warps=8,
    )
    if partial is not None:
        launch(
            _mean,
            (1,),
            values,
            partial,
            mean,
            total,
            programs,
            DIVIDE=divide,
            SPAN=PROGRAMS,
            num_warps=4,
        )
    return mean, total


def weighted_mean_backward(upstream: Tensor, total: Tensor, weight: Tensor, divide: bool) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    grad = torch.empty_like(weight)
    launch(
        _backward,
        (triton.cdiv(weight.numel(), BLOCK),),
        weight,
        upstream,
        total,
        weight,
        grad,
        weight.numel(),
        DIVIDE=divide,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return grad
