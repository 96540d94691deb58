"""The one reduction that every loss uses."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import primitive
from denseloss.primitives.overlap import Overlap

__all__ = ["reduce", "reduce_classes", "weighted_mean"]


def reduce(
    values: Tensor,
    reduction: str,
    *,
    weight: Tensor | None = None,
    count: Tensor | None = None,
    divisor: Tensor | float | None = None,
) -> Tensor:
    """Weigh the values and reduce them.

    Args:
        values: one loss per element, finite also where the weight is 0.
        reduction: ``"none"``: w v; ``"sum"``: sum w v; ``"mean"``: sum w v / sum count, which is 0
            (with a graph) where nothing counts. Inside `denseloss.distributed.exact` both sums run
            over all ranks.
        weight: what each element counts for, broadcastable to the values; None is 1.
        count: what each element counts for in the mean, where that is not the weight.
        divisor: what the mean divides by instead of the sum of counts: the caller's own share,
            summed over ranks and then kept at least 1.
    """
    if reduction == "none":
        return values if weight is None else weight.to(values.dtype) * values
    whole: Tensor | int
    if weight is None:
        total, whole = values.sum(), values.numel()
    else:
        if weight.dtype != values.dtype:
            weight = weight.to(values.dtype)
        divide = reduction == "mean" and divisor is None and distributed.alone()
        total, whole = weighted_mean(values, weight, count, divide=divide)
        if divide:
            return total
    if reduction == "sum":
        return total
    if divisor is not None:
        return distributed.mean(total, divisor, least=1.0)
    return distributed.mean(total, whole)


@primitive
def weighted_mean(
    values: Tensor, weight: Tensor, count: Tensor | None, *, divide: bool
) -> tuple[Tensor, Tensor]:
    """Sum w v / sum count (or sum w v, where not ``divide``), and sum count."""
    total = (weight * values).sum()
    whole = (weight if count is None else count).expand(values.shape).sum()
    return total / torch.where(whole == 0, 1, whole) if divide else total, whole


def reduce_classes(
    values: Tensor,
    sums: Overlap,
    reduction: str,
    *,
    absent: str,
    class_weight: Tensor | None,
    count: Tensor | float | None = None,
) -> Tensor:
    """Reduce one value per class (and image) over those that count.

    Args:
        values: [n c] or [c].
        sums: the overlap that the values come from; it tells what is void or absent.
        reduction: as in `reduce`.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them.
        class_weight: what each class counts for.
        count: what the mean divides by instead.
    """
    weight = sums.present
    if absent == "skip":
        # A NaN sum (a label that is no class) is not 0: it counts, and makes the value NaN.
        weight = weight * (sums.true.detach() != 0)
    if class_weight is not None:
        weight = weight * class_weight.to(weight.dtype)
    if reduction == "mean" and count is not None and values.ndim == 1:
        # The classes of the whole batch are alike on every rank.
        return distributed.mean_of_one(reduce(values, "sum", weight=weight), 1, count)
    return reduce(values, reduction, weight=weight, divisor=count)
