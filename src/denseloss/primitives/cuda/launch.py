"""How kernels are started, and how the sums of their programs are added up."""

# ruff: noqa: N803
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["buffers", "collect", "collected", "given", "launch", "readable", "results", "total"]

SPAN = 2048
SHORT = 512  # a span where few programs are expected


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
def _sum(partial, row, count, SPAN: tl.constexpr):
    """The sum of a row of ``count`` numbers, always added in the same order."""
    sums = tl.zeros([SPAN], tl.float64)
    for first in range(0, count, SPAN):
        i = first + tl.arange(0, SPAN)
        sums += tl.load(partial + row * count + i, mask=i < count, other=0).to(tl.float64)
    return tl.sum(sums, 0).to(tl.float32)


@triton.jit
def _total(partial, out, count, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tl.store(out + row, _sum(partial, row, count, SPAN))


def total(partial: Tensor) -> Tensor:
    """The sums over the last axis of float32 ``partial``."""
    *rows, count = partial.shape
    if count == 1:
        return partial.squeeze(-1)
    out = partial.new_empty(rows)
    launch(_total, (out.numel(),), partial, partial, out, count, SPAN=SPAN, num_warps=8)
    return out


@triton.jit
def _collect(
    sums_of,
    present_of,
    entropy_of,
    weights_of,
    sums,
    present,
    entropy,
    weights,
    programs,
    COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    for k in tl.static_range(COLUMNS):
        row = line * COLUMNS + k
        tl.store(sums + row, _sum(sums_of, row, programs, SPAN))
    seen = _sum(present_of, line, programs, SPAN)
    tl.store(present + line, tl.where(seen > 0, 1.0, 0.0))
    if entropy is not None:
        tl.store(entropy + line, _sum(entropy_of, line, programs, SPAN))
        tl.store(weights + line, _sum(weights_of, line, programs, SPAN))


def results(
    logits: Tensor, programs: int, columns: int, *, entropy: bool = False
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """What the programs of an image leave for each class.

    The sums [n c columns programs], 1 if anything counts [n c programs], entropy and weights
    likewise; where there is one program, they lack the last axis and need no `collect`.
    """

    def empty(*rows: int) -> Tensor:
        last = () if programs == 1 else (programs,)
        return logits.new_empty(*logits.shape[:2], *rows, *last, dtype=torch.float32)

    return (
        empty(columns) if columns else None,
        empty(),
        empty() if entropy else None,
        empty() if entropy else None,
    )


def collect(
    sums: Tensor | None,
    present: Tensor,
    entropy: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """`results` of several programs, added up."""
    programs = present.shape[-1]
    found = present.new_empty(present.shape[:-1])
    total = None if sums is None else sums.new_empty(sums.shape[:-1])
    wrong = None if entropy is None else torch.empty_like(found)
    weight = None if weights is None else torch.empty_like(found)
    launch(
        _collect,
        (found.numel(),),
        present,
        sums,
        present,
        entropy,
        weights,
        total,
        found,
        wrong,
        weight,
        programs,
        COLUMNS=0 if sums is None else sums.shape[2],
        SPAN=SHORT,
        num_warps=4,
    )
    return total, found, wrong, weight


def buffers(
    rows: Tensor, scores: Tensor, blocks: int, *, sums: bool, values: bool, grad: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the programs of a row-wise operator write: two sums each, values and gradient."""
    return (
        rows.new_empty(2, blocks, dtype=torch.float32) if sums else None,
        torch.empty_like(scores, dtype=torch.float32) if values else None,
        torch.empty_like(rows) if grad else None,
    )


def given(x: Tensor | None, like: Tensor) -> Tensor:
    """A result, empty where it was not asked for: each is a tensor of its own."""
    return like.new_empty(0, dtype=torch.float32) if x is None else x


def collected(
    rows: Tensor, partial: Tensor | None, values: Tensor | None, grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a row-wise operator returns; what was not asked for is empty."""
    return (
        given(None if partial is None else total(partial), rows),
        given(values, rows),
        rows.new_empty(0) if grad is None else grad,
    )
