"""`column`: sums over the pixels of losses of a softmax, and their gradient."""

# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda import upsample
from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import load
from denseloss.primitives.cuda.softmax import add_entropy, observed, slope, store_sums

__all__ = ["column", "column_backward"]

ELEMENTS = 512  # of a tile for each warp, 16 for each thread: more would spill; half if the classes
# are innermost, since each thread then has more pixels
PROGRAMS = 2048  # fill the largest GPU several times over
PARTIAL = 2**20  # numbers that the programs leave for `_collect`, or one program for each image
SPAN = 512


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
def _sums(
    logits,
    target,
    weight,
    class_weight,
    values,
    partial,
    pixels,
    tiles,
    programs,
    class_stride,
    pixel_stride,
    ignore,
    CLASSES: tl.constexpr,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
    OVERLAP: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64) // programs
    program = tl.program_id(0).to(tl.int64) % programs
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    totals = tl.zeros([triton.next_power_of_2(2 * K + 2)], tl.float32)
    both = tl.zeros([triton.next_power_of_2(CLASSES)], tl.float32)
    predicted = tl.zeros_like(both)
    true = tl.zeros_like(both)
    for tile in range(program, tiles, programs):
        z, z_t, hit, label, w, counts, _, _, at, inside = _tile(
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
        totals, value, p = add_entropy(
            totals,
            z,
            z_t,
            hit,
            label,
            w,
            counts,
            number,
            class_weight,
            CLASSES,
            K,
            GAMMA,
            SMOOTHING,
        )
        if values is not None:
            tl.store(values + at, value, inside)
        if OVERLAP:
            wp = w[None, :] * p
            t = hit.to(tl.float32)
            both += tl.sum(wp * t, 1)
            predicted += tl.sum(wp, 1)
            true += tl.sum(w[None, :] * t, 1)
    store_sums(
        partial, totals, both, predicted, true, image, program, programs, CLASSES, K, OVERLAP
    )


@triton.jit
def _collect(
    partial,
    entropy,
    weights,
    sums,
    programs,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Add up what the programs left, always in the same order."""
    line = tl.program_id(0).to(tl.int64)
    image, row = line // ROWS, line % ROWS
    total = tl.zeros([SPAN], tl.float64)
    for first in range(0, programs, SPAN):
        i = first + tl.arange(0, SPAN)
        total += tl.load(partial + line * programs + i, mask=i < programs, other=0).to(tl.float64)
    x = tl.sum(total, 0).to(tl.float32)
    last: tl.constexpr = 2 * K + 2
    tl.store(entropy + image * (2 * K) + row, x, row < 2 * K)
    tl.store(weights + image * 2 + row - 2 * K, x, (row >= 2 * K) & (row < last))
    tl.store(sums + image * (ROWS - last) + row - last, x, row >= last)


@triton.jit
def _slope(
    logits,
    target,
    weight,
    class_weight,
    grad_entropy,
    grad_sums,
    upstream,
    grad,
    pixels,
    tiles,
    class_stride,
    pixel_stride,
    ignore,
    CLASSES: tl.constexpr,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
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
        class_weight,
        grad_entropy,
        grad_sums,
        None if upstream is None else load(upstream + at, inside),
        CLASSES,
        K,
        GAMMA,
        SMOOTHING,
    )
    tl.store(grad + where, gradient.to(grad.dtype.element_ty), mask)


def column(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    gamma: Sequence[float],
    smoothing: Sequence[float],
    ignore: int,
    overlap: bool,
    values: bool,
    size: Sequence[int],
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    n, c = logits.shape[:2]
    k = len(gamma)
    rows = 2 * k + 2 + 3 * c * overlap
    new = logits.new_zeros if target.numel() == 0 else logits.new_empty
    entropy, sums, weights, value = (
        new(shape, dtype=torch.float32)
        for shape in (
            (n, k, 2),
            (n, c, 3) if overlap else (0,),
            (n, 2),
            target.shape if values else (0,),
        )
    )
    if target.numel() == 0:
        return entropy, sums, weights, value
    inputs = (logits, target, weight, class_weight, value if values else None)
    options = _options(logits, gamma, smoothing) | {"OVERLAP": overlap}
    if _resized(logits, size):
        partial = upsample.sums(*inputs, rows, ignore, align_corners, options)
    else:
        geometry, tile = _tiles(logits)
        tiles = geometry[1]
        programs = max(min(tiles, PROGRAMS // n, PARTIAL // (n * rows)), 1)
        partial = logits.new_empty(n, rows, programs, dtype=torch.float32)
        pixels, tiles, *strides = geometry
        grid = (n * programs,)
        launch(
            _sums,
            grid,
            logits,
            *inputs,
            partial,
            pixels,
            tiles,
            programs,
            *strides,
            ignore,
            **options,
            **tile,
        )
    launch(
        _collect,
        (n * rows,),
        logits,
        partial,
        entropy,
        weights,
        sums,
        partial.shape[2],
        ROWS=rows,
        K=k,
        SPAN=SPAN,
        num_warps=4,
    )
    return entropy, sums, weights, value


def column_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    gamma: Sequence[float],
    smoothing: Sequence[float],
    ignore: int,
    grad_entropy: Tensor | None,
    grad_sums: Tensor | None,
    upstream: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
) -> Tensor:
    """See `denseloss.primitives.fused.ops`."""
    if target.numel() == 0 or logits.numel() == 0:
        return torch.zeros_like(logits)
    grad = torch.empty_like(logits)
    slopes = (_contiguous(grad_entropy), _contiguous(grad_sums), _contiguous(upstream))
    inputs = (logits, target, weight, class_weight, *slopes, grad)
    options = _options(logits, gamma, smoothing)
    if _resized(logits, size):
        upsample.slope(*inputs, ignore, align_corners, options)
        return grad
    geometry, tile = _tiles(logits)
    grid = (logits.shape[0] * geometry[1],)
    launch(_slope, grid, logits, *inputs, *geometry, ignore, **options, **tile)
    return grad


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _resized(logits: Tensor, size: Sequence[int]) -> bool:
    return len(size) > 0 and tuple(size) != tuple(logits.shape[2:])


def _options(logits: Tensor, gamma: Sequence[float], smoothing: Sequence[float]) -> dict[str, Any]:
    """What is compiled in."""
    return {
        "CLASSES": logits.shape[1],
        "K": len(gamma),
        "GAMMA": tuple(gamma),
        "SMOOTHING": tuple(smoothing),
    }


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
