"""Hard scores: on the same sums as the losses, and of counts of pixels or objects."""

from typing import Any, Literal

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import (
    Absent,
    ClassLogits,
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
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.overlap import Overlap
from denseloss.primitives.reduce import reduce
from denseloss.primitives.sigmoid import sigmoid_overlap
from denseloss.primitives.softmax import softmax_overlap

# `overlap_score` takes counts, not logits: it is no function of the catalogue.
__all__ = ["BinaryFScore", "FScore", "binary_f_score", "f_score"]

Decision = Literal["argmax"]
OverlapKind = Literal["f1", "f2", "iou", "precision", "recall"]

# a, b, c of a TP / (a TP + b FP + c FN)
_OVERLAPS: dict[str, tuple[int, int, int]] = {
    "f1": (2, 1, 1),
    "f2": (5, 1, 4),
    "iou": (1, 1, 1),
    "precision": (1, 1, 0),
    "recall": (1, 0, 1),
}


@checked
def f_score(
    logits: ClassLogits,
    target: ClassMap,
    *,
    beta: NonNegative = 1.0,
    decision: Decision | Share | None = "argmax",
    smooth: NonNegative = 1e-5,
    pool: Pool = "batch",
    absent: Absent = "count",
    class_weight: ClassWeight | None = None,
    weight: PixelWeight | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""F-β score of each exclusive class; β = 1 is the Dice score.

    F_c = ((1+β²) I + s) / ((1+β²) I + β² (T-I) + (P-I) + s)
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t
    p = 1 for the class with the highest score, else 0

    Use it to evaluate; ``decision=None`` gives the soft score, 1 - `dice_loss` of the same
    smooth and pool (whose defaults differ).

    Args:
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        decision: ``"argmax"``: the class with the highest score (the first of equals); a number in
            [0, 1]: every class with p above it, which may be none; None: p as it is.
        smooth: s >= 0; added to both sides of the fraction.
        pool: sums over the pixels of the ``"batch"``, or of each ``"image"``.
        reduction: over classes (and images). What nothing speaks about does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[c], or float[n c] with ``pool="image"``. NaN for a
        class that is neither in the target nor predicted, or all void: it has no score. Means leave
        it out, and are NaN where nothing is left. A class that is predicted but absent scores 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, or an unknown word.

    Differs from:
        torchmetrics' scores, all with s = 0. Code that
        counts every class whose p is above 0.5: give ``decision=0.5``.

    Source:
        van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.

    Example:
        >>> z = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 9.0]]])
        >>> f_score(z, torch.tensor([[0, 0, 1]]), reduction="none")  # 2/3 for both
        tensor([0.6667, 0.6667])
    """
    sums = softmax_overlap(logits, target, weight, ignore_index, pool=pool, decision=decision)
    values = sums.similarity(a=1 + beta**2, b=0, c=1, d=beta**2, s=smooth)
    return _mean_of_scores(values, sums, reduction, absent, class_weight)


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
    I = Σ w min(p, t),  P = Σ w p,  T = Σ w t,  p = [sigmoid(z) > threshold]

    Use it to evaluate; ``threshold=None`` gives the soft score, 1 - `binary_dice_loss` of the same
    smooth and pool (whose defaults differ).

    Args:
        beta: β >= 0; above 1 a missed pixel costs more than a false one.
        threshold: p counts as 1 above it and as 0 up to it; None takes p as it is.
        smooth: s >= 0; added to both sides of the fraction.
        pool: sums over the pixels of the ``"batch"``, or of each ``"image"``.
        reduction: over channels (and images). What nothing speaks about does not count.

    Returns:
        A scalar; with ``reduction="none"`` float[c], or float[n c] with ``pool="image"``. NaN for a
        channel that is neither in the target nor predicted, or all void: it has no score. Means
        leave it out, and are NaN where nothing is left. A channel that is predicted but absent
        scores 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, or an unknown word.

    Differs from:
        torchmetrics' scores, all with s = 0.

    Source:
        van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.

    Example:
        >>> z = torch.tensor([[[9.0, -9.0, -9.0]]])
        >>> binary_f_score(z, torch.tensor([[[1, 1, 0]]]))  # 2 I / (P + T) = 2/3
        tensor(0.6667)
    """
    sums = sigmoid_overlap(logits, target, weight, ignore_index, pool=pool, threshold=threshold)
    values = sums.similarity(a=1 + beta**2, b=0, c=1, d=beta**2, s=smooth)
    return _mean_of_scores(values, sums, reduction, absent, class_weight)


