"""The operator of losses of single elements."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_elementwise = abi.function("elementwise", "pipil ppp ll iff id l pif i ppp")


def elementwise(
    logits: Tensor,
    target: Tensor,
    score: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    kind: int,
    a: float,
    g: float,
    ignore: float | None,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of single elements."""
    found_sums, found_values, found_grad = abi.results(logits, logits, sums, values, grad)
    channels = inner = 1
    if pos_weight is not None:
        channels = logits.shape[1]
        inner = 1 if abi.last(logits) else max(1, logits[0, 0].numel())
    _elementwise(
        logits.data_ptr(),
        abi.CODES[logits.dtype],
        target.data_ptr(),
        abi.CODES[target.dtype],
        logits.shape[-1] if target.ndim < logits.ndim else 0,
        abi.at(score),
        abi.at(weight),
        abi.at(pos_weight),
        channels,
        inner,
        kind,
        a,
        g,
        ignore is not None,
        ignore or 0.0,
        logits.numel(),
        abi.at(upstream),
        abi.mapped(upstream),
        scale,
        torch.get_num_threads(),
        found_sums.data_ptr(),
        found_values.data_ptr(),
        found_grad.data_ptr(),
    )
    return found_sums, found_values, found_grad
