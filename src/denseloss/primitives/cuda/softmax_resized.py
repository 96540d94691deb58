"""`softmax` for logits that are resized bilinearly first: the full-size logits never exist.

An output pixel lies in the *cell* between four logits, the cells of an axis being numbered by
their first. A program takes some cells of a row, one for each lane, and goes through the outputs
of all of them at once, so that it loads the corners once for all outputs, and adds the gradient of
the corners in registers. The last cell of an axis has nothing beyond it, and the first one has
also the outputs before it.

An output x lies at (a x + b) / d: integers, so that every shape has exact shares. The strides are
not specialised: a stride known to be 1 would give each thread four cells of two classes, and the
sums over the classes to the shuffles; and one kernel serves both memory formats.
"""

# ruff: noqa: N803
from __future__ import annotations

from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import launch
from denseloss.primitives.cuda.numbers import load
from denseloss.primitives.cuda.softmax_tile import (
    likelihood,
    observed,
    slope,
    store_maps,
    store_sums,
)

__all__ = ["backward", "forward"]

SUM_ELEMENTS = 256  # of a tile for each warp, 8 for each thread
SLOPE_ELEMENTS = 128  # the gradient keeps twice as many tiles
PROGRAMS = 2048  # enough to fill the largest GPU; fewer programs have fewer seams
ROWS = 8  # of cells for each program, at most
BLOCK = 1024


