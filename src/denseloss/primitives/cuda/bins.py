"""`bins`: distribution focal loss, value and gradient in one pass over the logits."""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import buffers, collected, launch
from denseloss.primitives.cuda.numbers import load

__all__ = ["bins"]

TILE = 1024


@triton.jit
def _bins(
    logits,
    target,
    weight,
    upstream,
    partial,
    values,
    grad,
    rows,
    scale,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    MAP: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    there = row < rows
    w = tl.where(there, 1.0, 0.0) if weight is None else load(weight + row, there)
    counts = w != 0
    y = tl.where(counts, load(target + row, there), 0.0)
    y = tl.where(y < 0, 0.0, tl.where(y > BINS - 1, BINS - 1.0, y))
    low = tl.where(y > 0, tl.floor(y), 0.0).to(tl.int32)  # 0 for NaN
    low = tl.maximum(tl.minimum(low, BINS - 2), 0)
    high = tl.minimum(low + 1, BINS - 1)
    above = y - low
    below = 1 - above

    lane = tl.arange(0, WIDTH)[None, :]
    i = row[:, None] * BINS + lane
    mask = there[:, None] & (lane < BINS)
    z = tl.where(counts[:, None], load(logits + i, mask), 0.0)
    z = tl.where(lane < BINS, z, float("-inf"))
    z -= tl.max(z, 1)[:, None]
    e = tl.exp(z)
    whole = tl.sum(e, 1)
    at_low, at_high = lane == low[:, None], lane == high[:, None]
    log_low = tl.sum(tl.where(at_low, z, 0.0), 1) - tl.log(whole)
    log_high = tl.sum(tl.where(at_high, z, 0.0), 1) - tl.log(whole)
    value = w * (-below * log_low - above * log_high)

    if partial is not None:
        tl.store(partial + block, scale * tl.sum(value, 0))
        tl.store(partial + tl.num_programs(0) + block, tl.sum(w, 0))
    if values is not None:
        tl.store(values + row, value, there)
    if grad is not None:
        factor = scale * w
        if upstream is not None:
            factor *= load(upstream + row, there) if MAP else tl.load(upstream)
        # below + above is 1, or NaN with the target
        slope = e * ((below + above) / whole)[:, None]
        slope -= tl.where(at_low, below[:, None], 0.0) + tl.where(at_high, above[:, None], 0.0)
        slope = tl.where(counts[:, None], slope * factor[:, None], 0.0)
        tl.store(grad + i, slope.to(grad.dtype.element_ty), mask)


def bins(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    count = logits.shape[-1]
    width = triton.next_power_of_2(count)
    height = max(TILE // width, 1)
    blocks = triton.cdiv(target.numel(), height)
    partial, value, slope = buffers(logits, target, blocks, sums=sums, values=values, grad=grad)
    launch(
        _bins,
        (blocks,),
        logits,
        logits,
        target,
        weight,
        upstream,
        partial,
        value,
        slope,
        target.numel(),
        scale,
        BINS=count,
        WIDTH=width,
        ROWS=height,
        MAP=upstream is not None and upstream.ndim > 0,
        num_warps=min(max(width // 512, 4), 32),
    )
    return collected(logits, partial, value, slope)
