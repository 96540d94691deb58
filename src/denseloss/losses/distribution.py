"""Losses of distances that are predicted as distributions over bins."""

import torch
from torch import Tensor

from denseloss.contract import (
    Bins,
    BinTarget,
    Count,
    NonNegative,
    Reduction,
    ScoreWeight,
    TrainedBins,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.bins import Bracket, bin_loss
from denseloss.primitives.void import full_precision

__all__ = [
    "DistributionFocalLoss",
    "DistributionMean",
    "distribution_focal_loss",
    "distribution_mean",
]


@checked
def distribution_focal_loss(
    logits: TrainedBins,
    target: BinTarget,
    *,
    weight: ScoreWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy of the two bins around a continuous target.

    L = Σ w [-(i+1-y) log p_i - (y-i) log p_{i+1}] / Σ w,   i = ⌊y⌋,   p = softmax(z)

    Use it for box sides that are predicted as a distribution over k bins (GFL, YOLOv8).

    Args:
        logits: scores z of the k bins 0 … k-1, on the last axis.
        target: y in [0, k-1], in units of bins; y = k-1 is valid, values outside are clamped.
        weight: w, what each target counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives, times
            the four sides of a box. With ``reduction="mean"`` only.
        reduction: over all targets.

    Returns:
        A scalar, or float[*s] with ``reduction="none"``. The minimum is the entropy of the two
        shares, at most ln 2, not 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown reduction.

    Differs from:
        GFL and mmdet, whose reg_max = k - 1 and where y = k-1 is an index error; ultralytics,
        whose reg_max = k, which clamps at k-1.01 (here at k-1), and which writes into the caller's
        target.

    Source:
        Li et al., *Generalized Focal Loss*, NeurIPS 2020, eq. 6, arXiv:2006.04388.

    Example:
        >>> distribution_focal_loss(torch.zeros(1, 4), torch.tensor([1.25]))  # ln 4
        tensor(1.3863)
    """

    def formula(bins: Bracket) -> Tensor:
        return -(1 - bins.position) * bins.log_low - bins.position * bins.log_high

    return bin_loss(logits, target, weight, formula=formula, reduction=reduction, count=count)


@checked
def distribution_mean(logits: Bins) -> Tensor:
    r"""The distance that a distribution over bins stands for.

    y = Σ i p_i,   p = softmax(z)

    Use it to decode what `distribution_focal_loss` has trained.

    Args:
        logits: scores z of the k bins 0 … k-1, on the last axis.

    Returns:
        float[*s], in units of bins, in [0, k-1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape.

    Source:
        Li et al., *Generalized Focal Loss*, NeurIPS 2020, eq. 5, arXiv:2006.04388.

    Example:
        >>> distribution_mean(torch.zeros(1, 4))  # (0 + 1 + 2 + 3) / 4
        tensor([1.5000])
    """
    p = full_precision(logits).softmax(dim=-1)
    return (p * torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)).sum(-1)


class DistributionFocalLoss(LossModule):
    """`distribution_focal_loss` as a Module."""

    @options_of(distribution_focal_loss)
    def __init__(self) -> None: ...

    @call_of(distribution_focal_loss)
    def __call__(self) -> None: ...


class DistributionMean(LossModule):
    """`distribution_mean` as a Module."""

    @options_of(distribution_mean)
    def __init__(self) -> None: ...

    @call_of(distribution_mean)
    def __call__(self) -> None: ...
