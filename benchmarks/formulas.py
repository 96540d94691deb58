"""The plain formulas that people paste into their training code, in the usual eager operations.

They are written here from the papers, with the operations (and so the temporaries) of the code in
circulation, so that one table can hold what a package would be measured against without installing
that package. Every one takes the logits first and returns a scalar mean over all elements.

The last two are losses that the catalogue does not have, as a user writes them over our quantities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.contract import ClassMap, Logits, NonNegative, PixelWeight, Reduction, checked
from denseloss.primitives.reduce import reduce, reduce_classes
from denseloss.primitives.softmax import softmax_likelihood, softmax_overlap

__all__ = [
    "at_target_size",
    "binary_dice_bce",
    "binary_focal",
    "binary_focal_yolo",
    "ciou",
    "ciou_yolo",
    "cross_entropy",
    "cross_entropy_dice",
    "dense",
    "diou",
    "distribution_focal_one_softmax",
    "distribution_focal_two_entropies",
    "from_labels",
    "giou",
    "iou",
    "log_cosh_dice_loss",
    "ncut_unfold",
    "poly1_loss",
    "quality_focal",
    "quality_focal_labels",
    "softmax_focal",
    "structure",
    "structure_running_sums",
    "varifocal",
    "varifocal_yolo",
]

# --- independent channels -------------------------------------------------------------------------


def binary_focal(z: Tensor, t: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Lin et al. 2017, with p_t as most libraries write it."""
    p = torch.sigmoid(z)
    entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = alpha * t + (1 - alpha) * (1 - t)
    return (alpha_t * (1 - p_t) ** gamma * entropy).mean()


