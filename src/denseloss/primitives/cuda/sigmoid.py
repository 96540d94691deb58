"""`sigmoid`: sums over the pixels of each channel, and the gradient of a combination of them."""

# ruff: noqa: N803
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.elementwise import fetch
from denseloss.primitives.cuda.launch import collect, given, launch, readable, results
from denseloss.primitives.cuda.numbers import bernoulli

__all__ = ["sigmoid", "sigmoid_backward"]

SUM_TILE = 512  # up to eight sums of each element of a tile are in registers
SLOPE_TILE = 1024
PROGRAMS = 4096  # fill the largest GPU several times over
ALONE = 8  # tiles that one program goes through faster than a second kernel starts


@triton.jit
def _channels(channels, programs, CHANNELS: tl.constexpr):
    """Number of the program among those of its channels, image, channels, and whether there."""
    # One axis of programs: neither images x channels nor tiles stay below 65536.
    program = tl.program_id(0).to(tl.int64)
    group = program // programs
    groups = tl.cdiv(channels, CHANNELS)
    channel = group % groups * CHANNELS + tl.arange(0, CHANNELS)
    return program % programs, group // groups, channel, channel < channels


@triton.jit
def _tile(
    tile,
    image,
    channel,
    there,
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    PIXELS: tl.constexpr,
):
    """Where the elements [PIXELS CHANNELS] of a tile lie, and which are there."""
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    i = pixel[:, None] * pixel_stride + channel[None, :] * channel_stride
    return i + image * channels * pixels, (pixel < pixels)[:, None] & there[None, :]


@triton.jit
def _positive(pos_weight, channel, there):
    if pos_weight is None:
        return 1.0
    else:  # noqa: RET505 - what is decided at compile time needs both branches
        return tl.load(pos_weight + channel, there, other=0)[None, :]


@triton.jit
def _sums(
    logits,
    target,
    weight,
    pos_weight,
    sums,
    present,
    entropy,
    weights,
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    tiles,
    programs,
    ignore,
    SUMS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    program, image, channel, there = _channels(channels, programs, CHANNELS)
    positive = _positive(pos_weight, channel, there)
    seen = tl.zeros([PIXELS, CHANNELS], tl.float32)
    both = tl.zeros_like(seen)
    predicted = tl.zeros_like(seen)
    true = tl.zeros_like(seen)
    predicted_square = tl.zeros_like(seen)
    true_square = tl.zeros_like(seen)
    wrong = tl.zeros_like(seen)
    total = tl.zeros_like(seen)
    for tile in range(program, tiles, programs):
        i, mask = _tile(
            tile, image, channel, there, pixels, channels, pixel_stride, channel_stride, PIXELS
        )
        z, t, w = fetch(logits, target, weight, i, mask, ignore, False)
        p, _, yes, no = bernoulli(z)
        seen = tl.where(w != 0, 1.0, seen)
        if SUMS > 0:
            # Not tl.minimum: NaN of either must come out.
            both += w * tl.where((p < t) | (p != p), p, t)
            predicted += w * p
            true += w * t
        if SUMS == 5:
            predicted_square += w * p * p
            true_square += w * t * t
        if entropy is not None:
            wrong += w * (positive * t * yes + (1 - t) * no)
            total += w
    row = image * channels + channel
    tl.store(present + row * programs + program, tl.max(seen, 0), there)
    if SUMS > 0:
        at = sums + row * SUMS * programs + program
        tl.store(at, tl.sum(both, 0), there)
        tl.store(at + programs, tl.sum(predicted, 0), there)
        tl.store(at + 2 * programs, tl.sum(true, 0), there)
    if SUMS == 5:
        at = sums + row * SUMS * programs + program
        tl.store(at + 3 * programs, tl.sum(predicted_square, 0), there)
        tl.store(at + 4 * programs, tl.sum(true_square, 0), there)
    if entropy is not None:
        at = row * programs + program
        tl.store(entropy + at, tl.sum(wrong, 0), there)
        tl.store(weights + at, tl.sum(total, 0), there)


@triton.jit
def _lower(p, t):
    """The derivative of min(p, t) by p; between equals it is that of a target which may move."""
    tie = tl.where(t >= 1, 1.0, tl.where(t <= 0, 0.0, 0.5))
    return tl.where(p < t, 1.0, tl.where(p > t, 0.0, tl.where(p == t, tie, float("nan"))))


@triton.jit
def _slope(
    logits,
    target,
    weight,
    pos_weight,
    grad_sums,
    grad_entropy,
    grad,
    pixels,
    channels,
    pixel_stride,
    channel_stride,
    tiles,
    ignore,
    SUMS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tile, image, channel, there = _channels(channels, tiles, CHANNELS)
    i, mask = _tile(
        tile, image, channel, there, pixels, channels, pixel_stride, channel_stride, PIXELS
    )
    z, t, w = fetch(logits, target, weight, i, mask, ignore, False)
    p, q, _, _ = bernoulli(z)
    row = image * channels + channel
    slope = tl.zeros_like(p)
    if grad_sums is not None:
        at = grad_sums + row * SUMS
        by_p = tl.load(at, there, other=0)[None, :] * _lower(p, t)
        by_p += tl.load(at + 1, there, other=0)[None, :]
        if SUMS == 5:
            by_p += 2 * p * tl.load(at + 3, there, other=0)[None, :]
        slope += by_p * p * q
    if grad_entropy is not None:
        share = tl.load(grad_entropy + row, there, other=0)[None, :]
        slope += share * ((1 - t) * p - _positive(pos_weight, channel, there) * t * q)
    slope = tl.where(w != 0, w * slope, 0.0)  # also where what comes from above is NaN
    tl.store(grad + i, slope.to(grad.dtype.element_ty), mask)


def _geometry(logits: Tensor, elements: int) -> tuple[tuple[int, ...], dict[str, Any], int]:
    """How the pixels and channels lie in memory, and tiles; the tile; groups of channels."""
    n, c = logits.shape[:2]
    pixels = logits.numel() // max(n * c, 1)
    inner = c > 1 and logits.stride(1) == 1  # the class axis is innermost
    channels = min(triton.next_power_of_2(c), 64) if inner else 1
    height = elements // channels
    strides = (c, 1) if inner else (1, pixels)
    return (
        (pixels, c, *strides, triton.cdiv(pixels, height)),
        {"PIXELS": height, "CHANNELS": channels, "num_warps": 4},
        n * triton.cdiv(c, channels),
    )


def sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore: float | None,
    sums: int,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    geometry, tile, groups = _geometry(logits, SUM_TILE)
    tiles = geometry[-1]
    programs = 1 if tiles <= ALONE else min(tiles, max(PROGRAMS // groups, 1))
    found = results(logits, programs, sums, entropy=entropy)
    launch(
        _sums,
        (groups * programs,),
        logits,
        logits,
        readable(target),
        weight,
        pos_weight,
        *found,
        *geometry,
        programs,
        ignore,
        SUMS=sums,
        **tile,
    )
    total, present, wrong, counted = found if programs == 1 else collect(*found)
    return given(total, logits), present, given(wrong, logits), given(counted, logits)


def sigmoid_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore: float | None,
    grad_sums: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    geometry, tile, groups = _geometry(logits, SLOPE_TILE)
    grad = torch.empty_like(logits)
    launch(
        _slope,
        (groups * geometry[-1],),
        logits,
        logits,
        readable(target),
        weight,
        pos_weight,
        None if grad_sums is None else grad_sums.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(),
        grad,
        *geometry,
        ignore,
        SUMS=0 if grad_sums is None else grad_sums.shape[-1],
        **tile,
    )
    return grad
