"""docs/equal_settings.md is true: each row of its tables is run as it is written there.

Libraries that are installed for the tests are called. What the others compute is written here anew,
from the papers and from what is documented: a class for each section, listed in `FORMULAS`.
"""

import importlib
import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

import denseloss
from denseloss import functional

PAGE = Path(__file__).parents[1] / "docs" / "equal_settings.md"


class Row(NamedTuple):
    library: str
    theirs: str
    ours: str


def rows(text: str) -> list[Row]:
    """The rows of all tables with a side for each library."""
    found = []
    for section in text.split("\n## ")[1:]:
        library = section.split("\n")[0]
        table = section.partition("| theirs | ours | note |\n|---|---|---|\n")[2].split("\n\n")[0]
        for line in table.splitlines():
            cells = re.fullmatch(r"\| `([^`|]+)` \| `([^`|]+)` \| [^|]*\|", line)
            assert cells, f"not a row of two expressions and a note: {line}"
            found.append(Row(library, *cells.groups()))
    return found


ROWS = rows(PAGE.read_text(encoding="utf-8"))

# --- libraries that are called --------------------------------------------------------------------

INSTALLED = {
    "torch": ["torch.nn.functional"],
    "MONAI": ["monai.losses"],
    "segmentation_models_pytorch": ["segmentation_models_pytorch.losses"],
    "kornia": ["kornia.losses"],
    "torchvision": ["torchvision.ops"],
    "torchmetrics": [
        "torchmetrics.functional.segmentation",
        "torchmetrics.functional.classification",
    ],
}

# --- libraries that are not: what they compute, in as few words as it takes -----------------------


class NNUNet:
    """Isensee et al. 2021: cross entropy minus the soft Dice score."""

    @staticmethod
    def _dice(p, t, valid, batch_dice, do_bg, smooth):
        axes = (0, 2, 3) if batch_dice else (2, 3)
        hit, predicted, true = ((valid * x).sum(axes) for x in (p * t, p, t))
        score = (2 * hit + smooth) / (predicted + true + smooth)
        return -score[..., 0 if do_bg else 1 :].mean()

    @staticmethod
    def dc_and_ce(logits, labels, ignore_label=None, batch_dice=False, do_bg=True, smooth=1e-5):
        valid = torch.ones_like(labels) if ignore_label is None else labels != ignore_label
        one_hot = F.one_hot(labels * valid, logits.shape[1]).movedim(-1, 1)
        dice = NNUNet._dice(logits.softmax(1), one_hot, valid[:, None], batch_dice, do_bg, smooth)
        missing = -100 if ignore_label is None else ignore_label
        return F.cross_entropy(logits, labels, ignore_index=missing) + dice

    @staticmethod
    def dc_and_bce(logits, masks, valid=None, batch_dice=False, do_bg=True, smooth=1e-5):
        each = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        if valid is None:
            valid, entropy = torch.ones_like(logits), each.mean()
        else:
            entropy = (each * valid).sum() / valid.sum()  # of voxels: [n 1 h w]
        return entropy + NNUNet._dice(logits.sigmoid(), masks, valid, batch_dice, do_bg, smooth)


def corners(boxes: Tensor) -> Tensor:
    centre, size = boxes.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


