"""Losses of box pairs: IoU and its extensions, safe for any box with sides of 1e-18 to 1e18.

Areas vanish or overflow in float32 beyond: smaller boxes count as boxes without area, and larger
ones may score NaN.
"""

import math
from typing import Literal

from torch import Tensor

from denseloss.contract import (
    Boxes,
    BoxWeight,
    Count,
    NonNegative,
    Reduction,
    TargetBoxes,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.boxes import CIOU, CIOU_RELEASED, DIOU, GIOU, IOU, BoxPairs, box_loss
from denseloss.primitives.overlap import ratio

__all__ = [
    "CIoULoss",
    "DIoULoss",
    "GIoULoss",
    "IoULoss",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "iou_loss",
]

Format = Literal["xyxy", "xywh", "cxcywh"]
Variant = Literal["equation", "released"]


@checked
def iou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the intersection over union of each pair of boxes.

    L = Σ w (1 - I/U + f) / Σ w,   f = 0 unless the box is inverted: see Variant

    Use it as a measure; boxes that do not touch have no gradient.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives, or the
            sum of their qualities. With ``reduction="mean"`` only.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 1], up to 3 for inverted
        boxes. A pair with a coordinate that is not finite is NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        Linear. Sizes of an inverted box count as 0, and f = max(0, x1 - x2) / (width of the hull
        around all corners), plus the same for its height: an inverted box scores at least 1 and
        has a gradient that turns it round, as has one of width or height 0 that widens it.
        Two boxes without area score 0 if they are the same box and not inverted, else at least 1.

    Differs from:
        mmdet, whose default is -log IoU, whose weighted mean divides by the number of boxes (here:
        ``count=len(boxes)``), and which averages a weight per coordinate, [m 4], over the four
        (here it is refused: give ``weight.mean(-1)``); libraries that add an epsilon, which then
        prices perfect small boxes (0.09 at a side of 0.001 in torchvision).

    Source:
        Yu et al., *UnitBox*, ACM MM 2016, arXiv:1608.01471, in its linear form.

    Example:
        >>> iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))  # 1 - 2/6
        tensor(0.6667)
    """

    def formula(pairs: BoxPairs) -> Tensor:
        return 1 - pairs.iou + pairs.inverted

    return box_loss(
        boxes,
        target_boxes,
        weight,
        fmt,
        kind=IOU,
        formula=formula,
        reduction=reduction,
        count=count,
    )


@checked
def giou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Generalised IoU loss: IoU plus the share of the hull that neither box covers.

    L = Σ w [1 - (I/U - (C - U)/C) + f] / Σ w,   C the area of the smallest box around both
    f = 0 unless the box is inverted: see Variant

    Use it where predicted boxes may miss their targets altogether.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives, or the
            sum of their qualities. With ``reduction="mean"`` only.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 2], up to 4 for inverted
        boxes. A pair with a coordinate that is not finite is NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        f is that of `iou_loss`. Two boxes without area have IoU 1 if they are the same box and
        not inverted, else 0; 0/0 of the hull is 0.

    Differs from:
        torchvision, whose epsilon prices perfect small boxes and where a box inverted in both
        axes can score 0; detectron2, which stops the program on an inverted box; the weights of
        mmdet, see `iou_loss`.

    Source:
        Rezatofighi et al., *Generalized Intersection over Union*, CVPR 2019, algorithm 1,
        arXiv:1902.09630.

    Example:
        >>> giou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 2/4
        tensor(1.5000)
    """

    def formula(pairs: BoxPairs) -> Tensor:
        return 1 - (pairs.iou - pairs.empty) + pairs.inverted

    return box_loss(
        boxes,
        target_boxes,
        weight,
        fmt,
        kind=GIOU,
        formula=formula,
        reduction=reduction,
        count=count,
    )


