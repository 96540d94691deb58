"""Independent channels: sums over the pixels of each, from one pass over the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives.likelihood import sigmoid_likelihood
from denseloss.primitives.overlap import (
    COLUMNS,
    SQUARES,
    Overlap,
    over_space,
    overlap_sums,
    pooled,
)
from denseloss.primitives.shared import SharedLogits

__all__ = ["SigmoidSums", "sigmoid_overlap", "sigmoid_sums", "sigmoid_sums_of"]


class SigmoidSums(NamedTuple):
    """Sums over the pixels of each channel of each image; None is what was not asked for."""

    overlap: Overlap
    """without columns where none were asked for"""
    entropy: Tensor | None
    """sum w BCE, [n c]"""
    weight: Tensor | None
    """sum w, [n c]"""


@primitive
def sigmoid_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    columns: int = 0,
    entropy: Tensor | float | None = None,
) -> SigmoidSums:
    """Everything that is asked for, of logits and masks [n c *s].

    Args:
        logits: scores.
        target: masks.
        weight: what each element counts for, broadcastable to the logits.
        ignore_index: the value of void elements in the target.
        columns: how many overlap sums are wanted: 0, 3 or 5.
        entropy: where the sums of BCE and of the weights are, what a positive counts for in the
            BCE: a number, or one per channel [c].
    """
    likely = sigmoid_likelihood(logits, target, weight, ignore_index)
    w = torch.ones_like(likely.target) if likely.weight is None else likely.weight
    overlap, values = overlap_sums(likely.p, likely.target, w, columns), None
    if entropy is not None:
        t, b = likely.target, entropy
        if isinstance(b, Tensor):
            b = b.to(t.dtype).reshape(-1, *[1] * (t.ndim - 2))
        values = over_space(-w * (b * t * likely.log_p + (1 - t) * likely.log_q))
    return SigmoidSums(overlap, values, None if values is None else over_space(w))


def sigmoid_sums_of(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    columns: int = 0,
    entropy: Tensor | float | None = None,
) -> SigmoidSums:
    """`sigmoid_sums` of logits that may be shared."""
    asked: dict[str, Any] = {"columns": columns, "entropy": entropy}
    if not isinstance(logits, SharedLogits):
        return sigmoid_sums(logits, target, weight, ignore_index, **asked)
    return logits.once(
        "sigmoid_sums",
        (target, weight, ignore_index),
        asked,
        lambda all_asked: sigmoid_sums(logits.tensor, target, weight, ignore_index, **all_asked),
    )


def sigmoid_overlap(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    squares: bool = False,
    threshold: float | None = None,
) -> Overlap:
    """The overlap of independent channels.

    Args:
        logits: [n c *s].
        target: masks [n c *s].
        weight: what each element counts for; None is 1.
        ignore_index: the value of void elements in the target; None is none.
        pool: ``"image"``: sums of each image; ``"batch"``: of the batch.
        squares: whether the sums of squares are wanted, too.
        threshold: of hard sums: p is 1 above it; None is p as it is.
    """
    if threshold is not None:
        return pooled(_decided(logits, target, weight, ignore_index, threshold), pool)
    columns = SQUARES if squares else COLUMNS
    done = sigmoid_sums_of(logits, target, weight, ignore_index, columns=columns).overlap
    return pooled(done if squares else done.without_squares(), pool)


def _decided(
    logits: Tensor | SharedLogits,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    threshold: float,
) -> Overlap:
    scores = logits.tensor if isinstance(logits, SharedLogits) else logits
    likely = sigmoid_likelihood(scores, target, weight, ignore_index)
    hard = (likely.p > threshold).to(likely.p.dtype)
    hard = torch.where(likely.p.isnan(), torch.nan, hard)  # NaN must not score as a miss
    return overlap_sums(hard, likely.target, likely.weight, COLUMNS)
