"""The operators of independent channels: sums over the pixels of each, and their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_CHANNELS = "pi pi pp id lll i i "
_sigmoid = abi.function("sigmoid", _CHANNELS + "i pppp", allocates=True)
_backward = abi.function("sigmoid_backward", _CHANNELS + "i ppp")


def _channels(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore: float | None,
) -> tuple[Any, ...]:
    """The arguments that both functions share."""
    images, channels = logits.shape[:2]
    return (
        logits.data_ptr(),
        abi.CODES[logits.dtype],
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        abi.at(pos_weight),
        ignore is not None,
        ignore or 0.0,
        images,
        channels,
        logits.numel() // (images * channels),
        abi.last(logits),
        torch.get_num_threads(),
    )


def sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore: float | None,
    sums: int,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overlap sums, whether anything counts, and the cross entropy of each channel."""
    images, channels = logits.shape[:2]
    overlap, entropies, weights, *_ = abi.NOTHING
    present = abi.small(images, channels)
    if sums:
        overlap = abi.small(images, channels, sums)
    if entropy:
        entropies, weights = torch.empty_like(present), torch.empty_like(present)
    _sigmoid(
        *_channels(logits, target, weight, pos_weight, ignore),
        sums,
        abi.at(overlap),
        present.data_ptr(),
        abi.at(entropies),
        abi.at(weights),
    )
    return overlap, present, entropies, weights


def sigmoid_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore: float | None,
    grad_sums: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """The gradient of the sums by the logits."""
    grad = torch.empty_like(logits)
    _backward(
        *_channels(logits, target, weight, pos_weight, ignore),
        0 if grad_sums is None else grad_sums.shape[2],
        abi.at(grad_sums),
        abi.at(grad_entropy),
        grad.data_ptr(),
    )
    return grad
