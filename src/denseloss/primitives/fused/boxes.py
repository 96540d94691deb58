"""Losses of box pairs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.boxes import BoxPairs
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.rows import reduced, row_weights

__all__ = ["box_loss"]

FORMATS = {"xyxy": 0, "xywh": 1, "cxcywh": 2}


def box_loss(
    boxes: Tensor,
    target_boxes: Tensor,
    weight: Tensor | None,
    fmt: str,
    *,
    kind: int,
    formula: Callable[[BoxPairs], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor | Declined:
    """`denseloss.primitives.boxes.box_loss`."""
    if why := layout.why_not(boxes, target_boxes, weight):
        return Declined(why.replace("logits", "boxes"))
    if not boxes.is_contiguous():
        return Declined("boxes are not contiguous")
    target = target_boxes if target_boxes.dtype in layout.WIDTHS else target_boxes.float()
    rows = boxes.shape[:-1]
    # Each with a name: torch.compile of 2.6 takes two saved tensors that it names alike for one.
    pairs, each = target.contiguous(), row_weights(weight, rows)

    def definition(z: Tensor, *, reduction: str) -> Tensor:
        value: Tensor = reference("box_loss")(
            z, target_boxes, weight, fmt, kind=kind, formula=formula, reduction=reduction
        )
        return value

    return reduced(
        "boxes",
        boxes,
        (pairs, each),
        (kind, FORMATS[fmt]),
        definition,
        rows=boxes.numel() // 4,
        weighted=weight is not None,
        reduction=reduction,
        count=count,
    )
