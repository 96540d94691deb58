"""Losses of single pixels: cross entropy, focal and their kin."""

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import (
    ClassLogits,
    ClassMap,
    ClassWeight,
    Count,
    ElementWeight,
    Logits,
    Masks,
    NonNegative,
    PixelWeight,
    PosWeight,
    Reduction,
    Share,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.elementwise import BCE, FOCAL, ElementKind, elementwise
from denseloss.primitives.likelihood import Bernoulli, balanced
from denseloss.primitives.overlap import ratio
from denseloss.primitives.reduce import reduce
from denseloss.primitives.softmax import softmax_likelihood
from denseloss.targets import ClassScores

__all__ = [
    "BalancedCrossEntropyLoss",
    "BinaryCrossEntropyLoss",
    "BinaryFocalLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "balanced_cross_entropy_loss",
    "binary_cross_entropy_loss",
    "binary_focal_loss",
    "cross_entropy_loss",
    "focal_loss",
]


@checked
def cross_entropy_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    class_weight: ClassWeight | None = None,
    label_smoothing: Share = 0.0,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy of exclusive classes.

    L = -Σ w cw[t] log p_t / Σ w cw[t],   p = softmax(z)

    Use it first: it is the log-likelihood, is calibrated, and every other loss is compared to it.

    Args:
        target: labels, or class probabilities (then cw weighs each class's term and the mean
            divides by Σ w).
        class_weight: cw, what a pixel of each class counts for, >= 0.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
        reduction: over all pixels.

    Returns:
        A scalar, or float[n *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown reduction.

    Variant:
        Three things are as in torch, and surprise. A class that is ignored stays in the softmax:
        valid pixels push its logit down. ``ignore_index`` has no effect on class probabilities:
        give their void pixels weight 0. Label smoothing with class weights moves the optimum: at
        0.1 and weights 0.01 and 0.99, a pixel of the first class is best at p = 0.16, not 0.95.

    Differs from:
        F.cross_entropy only where that is undefined: NaN logits under void pixels do no harm, all
        void is 0 instead of NaN, and labels outside the classes give NaN instead of an error.
        smp's SoftCrossEntropyLoss, whose mean counts void pixels.

    Source:
        Good, *Rational Decisions*, J. R. Stat. Soc. B 14, 1952; label smoothing: Szegedy et al.,
        CVPR 2016, section 7, arXiv:1512.00567.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0986]]])  # p = (1/2, 1/2), (1/4, 3/4)
        >>> cross_entropy_loss(logits, torch.tensor([[0, 1]]))  # (ln 2 + ln 4/3) / 2
        tensor(0.4904)
    """
    spread = (1.0 if class_weight is None else class_weight) if label_smoothing else None
    likely = softmax_likelihood(logits, target, weight, ignore_index, spread=spread)
    whole = likely.weight
    if class_weight is None:
        values = likely.expected(likely.entropy)
    else:
        cw = likely.per_class(class_weight)
        values = likely.expected(cw * likely.entropy)
        whole = likely.weight if likely.soft else likely.weight * cw
    if likely.smooth is not None:
        even = likely.smooth / logits.shape[1]
        values = (1 - label_smoothing) * values + label_smoothing * even
    return reduce(values, reduction, weight=likely.weight, count=whole, divisor=count)


@checked
def binary_cross_entropy_loss(
    logits: Logits,
    target: Masks | ClassScores,
    *,
    pos_weight: PosWeight | float | None = None,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy of independent channels.

    L = Σ w [-b t log p - (1-t) log(1-p)] / Σ w,   p = sigmoid(z)

    Use it for one foreground class, or for classes that overlap.

    Args:
        pos_weight: b, what a positive counts for; one number, one per channel, or a tensor that
            broadcasts to the logits.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives. With
            ``reduction="mean"`` only.
        reduction: over all elements.

    Returns:
        A scalar, or float[n c *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown reduction.

    Differs from:
        F.binary_cross_entropy_with_logits, whose mean with a weight divides by the number of
        elements, not by Σ w, and whose pos_weight of shape [c] lies along the last axis, not
        along the channels. smp's SoftBCEWithLogitsLoss, whose mean counts void elements. nnU-Net,
        which for regions with an ignore channel divides by voxels, not by voxels times channels:
        its value is c times ours. Mask2Former's logits are [q points]: here each point would be a
        channel, so give [q 1 points].

    Source:
        Cox, *The Regression Analysis of Binary Sequences*, J. R. Stat. Soc. B 20, 1958.

    Example:
        >>> binary_cross_entropy_loss(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]))  # ln 2
        tensor(0.6931)
    """

    def formula(likely: Bernoulli) -> Tensor:
        if pos_weight is None:
            return likely.entropy
        t = likely.target
        return -(_per_channel(pos_weight, t) * t * likely.log_p + (1 - t) * likely.log_q)

    return elementwise(
        logits,
        target,
        weight,
        ignore_index,
        kind=ElementKind(BCE, pos_weight),
        formula=formula,
        reduction=reduction,
        count=count,
    )


