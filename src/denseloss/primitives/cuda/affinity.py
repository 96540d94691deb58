"""`association`: ties of each pixel with the pixels around it, and their gradient."""

# ruff: noqa: N803
from __future__ import annotations

from math import ceil

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch, total
from denseloss.primitives.cuda.numbers import load

__all__ = ["association", "association_backward"]

ELEMENTS = 512  # of a tile for each warp
BLOCK = 1024
FAINT = 1e-38  # a squared scale below it would have no inverse


@triton.jit
def _gather(
    probability,
    image,
    filtered,
    degree,
    within,
    tied,
    height,
    width,
    tiles,
    reach_y,
    reach_x,
    limit,
    inverse_intensity,
    inverse_space,
    CLASSES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """`filtered` and `degree` of a tile of pixels, and its part of the two sums."""
    n = tl.program_id(0).to(tl.int64) // tiles
    tile = tl.program_id(0) % tiles
    pixels = tl.cast(height, tl.int64) * width
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    there = number < CLASSES
    at = tile.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = at < pixels
    y = (at // width).to(tl.int32)
    x = (at % width).to(tl.int32)
    channels = image + n * CHANNELS * pixels
    classes = probability + (n * CLASSES + number)[:, None] * pixels
    gathered = tl.zeros([triton.next_power_of_2(CLASSES), PIXELS], tl.float32)
    ties = tl.zeros([PIXELS], tl.float32)
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            if dy * dy + dx * dx < limit:
                near = inside & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                beside = at + dy * width + dx
                colour = tl.zeros([PIXELS], tl.float32)
                for i in range(CHANNELS):
                    channel = channels + i * pixels
                    difference = load(channel + at, near) - load(channel + beside, near)
                    colour += difference * difference
                distance = (dy * dy + dx * dx) * inverse_space
                tie = tl.where(near, tl.exp(-colour * inverse_intensity - distance), 0.0)
                ties += tie
                gathered += tie[None, :] * load(
                    classes + beside[None, :], there[:, None] & near[None, :]
                )
    mask = there[:, None] & inside[None, :]
    own = load(classes + at[None, :], mask)
    tl.store(filtered + (n * CLASSES + number)[:, None] * pixels + at[None, :], gathered, mask)
    tl.store(degree + n * pixels + at, ties, inside)
    line = (n * CLASSES + number) * tiles + tile
    tl.store(within + line, tl.sum(own * gathered, 1), there)
    tl.store(tied + line, tl.sum(own * ties[None, :], 1), there)


@triton.jit
def _slope(
    filtered,
    degree,
    grad_within,
    grad_total,
    grad,
    pixels,
    blocks,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) // blocks
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    slope = 2 * tl.load(grad_within + row) * load(filtered + row * pixels + at, inside)
    slope += tl.load(grad_total + row) * load(degree + row // CLASSES * pixels + at, inside)
    tl.store(grad + row * pixels + at, slope, inside)


def association(
    probability: Tensor,
    image: Tensor,
    radius: float,
    sigma_intensity: float,
    sigma_space: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    n, k, height, width = probability.shape
    classes = triton.next_power_of_2(k)
    warps = min(max(classes // 32, 2), 16)
    lanes = max(ELEMENTS * warps // classes, 1)
    lanes = min(lanes, 256, triton.next_power_of_2(max(height * width, 1)))
    tiles = triton.cdiv(height * width, lanes)
    filtered = torch.empty_like(probability)
    degree = probability.new_empty(n, height, width)
    within = probability.new_empty(n, k, tiles)
    tied = torch.empty_like(within)
    reach = ceil(radius) - 1
    launch(
        _gather,
        (n * tiles,),
        probability,
        probability,
        image,
        filtered,
        degree,
        within,
        tied,
        height,
        width,
        tiles,
        min(reach, height - 1),
        min(reach, width - 1),
        ceil(radius * radius),
        1 / max(sigma_intensity**2, FAINT),
        1 / max(sigma_space**2, FAINT),
        CLASSES=k,
        CHANNELS=image.shape[1],
        PIXELS=lanes,
        num_warps=warps,
    )
    return total(within), total(tied), filtered, degree


def association_backward(
    filtered: Tensor, degree: Tensor, grad_within: Tensor, grad_total: Tensor
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    n, k, height, width = filtered.shape
    blocks = triton.cdiv(height * width, BLOCK)
    grad = torch.empty_like(filtered)
    launch(
        _slope,
        (n * k * blocks,),
        filtered,
        filtered,
        degree,
        grad_within.contiguous(),
        grad_total.contiguous(),
        grad,
        height * width,
        blocks,
        CLASSES=k,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return grad
