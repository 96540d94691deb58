"""Sums over the pixels of a channel under weights that emphasise the edges of its mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives.likelihood import sigmoid_likelihood
from denseloss.primitives.overlap import COLUMNS, Overlap, over_space, overlap_sums
from denseloss.primitives.windows import edge_emphasis

__all__ = ["EdgeSums", "edge_sums"]


class EdgeSums(NamedTuple):
    """Sums of each channel of each image, [n c]; w is the weight times the emphasis on edges."""

    overlap: Overlap
    """of prediction and truth under w"""
    entropy: Tensor
    """sum w BCE"""
    weight: Tensor
    """sum w"""
    plain_entropy: Tensor | None
    """sum of BCE under the weight alone, where asked for"""
    plain_weight: Tensor | None
    """sum of the weight alone, likewise"""


@primitive
def edge_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    gamma: float,
    window: int,
    plain: bool,
) -> EdgeSums:
    """The sums for logits and masks [n c *s]; void pixels are 0 in the box mean."""
    likely = sigmoid_likelihood(logits, target, weight, ignore_index)
    alone = torch.ones_like(likely.target) if likely.weight is None else likely.weight
    w = alone * edge_emphasis(likely.target, gamma=gamma, window=window, border="zero")
    entropy = likely.entropy
    return EdgeSums(
        overlap_sums(likely.p, likely.target, w, COLUMNS),
        over_space(w * entropy),
        over_space(w),
        over_space(alone * entropy) if plain else None,
        over_space(alone) if plain else None,
    )
