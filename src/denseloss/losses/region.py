"""Losses of regions: ratios of overlap sums. Each is one line over the same three sums."""

from torch import Tensor

from denseloss.contract import (
    Absent,
    ClassMap,
    ClassWeight,
    ElementWeight,
    Logits,
    Masks,
    NonNegative,
    PixelWeight,
    Pool,
    Reduction,
    checked,
)
from denseloss.losses.reduce import reduce_classes
from denseloss.module import loss_module
from denseloss.primitives.overlap import (
    Overlap,
    f_measure,
    ratio,
    sigmoid_overlap,
    softmax_overlap,
)

__all__ = [
    "BinaryDiceLoss",
    "BinaryJaccardLoss",
    "BinaryTverskyLoss",
    "DiceLoss",
    "JaccardLoss",
    "TverskyLoss",
    "binary_dice_loss",
    "binary_jaccard_loss",
    "binary_tversky_loss",
    "dice_loss",
    "jaccard_loss",
    "tversky_loss",
]


def _jaccard(sums: Overlap, smooth: float) -> Tensor:
    both, predicted, true, _ = sums
    return ratio(both + smooth, predicted + true - both + smooth, empty=1)


def _tversky(sums: Overlap, alpha: float, beta: float, smooth: float) -> Tensor:
    both, predicted, true, _ = sums
    hit = both + smooth
    return ratio(hit, hit + alpha * (predicted - both) + beta * (true - both), empty=1)


