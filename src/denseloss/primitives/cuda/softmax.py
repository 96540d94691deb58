"""`softmax`: what losses of exclusive classes are made of, in one pass, and its gradient."""

# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda import softmax_resized
from denseloss.primitives.cuda.launch import collect, given, launch, results
from denseloss.primitives.cuda.numbers import load
from denseloss.primitives.cuda.softmax_tile import (
    likelihood,
    observed,
    slope,
    store_maps,
    store_sums,
)

__all__ = ["softmax", "softmax_backward"]

ELEMENTS = 512  # of a tile for each warp, 16 for each thread: more would spill; half if the classes
# are innermost, since each thread then has more pixels
PROGRAMS = 2048  # fill the largest GPU several times over
ALONE = 8  # tiles of an image that one program goes through faster than a second kernel starts
PARTIAL = 2**20  # numbers that the programs leave for `collect`, or one program for each image


@triton.jit
def _tile(
    logits,
    target,
    weight,
    image,
    tile,
    pixels,
    class_stride,
    pixel_stride,
    ignore,
    number,
    CLASSES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Logits of the pixels of a tile where they count, what is known of them, and where they lie.

    Returns:
        z, that of the label, whether a class is the label, label, weight, whether a pixel counts,
        the offsets of the logits, whether they are there, and the same of the pixels.
    """
    first = tile * PIXELS
    lane = tl.arange(0, PIXELS)
    inside = lane < pixels - first
    at = image * pixels + first + lane
    label, w, counts = observed(target, weight, at, inside, ignore, CLASSES)
    start = image * CLASSES * pixels + first * pixel_stride
    where = start + number.to(tl.int64)[:, None] * class_stride + (lane * pixel_stride)[None, :]
    there = (number < CLASSES)[:, None]
    z = tl.where(there, load(logits + where, there & counts[None, :]), float("-inf"))
    z_t = load(logits + start + lane * pixel_stride + label.to(tl.int64) * class_stride, counts)
    hit = number[:, None] == label[None, :]
    return z, z_t, hit, label, w, counts, where, there & inside[None, :], at, inside


@triton.jit
def _softmax(
    logits,
    target,
    weight,
    spread,
    entropy,
    miss,
    weights,
    smooth,
    sums,
    present,
    pixels,
    tiles,
    programs,
    class_stride,
    pixel_stride,
    ignore,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0).to(tl.int64) % programs
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    both = tl.zeros([triton.next_power_of_2(CLASSES)], tl.float32)
    predicted = tl.zeros_like(both)
    square = tl.zeros_like(both)
    true = tl.zeros_like(both)
    seen = tl.zeros([PIXELS], tl.float32)
    for tile in range(program, tiles, programs):
        z, z_t, hit, _, w, counts, _, _, at, inside = _tile(
            logits,
            target,
            weight,
            image,
            tile,
            pixels,
            class_stride,
            pixel_stride,
            ignore,
            number,
            CLASSES,
            PIXELS,
        )
        z, log_whole, p, nll, _, missed = likelihood(z, z_t, hit)
        store_maps(
            entropy,
            miss,
            weights,
            smooth,
            spread,
            z,
            log_whole,
            nll,
            missed,
            w,
            counts,
            at,
            inside,
            number,
            CLASSES,
        )
        if SUMS > 0:
            wp = w[None, :] * p
            t = hit.to(tl.float32)
            both += tl.sum(wp * t, 1)
            predicted += tl.sum(wp, 1)
            true += tl.sum(w[None, :] * t, 1)
            seen = tl.where(counts, 1.0, seen)
        if SUMS == 5:
            square += tl.sum(wp * p, 1)
    if SUMS > 0:
        store_sums(
            sums,
            present,
            both,
            predicted,
            square,
            true,
            tl.max(seen, 0),
            image,
            program,
            programs,
            CLASSES,
            SUMS,
        )


@triton.jit
def _slope(
    logits,
    target,
    weight,
    spread,
    grad_entropy,
    grad_miss,
    grad_smooth,
    grad_sums,
    grad,
    pixels,
    tiles,
    class_stride,
    pixel_stride,
    ignore,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64) // tiles
    tile = tl.program_id(0).to(tl.int64) % tiles
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    z, z_t, hit, label, w, counts, where, mask, at, inside = _tile(
        logits,
        target,
        weight,
        image,
        tile,
        pixels,
        class_stride,
        pixel_stride,
        ignore,
        number,
        CLASSES,
        PIXELS,
    )
    gradient = slope(
        z,
        z_t,
        hit,
        label,
        w,
        counts,
        number,
        image,
        spread,
        grad_sums,
        None if grad_entropy is None else load(grad_entropy + at, inside),
        None if grad_miss is None else load(grad_miss + at, inside),
        None if grad_smooth is None else load(grad_smooth + at, inside),
        CLASSES,
        SUMS,
    )
    tl.store(grad + where, gradient.to(grad.dtype.element_ty), mask)


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spread: Tensor | None,
    ignore: int,
    entropy: bool,
    sums: int,
    size: Sequence[int],
    align_corners: bool,
) -> tuple[Tensor, ...]:
    """See `denseloss.primitives.fused.ops`."""
    n, c = logits.shape[:2]
    maps = [
        torch.empty_like(target, dtype=torch.float32) if asked else None
        for asked in (entropy, entropy, entropy, spread is not None)
    ]
    total = present = None
    if target.numel() == 0 and sums:
        total = logits.new_zeros(n, c, sums, dtype=torch.float32)
        present = torch.zeros_like(total[..., 0])
    elif target.numel() > 0 and (entropy or sums or spread is not None):
        if _resized(logits, size):
            kernel, programs, geometry, tile = softmax_resized.forward(
                logits, target, align_corners
            )
        else:
            kernel, programs, geometry, tile = _forward(logits, sums)
        if sums:
            total, present, *_ = results(logits, programs, sums)
        launch(
            kernel,
            (n * programs,),
            logits,
            logits,
            target,
            weight,
            spread,
            *maps,
            total,
            present,
            *geometry,
            ignore,
            CLASSES=c,
            SUMS=sums,
            **tile,
        )
        if present is not None and programs > 1:
            total, present, *_ = collect(total, present)
    return tuple(given(x, logits) for x in (*maps, total, present))


def softmax_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spread: Tensor | None,
    ignore: int,
    grad_entropy: Tensor | None,
    grad_miss: Tensor | None,
    grad_smooth: Tensor | None,
    grad_sums: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    slopes = [
        None if x is None else x.contiguous()
        for x in (grad_entropy, grad_miss, grad_smooth, grad_sums)
    ]
    if target.numel() == 0 or logits.numel() == 0 or all(x is None for x in slopes):
        return torch.zeros_like(logits)
    grad = torch.empty_like(logits)
    inputs = (logits, target, weight, spread, *slopes, grad)
    options: dict[str, Any] = {
        "CLASSES": logits.shape[1],
        "SUMS": 0 if grad_sums is None else grad_sums.shape[-1],
    }
    if _resized(logits, size):
        softmax_resized.backward(inputs, ignore, align_corners, options)
        return grad
    geometry, tile = _tiles(logits)
    grid = (logits.shape[0] * geometry[1],)
    launch(_slope, grid, logits, *inputs, *geometry, ignore, **options, **tile)
    return grad


def _resized(logits: Tensor, size: Sequence[int]) -> bool:
    return len(size) > 0 and tuple(size) != tuple(logits.shape[2:])


def _forward(logits: Tensor, sums: int) -> tuple[Any, int, tuple[int, ...], dict[str, Any]]:
    """The kernel, the programs of an image, where things lie, and the tile."""
    (pixels, tiles, *strides), tile = _tiles(logits)
    n, c = logits.shape[:2]
    programs = tiles
    if sums:
        most = min(PROGRAMS // n, PARTIAL // (n * c * (sums + 1)))
        programs = 1 if tiles <= ALONE else max(min(tiles, most), 1)
    return _softmax, programs, (pixels, tiles, programs, *strides), tile


def _tiles(logits: Tensor) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Pixels and tiles of an image, the strides of class and pixel, and the tile."""
    n, c = logits.shape[:2]
    pixels = logits.numel() // (n * c)
    classes = triton.next_power_of_2(c)
    warps = min(max(classes // 32, 4), 16)
    strides, elements = (
        ((pixels, 1), ELEMENTS) if logits.is_contiguous() else ((1, c), ELEMENTS // 2)
    )
    width = min(max(elements * warps // classes, 1), triton.next_power_of_2(pixels), 1024)
    return (pixels, triton.cdiv(pixels, width), *strides), {"PIXELS": width, "num_warps": warps}