class Pair:
    """The quantities that all extensions of the IoU are made of, for proper boxes [m 4]."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        (a_low, a_high), (b_low, b_high) = a.chunk(2, -1), b.chunk(2, -1)
        a_size, b_size = a_high - a_low, b_high - b_low
        both = torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)
        hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
        both, area = both.clamp_min(0).prod(-1), hull.prod(-1)
        union = a_size.prod(-1) + b_size.prod(-1) - both
        apart = (a_low + a_high - b_low - b_high) / 2
        self.iou = both / union
        self.giou = self.iou - (area - union) / area
        self.diou = self.iou - apart.square().sum(-1) / hull.square().sum(-1)
        turn = torch.atan(b_size[:, 0] / b_size[:, 1]) - torch.atan(a_size[:, 0] / a_size[:, 1])
        self.v = 4 / math.pi**2 * turn.square()

    def ciou(self, least: float = -1.0) -> Tensor:
        with torch.no_grad():
            alpha = (self.iou > least) * self.v / (1 - self.iou + self.v)
        return self.diou - alpha * self.v


def reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else getattr(values, reduction)()


def cross_entropies(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


class Fvcore:
    """Lin et al. 2017, Rezatofighi et al. 2019, Zheng et al. 2020."""

    @staticmethod
    def sigmoid_focal_loss(inputs, targets, alpha=-1.0, gamma=2.0, reduction="none"):
        p = inputs.sigmoid()
        right = torch.where(targets == 1, p, 1 - p)
        values = (1 - right) ** gamma * cross_entropies(inputs, targets)
        if alpha >= 0:
            values = torch.where(targets == 1, alpha, 1 - alpha) * values
        return reduced(values, reduction)

    @staticmethod
    def giou_loss(boxes1, boxes2, reduction="none"):
        return reduced(1 - Pair(boxes1, boxes2).giou, reduction)

    @staticmethod
    def diou_loss(boxes1, boxes2, reduction="none"):
        return reduced(1 - Pair(boxes1, boxes2).diou, reduction)

    @staticmethod
    def ciou_loss(boxes1, boxes2, reduction="none"):
        return reduced(1 - Pair(boxes1, boxes2).ciou(), reduction)


class MMDet:
    """A loss is made without tensors, and called with (pred, target, weight, avg_factor)."""

    @staticmethod
    def _loss(function):
        def made(**options):
            def called(pred, target, weight=None, avg_factor=None):
                values = function(pred, target, **options)
                if weight is not None:
                    values = values * (weight.mean(-1) if weight.ndim > values.ndim else weight)
                return values.mean() if avg_factor is None else values.sum() / avg_factor

            return called

        return made

    @staticmethod
    def _iou(pred, target, mode="log"):
        iou = Pair(pred, target).iou
        return {"linear": 1 - iou, "log": -iou.clamp_min(1e-6).log()}[mode]

    @staticmethod
    def _quality(pred, target, beta=2.0):
        """The sum over classes: a place has one score, at the class of its label."""
        label, score = target
        t = F.one_hot(label, pred.shape[1] + 1)[:, :-1] * score[:, None]
        return ((pred.sigmoid() - t).abs() ** beta * cross_entropies(pred, t)).sum(1)

    @staticmethod
    def _varifocal(pred, target, alpha=0.75, gamma=2.0):
        background = alpha * (pred.sigmoid() - target).abs() ** gamma
        return torch.where(target > 0, target, background) * cross_entropies(pred, target)

    @staticmethod
    def _bins(pred, label):
        low = label.long()
        share = label - low
        left, right = (F.cross_entropy(pred, i, reduction="none") for i in (low, low + 1))
        return (1 - share) * left + share * right

    @staticmethod
    def _focal(pred, label, gamma=2.0, alpha=0.25):
        t = F.one_hot(label, pred.shape[1] + 1)[:, :-1].to(pred)
        return Fvcore.sigmoid_focal_loss(pred, t, alpha, gamma)

    IoULoss = _loss(_iou)
    GIoULoss = _loss(lambda pred, target: 1 - Pair(pred, target).giou)
    DIoULoss = _loss(lambda pred, target: 1 - Pair(pred, target).diou)
    CIoULoss = _loss(lambda pred, target: 1 - Pair(pred, target).ciou(least=0.5))
    QualityFocalLoss = _loss(_quality)
    VarifocalLoss = _loss(_varifocal)
    DistributionFocalLoss = _loss(_bins)
    py_sigmoid_focal_loss = staticmethod(_loss(_focal)())


class Ultralytics:
    """Scores of boxes, and sums over classes of means over places."""

    @staticmethod
    def bbox_iou(box1, box2, xywh=True, GIoU=False, DIoU=False, CIoU=False):  # noqa: N803 - theirs
        both = Pair(corners(box1), corners(box2)) if xywh else Pair(box1, box2)
        return both.giou if GIoU else both.diou if DIoU else both.ciou() if CIoU else both.iou

    @staticmethod
    def VarifocalLoss(alpha=0.75, gamma=2.0):  # noqa: N802 - theirs
        def called(pred_score, gt_score, label):
            weight = torch.where(label, gt_score, alpha * pred_score.sigmoid() ** gamma)
            return (weight * cross_entropies(pred_score, gt_score)).mean(1).sum()

        return called

    @staticmethod
    def FocalLoss(gamma=1.5, alpha=0.25):  # noqa: N802 - theirs
        def called(pred, label):
            return Fvcore.sigmoid_focal_loss(pred, label, alpha, gamma).mean(1).sum()

        return called

    @staticmethod
    def DFLoss(reg_max=16):  # noqa: N802 - theirs
        return lambda pred, target: MMDet._bins(pred, target.clamp(0, reg_max - 1.01))


class RTDETR:
    """Sums over queries and classes, divided by the number of objects."""

    @staticmethod
    def loss_labels_vfl(scores, label, quality, num_boxes, alpha=0.75, gamma=2.0):
        matched = F.one_hot(label, scores.shape[1] + 1)[:, :-1]
        target = matched * quality[:, None]
        weight = alpha * scores.sigmoid() ** gamma * (1 - matched) + target
        return (weight.detach() * cross_entropies(scores, target)).sum() / num_boxes

    @staticmethod
    def loss_giou(boxes, target_boxes, num_boxes):
        return (1 - Pair(corners(boxes), corners(target_boxes)).giou).sum() / num_boxes


class Structure:
    """Wei et al. 2020, Fan et al. 2020: pixels near an edge count up to six times."""

    @staticmethod
    def structure_loss(logits, masks, reduce=None, reduction="mean"):
        mean = F.avg_pool2d(masks, 31, stride=1, padding=15)  # zeros outside count
        weight = 1 + 5 * (mean - masks).abs()
        entropy = cross_entropies(logits, masks)
        if reduce or reduction == "mean":  # the old flag is true for any text
            entropy = entropy.mean()
        p = logits.sigmoid()
        hit = (weight * p * masks).sum((2, 3))
        either = (weight * (p + masks)).sum((2, 3)) - hit
        first = (weight * entropy).sum((2, 3)) / weight.sum((2, 3))
        return (first + 1 - (hit + 1) / (either + 1)).mean()


class Resized:
    """Logits are brought to the size of the labels, then a loss of pixels is taken."""

    @staticmethod
    def two_heads(outputs, labels):
        loss = F.cross_entropy(outputs["out"], labels, ignore_index=255)
        return loss + 0.5 * F.cross_entropy(outputs["aux"], labels, ignore_index=255)

    @staticmethod
    def segformer(logits, labels):
        up = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(up, labels, ignore_index=255)

    @staticmethod
    def ce_loss(inputs, target, cls_weights=None, num_classes=21, reduction="mean"):
        up = F.interpolate(inputs, target.shape[-2:], mode="bilinear", align_corners=True)
        return F.cross_entropy(
            up, target, weight=cls_weights, ignore_index=num_classes, reduction=reduction
        )

    @staticmethod
    def focal_loss(inputs, target, num_classes=21, alpha=0.5, gamma=2):
        entropy = Resized.ce_loss(inputs, target, None, num_classes, "none")
        return (alpha * (1 - (-entropy).exp()) ** gamma * entropy).mean()

    @staticmethod
    def _score(inputs, target, beta, smooth, threshold):
        up = F.interpolate(inputs, target.shape[-2:], mode="bilinear", align_corners=True)
        p = up.softmax(1) if threshold is None else (up.softmax(1) > threshold).to(up)
        hit, predicted, true = (x.sum((0, 2, 3)) for x in (p * target, p, target))
        both, missed, wrong = (1 + beta**2) * hit, beta**2 * (true - hit), predicted - hit
        return ((both + smooth) / (both + missed + wrong + smooth)).mean()

    @staticmethod
    def dice_loss(inputs, target, beta=1, smooth=1e-5):
        return 1 - Resized._score(inputs, target, beta, smooth, None)

    @staticmethod
    def f_score(inputs, target, beta=1, smooth=1e-5, threshold=0.5):
        return Resized._score(inputs, target, beta, smooth, threshold)


class Mask2Former:
    """Cheng et al. 2022: points instead of pixels, a mean per query, divided by the masks."""

    @staticmethod
    def dice_loss(inputs, targets, num_masks):
        p = inputs.sigmoid()
        score = (2 * (p * targets).sum(1) + 1) / (p.sum(1) + targets.sum(1) + 1)
        return (1 - score).sum() / num_masks

    @staticmethod
    def sigmoid_ce_loss(inputs, targets, num_masks):
        return cross_entropies(inputs, targets).mean(1).sum() / num_masks


FORMULAS = {
    "nnU-Net": NNUNet,
    "fvcore and detectron2": Fvcore,
    "mmdet": MMDet,
    "ultralytics": Ultralytics,
    "RT-DETR and D-FINE": RTDETR,
    "F3Net and PraNet": Structure,
    "Segmenters that resize": Resized,
    "Mask2Former": Mask2Former,
}

# --- the inputs of the rows -----------------------------------------------------------------------

PREDICTED = ["logits", "small", "scores", "boxes", "centred", "bins", "points"]
SIZES = [(2, 5, 7), (3, 9, 4), (1, 1, 11)]  # images, height, width


def drawn(size: tuple[int, int, int], dtype: torch.dtype) -> dict[str, object]:
    """What the names in the rows stand for."""
    n, h, w = size
    c, places, m, k, queries, p = 3, 23, 17, 8, 5, 13
    real = {"dtype": dtype}
    # Classes are uneven, as they are in life, and every image has each of them.
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n * h * w, replacement=True)
    labels = labels.reshape(n, h, w)
    labels.flatten(1)[:, -c:] = torch.arange(c)
    holes, masks = labels.clone(), (torch.rand(n, c, h, w) < 0.3).to(dtype)
    holes[:, :, ::3], holes.flatten(1)[:, -c:] = 255, torch.arange(c)
    masks.flatten(2)[..., -1] = 1
    marked = torch.where(torch.rand(n, c, h, w) < 0.2, 255, masks)
    label = torch.randint(c + 1, (places,))
    label[:4] = torch.arange(4)  # each class, and background
    quality = torch.where(label < c, 0.05 + 0.9 * torch.rand(places, **real), 0)
    low, extent = 300 * torch.rand(2, m, 2, **real), 5 + 200 * torch.rand(2, m, 2, **real)
    extent[1, : m // 2] = extent[0, : m // 2] * (0.9 + 0.2 * torch.rand(m // 2, 2, **real))
    low[1, : m // 2] = low[0, : m // 2] + 2 * torch.rand(m // 2, 2, **real)  # half overlap well
    corner, middle = torch.cat([low, low + extent], -1), torch.cat([low, extent], -1)
    return {
        "logits": 3 * torch.randn(n, c, h, w, **real),
        "small": 3 * torch.randn(n, c, (h + 1) // 2, (w + 2) // 3, **real),
        "labels": labels,
        "holes": holes,
        "rare": labels.clamp(max=c - 2),
        "soft": torch.randn(n, c, h, w, **real).softmax(1),
        "masks": masks,
        "marked": marked,
        "soft_masks": torch.rand(n, c, h, w, **real),
        "cw": torch.tensor([0.2, 1.0, 3.0], **real),
        "pw": torch.tensor([0.5, 2.0, 4.0], **real),
        "w": torch.rand(n, 1, h, w, **real),
        "scores": 2 * torch.randn(places, c, **real),
        "label": label,
        "quality": quality,
        "dense": F.one_hot(label, c + 1)[:, :-1] * quality[:, None],
        "boxes": corner[0],
        "target_boxes": corner[1],
        "centred": middle[0],
        "target_centred": middle[1],
        "box_weight": torch.rand(m, **real),
        "bins": torch.randn(m, k, **real),
        "positions": (k - 1.01) * torch.rand(m, **real),
        "points": 3 * torch.randn(queries, p, **real),
        "hits": (torch.rand(queries, p) < 0.4).to(dtype),
        "c": c,
        "positives": 3,
    }


OURS = {
    **{name: getattr(functional, name) for name in functional.__all__},
    **{name: getattr(denseloss, name) for name in denseloss.__all__},
}


def names_of(library: str) -> dict[str, object]:
    if library in FORMULAS:
        return dict(vars(FORMULAS[library]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these warn about on import is not ours
        modules = [importlib.import_module(name) for name in INSTALLED[library]]
    return {name: value for module in modules for name, value in vars(module).items()}


def agree(row: Row, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Both sides of a row have the same value and the same gradient."""
    torch.manual_seed(1)
    inputs = drawn(size, dtype)
    leaves = [inputs[name].requires_grad_() for name in PREDICTED]
    helpers = {"torch": torch, "len": len, "one_hot": functional.one_hot}
    theirs = eval(row.theirs, {**names_of(row.library), **helpers, **inputs})
    ours = eval(row.ours, {**OURS, **helpers, **inputs})
    # float64 shows that the two are one formula, but for an epsilon that only one of them has.
    tolerance = 1e-7 if theirs.dtype == ours.dtype == torch.float64 else 1e-5
    assert theirs.shape == ours.shape
    assert theirs.isfinite().all()
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(
        ours.double(), theirs.double(), rtol=tolerance, atol=tolerance, check_stride=False
    )
    if not theirs.requires_grad:  # a score of decisions
        return
    assert ours.requires_grad
    upstream = torch.linspace(1, 2, theirs.numel()).reshape(theirs.shape)
    slopes = [
        grad(value, leaves, upstream.to(value.dtype), allow_unused=True) for value in (ours, theirs)
    ]
    moved = 0
    for mine, other in zip(*slopes, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            scale = other.abs().max().item()
            moved += scale > 1e-5
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * scale)
    assert moved, "no gradient was compared"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.library}: {row.theirs}")
