"""Losses of single logits: the one family whose formula itself runs over tensors of their size.

The other quantities are a few numbers for each pixel, image or box, and a formula over them costs
nothing. Here value and gradient need one pass of a kernel that knows the formula: `ElementKind`
tells it which of the closed forms it is. Whatever else is a formula over `sigmoid_likelihood`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives.likelihood import Bernoulli, sigmoid_likelihood
from denseloss.primitives.reduce import reduce
from denseloss.primitives.shared import SharedLogits
from denseloss.primitives.sigmoid import sigmoid_sums_of
from denseloss.primitives.void import full_precision
from denseloss.targets import ClassScores

__all__ = [
    "BCE",
    "FOCAL",
    "QUALITY",
    "VARIFOCAL",
    "VARIFOCAL_FIXED",
    "ElementKind",
    "element_loss",
    "elementwise",
]

# As in fused/ops.py
BCE, FOCAL, QUALITY, VARIFOCAL, VARIFOCAL_FIXED = range(5)


class ElementKind(NamedTuple):
    """The closed form of a formula, with its numbers: see elementwise in fused/ops.py."""

    code: int
    a: Tensor | float | None = None
    """what positives count for, or their share; a tensor (of BCE alone) as `pos_weight` is"""
    g: float = 0.0
    """the power"""


def elementwise(
    logits: Tensor | SharedLogits,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    kind: ElementKind,
    formula: Callable[[Bernoulli], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor:
    """The loss whose value for each element is a formula of how likely the truth is.

    Cross entropy of logits that are shared comes from the pass that sums over their channels.
    """
    if (
        isinstance(logits, SharedLogits)
        and kind.code == BCE
        and reduction != "none"
        and isinstance(target, Tensor)
        and (not isinstance(kind.a, Tensor) or kind.a.shape in ((1,), logits.shape[1:2]))
    ):
        # float: numbers are weights here, and integers would be taken for how many are wanted.
        b = kind.a if isinstance(kind.a, Tensor) else 1.0 if kind.a is None else float(kind.a)
        sums = sigmoid_sums_of(logits, target, weight, ignore_index, entropy=b)
        assert sums.entropy is not None
        return reduce(
            sums.entropy, reduction, weight=sums.overlap.present, count=sums.weight, divisor=count
        )
    return element_loss(
        logits.tensor if isinstance(logits, SharedLogits) else logits,
        target,
        weight,
        ignore_index,
        kind=kind,
        formula=formula,
        reduction=reduction,
        count=count,
    )


@primitive
def element_loss(
    logits: Tensor,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    kind: ElementKind,
    formula: Callable[[Bernoulli], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor:
    """The same for the logits of one loss."""
    if logits.numel() == 0:
        return reduce(full_precision(logits), reduction, weight=weight, divisor=count)
    quality = kind.code >= QUALITY  # the target is the quality of a detection, and no mask
    likely = sigmoid_likelihood(logits, target, weight, ignore_index, quality=quality)
    return reduce(formula(likely), reduction, weight=likely.weight, divisor=count)