def _per_channel(value: Tensor | float, like: Tensor) -> Tensor | float:
    """A number per channel [c] in the shape that broadcasts to [n c *s]."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(like.dtype)
    if value.ndim == 1 and value.shape[0] == like.shape[1]:
        return value.reshape(-1, *[1] * (like.ndim - 2))
    return value


@checked
def balanced_cross_entropy_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy in which every class that is present has the same total weight.

    L = -Σ w cw[t] log p_t / Σ w cw[t],   cw[c] = 1 / (valid pixels of class c in the batch)

    Use it for rare classes when no weights are known beforehand.

    Args:
        target: labels, or class probabilities (a class then has Σ t pixels).
        weight: w, what each pixel counts for on top of the balance, >= 0; 0 is void.
        reduction: over all pixels.

    Returns:
        A scalar, or float[n *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown reduction.

    Differs from:
        The common form that takes 1/(count + 1e-6) once, over the data set, at construction:
        here the batch decides, at each call, and an absent class has no weight.

    Source:
        Xie and Tu, *Holistically-Nested Edge Detection*, ICCV 2015, eq. 2, arXiv:1504.06375,
        from two classes to any number.

    Example:
        >>> target = torch.tensor([[0, 0, 0, 1]])
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0, 1.0986], [0.0, 0.0, 0.0, 0.0]]])
        >>> balanced_cross_entropy_loss(logits, target)  # (ln 2 + ln 4) / 2
        tensor(1.0397)
    """
    likely = softmax_likelihood(logits, target, weight, ignore_index)
    pixels = distributed.total(likely.pixels())
    cw = likely.per_class(ratio(torch.ones_like(pixels), pixels, empty=0))
    values, whole = likely.expected(cw * likely.entropy), likely.weight * likely.expected(cw)
    return reduce(values, reduction, weight=likely.weight, count=whole, divisor=count)


