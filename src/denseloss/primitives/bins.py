"""A distribution over the bins 0 … k-1 of a distance, and the loss that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives import void
from denseloss.primitives.reduce import reduce

__all__ = ["Bracket", "bin_loss", "bracket"]


class Bracket(NamedTuple):
    """The two bins around a target, [*s] each."""

    log_low: Tensor
    """log p of the bin at or below the target"""
    log_high: Tensor
    """log p of the bin above it"""
    position: Tensor
    """where the target lies between them: 0 at the lower, 1 at the higher"""


def bracket(logits: Tensor, target: Tensor, weight: Tensor | None) -> Bracket:
    """The bins around a target [*s] clamped to [0, k-1], from logits [*s k]."""
    z = void.full_precision(logits)
    y = target.to(z.dtype)
    if weight is not None:
        valid = (weight != 0).expand(y.shape)
        z, y = torch.where(valid.unsqueeze(-1), z, 0), torch.where(valid, y, 0)
    last = z.shape[-1] - 1
    y = y.clamp(0, last)
    # The last bin has none above it: y = k-1 is the upper end of the bracket [k-2, k-1].
    low = y.detach().nan_to_num().floor().long().clamp(max=max(last - 1, 0))
    high = (low + 1).clamp(max=last)
    log_p = F.log_softmax(z, dim=-1).gather(-1, torch.stack([low, high], dim=-1))
    return Bracket(log_p[..., 0], log_p[..., 1], y - low)


@primitive
def bin_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    formula: Callable[[Bracket], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor:
    """The loss whose value for each target is a formula of the bins around it.

    Fast versions know one formula, the distribution focal loss.
    """
    if logits.numel() == 0:
        nothing = void.full_precision(logits).sum(-1)
        return reduce(nothing, reduction, weight=weight, divisor=count)
    values = formula(bracket(logits, target, weight))
    return reduce(values, reduction, weight=weight, divisor=count)