@triton.jit
def _first(cell, cells, outputs, a, b, d):
    """The first output that lies in a cell or beyond."""
    x = tl.minimum((cell * d - b + a - 1) // a, outputs)
    return tl.where(cell <= 0, 0, tl.where(cell < cells, x, outputs))


@triton.jit
def _share(origin, phase, inner, a, d):
    """How much of an output is of the corner after its cell; ``origin``: a x + b of the first."""
    return tl.where(inner, tl.maximum((origin + a * phase) / d, 0.0), 0.0)


@triton.jit
def _program(height, tiles, rows):
    """Image, segment, the rows of cells from first to stop, and the tile."""
    program = tl.program_id(0).to(tl.int64)
    segments = tl.cdiv(height, rows)
    tile = program % tiles
    segment = program // tiles % segments
    first = segment * rows
    image = program // tiles // segments
    return image, segment, first, tl.minimum(first + rows, height), tile


@triton.jit
def _lanes(tile, cells, outputs, a, b, d, LANES: tl.constexpr):
    """The cells of a tile, the first output of each and of the next, and where the first lies."""
    cell = tile * LANES + tl.arange(0, LANES)
    start = _first(cell, cells, outputs, a, b, d)
    stop = _first(cell + 1, cells, outputs, a, b, d)
    origin = (a * start + b - cell * d).to(tl.float32)
    return cell.to(tl.int32), start.to(tl.int32), stop.to(tl.int32), origin


@triton.jit
def _ends(logits, at, there, cell, row, height, width, row_stride, column_stride, share):
    """Logits of the corners before and after each cell, on an output row."""
    upper = logits + row * row_stride + at
    lower = logits + tl.minimum(row + 1, height - 1) * row_stride + at
    here = there & (cell < width)[None, :]
    z = load(upper, here) * (1 - share) + load(lower, here) * share
    # Nothing is loaded beyond the last cell, where the share of it is 0.
    after = there & (cell < width - 1)[None, :]
    upper += column_stride
    lower += column_stride
    return z, load(upper, after) * (1 - share) + load(lower, after) * share


@triton.jit
def _tile(
    z,
    z_after,
    share,
    target,
    weight,
    at,
    inside,
    ignore,
    number,
    CLASSES: tl.constexpr,
):
    """One output of each cell: z, whether a class is the label, label, weight, and what counts."""
    label, w, counts = observed(target, weight, at, inside, ignore, CLASSES)
    z = z * (1 - share)[None, :] + z_after * share[None, :]
    z = tl.where(counts[None, :], z, 0.0)
    z = tl.where((number < CLASSES)[:, None], z, float("-inf"))
    return z, number[:, None] == label[None, :], label, w, counts


@triton.jit(do_not_specialize=["class_stride", "row_stride", "column_stride"])
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
    height,
    width,
    height_out,
    width_out,
    tiles,
    rows,
    class_stride,
    row_stride,
    column_stride,
    ya,
    yb,
    yd,
    xa,
    xb,
    xd,
    ignore,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
    LANES: tl.constexpr,
):
    image, segment, first_row, stop_row, tile = _program(height, tiles, rows)
    cell, start, stop, origin = _lanes(tile, width, width_out, xa, xb, xd, LANES)
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    there = (number < CLASSES)[:, None]
    at = image * CLASSES * height * width + number.to(tl.int64)[:, None] * class_stride
    at += (cell * column_stride)[None, :]
    both = tl.zeros([triton.next_power_of_2(CLASSES), LANES], tl.float32)
    predicted = tl.zeros_like(both)
    square = tl.zeros_like(both)
    true = tl.zeros_like(both)
    seen = tl.zeros([LANES], tl.float32)
    for row in range(first_row, stop_row):
        y_start = _first(row, height, height_out, ya, yb, yd)
        for y in range(y_start, _first(row + 1, height, height_out, ya, yb, yd)):
            share = _share(ya * y + yb - row * yd, 0, row < height - 1, ya, yd)
            z, z_after = _ends(
                logits, at, there, cell, row, height, width, row_stride, column_stride, share
            )
            for phase in range(0, tl.max(stop - start, 0)):
                line = (image * height_out + y) * width_out
                x = start + phase
                inside = x < stop
                z_here, hit, _, w, counts = _tile(
                    z,
                    z_after,
                    _share(origin, phase, cell < width - 1, xa, xd),
                    target + line,
                    None if weight is None else weight + line,
                    x,
                    inside,
                    ignore,
                    number,
                    CLASSES,
                )
                z_here, log_whole, p, nll, _, missed = likelihood(z_here, None, hit)
                store_maps(
                    entropy,
                    miss,
                    weights,
                    smooth,
                    spread,
                    z_here,
                    log_whole,
                    nll,
                    missed,
                    w,
                    counts,
                    line + x,
                    inside,
                    number,
                    CLASSES,
                )
                if SUMS > 0:
                    wp = w[None, :] * p
                    t = hit.to(tl.float32)
                    both += wp * t
                    predicted += wp
                    true += w[None, :] * t
                    seen = tl.where(counts, 1.0, seen)
                if SUMS == 5:
                    square += wp * p
    if SUMS > 0:
        store_sums(
            sums,
            present,
            tl.sum(both, 1),
            tl.sum(predicted, 1),
            tl.sum(square, 1),
            tl.sum(true, 1),
            tl.max(seen, 0),
            image,
            segment * tiles + tile,
            tl.cdiv(height, rows) * tiles,
            CLASSES,
            SUMS,
        )


