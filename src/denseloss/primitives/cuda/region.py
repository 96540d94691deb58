"""`region`: sums over the pixels of each channel, and the gradient of a combination of them."""

# ruff: noqa: N803
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch, readable, total
from denseloss.primitives.cuda.numbers import bernoulli
from denseloss.primitives.cuda.pointwise import fetch

__all__ = ["region", "region_backward"]

TILE = 1024
SUMS = 6


@triton.jit
def _tile(
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    blocks,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Where the elements [PIXELS CHANNELS] of a program lie, and the number of each channel."""
    # One axis of programs: neither images x channels nor blocks stay below 65536.
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    group = program // blocks
    groups = tl.cdiv(channels, CHANNELS)
    image = group // groups
    channel = group % groups * CHANNELS + tl.arange(0, CHANNELS)
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    i = pixel[:, None] * pixel_stride + channel[None, :] * channel_stride
    there = channel < channels
    mask = (pixel < pixels)[:, None] & there[None, :]
    return i + image * channels * pixels, mask, image * channels + channel, there, block


@triton.jit
def _region(
    logits,
    target,
    weight,
    partial,
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    blocks,
    ignore,
    ENTROPY: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    i, mask, row, there, block = _tile(
        pixels, channels, pixel_stride, channel_stride, blocks, PIXELS, CHANNELS
    )
    z, t, w = fetch(logits, target, weight, i, mask, ignore)
    p, _, nlp, nlq = bernoulli(z)
    out = partial + row * 6 * blocks + block
    tl.store(out, tl.sum(w * p * t, 0), there)
    tl.store(out + blocks, tl.sum(w * p, 0), there)
    tl.store(out + 2 * blocks, tl.sum(w * t, 0), there)
    tl.store(out + 3 * blocks, tl.sum((w != 0).to(tl.float32), 0), there)
    if ENTROPY:
        tl.store(out + 4 * blocks, tl.sum(w * (t * nlp + (1 - t) * nlq), 0), there)
    else:
        tl.store(out + 4 * blocks, tl.zeros_like(row).to(tl.float32), there)
    tl.store(out + 5 * blocks, tl.sum(w, 0), there)


@triton.jit
def _region_backward(
    logits,
    target,
    weight,
    upstream,
    grad,
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    blocks,
    ignore,
    ENTROPY: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    i, mask, row, there, _ = _tile(
        pixels, channels, pixel_stride, channel_stride, blocks, PIXELS, CHANNELS
    )
    z, t, w = fetch(logits, target, weight, i, mask, ignore)
    p, q, _, _ = bernoulli(z)
    both = tl.load(upstream + row * 3, there, other=0)[None, :]
    predicted = tl.load(upstream + row * 3 + 1, there, other=0)[None, :]
    slope = (both * t + predicted) * p * q
    if ENTROPY:
        share = tl.load(upstream + row * 3 + 2, there, other=0)[None, :]
        slope += share * ((1 - t) * p - t * q)
    slope = tl.where(w != 0, w * slope, 0.0)  # also where the upstream is NaN
    tl.store(grad + i, slope.to(grad.dtype.element_ty), mask)


def _grid(logits: Tensor) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """The number of programs, how the pixels and channels lie in memory, and the tile."""
    n, c = logits.shape[:2]
    pixels = logits.numel() // max(n * c, 1)
    inner = c > 1 and logits.stride(1) == 1  # the class axis is innermost
    channels = min(triton.next_power_of_2(c), 64) if inner else 1
    height = TILE // channels
    blocks = triton.cdiv(pixels, height)
    strides = (c, 1) if inner else (1, pixels)
    grid = n * triton.cdiv(c, channels) * blocks
    return grid, (pixels, c, *strides, blocks), {"PIXELS": height, "CHANNELS": channels}


def region(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    grid, geometry, tile = _grid(logits)
    partial = logits.new_empty(*logits.shape[:2], SUMS, geometry[-1], dtype=torch.float32)
    launch(
        _region,
        (grid,),
        logits,
        logits,
        readable(target),
        weight,
        partial,
        *geometry,
        ignore,
        ENTROPY=entropy,
        **tile,
        num_warps=4,
    )
    return total(partial)


def region_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
    grad: Tensor,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    grid, geometry, tile = _grid(logits)
    slope = torch.empty_like(logits)
    launch(
        _region_backward,
        (grid,),
        logits,
        logits,
        readable(target),
        weight,
        grad.contiguous(),
        slope,
        *geometry,
        ignore,
        ENTROPY=entropy,
        **tile,
        num_warps=4,
    )
    return slope
