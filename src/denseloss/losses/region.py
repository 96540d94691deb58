"""Losses of regions, each one ratio of the same three sums: 1 - (a I + s)/(b I + c P + d T + s).

I = Σ w min(p, t) is Σ w p t where t is 0 or 1; of soft targets, too, it is largest at p = t.
"""

from torch import Tensor

from denseloss.contract import (
    Absent,
    ClassLogits,
    ClassMap,
    ClassWeight,
    Count,
    ElementWeight,
    Logits,
    Masks,
    NonNegative,
    PixelWeight,
    Pool,
    Reduction,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.reduce import reduce_classes
from denseloss.primitives.sigmoid import sigmoid_overlap
from denseloss.primitives.softmax import softmax_overlap

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


@checked
def dice_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    beta: NonNegative = 1.0,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice (F-β) score of each exclusive class.

    L_c = 1 - ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)
    β = 1 is Dice: L_c = 1 - (2I + s) / (P + T + s)

    Use it beside cross entropy when the score is Dice or classes are small.

    Args:
        beta: β >= 0; above 1 a missed pixel costs more than a false one.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β or s < 0, or an unknown word.

    Differs from:
        MONAI (s = 1e-5 in numerator and denominator, probabilities expected; its mean with class
        weights divides by the number of classes), smp (pools the batch, s = 0 by default and its s
        is half of ours; an absent class is 0 there, and counts), nnU-Net (minus the score, so 1
        less), V-Net's squared denominator. For soft targets MONAI, unless ``soft_label=True``, and
        V-Net take I = Σ w p t: the loss is then not 0 and not lowest at p = t.

    Source:
        Milletari et al., *V-Net*, 3DV 2016, section 3, arXiv:1606.04797, with plain sums in the
        denominator (Drozdzal et al. 2016, eq. 1, arXiv:1608.04117); F-β: van Rijsbergen 1979;
        min(p, t) for soft targets: Wang et al. 2023, arXiv:2303.16296.

    Example:
        >>> logits = torch.zeros(1, 2, 2)  # p = 1/2 everywhere
        >>> dice_loss(logits, torch.tensor([[0, 1]]))  # I = 1/2, P = T = 1: 1 - 2/3
        tensor(0.3333)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1 + beta**2, b=0, c=1, d=beta**2, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


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
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Dice (F-β) score of each independent channel.

    L_c = 1 - ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)

    Use it beside binary cross entropy for one foreground class, or for classes that overlap.

    Args:
        beta: β >= 0; above 1 a missed pixel costs more than a false one.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, β or s < 0, or an unknown word.

    Differs from:
        MONAI's DiceLoss(sigmoid=True), whose s is 1e-5, and which for soft targets takes
        I = Σ w p t unless ``soft_label=True``: the loss is then not 0 and not lowest at p = t. smp,
        which pools the batch, has s = 0 (half of ours), and where a channel without a target pixel
        is 0 and counts. Mask2Former's logits are [q points]: here each point would be a channel,
        so give [q 1 points].

    Source:
        Milletari et al., *V-Net*, 3DV 2016, section 3, arXiv:1606.04797, with plain sums in the
        denominator (Drozdzal et al. 2016, eq. 1, arXiv:1608.04117); F-β: van Rijsbergen 1979;
        min(p, t) for soft targets: Wang et al. 2023, arXiv:2303.16296.

    Example:
        >>> binary_dice_loss(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]))  # 1 - 2/3
        tensor(0.3333)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1 + beta**2, b=0, c=1, d=beta**2, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


@checked
def jaccard_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Jaccard index (intersection over union) of each exclusive class.

    L_c = 1 - (I + s) / (P + T - I + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)

    Use it like Dice when the score is mean IoU; it punishes bad overlap harder.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, s < 0, or an unknown word.

    Differs from:
        smp's JaccardLoss, which pools the batch and has s = 0, and where an absent class is 0 and
        counts. MONAI's DiceLoss(jaccard=True), whose s is twice ours (its fraction is doubled), and
        which for soft targets takes I = Σ w p t unless ``soft_label=True``: the loss is then not 0
        and not lowest at p = t.

    Source:
        Rahman and Wang, *Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation*, ISVC 2016, section 3; min(p, t) for soft targets: Wang et al. 2023,
        arXiv:2302.05666.

    Example:
        >>> jaccard_loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1]]))  # 1 - 1.5/2.5
        tensor(0.4000)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1, b=-1, c=1, d=1, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


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
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the soft Jaccard index (intersection over union) of each independent channel.

    L_c = 1 - (I + s) / (P + T - I + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)

    Use it like binary Dice when the score is IoU; it punishes bad overlap harder.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, s < 0, or an unknown word.

    Differs from:
        smp's JaccardLoss, which pools the batch and has s = 0, and where a channel without a target
        pixel is 0 and counts. MONAI's DiceLoss(sigmoid=True, jaccard=True), whose s is twice ours
        (its fraction is doubled), and which for soft targets takes I = Σ w p t unless
        ``soft_label=True``: the loss is then not 0 and not lowest at p = t.

    Source:
        Rahman and Wang, *Optimizing Intersection-Over-Union in Deep Neural Networks for Image
        Segmentation*, ISVC 2016, section 3; min(p, t) for soft targets: Wang et al. 2023,
        arXiv:2302.05666.

    Example:
        >>> binary_jaccard_loss(torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]))  # 1 - 1.5/2.5
        tensor(0.4000)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1, b=-1, c=1, d=1, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


