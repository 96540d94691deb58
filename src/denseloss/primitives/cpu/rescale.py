"""The operator that multiplies a gradient in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rescale(grad: Tensor, factor: Tensor) -> None:
    """A gradient that was computed ahead, times what comes down the graph."""
    times = factor.item()
    if times == 1:
        return
    if math.isfinite(times):
        grad.mul_(factor)
    else:  # what is void stays 0
        grad.copy_(torch.where(grad == 0, 0, grad * factor))
