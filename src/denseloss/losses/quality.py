"""Losses of detection scores: the score of a place predicts how well its box fits."""

import torch
from torch import Tensor

from denseloss.backend import primitive
from denseloss.contract import (
    NonNegative,
    Quality,
    Reduction,
    Scores,
    ScoreWeight,
    Share,
    checked,
)
from denseloss.losses.reduce import reduce
from denseloss.module import loss_module
from denseloss.primitives.likelihood import TINY, sigmoid_likelihood
from denseloss.targets import ClassScores

__all__ = ["QualityFocalLoss", "VarifocalLoss", "quality_focal_loss", "varifocal_loss"]


@checked
@primitive
def quality_focal_loss(
    logits: Scores,
    quality: Quality | ClassScores,
    *,
    beta: NonNegative = 2.0,
    alpha: Share | None = None,
    weight: ScoreWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Focal loss for soft targets: its minimum is where the score equals the quality.

    L = Σ w |q - p|^β BCE(p, q) / Σ w,   p = sigmoid(z)

    Use it where the target is a quality, such as the IoU of the predicted box.

    Args:
        logits: scores z, any shape.
        quality: q in [0, 1], 0 for background; not differentiated unless it requires grad.
        beta: β >= 0, how fast an element fades as its score gets right.
        alpha: see Variant.
        weight: w, what each element counts for, >= 0; 0 is void.
        reduction: over all elements. Detectors divide the sum by their number of positives.

    Returns:
        A scalar, or the shape of the logits with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β < 0, α outside [0, 1], or an unknown reduction.

    Variant:
        The paper has no α. A number gives the variant of YOLOv5: times α q + (1-α) (1-q).

    Differs from:
        The first released code, (p - q)^β without the absolute value: NaN or negative for odd or
        fractional β.

    Source:
        Li et al., *Generalized Focal Loss*, NeurIPS 2020, eq. 2, arXiv:2006.04388.

    Example:
        >>> quality_focal_loss(torch.zeros(1), torch.ones(1))  # (1/2)^2 ln 2
        tensor(0.1733)
    """
    likely = sigmoid_likelihood(logits, quality, weight)
    q = likely.target
    values = (q - likely.p).abs().clamp_min(TINY) ** beta * likely.entropy
    if alpha is not None:
        values = (alpha * q + (1 - alpha) * (1 - q)) * values
    return reduce(values, reduction, weight=likely.weight)


@checked
@primitive
def varifocal_loss(
    logits: Scores,
    quality: Quality | ClassScores,
    *,
    alpha: NonNegative = 0.75,
    gamma: NonNegative = 2.0,
    detach_weight: bool = False,
    weight: ScoreWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Focal loss that fades background only, and weighs objects by their quality.

    q > 0: q BCE(p, q);   q = 0: α p^γ BCE(p, 0),   p = sigmoid(z);   mean over Σ w

    Use it where few places hold objects and good boxes should rank first.

    Args:
        logits: scores z, any shape.
        quality: q in [0, 1], 0 for background.
        alpha: α >= 0, what background counts for.
        gamma: γ >= 0, how fast background fades as its score falls.
        detach_weight: take the factors q and α p^γ as constants in the backward pass.
        weight: w, what each element counts for, >= 0; 0 is void.
        reduction: over all elements. Detectors divide the sum by Σ q or their number of positives.

    Returns:
        A scalar, or the shape of the logits with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α or γ < 0, or an unknown reduction.

    Variant:
        ``detach_weight=False`` is the gradient of the equation, as in VarifocalNet and mmdet;
        ``True`` that of D-FINE, DEIM and RT-DETR.

    Differs from:
        Code that fades objects too, or that scales them by α.

    Source:
        Zhang et al., *VarifocalNet*, CVPR 2021, eq. 2, arXiv:2008.13367.

    Example:
        >>> varifocal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))  # (1 + 0.75/4) ln 2 / 2
        tensor(0.4116)
    """
    likely = sigmoid_likelihood(logits, quality, weight)
    q = likely.target
    # Background is q = 0 alone; a NaN quality stays with the objects and makes the value NaN.
    factor = torch.where(q == 0, alpha * likely.p.clamp_min(TINY) ** gamma, q)
    if detach_weight:
        factor = factor.detach()
    return reduce(factor * likely.entropy, reduction, weight=likely.weight)


QualityFocalLoss = loss_module(quality_focal_loss)
VarifocalLoss = loss_module(varifocal_loss)
