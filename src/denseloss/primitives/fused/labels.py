"""Integer labels: counted, and with a value for each class."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.backend import Declined
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.ops import operator

__all__ = ["class_count", "class_values"]

NO_LABEL = -(2**63)  # no label is this


def class_values(label: Tensor, values: Tensor) -> Tensor | Declined:
    """`denseloss.primitives.labels.class_values`."""
    if values.dtype != torch.float32 or not layout.plain(values):
        return Declined("the values are not float32 constants")
    label = layout.labels(label, tuple(label.shape))
    return operator("class_values", label)(label, values.contiguous())  # type: ignore[no-any-return]


def class_count(label: Tensor, weight: Tensor, num_classes: int) -> Tensor | Declined:
    """`denseloss.primitives.labels.class_count`."""
    if weight.dtype != torch.float32 or not layout.plain() or label.numel() == 0:
        return Declined("weights are not float32, or there are no labels")
    label = layout.labels(label, tuple(label.shape))
    count: Tensor = operator("label_count", label)(
        label, weight.contiguous(), NO_LABEL, num_classes
    )
    return count
