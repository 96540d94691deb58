"""Overlap of prediction and truth: the three sums that Dice, Jaccard, Tversky and F share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import primitive
from denseloss.primitives import void
from denseloss.primitives.likelihood import TINY, one_hot

__all__ = [
    "Overlap",
    "f_measure",
    "of_images",
    "overlap",
    "ratio",
    "sigmoid_overlap",
    "softmax_overlap",
]


class Overlap(NamedTuple):
    """Weighted sums over the pixels of an image, [n c], or of the batch, [c]."""

    both: Tensor
    """I = sum w p t"""
    predicted: Tensor
    """P = sum w p"""
    true: Tensor
    """T = sum w t"""
    counts: Tensor
    """bool [n c] or [c]: whether anything in the sums is not void"""


def overlap(prediction: Tensor, truth: Tensor, weight: Tensor | None, *, pool: str) -> Overlap:
    """The sums of prediction and truth [n c *s] under a weight [n c *s] or [n 1 *s]."""
    space = tuple(range(2, prediction.ndim))
    dims = space if pool == "image" else (0, *space)

    def pooled(x: Tensor) -> Tensor:
        # sum over no axes would mean sum over all of them
        summed = x.sum(dims) if dims else x
        return summed if pool == "image" else distributed.total(summed)

    w = torch.ones_like(prediction[:, :1]) if weight is None else weight
    present = pooled((w.detach() != 0).to(prediction.dtype)) > 0
    both, predicted, true = (
        pooled(w * prediction * truth),
        pooled(w * prediction),
        pooled(w * truth),
    )
    return Overlap(both, predicted, true, present.expand(both.shape))


def of_images(
    both: Tensor, predicted: Tensor, true: Tensor, present: Tensor, *, pool: str
) -> Overlap:
    """The sums from those of each image, [n c]; ``present`` counts what is not void."""
    if pool == "batch":
        both, predicted, true, present = (
            distributed.total(x.sum(0)) for x in (both, predicted, true, present)
        )
    return Overlap(both, predicted, true, present > 0)


@primitive
def softmax_overlap(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    threshold: float | None = None,
) -> Overlap:
    """The sums for exclusive classes; hard ones (p > threshold) where a threshold is given."""
    z, target, weight = void.pixels(logits, target, weight, ignore_index)
    p = _hard(z.softmax(dim=1), threshold)
    if not target.is_floating_point():
        target = one_hot(target, z.shape[1], ignore_index=None).to(z.dtype)
    return overlap(p, target, weight.unsqueeze(1), pool=pool)


@primitive
def sigmoid_overlap(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    threshold: float | None = None,
) -> Overlap:
    """The sums for independent channels; hard ones (p > threshold) where a threshold is given."""
    z, target, weight = void.elements(logits, target, weight, ignore_index)
    return overlap(_hard(z.sigmoid(), threshold), target, weight, pool=pool)


def _hard(p: Tensor, threshold: float | None) -> Tensor:
    if threshold is None:
        return p
    return torch.where(p.isnan(), p, (p > threshold).to(p.dtype))  # NaN must not score as a miss


def f_measure(sums: Overlap, *, beta: float, smooth: float) -> Tensor:
    """((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s); β = 1 is Dice."""
    both, predicted, true, _ = sums
    hit = (1 + beta**2) * both + smooth
    return ratio(hit, hit + beta**2 * (true - both) + (predicted - both), empty=1)


def ratio(part: Tensor, whole: Tensor, *, empty: Tensor | float, least: float = TINY) -> Tensor:
    """``part / whole``, and ``empty`` (without gradient) where the whole is 0.

    A whole below ``least`` is taken as 0: the gradient, 1 / whole, would overflow.
    """
    nothing = whole.abs() < least
    return torch.where(nothing, empty, part / torch.where(nothing, 1, whole))
