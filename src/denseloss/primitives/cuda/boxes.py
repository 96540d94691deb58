"""`boxes`: losses of box pairs, value and gradient in one pass."""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import buffers, collected, launch
from denseloss.primitives.cuda.numbers import atan2, load, quotient

__all__ = ["boxes"]

BLOCK = 256

IOU = tl.constexpr(0)
GIOU = tl.constexpr(1)
DIOU = tl.constexpr(2)
CIOU = tl.constexpr(3)
CIOU_RELEASED = tl.constexpr(4)
XYXY = tl.constexpr(0)
XYWH = tl.constexpr(1)
SHARE = tl.constexpr(0.40528473456935109)  # 4/pi^2


@triton.jit
def _four(pointer, row, there, counts, BLOCK: tl.constexpr):
    """The four numbers of each box, read in one piece; 0 where void."""
    x = load(pointer + row[:, None] * 4 + tl.arange(0, 4)[None, :], there[:, None])
    x = tl.where(counts[:, None], x, 0.0)
    # Splitting halves the last axis: the numbers come out in the order of two binary digits.
    even, odd = tl.split(tl.reshape(x, [BLOCK, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _span(position, size, FMT: tl.constexpr):
    """The first and the last coordinate along one axis."""
    if FMT == XYXY:
        first = position
        last = size
    else:
        first = position if FMT == XYWH else position - size / 2
        last = first + size
    return first, last


@triton.jit
def _unspan(first, last, FMT: tl.constexpr):
    """The gradient of position and size from that of the first and the last coordinate."""
    if FMT == XYXY:
        position = first
        size = last
    else:
        position = first + last
        size = last if FMT == XYWH else (last - first) / 2
    return position, size


@triton.jit
def _above(x, y):
    """The derivative of max(x, y) to x: torch shares it between equals."""
    return tl.where(x > y, 1.0, tl.where(x == y, 0.5, 0.0))


@triton.jit
def _size(first, last):
    size = last - first
    return tl.where(size < 0, 0.0, size)


@triton.jit
def _max(x, y):
    return tl.where(x > y, x, y)


@triton.jit
def _min(x, y):
    return tl.where(x < y, x, y)


@triton.jit
def _finite(x, y):
    return (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))


@triton.jit
def _lengths(a1, a2, b1, b2):
    """Along one axis: what both cover, what their hull covers, from centre to centre."""
    shared = _size(_max(a1, b1), _min(a2, b2))
    hull = _max(_max(a2, b2), _max(a1, b1)) - _min(_min(a2, b2), _min(a1, b1))
    return shared, hull, ((a1 - b1) + (a2 - b2)) / 2


@triton.jit
def _inverted(first, last, hull):
    """How far a box is inverted along an axis, relative to its hull; its slope by size and hull.

    At size 0 the slope is that of inverted boxes: it opens the box.
    """
    size = tl.where(last > first, 0.0, last - first)
    per_hull = tl.where(last > first, 0.0, quotient(1.0, hull, 0.0))
    part = quotient(-size, hull, 0.0)
    return part, -per_hull, -part * per_hull


@triton.jit
def _slopes(a1, a2, b1, b2, size, opening, shared, hull, centre):
    """The gradient of a1 and a2 from those of the lengths, and of the size a2 - a1.

    ``opening`` is what comes by the size where it is not clamped.
    """
    size = tl.where(a2 > a1, size, 0.0) + opening
    shared = tl.where(_min(a2, b2) > _max(a1, b1), shared, 0.0)
    upper = _above(_max(a2, b2), _max(a1, b1))
    lower = _above(-_min(a2, b2), -_min(a1, b1))
    g1 = hull * ((1 - upper) * _above(a1, b1) - (1 - lower) * _above(-a1, -b1))
    g2 = hull * (upper * _above(a2, b2) - lower * _above(-a2, -b2))
    g1 += centre / 2 - size - shared * _above(a1, b1)
    g2 += centre / 2 + size + shared * _above(-a2, -b2)
    return g1, g2


@triton.jit
def _angle(w, h):
    """The longest side (1 where that is 0), and w and h over it; 0 and 1 for a box without size."""
    longest = _max(w, h)
    longest = tl.where(longest == 0, 1.0, longest)
    return longest, w / longest, tl.where((w == 0) & (h == 0), 1.0, h / longest)


@triton.jit
def _boxes(
    boxes,
    target,
    weight,
    upstream,
    partial,
    values,
    grad,
    rows,
    scale,
    KIND: tl.constexpr,
    FMT: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    w = tl.where(there, 1.0, 0.0) if weight is None else load(weight + row, there)
    counts = w != 0
    ax, ay, aw, ah = _four(boxes, row, there, counts, BLOCK)
    bx, by, bw, bh = _four(target, row, there, counts, BLOCK)
    ax1, ax2 = _span(ax, aw, FMT)
    ay1, ay2 = _span(ay, ah, FMT)
    bx1, bx2 = _span(bx, bw, FMT)
    by1, by2 = _span(by, bh, FMT)

    width, height = _size(ax1, ax2), _size(ay1, ay2)
    width_b, height_b = _size(bx1, bx2), _size(by1, by2)
    shared_x, hull_x, centre_x = _lengths(ax1, ax2, bx1, bx2)
    shared_y, hull_y, centre_y = _lengths(ay1, ay2, by1, by2)
    inter = shared_x * shared_y
    union = width * height + width_b * height_b - inter
    same = (ax1 == bx1) & (ay1 == by1) & (ax2 == bx2) & (ay2 == by2) & (ax2 >= ax1) & (ay2 >= ay1)
    iou = quotient(inter, union, same.to(tl.float32))
    inverted_x, opening_x, wider_x = _inverted(ax1, ax2, hull_x)
    inverted_y, opening_y, wider_y = _inverted(ay1, ay2, hull_y)
    value = 1 - iou + inverted_x + inverted_y
    # the gradients of what both cover, of the own area, and of the lengths
    d_inter = -quotient(1 + iou, union, 0.0)
    d_area = quotient(iou, union, 0.0)
    d_width, d_height = tl.zeros_like(w), tl.zeros_like(w)
    d_hull_x, d_hull_y = wider_x, wider_y
    d_centre_x, d_centre_y = tl.zeros_like(w), tl.zeros_like(w)
    if KIND == GIOU:
        hull = hull_x * hull_y
        value += quotient(hull - union, hull, 0.0)
        per_hull = quotient(1.0, hull, 0.0)
        d_inter += per_hull
        d_area -= per_hull
        d_hull = quotient(union, hull, 0.0) * per_hull
        d_hull_x += d_hull * hull_y
        d_hull_y += d_hull * hull_x
    if KIND >= DIOU:
        diagonal = hull_x * hull_x + hull_y * hull_y
        offset = quotient(centre_x * centre_x + centre_y * centre_y, diagonal, 0.0)
        value += offset
        twice = quotient(2.0, diagonal, 0.0)
        d_centre_x = twice * centre_x
        d_centre_y = twice * centre_y
        d_hull_x -= twice * offset * hull_x
        d_hull_y -= twice * offset * hull_y
    if KIND >= CIOU:
        longest, c, s = _angle(width, height)
        _, c_b, s_b = _angle(width_b, height_b)
        # c_b s - c s_b, without the rounding that would tilt two boxes of the same shape
        tilt = atan2(c_b * (s - s_b) - s_b * (c - c_b), s * s_b + c * c_b)
        v = SHARE * tilt * tilt
        alpha = quotient(v, 1 - iou + v, 0.0)
        value += alpha * v
        d_angle = -2 * SHARE * alpha * tilt
        if KIND == CIOU_RELEASED:
            d_angle *= _max(width, height)  # the slope below times w^2 + h^2
        else:
            d_angle /= longest * (c * c + s * s)
        d_width = d_angle * s
        d_height = -d_angle * c

    finite = _finite(ax1, ax2) & _finite(ay1, ay2) & _finite(bx1, bx2) & _finite(by1, by2)
    value = w * tl.where(finite, value, float("nan"))
    if partial is not None:
        tl.store(partial + block, scale * tl.sum(value, 0))
        tl.store(partial + tl.num_programs(0) + block, tl.sum(w, 0))
    if values is not None:
        tl.store(values + row, value, there)
    if grad is not None:
        d_width += d_area * height
        d_height += d_area * width
        gx1, gx2 = _slopes(
            ax1, ax2, bx1, bx2, d_width, opening_x, d_inter * shared_y, d_hull_x, d_centre_x
        )
        gy1, gy2 = _slopes(
            ay1, ay2, by1, by2, d_height, opening_y, d_inter * shared_x, d_hull_y, d_centre_y
        )
        gx, gw = _unspan(gx1, gx2, FMT)
        gy, gh = _unspan(gy1, gy2, FMT)
        slope = tl.reshape(tl.join(tl.join(gx, gw), tl.join(gy, gh)), [BLOCK, 4])
        factor = tl.where(finite, scale * w, float("nan"))
        if upstream is not None:
            factor *= load(upstream + row, there) if MAP else tl.load(upstream)
        slope = tl.where(counts[:, None], slope * factor[:, None], 0.0)
        i = row[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(grad + i, slope.to(grad.dtype.element_ty), there[:, None])


def boxes(
    boxes: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kind: int,
    fmt: int,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `denseloss.primitives.fused.ops`."""
    rows = boxes.numel() // 4
    blocks = triton.cdiv(rows, BLOCK)
    partial, value, slope = buffers(
        boxes, boxes[..., 0], blocks, sums=sums, values=values, grad=grad
    )
    launch(
        _boxes,
        (blocks,),
        boxes,
        boxes,
        target,
        weight,
        upstream,
        partial,
        value,
        slope,
        rows,
        scale,
        KIND=kind,
        FMT=fmt,
        MAP=upstream is not None and upstream.ndim > 0,
        BLOCK=BLOCK,
        num_warps=4,
        fuse=False,  # A + B - I of two boxes that are the same would not be A
    )
    return collected(boxes, partial, value, slope)
