"""Pairs of boxes: the terms that every IoU loss is made of, and the losses made of them.

Sizes of an inverted box (x2 < x1) count as 0, and a term of its own unfolds it. Every quotient is
relative, without an added epsilon, so the terms do not change with the scale of the coordinates;
0/0 is defined. A pair with a coordinate that is not finite is NaN in every term. Sides of 1e-18 to
1e18 are safe in float32; areas overflow or vanish beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives.overlap import ratio
from denseloss.primitives.reduce import reduce
from denseloss.primitives.void import full_precision

__all__ = [
    "CIOU",
    "CIOU_RELEASED",
    "DIOU",
    "GIOU",
    "IOU",
    "BoxPairs",
    "box_loss",
    "box_pairs",
    "corners",
]

# As in fused/ops.py
IOU, GIOU, DIOU, CIOU, CIOU_RELEASED = range(5)


class BoxPairs(NamedTuple):
    """The terms of each pair, [*m]."""

    iou: Tensor
    """I/U; for U = 0: 1 where the boxes are the same and not inverted, else 0"""
    empty: Tensor
    """(C - U)/C, the share of the hull that neither box covers; 0 for C = 0"""
    offset: Tensor
    """rho^2/c^2, the squared distance of the centres over the squared diagonal of the hull"""
    tilt: Tensor
    """atan(w_t/h_t) - atan(w/h), the difference of the aspect angles in radians"""
    inverted: Tensor
    """how far the predicted box is turned inside out: max(0, x1 - x2) over the hull's width, and
    the same for its height, added up; its slope at 0 is that of the inverted side"""
    size: Tensor
    """(w, h) of the predicted box, [*m 2]"""


def corners(boxes: Tensor, fmt: str) -> Tensor:
    """Boxes in any format as (x1, y1, x2, y2)."""
    if fmt == "xyxy":
        return boxes
    position, size = boxes[..., :2], boxes[..., 2:]
    first = position if fmt == "xywh" else position - size / 2
    return torch.cat([first, first + size], dim=-1)


def box_pairs(boxes: Tensor, target_boxes: Tensor, weight: Tensor | None, fmt: str) -> BoxPairs:
    """The terms of each pair; void pairs (weight 0) are taken as two boxes of size 0."""
    a, b = full_precision(boxes), target_boxes.to(full_precision(boxes).dtype)
    if weight is not None:
        valid = (weight != 0).unsqueeze(-1)
        a, b = torch.where(valid, a, 0), torch.where(valid, b, 0)
    a, b = corners(a, fmt), corners(b, fmt)
    # x - x is 0, or NaN for what is not finite. Minima of what is infinite may be finite again.
    a = a + (a - a + (b - b)).sum(-1, keepdim=True).detach()
    first_a, last_a, first_b, last_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]

    # relu, not clamp, whose gradient at the bound differs between versions of torch
    length = last_a - first_a
    size_a, size_b = length.relu(), (last_b - first_b).relu()
    shared = (torch.minimum(last_a, last_b) - torch.maximum(first_a, first_b)).relu()
    # Around all corners, so that an inverted box lies inside it, too, and rho/c stays bounded.
    highest = torch.maximum(torch.maximum(last_a, last_b), torch.maximum(first_a, first_b))
    lowest = torch.minimum(torch.minimum(last_a, last_b), torch.minimum(first_a, first_b))
    hull = highest - lowest
    inter, outer = _area(shared), _area(hull)
    union = _area(size_a) + _area(size_b) - inter

    same = (a == b).all(-1) & (last_a >= first_a).all(-1)
    # difference by difference: exactly 0 for identical boxes
    centres = ((first_a - first_b) + (last_a - last_b)) / 2
    # A side of size 0 has the slope of an inverted one: nothing else would widen it again.
    folded = torch.where(length > 0, 0, ratio(-length, hull, empty=0))
    return BoxPairs(
        iou=ratio(inter, union, empty=same.to(a.dtype)),
        empty=ratio(outer - union, outer, empty=0),
        offset=ratio(centres.square().sum(-1), hull.square().sum(-1), empty=0),
        tilt=_angle(size_b) - _angle(size_a),
        inverted=folded.sum(-1),
        size=size_a,
    )


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def _angle(size: Tensor) -> Tensor:
    """atan(w/h); 0 for a box without size, whose angle is undefined."""
    # Divided by the longer side, w and h are at most 1 and not both small: the gradient
    # h/(w^2 + h^2) cannot underflow to 0/0.
    longest = size.detach().amax(-1, keepdim=True)
    w, h = (size / torch.where(longest == 0, 1, longest)).unbind(-1)
    return torch.atan2(w, torch.where((w == 0) & (h == 0), 1, h))


@primitive
def box_loss(
    boxes: Tensor,
    target_boxes: Tensor,
    weight: Tensor | None,
    fmt: str,
    *,
    kind: int,  # noqa: ARG001 - for fast versions
    formula: Callable[[BoxPairs], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor:
    """The loss whose value for each pair is a formula of its terms; ``kind`` names the formula."""
    if boxes.numel() == 0:  # an image without objects should not cost more than one with them
        return reduce(full_precision(boxes[..., 0]), reduction, weight=weight, divisor=count)
    pairs = box_pairs(boxes, target_boxes, weight, fmt)
    return reduce(formula(pairs), reduction, weight=weight, divisor=count)
