"""Integer labels: as masks, counted, and with a value for each class."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.backend import primitive

__all__ = ["class_count", "class_values", "one_hot"]


def one_hot(target: Tensor, num_classes: int, *, ignore_index: int | None = -100) -> Tensor:
    """Labels int[n *s] as float32 [n c *s]; see `denseloss.functional.one_hot`."""
    classes = torch.arange(num_classes, device=target.device)
    label = target.long()
    hot = (label.unsqueeze(1) == classes.reshape(-1, *[1] * (target.ndim - 1))).float()
    outside = (label < 0) | (label >= num_classes)
    if ignore_index is not None:
        void = label == ignore_index
        outside = outside & ~void
        # ignore_index may itself be the number of a class, which is then void everywhere.
        hot = torch.where(void.unsqueeze(1), 0.0, hot)
    return torch.where(outside.unsqueeze(1), torch.nan, hot)


@primitive
def class_count(label: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    """The number of labels of each class whose weight is not 0, [c]; NaN where one is no class."""
    valid = weight != 0
    outside = valid & ((label < 0) | (label >= num_classes))
    count = torch.zeros(num_classes, dtype=torch.int64, device=label.device)
    inside = torch.where(valid & ~outside, label.long(), 0).flatten()
    count = count.scatter_add(0, inside, (valid & ~outside).long().flatten())
    return torch.where(outside.any(), torch.nan, count.float())


@primitive
def class_values(label: Tensor, values: Tensor) -> Tensor:
    """The value [c] of each label's class; 0 where a label is no class."""
    inside = (label >= 0) & (label < values.shape[0])
    return torch.where(inside, values[torch.where(inside, label.long(), 0)], 0)
