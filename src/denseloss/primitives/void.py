"""What does not count: void pixels and weights, brought to one form before anything is computed.

A void element (ignored label or weight 0) is replaced by zeros at the very start. Whatever its
logits or labels hold, NaN included, it then adds exactly 0 to every sum and has exactly zero
gradient; multiplying its loss by 0 at the end would not do, since 0 * NaN is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from denseloss.targets import ClassScores

__all__ = ["Elements", "Pixels", "elements", "full_precision", "mask", "pixels"]


class Pixels(NamedTuple):
    """Exclusive classes without anything void in them."""

    logits: Tensor
    """[n c *s] in full precision, 0 where void"""
    target: Tensor
    """labels int64 [n *s] or probabilities [n c *s], 0 where void"""
    weight: Tensor
    """[n *s], 0 where void"""


class Elements(NamedTuple):
    """Independent elements, all of one shape, without anything void in them."""

    logits: Tensor
    """in full precision, 0 where void"""
    target: Tensor
    """0 where void"""
    weight: Tensor | None
    """0 where void; None where everything counts 1"""


def full_precision(x: Tensor) -> Tensor:
    """The tensor in the dtype that sums accumulate in: float64 stays, all else is float32."""
    return x if x.dtype == torch.float64 else x.float()


def pixels(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None
) -> Pixels:
    """Clear logits [n c *s] with labels [n *s] or [n 1 *s], or probabilities [n c *s].

    A label that is neither void nor a class makes its pixel's weight NaN: an error would need the
    values to be read, and such a pixel must never score as if it were right.
    """
    z = full_precision(logits)
    n, c, *space = z.shape
    w = z.new_ones(n, *space) if weight is None else _pixel_weight(weight, z).expand(n, *space)
    if target.is_floating_point():
        valid = (w != 0).unsqueeze(1)
        return Pixels(torch.where(valid, z, 0), torch.where(valid, target.to(z.dtype), 0), w)

    label = target.reshape(n, *space).long()
    valid = w != 0
    if ignore_index is not None:
        valid = valid & (label != ignore_index)
    outside = valid & ((label < 0) | (label >= c))
    w = torch.where(outside, torch.nan, torch.where(valid, w, 0))
    label = torch.where(valid & ~outside, label, 0)
    return Pixels(torch.where(valid.unsqueeze(1), z, 0), label, w)


def _pixel_weight(weight: Tensor, like: Tensor) -> Tensor:
    # [n 1 *s] and [n *s] differ in rank, so neither can be taken for the other.
    weight = weight.to(like.dtype)
    return weight.squeeze(1) if weight.ndim == like.ndim else weight


def elements(
    logits: Tensor,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None = None,
    *,
    quality: bool = False,
) -> Elements:
    """Clear logits and target of one shape, with a weight that broadcasts to it.

    The target is a mask, or the quality of a detection. What lies a little outside [0, 1] is
    brought into it: there the losses would be rewards without lower bound.
    """
    z = full_precision(logits)
    if isinstance(target, ClassScores):
        void = target.void(ignore_index)
        target = target.dense(z.shape[-1], ignore_index, z.dtype)
        if void is not None:  # an ignored label is void whatever its classes would be
            weight = torch.where(void, 0, 1.0 if weight is None else weight)
            target, ignore_index = torch.where(void, 0, target), None
    t = target.to(z.dtype)
    inside = _quality(t) if quality else mask(t)
    if weight is None and ignore_index is None:
        return Elements(z, inside, None)
    w = torch.ones_like(t) if weight is None else weight.to(z.dtype).expand(z.shape)
    if ignore_index is not None:
        w = torch.where(t == ignore_index, 0, w)
    valid = w != 0
    return Elements(torch.where(valid, z, 0), torch.where(valid, inside, 0), w)


def mask(t: Tensor) -> Tensor:
    """Resampling makes masks overshoot a little; what is further out is NaN.

    The commonest slip, a mask of 0 and 255, would score better than perfect. As with labels that
    are no class, what cannot be told without reading values becomes NaN.
    """
    return _unit(torch.where((t > -0.5) & (t < 1.5), t, torch.nan))


def _quality(q: Tensor) -> Tensor:
    """Background is 0 and below, as a generalised IoU has it; above 1 only rounding is forgiven."""
    return _unit(torch.where(q > 1.01, torch.nan, q))


def _unit(t: Tensor) -> Tensor:
    """Brought to [0, 1]; NaN stays. Not clamp, whose slope at the ends is a matter of versions."""
    return torch.where(t < 0, 0, torch.where(t > 1, 1, t))
