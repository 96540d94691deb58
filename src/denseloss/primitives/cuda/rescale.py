"""`rescale`: a gradient that was computed ahead, times what comes down the graph."""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch

__all__ = ["rescale"]

BLOCK = 4096


@triton.jit
def _rescale(grad, factor, count, BLOCK: tl.constexpr):
    f = tl.load(factor)
    # Read on the device, so the host need not wait; most often there is nothing to do.
    if f != 1:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(grad + i, mask=i < count, other=0).to(tl.float32)
        scaled = tl.where(x != 0, x * f, 0.0)  # what is void stays 0, times inf, too
        tl.store(grad + i, scaled.to(grad.dtype.element_ty), mask=i < count)


def rescale(grad: Tensor, factor: Tensor) -> None:
    """See `denseloss.primitives.fused.ops`."""
    blocks = triton.cdiv(grad.numel(), BLOCK)
    launch(_rescale, (blocks,), grad, grad, factor, grad.numel(), BLOCK=BLOCK, num_warps=8)
