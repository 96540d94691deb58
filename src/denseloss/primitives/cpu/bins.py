"""The operator of the distribution focal loss."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_bins = abi.function("bins", "pipp ll pif i p ppp")
ROWS = 64  # as in bins.h


def bins(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distribution focal loss."""
    found_sums, found_values, found_grad = abi.results(logits, target, sums, values, grad)
    count, threads = logits.shape[-1], torch.get_num_threads()
    space = abi.empty(2 * threads * count * ROWS)
    _bins(
        logits.data_ptr(),
        abi.CODES[logits.dtype],
        target.data_ptr(),
        abi.at(weight),
        count,
        target.numel(),
        abi.at(upstream),
        abi.mapped(upstream),
        scale,
        threads,
        space.data_ptr(),
        found_sums.data_ptr(),
        found_values.data_ptr(),
        found_grad.data_ptr(),
    )
    return found_sums, found_values, found_grad
