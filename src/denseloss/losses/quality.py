"""Losses of detection scores: the score of a place predicts how well its box fits."""

import torch
from torch import Tensor

from denseloss.contract import (
    Count,
    NonNegative,
    Quality,
    Reduction,
    Scores,
    ScoreWeight,
    Share,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.elementwise import (
    QUALITY,
    VARIFOCAL,
    VARIFOCAL_FIXED,
    ElementKind,
    elementwise,
)
from denseloss.primitives.likelihood import TINY, Bernoulli, balanced
from denseloss.targets import ClassScores

__all__ = ["QualityFocalLoss", "VarifocalLoss", "quality_focal_loss", "varifocal_loss"]


@checked
def quality_focal_loss(
    logits: Scores,
    quality: Quality | ClassScores,
    *,
    beta: NonNegative = 2.0,
    alpha: Share | None = None,
    weight: ScoreWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Focal loss for soft targets: its minimum is where the score equals the quality.

    L = Σ w |q - p|^β BCE(p, q) / Σ w,   p = sigmoid(z)

    Use it where the target is a quality, such as the IoU of the predicted box.

    Args:
        logits: scores z, any shape.
        quality: q in [0, 1], 0 for background, which all below 0 is, too; above 1.01 it is NaN.
            Not differentiated unless it requires grad.
        beta: β >= 0, how fast an element fades as its score gets right.
        alpha: see Variant.
        weight: w, what each element counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives. With
            ``reduction="mean"`` only.
        reduction: over all elements.

    Returns:
        A scalar, or the shape of the logits with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β < 0, α outside [0, 1], or an unknown reduction.

    Variant:
        The paper has no α. A number gives the variant of YOLOv5: times α q + (1-α) (1-q).

    Differs from:
        The first released code, (p - q)^β without the absolute value: NaN or negative for odd or
        fractional β. mmdet, whose mean is per anchor: ours, per element, is smaller by the number
        of classes (``count=`` anchors gives theirs).

    Source:
        Li et al., *Generalized Focal Loss*, NeurIPS 2020, eq. 2, arXiv:2006.04388.

    Example:
        >>> quality_focal_loss(torch.zeros(1), torch.ones(1))  # (1/2)^2 ln 2
        tensor(0.1733)
    """

    def formula(likely: Bernoulli) -> Tensor:
        gap = (likely.target - likely.p).abs().clamp_min(TINY)
        values = gap**beta * likely.entropy
        return values if alpha is None else balanced(alpha, likely.target) * values

    kind = ElementKind(QUALITY, alpha, beta)
    return elementwise(
        logits, quality, weight, None, kind=kind, formula=formula, reduction=reduction, count=count
    )


@checked
def varifocal_loss(
    logits: Scores,
    quality: Quality | ClassScores,
    *,
    alpha: NonNegative = 0.75,
    gamma: NonNegative = 2.0,
    detach_weight: bool = False,
    weight: ScoreWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Focal loss that fades background only, and weighs objects by their quality.

    q > 0: q BCE(p, q);   q <= 0: α p^γ BCE(p, 0),   p = sigmoid(z);   mean over Σ w

    Use it where few places hold objects and good boxes should rank first.

    Args:
        logits: scores z, any shape.
        quality: q in [0, 1], 0 for background, which all below 0 is, too; above 1.01 it is NaN.
        alpha: α >= 0, what background counts for.
        gamma: γ >= 0, how fast background fades as its score falls.
        detach_weight: take the factors q and α p^γ as constants in the backward pass.
        weight: w, what each element counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: Σ q, the number of positives.
            With ``reduction="mean"`` only.
        reduction: over all elements.

    Returns:
        A scalar, or the shape of the logits with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α or γ < 0, or an unknown reduction.

    Variant:
        ``detach_weight=False`` is the gradient of the equation, as in VarifocalNet and mmdet;
        ``True`` that of D-FINE, DEIM and RT-DETR.

    Differs from:
        Code that fades objects too, or that scales them by α. D-FINE, RT-DETR and ultralytics,
        where a matched place whose IoU is exactly 0 has weight 0: here, as in mmdet, it is
        trained as background, with a gradient.

    Source:
        Zhang et al., *VarifocalNet*, CVPR 2021, eq. 2, arXiv:2008.13367.

    Example:
        >>> varifocal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))  # (1 + 0.75/4) ln 2 / 2
        tensor(0.4116)
    """

    def formula(likely: Bernoulli) -> Tensor:
        q, p = likely.target, likely.p.clamp_min(TINY)
        # A NaN quality stays with the objects and makes the value NaN.
        factor = torch.where(q == 0, alpha * p**gamma, q)
        return (factor.detach() if detach_weight else factor) * likely.entropy

    kind = ElementKind(VARIFOCAL_FIXED if detach_weight else VARIFOCAL, alpha, gamma)
    return elementwise(
        logits, quality, weight, None, kind=kind, formula=formula, reduction=reduction, count=count
    )


class QualityFocalLoss(LossModule):
    """`quality_focal_loss` as a Module."""

    @options_of(quality_focal_loss)
    def __init__(self) -> None: ...

    @call_of(quality_focal_loss)
    def __call__(self) -> None: ...


class VarifocalLoss(LossModule):
    """`varifocal_loss` as a Module."""

    @options_of(varifocal_loss)
    def __init__(self) -> None: ...

    @call_of(varifocal_loss)
    def __call__(self) -> None: ...