@triton.jit(do_not_specialize=["class_stride", "row_stride", "column_stride"])
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
    below,
    beside,
    height,
    width,
    height_out,
    width_out,
    tiles,
    rows,
    class_stride,
    row_stride,
    column_stride,
    ya,
    yb,
    yd,
    xa,
    xb,
    xd,
    ignore,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradient, but for what the programs above and to the left have for the same logits.

    That is left in ``below`` [n segments c width], a row in the layout of the logits, for the
    first row of the next segment, and in ``beside`` [n segments rows+1 c tiles], for the first
    logit of the next tile; see `_seams`. Until then, the lanes exchange what they have there.
    """
    image, segment, first_row, stop_row, tile = _program(height, tiles, rows)
    cell, start, stop, origin = _lanes(tile, width, width_out, xa, xb, xd, LANES)
    number = tl.arange(0, triton.next_power_of_2(CLASSES))
    there = (number < CLASSES)[:, None]
    at = image * CLASSES * height * width + number.to(tl.int64)[:, None] * class_stride
    at += (cell * column_stride)[None, :]
    lane = tl.arange(0, LANES)
    inside_row = there & (cell < width)[None, :]
    last = there & (lane == LANES - 1)[None, :]
    group = image * tl.cdiv(height, rows) + segment
    line_stride = tl.minimum(class_stride, row_stride)
    below += group * CLASSES * width + (number * line_stride)[:, None]
    below += (cell * column_stride)[None, :]
    next_upper = tl.zeros([triton.next_power_of_2(CLASSES), LANES], tl.float32)
    next_after = tl.zeros_like(next_upper)
    # The row after the last has no outputs here: it only gets what the one before has for it.
    for row in range(first_row, stop_row + 1):
        upper, upper_after = next_upper, next_after
        next_upper = tl.zeros_like(upper)
        next_after = tl.zeros_like(upper)
        y_start = _first(row, height, height_out, ya, yb, yd)
        y_stop = _first(tl.minimum(row + 1, stop_row), height, height_out, ya, yb, yd)
        for y in range(y_start, y_stop):
            y_share = _share(ya * y + yb - row * yd, 0, row < height - 1, ya, yd)
            z, z_after = _ends(
                logits, at, there, cell, row, height, width, row_stride, column_stride, y_share
            )
            here = tl.zeros_like(upper)
            after = tl.zeros_like(upper)
            for phase in range(0, tl.max(stop - start, 0)):
                line = (image * height_out + y) * width_out
                x = start + phase
                inside = x < stop
                share = _share(origin, phase, cell < width - 1, xa, xd)
                z_here, hit, label, w, counts = _tile(
                    z,
                    z_after,
                    share,
                    target + line,
                    None if weight is None else weight + line,
                    x,
                    inside,
                    ignore,
                    number,
                    CLASSES,
                )
                gradient = slope(
                    z_here,
                    None,
                    hit,
                    label,
                    w,
                    counts,
                    number,
                    image,
                    spread,
                    grad_sums,
                    None if grad_entropy is None else load(grad_entropy + line + x, inside),
                    None if grad_miss is None else load(grad_miss + line + x, inside),
                    None if grad_smooth is None else load(grad_smooth + line + x, inside),
                    CLASSES,
                    SUMS,
                )
                here += gradient * (1 - share)[None, :]
                after += gradient * share[None, :]
            upper += here * (1 - y_share)
            upper_after += after * (1 - y_share)
            next_upper += here * y_share
            next_after += after * y_share
        # What a cell has for the logit after it goes to the next lane by way of memory.
        tl.store(below, upper_after, inside_row)
        tl.debug_barrier()
        upper += load(below - column_stride, inside_row & (lane > 0)[None, :])
        tl.debug_barrier()
        line = (group * (rows + 1) + row - first_row) * CLASSES + number
        tl.store(beside + line[:, None] * tiles + tile + 0 * lane[None, :], upper_after, last)
        if row < stop_row:
            tl.store(grad + row * row_stride + at, upper.to(grad.dtype.element_ty), inside_row)
        else:
            tl.store(below, upper, inside_row)


@triton.jit(do_not_specialize=["class_stride", "row_stride", "column_stride"])
def _seams(
    grad,
    below,
    beside,
    elements,
    height,
    width,
    tiles,
    rows,
    class_stride,
    row_stride,
    column_stride,
    CLASSES: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to the gradient what `_slope` left for the first rows and logits of other programs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = i % width
    row = i // width % height
    number = i // width // height % CLASSES
    image = i // width // height // CLASSES
    segment, tile = row // rows, column // LANES
    group = image * tl.cdiv(height, rows) + segment
    from_above = (i < elements) & (row % rows == 0) & (segment > 0)
    from_left = (i < elements) & (column % LANES == 0) & (tile > 0)
    where = grad + image * CLASSES * height * width
    where += number * class_stride + row * row_stride + column * column_stride
    seam = from_above | from_left
    own = load(where, seam)
    line_stride = tl.minimum(class_stride, row_stride)
    above = (group - 1) * CLASSES * width + number * line_stride + column * column_stride
    own += load(below + above, from_above)
    line = group * (rows + 1) + row % rows
    own += load(beside + (line * CLASSES + number) * tiles + tile - 1, from_left)
    line = (group - 1) * (rows + 1) + rows
    own += load(beside + (line * CLASSES + number) * tiles + tile - 1, from_above & from_left)
    tl.store(where, own.to(grad.dtype.element_ty), seam)


def forward(
    logits: Tensor, target: Tensor, align_corners: bool
) -> tuple[Any, int, tuple[int, ...], dict[str, Any]]:
    """The kernel of `softmax`, the programs of an image, where things lie, and the tile."""
    geometry, tile, programs = _geometry(logits, target, align_corners, SUM_ELEMENTS)
    return _softmax, programs, geometry, tile


def backward(
    inputs: tuple[Tensor | None, ...], ignore: int, align_corners: bool, options: dict[str, Any]
) -> None:
    """Write the gradient of `softmax_backward`, the last of the inputs."""
    logits, target, *_, grad = inputs
    assert logits is not None
    assert target is not None
    assert grad is not None
    geometry, tile, programs = _geometry(logits, target, align_corners, SLOPE_ELEMENTS)
    height, width, _, _, tiles, rows, *strides = geometry[:9]
    n, c = logits.shape[:2]
    segments = triton.cdiv(height, rows)
    below = logits.new_empty(n, segments, c, width, dtype=torch.float32)
    beside = logits.new_empty(n, segments, rows + 1, c, tiles, dtype=torch.float32)
    launch(
        _slope,
        (n * programs,),
        logits,
        *inputs,
        below,
        beside,
        *geometry,
        ignore,
        **options,
        **tile,
    )
    if programs == 1:
        return  # one program has no seams
    launch(
        _seams,
        (triton.cdiv(grad.numel(), BLOCK),),
        grad,
        grad,
        below,
        beside,
        grad.numel(),
        height,
        width,
        tiles,
        rows,
        *strides,
        CLASSES=c,
        LANES=tile["LANES"],
        BLOCK=BLOCK,
        num_warps=4,
    )


def _geometry(
    logits: Tensor, target: Tensor, align_corners: bool, elements: int
) -> tuple[tuple[int, ...], dict[str, Any], int]:
    """Where things lie, the tile, and the programs of an image."""
    n, c, height, width = logits.shape
    height_out, width_out = target.shape[1:]
    classes = triton.next_power_of_2(c)
    warps = min(max(classes // 64, 1), 8)
    lanes = min(max(elements * warps // classes, 1), triton.next_power_of_2(width))
    tiles = triton.cdiv(width, lanes)
    rows = min(max(n * height * tiles // PROGRAMS, 1), ROWS)
    geometry = (
        *(height, width, height_out, width_out, tiles, rows),
        *((height * width, width, 1) if logits.is_contiguous() else (1, width * c, c)),
        *_axis(height, height_out, align_corners),
        *_axis(width, width_out, align_corners),
    )
    tile = {"LANES": lanes, "num_warps": warps}
    return geometry, tile, triton.cdiv(height, rows) * tiles


def _axis(size: int, outputs: int, align_corners: bool) -> tuple[int, int, int]:
    """Output x lies at (a x + b) / d: a, b and d."""
    if align_corners and size > 1:
        a, b, d = size - 1, 0, max(outputs - 1, 1)
    else:
        a, b, d = 2 * size, size - outputs, 2 * outputs
    common = gcd(a, b, d)
    return a // common, b // common, d // common