def overlap_score(tp: Any, fp: Any, fn: Any, *, kind: OverlapKind) -> Any:
    r"""Score of counts of right, false and missed elements, such as pixels, boxes or objects.

    f1 = 2 TP / (2 TP + FP + FN), also called Dice;  f2 = 5 TP / (5 TP + 4 FN + FP)
    iou = TP / (TP + FP + FN);  precision = TP / (TP + FP);  recall = TP / (TP + FN)

    Use it where elements have been counted, over images or ranks: the counts add up, scores do not.

    Args:
        tp: true positives, of any shape: tensors, or arrays of numpy.
        fp: false positives.
        fn: false negatives.
        kind: ``"f1"``, ``"f2"``, ``"iou"``, ``"precision"`` or ``"recall"``.

    Returns:
        The scores, elementwise, as tensor or array. NaN where all three are 0: there is nothing to
        score. 0 where nothing is right, also where nothing was predicted (precision) or nothing is
        there (recall).

    Raises:
        ValueError: another word.

    Source:
        van Rijsbergen, *Information Retrieval*, 2nd ed., 1979, chapter 7.

    Example:
        >>> counts = torch.tensor([6, 0]), torch.tensor([2, 0]), torch.tensor([2, 0])
        >>> overlap_score(*counts, kind="f1")
        tensor([0.7500,    nan], dtype=torch.float64)
    """
    if kind not in _OVERLAPS:
        raise ValueError(f"overlap_score: kind must be one of {', '.join(_OVERLAPS)}, got {kind!r}")
    a, b, c = _OVERLAPS[kind]
    of_numpy = not any(isinstance(one, Tensor) for one in (tp, fp, fn))
    # A copy of an array: torch has no negative strides.
    found = [torch.as_tensor(one if isinstance(one, Tensor) else one + 0) for one in (tp, fp, fn)]
    tp, fp, fn = (one if one.is_floating_point() else one.double() for one in found)
    whole = a * tp + b * fp + c * fn
    # The denominator is 0 only where nothing is right.
    value = torch.where(tp + fp + fn == 0, torch.nan, a * tp / torch.where(whole == 0, 1, whole))
    return value.numpy() if of_numpy else value


def _mean_of_scores(
    values: Tensor, sums: Overlap, reduction: str, absent: str, class_weight: Tensor | None
) -> Tensor:
    """Reduce the scores over what has one."""
    true, predicted = sums.true.detach() != 0, sums.predicted.detach() != 0
    weight = counts = sums.present * (true if absent == "skip" else true | predicted)
    if class_weight is not None:
        weight = counts * class_weight.to(counts.dtype)
    if reduction == "none":
        return torch.where(counts == 0, torch.nan, weight * values)
    value = reduce(torch.where(counts == 0, 0, values), reduction, weight=weight)
    if reduction == "sum":
        return value
    return torch.where(distributed.total(weight.sum()) == 0, torch.nan, value)


class BinaryFScore(LossModule):
    """`binary_f_score` as a Module."""

    @options_of(binary_f_score)
    def __init__(self) -> None: ...

    @call_of(binary_f_score)
    def __call__(self) -> None: ...


class FScore(LossModule):
    """`f_score` as a Module."""

    @options_of(f_score)
    def __init__(self) -> None: ...

    @call_of(f_score)
    def __call__(self) -> None: ...