@checked
def diou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distance IoU loss: IoU plus the squared distance of the centres.

    L = Σ w [1 - (I/U - ρ²/c²) + f] / Σ w,   ρ between the centres, c the diagonal of the hull
    f = 0 unless the box is inverted: see Variant

    Use it instead of GIoU: it keeps a gradient also when one box lies inside the other.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives, or the
            sum of their qualities. With ``reduction="mean"`` only.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 2), more for inverted
        boxes. A pair with a coordinate that is not finite is NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        f is that of `iou_loss`. Two boxes without area have IoU 1 if they are the same box and
        not inverted, else 0; 0/0 of the distance is 0.

    Differs from:
        torchvision and PaddleDetection, whose epsilons price perfect small boxes; the weights of
        mmdet, see `iou_loss`.

    Source:
        Zheng et al., *Distance-IoU Loss*, AAAI 2020, eq. 7, arXiv:1911.08287.

    Example:
        >>> diou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 9/17
        tensor(1.5294)
    """

    def formula(pairs: BoxPairs) -> Tensor:
        return 1 - (pairs.iou - pairs.offset) + pairs.inverted

    return box_loss(
        boxes,
        target_boxes,
        weight,
        fmt,
        kind=DIOU,
        formula=formula,
        reduction=reduction,
        count=count,
    )


@checked
def ciou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    variant: Variant = "equation",
    weight: BoxWeight | None = None,
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Complete IoU loss: distance IoU plus the difference of the aspect ratios.

    L = Σ w [1 - (I/U - ρ²/c² - α v) + f] / Σ w,   f = 0 unless the box is inverted: see Variant
    v = 4/π² (atan(w_t/h_t) - atan(w/h))²,   α = v / (1 - I/U + v), constant in the backward pass

    Use it as the default box loss of a detector.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        variant: see Variant.
        weight: w, what each pair counts for, >= 0; 0 is void.
        count: what the mean divides by instead of Σ w, at least 1: the number of positives, or the
            sum of their qualities. With ``reduction="mean"`` only.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 3), more for inverted
        boxes. A pair with a coordinate that is not finite is NaN.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        α is constant in the backward pass, as in the paper's later code and torchvision.
        ``"equation"`` differentiates v exactly (eq. 12); for a box of a few millionths that is
        more than float16 holds. ``"released"`` takes the factor 1/(w² + h²) out of the gradient
        of v, as the authors' code does; the value is the same, and the gradient depends on the
        unit of the coordinates. f is that of `iou_loss`.

    Differs from:
        mmdet 3.3, whose α is 0/0 = NaN at a perfect match, and 0 unless IoU > 0.5 (its weights:
        see `iou_loss`); torchvision, whose eps does not reach the DIoU part.

    Source:
        Zheng et al., *Distance-IoU Loss*, AAAI 2020, eqs. 8-12, arXiv:1911.08287.

    Example:
        >>> ciou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 9/17
        tensor(1.5294)
    """

    def formula(pairs: BoxPairs) -> Tensor:
        v = 4 / math.pi**2 * pairs.tilt.square()
        aspect = ratio(v, 1 - pairs.iou + v, empty=0).detach() * v
        if variant == "released":
            slope = pairs.size.square().sum(-1).detach() * aspect
            aspect = aspect.detach() + (slope - slope.detach())
        return 1 - (pairs.iou - pairs.offset - aspect) + pairs.inverted

    return box_loss(
        boxes,
        target_boxes,
        weight,
        fmt,
        kind=CIOU if variant == "equation" else CIOU_RELEASED,
        formula=formula,
        reduction=reduction,
        count=count,
    )


class CIoULoss(LossModule):
    """`ciou_loss` as a Module."""

    @options_of(ciou_loss)
    def __init__(self) -> None: ...

    @call_of(ciou_loss)
    def __call__(self) -> None: ...


class DIoULoss(LossModule):
    """`diou_loss` as a Module."""

    @options_of(diou_loss)
    def __init__(self) -> None: ...

    @call_of(diou_loss)
    def __call__(self) -> None: ...


class GIoULoss(LossModule):
    """`giou_loss` as a Module."""

    @options_of(giou_loss)
    def __init__(self) -> None: ...

    @call_of(giou_loss)
    def __call__(self) -> None: ...


class IoULoss(LossModule):
    """`iou_loss` as a Module."""

    @options_of(iou_loss)
    def __init__(self) -> None: ...

    @call_of(iou_loss)
    def __call__(self) -> None: ...
