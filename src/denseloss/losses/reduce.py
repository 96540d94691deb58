"""The one reduction that every loss uses."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.primitives.overlap import Overlap

__all__ = ["reduce", "reduce_classes"]


def reduce(
    values: Tensor,
    reduction: str,
    *,
    weight: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Weigh the values and reduce them.

    Args:
        values: one loss per element, finite also where the weight is 0.
        reduction: ``"none"``: w v; ``"sum"``: sum w v; ``"mean"``: sum w v / sum count, which is 0
            (with a graph) where nothing counts. Inside `denseloss.distributed.exact` both sums run
            over all ranks.
        weight: what each element counts for, broadcastable to the values; None is 1.
        count: what the mean divides by, where that is not the weight.
    """
    if weight is not None:
        weight = weight.to(values.dtype)
        values = weight * values
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    count = weight if count is None else count
    if count is None:
        return distributed.mean(values.sum(), values.numel())
    return distributed.mean(values.sum(), count.expand(values.shape).sum())


def reduce_classes(
    values: Tensor,
    sums: Overlap,
    reduction: str,
    *,
    absent: str,
    class_weight: Tensor | None,
) -> Tensor:
    """Reduce one value per class (and image) over those that count.

    Args:
        values: [n c] or [c].
        sums: the overlap that the values come from; it tells what is void or absent.
        reduction: as in `reduce`.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them.
        class_weight: what each class counts for.
    """
    # A NaN sum (a label that is no class) is not 0: it counts, and makes the value NaN.
    counts = sums.counts if absent == "count" else sums.counts & (sums.true != 0)
    weight = counts.to(values.dtype)
    if class_weight is not None:
        weight = weight * class_weight.to(values.dtype)
    return reduce(torch.where(counts, values, 0), reduction, weight=weight)
