"""Exclusive classes: how likely the truth is, pixel by pixel, and how prediction and truth overlap.

Both come from one pass over the logits (`softmax_pass`), which is what has fast versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives import void
from denseloss.primitives.labels import class_count, class_values, one_hot
from denseloss.primitives.likelihood import TINY
from denseloss.primitives.overlap import COLUMNS, SQUARES, Overlap, overlap_sums, pooled
from denseloss.primitives.shared import SharedLogits, resized

__all__ = ["Categorical", "SoftmaxPass", "softmax_likelihood", "softmax_overlap", "softmax_pass"]


class SoftmaxPass(NamedTuple):
    """What one pass over the logits gives; None is what was not asked for."""

    target: Tensor
    """labels [n *s] as they were given, or class probabilities [n c *s], 0 where void"""
    entropy: Tensor | None
    """-log p: of the class of the label, [n *s]; of every class for probabilities, [n c *s]"""
    miss: Tensor | None
    """1 - p of the same"""
    weight: Tensor | None
    """[n *s], 0 where void, NaN where a label is no class"""
    smooth: Tensor | None
    """sum_k spread_k (-log p_k), [n *s]"""
    overlap: Overlap | None
    """of each image"""


@primitive
def softmax_pass(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    size: tuple[int, ...] | None = None,
    align_corners: bool = False,
    entropy: bool = False,
    spread: Tensor | float | None = None,
    columns: int = 0,
) -> SoftmaxPass:
    """Everything that is asked for, of logits [n c *s] that are first resized to ``size``.

    Args:
        logits: scores.
        target: labels [n *s] or [n 1 *s], or class probabilities [n c *s].
        weight: [n *s] or [n 1 *s], of size 1 where it broadcasts.
        ignore_index: the label of void pixels.
        size: of space, where the target's differs from the logits'.
        align_corners: as in `torch.nn.functional.interpolate`.
        entropy: whether -log p and the weights are wanted.
        spread: the weight of each class in ``smooth``, float[c] or a number for all of them.
        columns: how many overlap sums are wanted: 0, 3 or 5.
    """
    z = resized(logits, size, align_corners=align_corners)
    z, given, w = void.pixels(z, target, weight, ignore_index)
    hard = not target.is_floating_point()
    log_p = F.log_softmax(z, dim=1)
    own = miss = smooth = overlap = None
    if entropy:
        own = -(log_p.gather(1, given.unsqueeze(1)).squeeze(1) if hard else log_p)
        miss = (-torch.expm1(-own)).clamp_min(TINY)
    if spread is not None:
        smooth = -(_per_channel(spread, log_p) * log_p).sum(1)
    if columns:
        truth = one_hot(given, z.shape[1], ignore_index=None).to(z.dtype) if hard else given
        overlap = overlap_sums(log_p.exp(), truth, w.unsqueeze(1), columns)
    return SoftmaxPass(given, own, miss, w, smooth, overlap)


def _per_channel(value: Tensor | float, like: Tensor) -> Tensor | float:
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 2))


def _asked(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    asked: dict[str, Any],
) -> SoftmaxPass:
    if not isinstance(logits, SharedLogits):
        return softmax_pass(logits, target, weight, ignore_index, **asked)
    return logits.once(
        "softmax_pass",
        (target, weight, ignore_index),
        asked,
        lambda all_asked: softmax_pass(
            logits.logits,
            target,
            weight,
            ignore_index,
            size=logits.resize_to,
            align_corners=logits.align_corners,
            **all_asked,
        ),
    )


# No named tuple, whose properties torch.compile of 2.6 does not find.
@dataclass(slots=True, eq=False)
class Categorical:
    """The likelihood of one of ``c`` exclusive classes.

    For labels every map is [n *s]: that of the class of the label. For class probabilities there is
    a row for every class, [n c *s]; `expected` weighs the rows.
    """

    entropy: Tensor
    """-log p, >= 0"""
    miss: Tensor
    """1 - p, without the cancellation of that subtraction; at least the smallest float32"""
    weight: Tensor
    """[n *s], 0 where void"""
    target: Tensor
    """labels [n *s], or class probabilities [n c *s]"""
    classes: int
    smooth: Tensor | None
    """sum_k spread_k (-log p_k) of all classes, [n *s], where asked for"""

    @property
    def log_p(self) -> Tensor:
        """Log p."""
        return -self.entropy

    @property
    def p(self) -> Tensor:
        """The probability of the class."""
        return 1 - self.miss

    @property
    def soft(self) -> bool:
        """Whether the target is class probabilities."""
        return self.target.is_floating_point()

    def expected(self, values: Tensor) -> Tensor:
        """A value per pixel, [n *s]: that of its label, or the mean under the probabilities."""
        return (self.target * values).sum(1) if self.soft else values

    def per_class(self, value: Tensor) -> Tensor:
        """A value per class [c] as one for each entry of `entropy`, or one that broadcasts."""
        if self.soft:
            return value.to(self.entropy.dtype).reshape(-1, *[1] * (self.entropy.ndim - 2))
        return class_values(self.target, value.to(self.entropy.dtype))

    def pixels(self) -> Tensor:
        """The number of valid pixels of each class in the batch, [c]."""
        if self.soft:
            valid = (self.weight.detach() != 0).to(self.entropy.dtype)
            return (valid.unsqueeze(1) * self.target).transpose(0, 1).flatten(1).sum(1)
        return class_count(self.target, self.weight.detach(), self.classes).to(self.entropy.dtype)


def softmax_likelihood(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    spread: Tensor | float | None = None,
) -> Categorical:
    """The likelihood of each pixel's class, or of every class where the target is soft.

    Args:
        logits: [n c *s].
        target: labels [n *s] or [n 1 *s], or class probabilities [n c *s].
        weight: what each pixel counts for; None is 1.
        ignore_index: the label of void pixels; None is none.
        spread: where `Categorical.smooth` is wanted, the weight of each class in it, float[c], or
            one number for all.
    """
    asked = {"entropy": True, "spread": spread, "columns": 0}
    done = _asked(logits, target, weight, ignore_index, asked)
    assert done.entropy is not None
    assert done.miss is not None
    assert done.weight is not None
    return Categorical(
        done.entropy, done.miss, done.weight, done.target, logits.shape[1], done.smooth
    )


def softmax_overlap(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    squares: bool = False,
    decision: str | float | None = None,
) -> Overlap:
    """The overlap of exclusive classes.

    Args:
        logits: [n c *s].
        target: labels [n *s] or [n 1 *s], or class probabilities [n c *s].
        weight: what each pixel counts for; None is 1.
        ignore_index: the label of void pixels; None is none.
        pool: ``"image"``: sums of each image; ``"batch"``: of the batch.
        squares: whether the sums of squares are wanted, too.
        decision: of hard sums: ``"argmax"``, where p is 1 for the class with the highest score (the
            first of equals), or a number above which it is 1; None is p as it is.
    """
    if decision is not None:
        return pooled(_decided(logits, target, weight, ignore_index, decision), pool)
    asked = {"entropy": False, "spread": None, "columns": SQUARES if squares else COLUMNS}
    done = _asked(logits, target, weight, ignore_index, asked).overlap
    assert done is not None
    return pooled(done if squares else done.without_squares(), pool)


def _decided(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    decision: str | float,
) -> Overlap:
    scores = logits.tensor if isinstance(logits, SharedLogits) else logits
    z, given, w = void.pixels(scores, target, weight, ignore_index)
    if isinstance(decision, str):
        p = one_hot(z.argmax(1), z.shape[1], ignore_index=None).to(z.dtype)
    else:
        p = (z.softmax(dim=1) > decision).to(z.dtype)
    p = torch.where(z.isnan().any(1, keepdim=True), torch.nan, p)  # must not score as a miss
    if not given.is_floating_point():
        given = one_hot(given, z.shape[1], ignore_index=None).to(z.dtype)
    return overlap_sums(p, given, w.unsqueeze(1), COLUMNS)