@checked
def focal_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    gamma: NonNegative = 2.0,
    alpha: ClassWeight | NonNegative | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross entropy in which pixels that are already right count less.

    L = Σ w α_t (1 - p_t)^γ (-log p_t) / Σ w,   p = softmax(z)

    Use it when easy pixels outnumber the rest so far that they drown it.

    Args:
        target: labels, or class probabilities (then the sum over classes of t times the term).
        gamma: γ >= 0, how fast a pixel fades as it gets right; 0 is cross entropy.
        alpha: α, one factor for all classes, or one per class.
        reduction: over all pixels.

    Returns:
        A scalar, or float[n *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, γ < 0, or an unknown reduction.

    Variant:
        Softmax over exclusive classes; the mean divides by Σ w, so α scales the loss.

    Differs from:
        MONAI and kornia, whose mean also divides by the number of classes, and MONAI's default,
        which is a sigmoid per class. smp's multiclass focal loss, which always is: it is
        `binary_focal_loss` of `one_hot` labels with ``alpha=None``.

    Source:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 5, arXiv:1708.02002,
        with the softmax in place of the sigmoid.

    Example:
        >>> focal_loss(torch.zeros(1, 2, 1), torch.tensor([[0]]))  # (1/2)^2 ln 2
        tensor(0.1733)
    """
    likely = softmax_likelihood(logits, target, weight, ignore_index)
    values = likely.miss**gamma * likely.entropy
    if isinstance(alpha, Tensor):
        alpha = likely.per_class(alpha)
    if alpha is not None:
        values = alpha * values
    return reduce(likely.expected(values), reduction, weight=likely.weight, divisor=count)


@checked
def binary_focal_loss(
    logits: Logits,
    target: Masks | ClassScores,
    *,
    gamma: NonNegative = 2.0,
    alpha: Share | None = 0.25,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Binary cross entropy in which elements that are already right count less.

    L = Σ w α_t (1 - p_t)^γ BCE(p, t) / Σ w,   p = sigmoid(z)
    α_t = α t + (1-α) (1-t),   p_t = p t + (1-p) (1-t)

    Use it when easy background outnumbers the foreground a thousandfold, as in dense detection.

    Args:
        target: t, 0 or 1, a mask per channel. Soft targets are computed as written, but the
            minimum is then not at p = t: use `quality_focal_loss` for them.
        gamma: γ >= 0, how fast an element fades as it gets right.
        alpha: α in [0, 1], the share of the positives; None switches the balance off.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives. With
            ``reduction="mean"`` only.
        reduction: over all elements.

    Returns:
        A scalar, or float[n c *s] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, γ < 0, α outside [0, 1], or an unknown reduction.

    Differs from:
        torchvision.ops.sigmoid_focal_loss, whose default reduction is ``"none"``, whose
        gradient is NaN for γ < 1 at saturated logits, and which computes in half precision.

    Source:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, eq. 5, arXiv:1708.02002.

    Example:
        >>> binary_focal_loss(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))  # 0.25 (1/2)^2 ln 2
        tensor(0.0433)
    """

    def formula(likely: Bernoulli) -> Tensor:
        values = likely.miss**gamma * likely.entropy
        return values if alpha is None else balanced(alpha, likely.target) * values

    return elementwise(
        logits,
        target,
        weight,
        ignore_index,
        kind=ElementKind(FOCAL, alpha, gamma),
        formula=formula,
        reduction=reduction,
        count=count,
    )


class BalancedCrossEntropyLoss(LossModule):
    """`balanced_cross_entropy_loss` as a Module."""

    @options_of(balanced_cross_entropy_loss)
    def __init__(self) -> None: ...

    @call_of(balanced_cross_entropy_loss)
    def __call__(self) -> None: ...


class BinaryCrossEntropyLoss(LossModule):
    """`binary_cross_entropy_loss` as a Module."""

    @options_of(binary_cross_entropy_loss)
    def __init__(self) -> None: ...

    @call_of(binary_cross_entropy_loss)
    def __call__(self) -> None: ...


class BinaryFocalLoss(LossModule):
    """`binary_focal_loss` as a Module."""

    @options_of(binary_focal_loss)
    def __init__(self) -> None: ...

    @call_of(binary_focal_loss)
    def __call__(self) -> None: ...


class CrossEntropyLoss(LossModule):
    """`cross_entropy_loss` as a Module."""

    @options_of(cross_entropy_loss)
    def __init__(self) -> None: ...

    @call_of(cross_entropy_loss)
    def __call__(self) -> None: ...


class FocalLoss(LossModule):
    """`focal_loss` as a Module."""

    @options_of(focal_loss)
    def __init__(self) -> None: ...

    @call_of(focal_loss)
    def __call__(self) -> None: ...
