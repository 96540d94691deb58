"""What is measured: the workloads, and for each of them who computes it.

A workload makes its inputs from a seed, so every process has the same ones. A provider is a name
and a function that returns the loss as a callable; what it needs is imported only then, in the
process that measures it, so a library that is missing costs its own row and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import denseloss
from benchmarks import formulas
from denseloss import compose, functional
from denseloss.module import loss_module

Inputs = tuple[Tensor, ...]
Loss = Callable[..., Tensor]

OURS = "ours"
OURS_FLOAT32 = "ours, float32 input"
DEFINITION = "ours, plain definition"
TORCHVISION = "torchvision"
MONAI = "MONAI"
KORNIA = "kornia"
SMP = "smp"
MMDET = "mmdet's formula"
YOLO = "YOLO-style formula"
PLAIN = "plain formula"
PUBLISHED = "published formula"
RUNNING_SUMS = "published formula with running sums"
TWO_ENTROPIES = "two cross entropies"
ONE_SOFTMAX = "one log-softmax"
UNFOLD = "unfold formula"
RESIZED = "F.interpolate + F.cross_entropy"
POLY1 = "a user's poly-1 cross entropy"
LOG_COSH = "a user's cross entropy + log-cosh Dice"
FLOOR = "two reads and a fresh write"
F_CE = "F.cross_entropy"
F_BCE = "F.binary_cross_entropy_with_logits"


class NotThereYetError(Exception):
    """The library has no such name yet."""


@dataclass(frozen=True)
class Provider:
    """Who computes a loss."""

    name: str
    load: Callable[[], Loss]
    """Imports what it needs and returns the loss, a function of the workload's inputs."""
    other: str = ""
    """Where it is another loss, named for the scale of things: in which way."""
    step: bool = False
    """It is no loss but a whole step, which leaves a gradient at the leaf."""


@dataclass(frozen=True)
class Workload:
    """One loss on inputs of one size."""

    name: str
    shape: str
    """The size in words."""
    inputs: Callable[[Maker], Inputs]
    """The leaf first."""
    definition: Loss
    """Our public function; it is measured as `OURS`, and its definition is the yardstick."""
    peers: tuple[Provider, ...]
    family: str
    """The shape of computation: P, S, R, B, N (cut) or U (fused upsampling)."""
    ours: Callable[[], Loss] | None = None
    """How we are called, where that is not with the definition's arguments."""
    size: str = "large"
    """large: everybody in a process of their own, with memory; small: all in one process, turn by
    turn; tiny: likewise on one thread, so small that the cost of the calls is what is measured."""

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    @property
    def together(self) -> bool:
        """Whether one process measures all providers."""
        return self.size != "large"

    def providers(self) -> tuple[Provider, ...]:
        """Everybody, we first."""
        ours = self.ours or (lambda: self.definition)
        return (
            Provider(OURS, ours),
            Provider(OURS_FLOAT32, ours),
            Provider(DEFINITION, lambda: self.definition),
            *self.peers,
        )

    def provider(self, name: str) -> Provider:
        return next(provider for provider in self.providers() if provider.name == name)


