"""Hard scores, on the same sums as the losses: a score never changes because a loss does."""

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
    Share,
    checked,
)
from denseloss.losses.reduce import reduce_classes
from denseloss.module import loss_module
from denseloss.primitives.overlap import f_measure, sigmoid_overlap, softmax_overlap

__all__ = ["BinaryFScore", "FScore", "binary_f_score", "f_score"]


@checked
def f_score(
    logits: Logits,
    target: ClassMap,
    *,
    beta: NonNegative = 1.0,
    threshold: Share | None = 0.5,
    smooth: NonNegative = 1e-5,
    pool: Pool = "batch",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""F-β score of each exclusive class; β = 1 is the Dice score.

    F_c = ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t with p = [softmax(z) > threshold]

    Use it to evaluate; ``threshold=None`` gives the soft score, 1 - `dice_loss` of the same
    smooth and pool (whose defaults differ).

    Args:
        logits: scores z.
        target: labels, or class probabilities t.
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        threshold: p counts as 1 above it and as 0 up to it; None takes p as it is.
        smooth: s >= 0; with s > 0 a class neither present nor predicted scores 1.
        pool: sums over the pixels of the ``"batch"``, or of each ``"image"``.
        absent: ``"count"`` classes without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each class counts for in the mean, >= 0.
        weight: w, what each pixel counts for, >= 0; 0 is void.
        ignore_index: the label of void pixels.
        reduction: over classes (and images). An image that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[c], or float[n c] with ``pool="image"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, or an unknown word.

    Differs from:
        torchmetrics' scores, which take labels or one-hot predictions and, for Dice, have s = 0.

    Source:
        van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.

    Example:
        >>> z = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 9.0]]])
        >>> f_score(z, torch.tensor([[0, 0, 1]]), reduction="none")  # 2/3 for both
        tensor([0.6667, 0.6667])
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool, threshold=threshold)
    values = f_measure(sums, beta=beta, smooth=smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


@checked
def binary_f_score(
    logits: Logits,
    target: Masks,
    *,
    beta: NonNegative = 1.0,
    threshold: Share | None = 0.5,
    smooth: NonNegative = 1e-5,
    pool: Pool = "batch",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""F-β score of each independent channel; β = 1 is the Dice score.

    F_c = ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w p t,  P = Σ w p,  T = Σ w t with p = [sigmoid(z) > threshold]

    Use it to evaluate; ``threshold=None`` gives the soft score, 1 - `binary_dice_loss` of the same
    smooth and pool (whose defaults differ).

    Args:
        logits: scores z.
        target: t in [0, 1], a mask per channel.
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        threshold: p counts as 1 above it and as 0 up to it; None takes p as it is.
        smooth: s >= 0; with s > 0 a channel neither present nor predicted scores 1.
        pool: sums over the pixels of the ``"batch"``, or of each ``"image"``.
        absent: ``"count"`` channels without a target pixel, or ``"skip"`` them in the mean.
        class_weight: what each channel counts for in the mean, >= 0.
        weight: w, what each element counts for, >= 0; 0 is void.
        ignore_index: the value of void pixels in the target, such as 255.
        reduction: over channels (and images). A channel that is all void does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[c], or float[n c] with ``pool="image"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, or an unknown word.

    Differs from:
        torchmetrics' scores, which take labels or one-hot predictions and, for Dice, have s = 0.

    Source:
        van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.

    Example:
        >>> z = torch.tensor([[[9.0, -9.0, -9.0]]])
        >>> binary_f_score(z, torch.tensor([[[1, 1, 0]]]))  # 2 I / (P + T) = 2/3
        tensor(0.6667)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool, threshold=threshold)
    values = f_measure(sums, beta=beta, smooth=smooth)
    return reduce_classes(values, sums, reduction, absent=absent, class_weight=class_weight)


BinaryFScore = loss_module(binary_f_score)
FScore = loss_module(f_score)