def test_a_row_is_true(row: Row, dtype: torch.dtype) -> None:
    for size in SIZES:
        agree(row, size, dtype)


@pytest.mark.parametrize(
    "row",
    [
        Row("MONAI", "DiceLoss(sigmoid=True)(logits, masks)", "binary_dice_loss(logits, masks)"),
        Row("mmdet", "CIoULoss()(boxes, target_boxes)", "ciou_loss(boxes, target_boxes)"),
        Row(
            "torch", "cross_entropy(logits, labels)", "cross_entropy_loss(logits.detach(), labels)"
        ),
    ],
    ids=["value", "half of the boxes", "gradient"],
)
def test_a_row_that_is_not_true_is_found(row: Row) -> None:
    with pytest.raises(AssertionError):
        agree(row, SIZES[0], torch.float64)


def test_the_page_and_the_formulas_are_one_list() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = text.count("\n| `") - text.partition("\n## ")[0].count("\n| `")
    assert len(ROWS) == lines, "a line of a table is no row"
    assert list(dict.fromkeys(row.library for row in ROWS)) == [*INSTALLED, *FORMULAS]
    for library, formulas in FORMULAS.items():
        section = text.partition(f"## {library}\n")[2].partition("\n## ")[0]
        assert "Written anew in the test" in section
        called = " ".join(row.theirs for row in ROWS if row.library == library)
        made = [name for name in vars(formulas) if not name.startswith("_")]
        assert [name for name in made if not re.search(rf"\b{name}\(", called)] == []
    for library, modules in INSTALLED.items():
        section = text.partition(f"## {library}\n")[2].partition("\n## ")[0]
        assert all(f"`{module}`" in section for module in modules)
        assert "called by the tests" in section


def test_every_name_of_the_page_is_used() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    listed = [
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    used = " ".join(row.theirs + " " + row.ours for row in ROWS)
    assert [name for name in listed if not re.search(rf"\b{name}\b", used)] == []
    assert set(listed) == set(drawn(SIZES[0], torch.float32))