@dataclass
class Maker:
    """Makes the inputs of a workload."""

    dtype: torch.dtype
    device: str = "cpu"
    scale: float = 1.0
    """Every extent of space and every count times this; 1 but for a quick test."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(20261122)

    def size(self, full: int) -> int:
        return max(8, round(full * self.scale))

    def normal(self, *shape: int, mean: float = 0.0) -> Tensor:
        return self._to(torch.randn(shape, generator=self.generator) + mean)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._to(torch.rand(shape, generator=self.generator) * (high - low) + low)

    def labels(self, images: int, *space: int, classes: int) -> Tensor:
        """Labels in blobs of 8 x 8 pixels, as segments are; every one of the classes is likely."""
        coarse = (images, *(-(-extent // 8) for extent in space))
        drawn = torch.randint(classes, coarse, generator=self.generator)
        for axis, extent in enumerate(space, start=1):
            drawn = drawn.repeat_interleave(8, axis).narrow(axis, 0, extent)
        return drawn.contiguous().to(self.device)

    def mask(self, images: int, *space: int) -> Tensor:
        """[n 1 *s]"""
        return self.labels(images, *space, classes=2).to(self.dtype).unsqueeze(1)

    def image(self, *shape: int) -> Tensor:
        """Smooth colours with a little noise, whole numbers of 0 to 255 (exact in bfloat16)."""
        *_, height, width = shape
        coarse = torch.rand((*shape[:-2], 8, 8), generator=self.generator) * 255
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
        noise = torch.randn(shape, generator=self.generator) * 3
        return self._to((smooth + noise).clamp(0, 255).round())

    def boxes(self, count: int) -> tuple[Tensor, Tensor]:
        """Pairs of boxes, as corners, the second a shifted and resized first: they overlap."""
        centre = torch.rand((count, 2), generator=self.generator) * 500 + 50
        size = torch.rand((count, 2), generator=self.generator) * 90 + 8
        moved = centre + (torch.rand((count, 2), generator=self.generator) - 0.5) * size
        resized = size * (0.5 + torch.rand((count, 2), generator=self.generator))
        first = torch.cat([centre - size / 2, centre + size / 2], -1)
        second = torch.cat([moved - resized / 2, moved + resized / 2], -1)
        return self._to(first), self._to(second)

    def sparse_labels(self, *shape: int, classes: int) -> Tensor:
        """Labels of detection: one place in fifty holds an object, -1 elsewhere."""
        drawn = torch.randint(classes, shape, generator=self.generator)
        object_ = torch.rand(shape, generator=self.generator) < 0.02
        return torch.where(object_, drawn, -1).to(self.device)

    def _to(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype).contiguous()


# --- providers ------------------------------------------------------------------------------------


def ready(name: str, loss: Loss, other: str = "") -> Provider:
    """A provider that needs torch only."""
    return Provider(name, lambda: loss, other)


def compiled_name(what: str) -> str:
    return f"torch.compile: {what}"


def compiled(what: str, loss: Loss) -> Provider:
    """torch.compile of a formula, which the name says."""
    return Provider(compiled_name(what), lambda: torch.compile(loss, dynamic=False))


def torchvision_focal(*, labels: bool = False) -> Provider:
    def load() -> Loss:
        from torchvision.ops import sigmoid_focal_loss

        def loss(z: Tensor, t: Tensor) -> Tensor:
            value: Tensor = sigmoid_focal_loss(z, t, alpha=0.25, gamma=2, reduction="mean")
            return value

        return formulas.from_labels(loss) if labels else loss

    return Provider(TORCHVISION, load)


def torchvision_boxes(name: str) -> Provider:
    def load() -> Loss:
        from torchvision import ops

        function = getattr(ops, name)
        return lambda a, b: function(a, b, reduction="mean")

    return Provider(TORCHVISION, load)


def monai_dice_ce(*, binary: bool = False) -> Provider:
    def load() -> Loss:
        from monai.losses import DiceCELoss

        if binary:
            return DiceCELoss(sigmoid=True, smooth_nr=1, smooth_dr=1)
        loss = DiceCELoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1)
        return lambda z, labels: loss(z, labels.unsqueeze(1))

    return Provider(MONAI, load)


def monai_focal(*, softmax: bool = False) -> Provider:
    def load() -> Loss:
        from monai.losses import FocalLoss

        if not softmax:
            return FocalLoss(gamma=2, alpha=0.25)
        loss = FocalLoss(gamma=2, use_softmax=True, to_onehot_y=True)
        # Its mean divides by the number of classes, too.
        return lambda z, labels: loss(z, labels.unsqueeze(1)) * z.shape[1]

    return Provider(MONAI, load)


def kornia_binary_focal() -> Provider:
    def load() -> Loss:
        from kornia.losses import binary_focal_loss_with_logits

        return lambda z, t: binary_focal_loss_with_logits(
            z, t, alpha=0.25, gamma=2, reduction="mean"
        )

    return Provider(KORNIA, load)


def kornia_focal() -> Provider:
    def load() -> Loss:
        from kornia.losses import focal_loss

        # Its mean divides by the number of classes, too.
        return lambda z, labels: (
            focal_loss(z, labels, alpha=None, gamma=2, reduction="mean") * z.shape[1]
        )

    return Provider(KORNIA, load)


def kornia_dice_ce() -> Provider:
    def load() -> Loss:
        from kornia.losses import dice_loss

        return lambda z, labels: dice_loss(z, labels, average="macro") + F.cross_entropy(z, labels)

    return Provider(KORNIA, load, other="skips absent classes, no smoothing")


def smp_focal(mode: str) -> Provider:
    def load() -> Loss:
        from segmentation_models_pytorch.losses import FocalLoss

        return FocalLoss(mode, alpha=0.25 if mode == "binary" else None, gamma=2)

    return Provider(SMP, load, other="" if mode == "binary" else "a sigmoid for each class")


def smp_dice_ce() -> Provider:
    def load() -> Loss:
        from segmentation_models_pytorch.losses import DiceLoss

        dice = DiceLoss("multiclass")
        return lambda z, labels: dice(z, labels) + F.cross_entropy(z, labels)

    return Provider(SMP, load, other="pools the batch, no smoothing")


def smp_dice_bce() -> Provider:
    def load() -> Loss:
        from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss

        dice, entropy = DiceLoss("binary"), SoftBCEWithLogitsLoss()
        return lambda z, t: dice(z, t) + entropy(z, t)

    return Provider(SMP, load, other="pools the batch, no smoothing")


def poly1(*, resized: bool = False) -> Provider:
    """A formula that is not in the catalogue, over the map that cross entropy is made of."""

    def load() -> Loss:
        mine = loss_module(formulas.poly1_loss)()
        return compose.AtTargetSize(mine) if resized else mine

    return Provider(POLY1, load, other="(1 - p) more")


def log_cosh(*, resized: bool = False) -> Provider:
    """A region loss that is not in the catalogue, over the sums that Dice is made of."""

    def load() -> Loss:
        mine = loss_module(formulas.log_cosh_dice_loss)()
        loss = compose.WeightedSum(cross_entropy=denseloss.CrossEntropyLoss(), mine=mine)
        return compose.AtTargetSize(loss) if resized else loss

    return Provider(LOG_COSH, load, other="log cosh of each Dice")


def floor() -> Provider:
    """What a loss of two passes must move: it reads the logits twice and writes their gradient.

    Into fresh memory, as a gradient is, page faults included.
    """

    def step(z: Tensor, *_: Tensor) -> Tensor:
        logits = z.detach()
        total = logits.sum()
        z.grad = logits.clone()
        return total

    return Provider(FLOOR, lambda: step, other="no loss", step=True)


# --- workloads ------------------------------------------------------------------------------------


def _masks(images: int, side: int) -> Callable[[Maker], Inputs]:
    def inputs(make: Maker) -> Inputs:
        shape = (images, 1, make.size(side), make.size(side))
        return make.normal(*shape), make.mask(images, *shape[2:])

    return inputs


def _classes(images: int, classes: int, *space: int, shrink: int = 1) -> Callable[[Maker], Inputs]:
    def inputs(make: Maker) -> Inputs:
        small = [make.size(extent // shrink) for extent in space]
        labels = make.labels(images, *(extent * shrink for extent in small), classes=classes)
        return make.normal(images, classes, *small), labels

    return inputs


def _segmentation() -> Iterable[Workload]:
    yield Workload(
        "binary_focal",
        "8x1x512x512",
        _masks(8, 512),
        functional.binary_focal_loss,
        (
            torchvision_focal(),
            monai_focal(),
            kornia_binary_focal(),
            smp_focal("binary"),
            compiled(PLAIN, formulas.binary_focal),
            ready(F_BCE, F.binary_cross_entropy_with_logits, other="no focus"),
        ),
        "P",
    )
    yield Workload(
        "binary_cross_entropy",
        "8x1x512x512",
        _masks(8, 512),
        functional.binary_cross_entropy_loss,
        (
            ready(F_BCE, F.binary_cross_entropy_with_logits),
            compiled(F_BCE, F.binary_cross_entropy_with_logits),
        ),
        "P",
    )
    yield Workload(
        "binary_dice_bce",
        "8x1x512x512",
        _masks(8, 512),
        compose.parse("binary_dice + binary_cross_entropy"),
        (
            monai_dice_ce(binary=True),
            smp_dice_bce(),
            ready(PLAIN, formulas.binary_dice_bce),
            compiled(PLAIN, formulas.binary_dice_bce),
            ready(F_BCE, F.binary_cross_entropy_with_logits, other="no Dice"),
        ),
        "R",
    )
    yield Workload(
        "cross_entropy",
        "4x21x512x512",
        _classes(4, 21, 512, 512),
        functional.cross_entropy_loss,
        (ready(F_CE, F.cross_entropy), compiled(F_CE, F.cross_entropy), poly1()),
        "S",
    )
    yield Workload(
        "cross_entropy_dice",
        "4x21x512x512",
        _classes(4, 21, 512, 512),
        compose.parse("cross_entropy + dice"),
        (
            monai_dice_ce(),
            smp_dice_ce(),
            kornia_dice_ce(),
            compiled(PLAIN, formulas.cross_entropy_dice),
            ready(F_CE, F.cross_entropy, other="no Dice"),
            log_cosh(),
            floor(),
        ),
        "S",
    )
    yield Workload(
        "softmax_focal",
        "4x21x512x512",
        _classes(4, 21, 512, 512),
        functional.focal_loss,
        (
            monai_focal(softmax=True),
            kornia_focal(),
            smp_focal("multiclass"),
            ready(PLAIN, formulas.softmax_focal),
            compiled(PLAIN, formulas.softmax_focal),
            ready(F_CE, F.cross_entropy, other="no focus"),
        ),
        "S",
    )
    resized_ce = formulas.at_target_size(F.cross_entropy)
    yield Workload(
        "upsampled_cross_entropy",
        "4x21x128x128 to 512x512",
        _classes(4, 21, 512, 512, shrink=4),
        compose.AtTargetSize(denseloss.CrossEntropyLoss()),
        (ready(RESIZED, resized_ce), compiled(RESIZED, resized_ce), poly1(resized=True)),
        "U",
    )
    resized_both = formulas.at_target_size(formulas.cross_entropy_dice)
    yield Workload(
        "upsampled_cross_entropy_dice",
        "4x21x128x128 to 512x512",
        _classes(4, 21, 512, 512, shrink=4),
        compose.AtTargetSize(compose.parse("cross_entropy + dice")),
        (
            ready(f"F.interpolate + {PLAIN}", resized_both),
            Provider(
                f"F.interpolate + {MONAI}",
                lambda: formulas.at_target_size(monai_dice_ce().load()),
            ),
            compiled(f"F.interpolate + {PLAIN}", resized_both),
            ready(RESIZED, resized_ce, other="no Dice"),
            log_cosh(resized=True),
        ),
        "U",
    )
    yield Workload(
        "structure",
        "16x1x352x352",
        _masks(16, 352),
        functional.structure_loss,
        (
            ready(PUBLISHED, formulas.structure),
            ready(RUNNING_SUMS, formulas.structure_running_sums),
            compiled(PUBLISHED, formulas.structure),
            compiled(RUNNING_SUMS, formulas.structure_running_sums),
        ),
        "R",
    )


def _detected(make: Maker, *, places: int, labelled: bool, scored: bool) -> Inputs:
    shape = (8, make.size(places))
    z = make.normal(*shape, 80, mean=-3.0)  # detectors start from a low score everywhere
    label = make.sparse_labels(*shape, classes=80)
    score = make.uniform(*shape, low=0.1) if scored else None
    if not labelled:
        return z, formulas.dense(z, label, score)
    return (z, label) if score is None else (z, label, score)


def _detection() -> Iterable[Workload]:
    for places in (33600, 8400):
        yield from _scores(places, labelled=False)
        yield from _scores(places, labelled=True)


def _scores(places: int, *, labelled: bool) -> Iterable[Workload]:
    def target(loss: Loss) -> Loss:
        return formulas.from_labels(loss) if labelled else loss

    def workload(name: str, loss: Loss, peers: tuple[Provider, ...], given: str) -> Workload:
        return Workload(
            f"det_{name}_{places}_{'labels' if labelled else 'dense'}",
            f"8x{places}x80, {given if labelled else 'dense targets'}",
            partial(_detected, places=places, labelled=labelled, scored=given != "labels"),
            target(loss),
            peers,
            "P",
            partial(_from_class_scores, loss) if labelled else None,
        )

    plain = f"{PLAIN}, dense target made inside" if labelled else PLAIN
    yield workload(
        "focal",
        functional.binary_focal_loss,
        (
            torchvision_focal(labels=labelled),
            ready(YOLO, target(formulas.binary_focal_yolo)),
            compiled(plain, target(formulas.binary_focal)),
        ),
        "labels",
    )
    yield workload(
        "quality_focal",
        functional.quality_focal_loss,
        (
            ready(MMDET, formulas.quality_focal_labels if labelled else formulas.quality_focal),
            compiled(plain, target(formulas.quality_focal)),
        ),
        "labels + scores",
    )
    yield workload(
        "varifocal",
        functional.varifocal_loss,
        (
            ready(MMDET, target(formulas.varifocal)),
            ready(YOLO, target(formulas.varifocal_yolo)),
            compiled(plain, target(formulas.varifocal)),
        ),
        "labels + scores",
    )


def _from_class_scores(loss: Loss) -> Loss:
    """Our loss on labels and scores, without a dense target."""
    kind = getattr(denseloss, "ClassScores", None)
    if kind is None:
        raise NotThereYetError("denseloss has no ClassScores")
    return lambda z, label, score=None: loss(z, kind(label, score))


def _pairs(make: Maker, *, count: int) -> Inputs:
    return make.boxes(make.size(count))


def _boxes() -> Iterable[Workload]:
    losses: dict[str, tuple[Loss, Loss, tuple[Provider, ...]]] = {
        "iou": (functional.iou_loss, formulas.iou, ()),
        "giou": (
            functional.giou_loss,
            formulas.giou,
            (torchvision_boxes("generalized_box_iou_loss"),),
        ),
        "diou": (
            functional.diou_loss,
            formulas.diou,
            (torchvision_boxes("distance_box_iou_loss"),),
        ),
        "ciou": (
            functional.ciou_loss,
            formulas.ciou,
            (torchvision_boxes("complete_box_iou_loss"), ready(YOLO, formulas.ciou_yolo)),
        ),
    }
    for name, (ours, plain, peers) in losses.items():
        for text in ("1e5", "1e6"):
            yield Workload(
                f"{name}_{text}",
                f"{text} pairs",
                partial(_pairs, count=int(float(text))),
                ours,
                (*peers, ready(PLAIN, plain), compiled(PLAIN, plain)),
                "B",
            )

    def sides(make: Maker) -> Inputs:
        count = make.size(40000)
        return make.normal(count, 4, 17), make.uniform(count, 4, high=15.9)

    yield Workload(
        "distribution_focal",
        "40000x4x17",
        sides,
        functional.distribution_focal_loss,
        (
            ready(TWO_ENTROPIES, formulas.distribution_focal_two_entropies),
            ready(ONE_SOFTMAX, formulas.distribution_focal_one_softmax),
            compiled(TWO_ENTROPIES, formulas.distribution_focal_two_entropies),
            compiled(ONE_SOFTMAX, formulas.distribution_focal_one_softmax),
        ),
        "B",
    )


def _pictures(make: Maker, *, classes: int) -> Inputs:
    side = make.size(128)
    return make.normal(4, classes, side, side), make.image(4, 3, side, side)


def _affinity() -> Iterable[Workload]:
    for classes in (20, 4):
        yield Workload(
            f"ncut_k{classes}",
            f"4x{classes}x128x128, radius 5",
            partial(_pictures, classes=classes),
            functional.ncut_loss,
            (ready(UNFOLD, formulas.ncut_unfold), compiled(UNFOLD, formulas.ncut_unfold)),
            "N",
        )


# What people train with: two to four classes, crops, a few images.
CLASSES = (
    (16, 3, 96, 96),
    (8, 4, 128, 128),
    (8, 2, 256, 256),
    (2, 3, 512, 512),
    (2, 2, 64, 64, 64),
)
MASKS = ((16, 96), (8, 256), (8, 512))


def named(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _small() -> Iterable[Workload]:
    for shape in CLASSES:
        images, classes, *space = shape
        yield Workload(
            f"small_cross_entropy_{named(shape)}",
            named(shape),
            _classes(images, classes, *space),
            functional.cross_entropy_loss,
            (ready(F_CE, F.cross_entropy), poly1()),
            "S",
            size="small",
        )
        yield Workload(
            f"small_cross_entropy_dice_{named(shape)}",
            named(shape),
            _classes(images, classes, *space),
            compose.parse("cross_entropy + dice"),
            (
                monai_dice_ce(),
                compiled(PLAIN, formulas.cross_entropy_dice),
                ready(F_CE, F.cross_entropy, other="no Dice"),
                log_cosh(),
            ),
            "S",
            size="small",
        )
        if len(space) == 2:
            yield from _small_resized(shape)
    for images, side in MASKS:
        shape = (images, 1, side, side)
        yield Workload(
            f"small_binary_dice_bce_{named(shape)}",
            named(shape),
            _masks(images, side),
            compose.parse("binary_cross_entropy + binary_dice"),
            (monai_dice_ce(binary=True),),
            "R",
            size="small",
        )


def _small_resized(shape: tuple[int, ...]) -> Iterable[Workload]:
    images, classes, *space = shape
    quarter = named((images, classes, *(extent // 4 for extent in space)))
    for loss, name, user in (
        (denseloss.CrossEntropyLoss(), "cross_entropy", poly1(resized=True)),
        (compose.parse("cross_entropy + dice"), "cross_entropy_dice", log_cosh(resized=True)),
    ):
        yield Workload(
            f"small_upsampled_{name}_{named(shape)}",
            f"{quarter} to {named(space)}",
            _classes(images, classes, *space, shrink=4),
            compose.AtTargetSize(loss),
            (user,),
            "U",
            size="small",
        )


def one_class_cross_entropy() -> Provider:
    """F.cross_entropy of the same logits: the measure of what a call costs."""

    def loss(z: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(z, nothing)

    nothing = torch.zeros(1, 8, 8, dtype=torch.long)
    return ready(F_CE, loss, other="one class")


def _tiny() -> Iterable[Workload]:
    yield Workload(
        "tiny_focal",
        "1x1x8x8",
        _masks(1, 8),
        functional.binary_focal_loss,
        (
            torchvision_focal(),
            compiled(PLAIN, formulas.binary_focal),
            ready(F_BCE, F.binary_cross_entropy_with_logits, other="no focus"),
        ),
        "P",
        size="tiny",
    )
    binary: dict[str, tuple[Loss, tuple[Provider, ...], str]] = {
        "binary_cross_entropy": (
            functional.binary_cross_entropy_loss,
            (ready(F_BCE, F.binary_cross_entropy_with_logits),),
            "P",
        ),
        "binary_dice": (functional.binary_dice_loss, (), "R"),
        "binary_dice_bce": (
            compose.parse("binary_cross_entropy + binary_dice"),
            (monai_dice_ce(binary=True),),
            "R",
        ),
    }
    for name, (loss, peers, family) in binary.items():
        yield Workload(
            f"tiny_{name}",
            "1x1x8x8",
            _masks(1, 8),
            loss,
            (one_class_cross_entropy(), *peers),
            family,
            size="tiny",
        )
    exclusive: dict[str, tuple[Loss, tuple[Provider, ...]]] = {
        "cross_entropy": (
            functional.cross_entropy_loss,
            (ready(F_CE, F.cross_entropy), compiled(F_CE, F.cross_entropy)),
        ),
        "dice": (functional.dice_loss, (ready(F_CE, F.cross_entropy, other="no Dice"),)),
        "cross_entropy_dice": (
            compose.parse("cross_entropy + dice"),
            (ready(F_CE, F.cross_entropy, other="no Dice"), monai_dice_ce()),
        ),
    }
    for name, (loss, peers) in exclusive.items():
        yield Workload(
            f"tiny_{name}", "1x3x8x8", _classes(1, 3, 8, 8), loss, peers, "S", size="tiny"
        )


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for family in (_segmentation, _detection, _boxes, _affinity, _small, _tiny)
    for workload in family()
}


def matching(pattern: str, names: Iterable[str]) -> set[str]:
    """The names that a pattern means: the whole name, or with wildcards, or a part of it."""
    names = set(names)
    if pattern in names:
        return {pattern}
    if any(character in pattern for character in "*?["):
        return {name for name in names if fnmatchcase(name, pattern)}
    return {name for name in names if pattern.lower() in name.lower()}


def chosen(patterns: Iterable[str]) -> list[Workload]:
    """The workloads that any of the patterns names; all of them where there is no pattern.

    A size names all of that size.

    Raises:
        LookupError: a pattern that names none.
    """
    names: set[str] = set()
    for pattern in patterns:
        found = {name for name, workload in WORKLOADS.items() if workload.size == pattern}
        found = found or matching(pattern, WORKLOADS)
        if not found:
            raise LookupError(pattern)
        names |= found
    return [workload for name, workload in WORKLOADS.items() if not names or name in names]
