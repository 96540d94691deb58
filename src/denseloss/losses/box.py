"""Losses of box pairs: IoU and its extensions, safe for any box."""

import math
from typing import Literal

from torch import Tensor

from denseloss.backend import primitive
from denseloss.contract import Boxes, BoxWeight, Reduction, TargetBoxes, checked
from denseloss.losses.reduce import reduce
from denseloss.module import loss_module
from denseloss.primitives.boxes import box_pairs
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


@checked
@primitive
def iou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One minus the intersection over union of each pair of boxes.

    L = Σ w (1 - I/U) / Σ w

    Use it as a measure; boxes that do not touch have no gradient.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 1].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        Linear. Sizes of an inverted box count as 0, so its loss is 1. Two boxes without area
        score 0 if they are the same box and not inverted, else 1.

    Differs from:
        mmdet, whose default is -log IoU; libraries that add an epsilon, which then prices perfect
        small boxes (0.09 at a side of 0.001 in torchvision).

    Source:
        Yu et al., *UnitBox*, ACM MM 2016, arXiv:1608.01471, in its linear form.

    Example:
        >>> iou_loss(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))  # 1 - 2/6
        tensor(0.6667)
    """
    pairs = box_pairs(boxes, target_boxes, weight, fmt)
    return reduce(1 - pairs.iou, reduction, weight=weight)


@checked
@primitive
def giou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Generalised IoU loss: IoU plus the share of the hull that neither box covers.

    L = Σ w [1 - (I/U - (C - U)/C)] / Σ w,   C the area of the smallest box around both

    Use it where predicted boxes may miss their targets altogether.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 2].

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        Sizes of an inverted box count as 0, so its loss is at least 1; the hull is around all
        corners. Two boxes without area
        have IoU 1 if they are the same box and not inverted, else 0; 0/0 of the hull is 0.

    Differs from:
        torchvision, whose epsilon prices perfect small boxes and where a box inverted in both
        axes can score 0; detectron2, which stops the program on an inverted box.

    Source:
        Rezatofighi et al., *Generalized Intersection over Union*, CVPR 2019, algorithm 1,
        arXiv:1902.09630.

    Example:
        >>> giou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 2/4
        tensor(1.5000)
    """
    pairs = box_pairs(boxes, target_boxes, weight, fmt)
    return reduce(1 - (pairs.iou - pairs.empty), reduction, weight=weight)


@checked
@primitive
def diou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distance IoU loss: IoU plus the squared distance of the centres.

    L = Σ w [1 - (I/U - ρ²/c²)] / Σ w,   ρ between the centres, c the diagonal of the hull

    Use it instead of GIoU: it keeps a gradient also when one box lies inside the other.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values in [0, 2) for boxes that are
        not inverted.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        Sizes of an inverted box count as 0, so its loss is at least 1; the hull is around all
        corners. Two boxes without area
        have IoU 1 if they are the same box and not inverted, else 0; 0/0 of the distance is 0.

    Differs from:
        torchvision and PaddleDetection, whose epsilons price perfect small boxes.

    Source:
        Zheng et al., *Distance-IoU Loss*, AAAI 2020, eq. 7, arXiv:1911.08287.

    Example:
        >>> diou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 9/17
        tensor(1.5294)
    """
    pairs = box_pairs(boxes, target_boxes, weight, fmt)
    return reduce(1 - (pairs.iou - pairs.offset), reduction, weight=weight)


@checked
@primitive
def ciou_loss(
    boxes: Boxes,
    target_boxes: TargetBoxes,
    *,
    fmt: Format = "xyxy",
    weight: BoxWeight | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Complete IoU loss: distance IoU plus the difference of the aspect ratios.

    L = Σ w [1 - (I/U - ρ²/c² - α v)] / Σ w
    v = 4/π² (atan(w_t/h_t) - atan(w/h))²,   α = v / (1 - I/U + v), constant in the backward pass

    Use it as the default box loss of a detector.

    Args:
        boxes: predicted boxes, in any unit.
        target_boxes: their targets, pair by pair, in the same unit.
        fmt: ``"xyxy"`` corners, ``"xywh"`` upper left corner and size, ``"cxcywh"`` centre, size.
        weight: w, what each pair counts for, >= 0; 0 is void.
        reduction: over all pairs.

    Returns:
        A scalar, or float[*m] with ``reduction="none"``; values >= 0.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an unknown word.

    Variant:
        α is constant in the backward pass, as in the paper's later code and torchvision; v is
        differentiated exactly. Sizes of an inverted box count as 0, so its loss is at least 1.

    Differs from:
        mmdet 3.3, whose α is 0/0 = NaN at a perfect match; the first released code, which drops
        1/(w² + h²) from the gradient of v; torchvision, whose eps does not reach the DIoU part.

    Source:
        Zheng et al., *Distance-IoU Loss*, AAAI 2020, eqs. 8-11, arXiv:1911.08287.

    Example:
        >>> ciou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))  # 1 + 9/17
        tensor(1.5294)
    """
    pairs = box_pairs(boxes, target_boxes, weight, fmt)
    v = 4 / math.pi**2 * pairs.tilt.square()
    alpha = ratio(v, 1 - pairs.iou + v, empty=0).detach()
    values = 1 - (pairs.iou - pairs.offset - alpha * v)
    return reduce(values, reduction, weight=weight)


CIoULoss = loss_module(ciou_loss, name="CIoULoss")
DIoULoss = loss_module(diou_loss, name="DIoULoss")
GIoULoss = loss_module(giou_loss, name="GIoULoss")
IoULoss = loss_module(iou_loss, name="IoULoss")
