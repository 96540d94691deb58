"""The operator of losses of box pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_boxes = abi.function("boxes", "pipi p iil pif i ppp")


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
    """Losses of box pairs."""
    found_sums, found_values, found_grad = abi.results(boxes, boxes[..., 0], sums, values, grad)
    _boxes(
        boxes.data_ptr(),
        abi.CODES[boxes.dtype],
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        kind,
        fmt,
        boxes.numel() // 4,
        abi.at(upstream),
        abi.mapped(upstream),
        scale,
        torch.get_num_threads(),
        found_sums.data_ptr(),
        found_values.data_ptr(),
        found_grad.data_ptr(),
    )
    return found_sums, found_values, found_grad