def binary_focal_yolo(z: Tensor, t: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The same as a chain of in-place factors on the entropies, as YOLO code has it."""
    loss = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    p = z.sigmoid()
    p_t = t * p + (1 - t) * (1 - p)
    loss = loss * (1.0 - p_t) ** gamma
    loss = loss * (t * alpha + (1 - t) * (1 - alpha))
    return loss.mean()


def quality_focal(z: Tensor, q: Tensor, beta: float = 2.0) -> Tensor:
    """Li et al. 2020, eq. 2, on dense qualities."""
    factor = (torch.sigmoid(z) - q).abs().pow(beta)
    return (F.binary_cross_entropy_with_logits(z, q, reduction="none") * factor).mean()


def quality_focal_labels(z: Tensor, label: Tensor, score: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal as mmdet goes about it: background everywhere, then the objects over it."""
    p = z.sigmoid()
    loss = F.binary_cross_entropy_with_logits(z, torch.zeros_like(z), reduction="none")
    loss = loss * p.pow(beta)
    places = (label >= 0).nonzero(as_tuple=True)
    at = (*places, label[places])
    q = score[places]
    objects = F.binary_cross_entropy_with_logits(z[at], q, reduction="none")
    loss[at] = objects * (q - p[at]).abs().pow(beta)
    return loss.mean()


def varifocal(z: Tensor, q: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Zhang et al. 2021, eq. 2, with masks for the two cases, as mmdet goes about it."""
    p = z.sigmoid()
    objects = (q > 0).to(z.dtype)
    factor = q * objects + alpha * (p - q).abs().pow(gamma) * (1 - objects)
    return (F.binary_cross_entropy_with_logits(z, q, reduction="none") * factor).mean()


def varifocal_yolo(z: Tensor, q: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Zhang et al. 2021 as YOLO code has it: a 0/1 label beside the quality, in float32."""
    label = (q > 0).float()
    factor = alpha * z.sigmoid().pow(gamma) * (1 - label) + q * label
    return (
        F.binary_cross_entropy_with_logits(z.float(), q.float(), reduction="none") * factor
    ).mean()


def dense(z: Tensor, label: Tensor, score: Tensor | None = None) -> Tensor:
    """The dense target like `z` [..., c] of labels [...] (-1: background) and scores [...]."""
    objects = label >= 0
    value = objects.to(z.dtype) if score is None else score * objects
    target = torch.zeros_like(z)
    return target.scatter_(-1, label.clamp(min=0).unsqueeze(-1), value.unsqueeze(-1))


def from_labels(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """A loss of dense targets as a loss of labels (and scores): the target is made on the way."""

    def run(z: Tensor, label: Tensor, score: Tensor | None = None) -> Tensor:
        return loss(z, dense(z, label, score), **options)

    return run


def binary_dice_bce(z: Tensor, t: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice of each image and channel plus the binary cross entropy."""
    p = torch.sigmoid(z)
    both, total = (p * t).sum((2, 3)), p.sum((2, 3)) + t.sum((2, 3))
    dice = 1 - (2 * both + smooth) / (total + smooth)
    return dice.mean() + F.binary_cross_entropy_with_logits(z, t)


# --- exclusive classes ----------------------------------------------------------------------------


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """Minus the log-probability of the label, gathered."""
    return -F.log_softmax(z, dim=1).gather(1, labels.unsqueeze(1)).mean()


def cross_entropy_dice(z: Tensor, labels: Tensor, smooth: float = 1.0) -> Tensor:
    """Cross entropy plus the Dice loss of each image and class, on one-hot labels."""
    space = tuple(range(2, z.ndim))
    p = torch.softmax(z, dim=1)
    t = F.one_hot(labels, z.shape[1]).movedim(-1, 1).to(z.dtype)
    both, total = (p * t).sum(space), p.sum(space) + t.sum(space)
    dice = 1 - (2 * both + smooth) / (total + smooth)
    return F.cross_entropy(z, labels) + dice.mean()


def softmax_focal(z: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Lin et al. 2017 over a softmax, gathered at the label."""
    log_p = F.log_softmax(z, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def at_target_size(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss on logits that are first brought to the size of the labels."""

    def run(z: Tensor, labels: Tensor) -> Tensor:
        size = labels.shape[-2:]
        return loss(F.interpolate(z, size=size, mode="bilinear", align_corners=False), labels)

    return run


# --- structure ------------------------------------------------------------------------------------


def _structure(z: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    w = 1 + 5 * torch.abs(mean - t)
    # As it was meant: the released code passes reduce="none", which is not this.
    entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    entropy = (w * entropy).sum((2, 3)) / w.sum((2, 3))
    p = torch.sigmoid(z)
    both, total = (p * t * w).sum((2, 3)), ((p + t) * w).sum((2, 3))
    return (entropy + 1 - (both + 1) / (total - both + 1)).mean()


def structure(z: Tensor, t: Tensor) -> Tensor:
    """F3Net's and PraNet's loss as published: a 31 x 31 average pooling finds the edges."""
    return _structure(z, t, F.avg_pool2d(t, kernel_size=31, stride=1, padding=15))


def structure_running_sums(z: Tensor, t: Tensor) -> Tensor:
    """The same with the box mean from an integral image: four reads a pixel instead of 961."""
    # Up to one column beyond each box; float32, as sums of a mask are no numbers for bfloat16.
    sums = F.pad(t.float(), (16, 15, 16, 15)).cumsum(2).cumsum(3)
    box = sums[..., 31:, 31:] - sums[..., :-31, 31:] - sums[..., 31:, :-31] + sums[..., :-31, :-31]
    return _structure(z, t, (box / 31**2).to(t.dtype))


# --- boxes, as corners ----------------------------------------------------------------------------

EPSILON = 1e-7


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union."""
    first, last = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    size = (last - first).clamp(min=0)
    inter = size[:, 0] * size[:, 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = area_a + area_b - inter
    return inter / (union + EPSILON), union


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """Width and height of the box around both."""
    return torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull."""
    apart = ((b[:, :2] + b[:, 2:] - a[:, :2] - a[:, 2:]) ** 2).sum(1) / 4
    return apart / ((_hull(a, b) ** 2).sum(1) + EPSILON)


def _tilt(a: Tensor, b: Tensor) -> Tensor:
    """CIoU's v."""
    angles = [torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1])) for x in (a, b)]
    return 4 / math.pi**2 * (angles[1] - angles[0]) ** 2


def iou(a: Tensor, b: Tensor) -> Tensor:
    """One minus IoU."""
    return (1 - _overlap(a, b)[0]).mean()


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Rezatofighi et al. 2019."""
    value, union = _overlap(a, b)
    hull = _hull(a, b)
    area = hull[:, 0] * hull[:, 1]
    return (1 - (value - (area - union) / (area + EPSILON))).mean()


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Zheng et al. 2020."""
    return (1 - (_overlap(a, b)[0] - _distance(a, b))).mean()


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Zheng et al. 2020, α constant in the backward pass."""
    value, v = _overlap(a, b)[0], _tilt(a, b)
    with torch.no_grad():
        share = v / (1 - value + v + EPSILON)
    return (1 - (value - _distance(a, b) - share * v)).mean()


def ciou_yolo(a: Tensor, b: Tensor) -> Tensor:
    """CIoU coordinate by coordinate on columns, as YOLO code has it."""
    ax1, ay1, ax2, ay2 = a.chunk(4, -1)
    bx1, by1, bx2, by2 = b.chunk(4, -1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1
    across = (ax2.minimum(bx2) - ax1.maximum(bx1)).clamp(0)
    inter = across * (ay2.minimum(by2) - ay1.maximum(by1)).clamp(0)
    value = inter / (aw * ah + bw * bh - inter + EPSILON)
    width, height = ax2.maximum(bx2) - ax1.minimum(bx1), ay2.maximum(by2) - ay1.minimum(by1)
    diagonal = width.pow(2) + height.pow(2) + EPSILON
    apart = ((bx1 + bx2 - ax1 - ax2).pow(2) + (by1 + by2 - ay1 - ay2).pow(2)) / 4
    v = (4 / math.pi**2) * ((bw / bh).atan() - (aw / ah).atan()).pow(2)
    with torch.no_grad():
        share = v / (v - value + (1 + EPSILON))
    return (1.0 - (value - (apart / diagonal + v * share))).mean()


# --- distributions --------------------------------------------------------------------------------


def distribution_focal_two_entropies(z: Tensor, y: Tensor) -> Tensor:
    """Li et al. 2020, eq. 6, as two weighted cross entropies over the same logits."""
    low = y.long()
    high = low + 1
    below, above = high - y, y - low
    z, low, high = z.reshape(-1, z.shape[-1]), low.reshape(-1), high.reshape(-1)
    loss = F.cross_entropy(z, low, reduction="none") * below.reshape(-1)
    loss = loss + F.cross_entropy(z, high, reduction="none") * above.reshape(-1)
    return loss.mean()


def distribution_focal_one_softmax(z: Tensor, y: Tensor) -> Tensor:
    """The same with one log-softmax and two gathers."""
    low = y.long().unsqueeze(-1)
    log_p = F.log_softmax(z, dim=-1)
    above = y - low.squeeze(-1)
    below_term = log_p.gather(-1, low).squeeze(-1) * (1 - above)
    return -(below_term + log_p.gather(-1, low + 1).squeeze(-1) * above).mean()


# --- affinity -------------------------------------------------------------------------------------


def ncut_unfold(
    z: Tensor,
    image: Tensor,
    radius: int = 5,
    sigma_intensity: float = 10.0,
    sigma_space: float = 4.0,
) -> Tensor:
    """Xia and Kulis 2017, eq. 2, on unfolded windows: every pixel beside all of its neighbours."""
    images, classes, height, width = z.shape
    reach, side = radius - 1, 2 * radius - 1
    p = z.softmax(1)

    def neighbours(x: Tensor) -> Tensor:
        windows = F.unfold(F.pad(x, (reach,) * 4), side)
        return windows.view(images, x.shape[1], side * side, height, width)

    steps = torch.arange(side, device=z.device, dtype=z.dtype) - reach
    square = steps.square()[:, None] + steps.square()[None, :]
    near = torch.exp(-square / sigma_space**2) * (square < radius**2)
    colour = (neighbours(image) - image.unsqueeze(2)).square().sum(1)
    inside = neighbours(torch.ones_like(image[:, :1]))[:, 0]
    w = torch.exp(-colour / sigma_intensity**2) * near.view(1, -1, 1, 1) * inside

    tied = (w.unsqueeze(1) * neighbours(p)).sum(2)
    within, total = (p * tied).sum((2, 3)), (p * w.sum(1, keepdim=True)).sum((2, 3))
    return (classes - (within / total).sum(1)).mean()


# --- what a user writes over our quantities -------------------------------------------------------


@checked
def poly1_loss(
    logits: Logits,
    target: ClassMap,
    *,
    epsilon: NonNegative = 1.0,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Leng et al. 2022, arXiv:2204.12511: -log p + ε (1 - p)."""
    likely = softmax_likelihood(logits, target, weight, ignore_index)
    values = likely.expected(likely.entropy + epsilon * likely.miss)
    return reduce(values, reduction, weight=likely.weight)


@checked
def log_cosh_dice_loss(
    logits: Logits,
    target: ClassMap,
    *,
    weight: PixelWeight | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Jadon 2020, arXiv:2006.14822, of each image and class: log cosh (1 - (2I+1)/(P+T+1))."""
    sums = softmax_overlap(logits, target, weight, ignore_index, pool="image")
    values = sums.dissimilarity(a=2, b=0, c=1, d=1, s=1).cosh().log()
    return reduce_classes(values, sums, reduction, absent="count", class_weight=None)