@checked
def tversky_loss(
    logits: ClassLogits,
    target: ClassMap,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    smooth: NonNegative = 1.0,
    pool: Pool = "image",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Dice with separate prices for false positives and false negatives, per exclusive class.

    L_c = 1 - (I + s) / (I + α (P-I) + β (T-I) + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = softmax(z)
    α = β = 1/2 is Dice with smooth 2s, α = β = 1 is Jaccard

    Use it when missing a small class costs more than over-painting it (raise β).

    Args:
        alpha: α >= 0, the price of a false positive.
        beta: β >= 0, the price of a false negative.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α, β or s < 0, or an unknown word.

    Differs from:
        Code that swaps α and β: here, as in the paper and in MONAI, α prices false positives.
        MONAI, whose s is 1e-5; smp, which pools the batch and has s = 0, and where an absent class
        is 0 and counts; kornia, which skips absent classes, and takes a mean over images of means
        over their classes. Code that for soft targets takes I = Σ w p t: its loss is not 0 and not
        lowest at p = t.

    Source:
        Salehi et al., *Tversky loss function for image segmentation*, MLMI 2017,
        section 2, arXiv:1706.05721.

    Example:
        >>> tversky_loss(torch.zeros(1, 2, 1), torch.tensor([[0]]))  # 1-1.5/1.75, 1-1/1.25
        tensor(0.1714)
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1, b=1 - alpha - beta, c=alpha, d=beta, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


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
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Dice with separate prices for false positives and false negatives, per channel.

    L_c = 1 - (I + s) / (I + α (P-I) + β (T-I) + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t over the pixels of an image,  p = sigmoid(z)
    α = β = 1/2 is Dice with smooth 2s, α = β = 1 is Jaccard

    Use it when a missed lesion costs more than an over-painted one (raise β).

    Args:
        alpha: α >= 0, the price of a false positive.
        beta: β >= 0, the price of a false negative.

    Returns:
        A scalar; with ``reduction="none"`` float[n c], or float[c] with ``pool="batch"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, α, β or s < 0, or an unknown word.

    Differs from:
        Code that swaps α and β: here, as in the paper and in MONAI, α prices false positives.
        MONAI, whose s is 1e-5; smp, which pools the batch and has s = 0, and where a channel
        without a target pixel is 0 and counts. Code that for soft targets takes I = Σ w p t: its
        loss is not 0 and not lowest at p = t.

    Source:
        Salehi et al., *Tversky loss function for image segmentation*, MLMI 2017,
        section 2, arXiv:1706.05721.

    Example:
        >>> binary_tversky_loss(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))  # 1 - 1.5/1.75
        tensor(0.1429)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool)
    values = sums.dissimilarity(a=1, b=1 - alpha - beta, c=alpha, d=beta, s=smooth)
    return reduce_classes(
        values, sums, reduction, absent=absent, class_weight=class_weight, count=count
    )


class BinaryDiceLoss(LossModule):
    """`binary_dice_loss` as a Module."""

    @options_of(binary_dice_loss)
    def __init__(self) -> None: ...

    @call_of(binary_dice_loss)
    def __call__(self) -> None: ...


class BinaryJaccardLoss(LossModule):
    """`binary_jaccard_loss` as a Module."""

    @options_of(binary_jaccard_loss)
    def __init__(self) -> None: ...

    @call_of(binary_jaccard_loss)
    def __call__(self) -> None: ...


class BinaryTverskyLoss(LossModule):
    """`binary_tversky_loss` as a Module."""

    @options_of(binary_tversky_loss)
    def __init__(self) -> None: ...

    @call_of(binary_tversky_loss)
    def __call__(self) -> None: ...


class DiceLoss(LossModule):
    """`dice_loss` as a Module."""

    @options_of(dice_loss)
    def __init__(self) -> None: ...

    @call_of(dice_loss)
    def __call__(self) -> None: ...


class JaccardLoss(LossModule):
    """`jaccard_loss` as a Module."""

    @options_of(jaccard_loss)
    def __init__(self) -> None: ...

    @call_of(jaccard_loss)
    def __call__(self) -> None: ...


class TverskyLoss(LossModule):
    """`tversky_loss` as a Module."""

    @options_of(tversky_loss)
    def __init__(self) -> None: ...

    @call_of(tversky_loss)
    def __call__(self) -> None: ...
