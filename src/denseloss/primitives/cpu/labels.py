"""The operators of labels: how many there are of each class, and a value for each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_label_count_work = abi.function("label_count_work", "ll", counts=True)
_label_count = abi.function("label_count", "pi p ll l i pp")


def label_count(target: Tensor, weight: Tensor | None, ignore: int, classes: int) -> Tensor:
    """Pixels of each class."""
    result = abi.empty(classes)
    work = abi.empty(_label_count_work(target.numel(), classes), dtype=torch.int64)
    _label_count(
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        ignore,
        classes,
        target.numel(),
        torch.get_num_threads(),
        work.data_ptr(),
        result.data_ptr(),
    )
    return result


_class_values = abi.function("class_values", "pi p ll i p")


def class_values(target: Tensor, values: Tensor) -> Tensor:
    """The value of each pixel's class."""
    result = torch.empty_like(target, dtype=torch.float32)
    _class_values(
        target.data_ptr(),
        abi.CODES[target.dtype],
        values.data_ptr(),
        values.numel(),
        target.numel(),
        torch.get_num_threads(),
        result.data_ptr(),
    )
    return result