@checked
def dice_loss(
    logits: Logits,
    target: ClassMap,
    *,
    beta: NonNegative = 1.0,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice (F-β) score of each exclusive class.

    L_c = 1 - ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)
    β = 1 is Dice: L_c = 1 - (2I + s) / (P + T + s)

    Use it beside cross entropy when the score is Dice or classes are small.

    Args:
        logits: scores z.
        target: labels, or class probabilities t.
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        smooth: s >= 0; with s > 0 a class neither present nor predicted costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each class counts for in the mean, >= 0.
        weight: w, what each pixel counts for, >= 0; 0 is void.
        ignore_index: the label of void pixels.
        reduction: over images and classes. An image that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β or s < 0, or an unknown word.

    Differs from:
        MONAI (s = 1e-5 in numerator and denominator, probabilities expected), smp (pools the
        batch, s = 0 by default and its s is half of ours; zeroes absent classes but counts them),
        V-Net's squared denominator.

    Source:
        Milletari et al., *V-Net*, 3DV 2016, section 3, arXiv:1606.04797, with plain sums in the
        denominator (Drozdzal et al. 2016, eq. 1, arXiv:1608.04117); F-β: van Rijsbergen 1979.

    Example:
        >>> logits = torch.zeros(1, 2, 2)  # p = 1/2 everywhere
        >>> dice_loss(logits, torch.tensor([[0, 1]]))  # I = 1/2, P = T = 1: 1 - 2/3
        tensor(0.3333)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - f_measure(sums, beta=beta, smooth=smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def binary_dice_loss(
    logits: Logits,
    target: Masks,
    *,
    beta: NonNegative = 1.0,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice (F-β) score of each independent channel.

    L_c = 1 - ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)

    Use it beside binary cross entropy for one foreground class, or for classes that overlap.

    Args:
        logits: scores z.
        target: t in [0, 1], a mask per channel.
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        smooth: s >= 0; with s > 0 an empty mask that is predicted empty costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` channels without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each channel counts for in the mean, >= 0.
        weight: w, what each element counts for, >= 0; 0 is void.
        ignore_index: the value of void pixels in the target, such as 255.
        reduction: over images and channels. A channel that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β or s < 0, or an unknown word.

    Differs from:
        MONAI's DiceLoss(sigmoid=True), whose s is 1e-5.

    Source:
        Milletari et al., *V-Net*, 3DV 2016, section 3, arXiv:1606.04797, with plain sums in the
        denominator (Drozdzal et al. 2016, eq. 1, arXiv:1608.04117); F-β: van Rijsbergen 1979.

    Example:
        >>> binary_dice_loss(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]))  # 1 - 2/3
        tensor(0.3333)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - f_measure(sums, beta=beta, smooth=smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def jaccard_loss(
    logits: Logits,
    target: ClassMap,
    *,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Jaccard index (intersection over union) of each exclusive class.

    L_c = 1 - (I + s) / (P + T - I + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)

    Use it like Dice when the score is mean IoU; it punishes bad overlap harder.

    Args:
        logits: scores z.
        target: labels, or class probabilities t.
        smooth: s >= 0; with s > 0 a class neither present nor predicted costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each class counts for in the mean, >= 0.
        weight: w, what each pixel counts for, >= 0; 0 is void.
        ignore_index: the label of void pixels.
        reduction: over images and classes. An image that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, s < 0, or an unknown word.

    Differs from:
        smp's JaccardLoss, which pools the batch and has s = 0.

    Source:
        Rahman and Wang, *Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation*, ISVC 2016, section 3.

    Example:
        >>> jaccard_loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))  # 1 - 1.5/2.5
        tensor(0.4000)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - _jaccard(sums, smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def binary_jaccard_loss(
    logits: Logits,
    target: Masks,
    *,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Jaccard index (intersection over union) of each independent channel.

    L_c = 1 - (I + s) / (P + T - I + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)

    Use it like binary Dice when the score is IoU; it punishes bad overlap harder.

    Args:
        logits: scores z.
        target: t in [0, 1], a mask per channel.
        smooth: s >= 0; with s > 0 an empty mask that is predicted empty costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` channels without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each channel counts for in the mean, >= 0.
        weight: w, what each element counts for, >= 0; 0 is void.
        ignore_index: the value of void pixels in the target, such as 255.
        reduction: over images and channels. A channel that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, s < 0, or an unknown word.

    Differs from:
        smp's JaccardLoss, which pools the batch and has s = 0.

    Source:
        Rahman and Wang, *Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation*, ISVC 2016, section 3.

    Example:
        >>> binary_jaccard_loss(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]))  # 1 - 1.5/2.5
        tensor(0.4000)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - _jaccard(sums, smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def tversky_loss(
    logits: Logits,
    target: ClassMap,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Dice with separate prices for false positives and false negatives, per exclusive class.

    L_c = 1 - (I + s) / (I + α (P-I) + β (T-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)
    α = β = 1/2 is Dice with smooth 2s, α = β = 1 is Jaccard

    Use it when missing a small class costs more than over-painting it (raise β).

    Args:
        logits: scores z.
        target: labels, or class probabilities t.
        alpha: α >= 0, the price of a false positive.
        beta: β >= 0, the price of a false negative.
        smooth: s >= 0; with s > 0 a class neither present nor predicted costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each class counts for in the mean, >= 0.
        weight: w, what each pixel counts for, >= 0; 0 is void.
        ignore_index: the label of void pixels.
        reduction: over images and classes. An image that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α, β or s < 0, or an unknown word.

    Differs from:
        Code that swaps α and β: here, as in the paper and in MONAI, α prices false positives.

    Source:
        Salehi et al., *Tversky loss function for image segmentation*, MLMI 2017,
        section 2, arXiv:1706.05721.

    Example:
        >>> tversky_loss(torch.zeros(1, 2, 1), torch.tensor([[0]]))  # 1-1.5/1.75, 1-1/1.25
        tensor(0.1714)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - _tversky(sums, alpha, beta, smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def binary_tversky_loss(
    logits: Logits,
    target: Masks,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Dice with separate prices for false positives and false negatives, per channel.

    L_c = 1 - (I + s) / (I + α (P-I) + β (T-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)
    α = β = 1/2 is Dice with smooth 2s, α = β = 1 is Jaccard

    Use it when a missed lesion costs more than an over-painted one (raise β).

    Args:
        logits: scores z.
        target: t in [0, 1], a mask per channel.
        alpha: α >= 0, the price of a false positive.
        beta: β >= 0, the price of a false negative.
        smooth: s >= 0; with s > 0 an empty mask that is predicted empty costs nearly 0.
        pool: sums over the pixels of each ``"image"``, or of the ``"batch"`` as one image.
        absent: ``"count"`` channels without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each channel counts for in the mean, >= 0.
        weight: w, what each element counts for, >= 0; 0 is void.
        ignore_index: the value of void pixels in the target, such as 255.
        reduction: over images and channels. A channel that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α, β or s < 0, or an unknown word.

    Differs from:
        Code that swaps α and β: here, as in the paper and in MONAI, α prices false positives.

    Source:
        Salehi et al., *Tversky loss function for image segmentation*, MLMI 2017,
        section 2, arXiv:1706.05721.

    Example:
        >>> binary_tversky_loss(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))  # 1 - 1.5/1.75
        tensor(0.1429)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = 1 - _tversky(sums, alpha, beta, smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


BinaryDiceLoss = loss_module(binary_dice_loss)
BinaryJaccardLoss = loss_module(binary_jaccard_loss)
BinaryTverskyLoss = loss_module(binary_tversky_loss)
DiceLoss = loss_module(dice_loss)
JaccardLoss = loss_module(jaccard_loss)
TverskyLoss = loss_module(tversky_loss)
