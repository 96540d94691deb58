"""How kernels are started, and how the sums of their programs are added up."""

# ruff: noqa: N803
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["buffers", "collected", "launch", "readable", "total"]

SPAN = 4096


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    like: Tensor,
    *args: Any,
    fuse: bool = True,
    **constants: Any,
) -> None:
    """Start ``kernel`` on the device of ``like``, which need not be the current one.

    An empty grid starts nothing. ``fuse`` lets a b + c be rounded once; Triton's own default
    differs between its versions.
    """
    if 0 in grid:
        return
    with torch.cuda.device_of(like):
        kernel[grid](*args, **constants, enable_fp_fusion=fuse)


def readable(x: Tensor) -> Tensor:
    """The same memory in a dtype that Triton can load."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


@triton.jit
def _total(partial, out, count, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    x = tl.load(partial + row * count + i, mask=i < count, other=0).to(tl.float64)
    tl.store(out + row * tl.num_programs(1) + tl.program_id(1), tl.sum(x, 0).to(tl.float32))


def total(partial: Tensor) -> Tensor:
    """The sums over the last axis of float32 ``partial``, always added in the same order."""
    if partial.numel() == 0:
        return partial.new_zeros(partial.shape[:-1])
    while (count := partial.shape[-1]) > 1:
        spans = triton.cdiv(count, SPAN)
        out = partial.new_empty(*partial.shape[:-1], spans)
        grid = (out.numel() // spans, spans)
        launch(_total, grid, partial, partial, out, count, SPAN=SPAN, num_warps=8)
        partial = out
    return partial.squeeze(-1)


def buffers(
    rows: Tensor, scores: Tensor, blocks: int, *, sums: bool, values: bool, grad: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the programs of a row-wise operator write: two sums each, values and gradient."""
    return (
        rows.new_empty(2, blocks, dtype=torch.float32) if sums else None,
        torch.empty_like(scores, dtype=torch.float32) if values else None,
        torch.empty_like(rows) if grad else None,
    )


def collected(
    rows: Tensor, partial: Tensor | None, values: Tensor | None, grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a row-wise operator returns; what was not asked for is empty."""
    return (
        rows.new_empty(0, dtype=torch.float32) if partial is None else total(partial),
        rows.new_empty(0, dtype=torch.float32) if values is None else values,
        rows.new_empty(0) if grad is None else grad,
    )
