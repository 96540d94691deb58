"""Whole losses on the Triton operators against the definitions in float64, value and gradient.

`test_triton_losses` runs this in a process of its own, where TRITON_INTERPRET is set. The conftest
stays out of it: it would load the operators in C before those in Triton are offered in their place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from denseloss import AtTargetSize, ClassScores, CrossEntropyLoss, DeepSupervision, backend
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.primitives.fused import VERSIONS, ops

TRITON = "denseloss.primitives.cuda"


def _triton() -> None:
    import denseloss.primitives.cuda  # noqa: F401 - under the interpreter it is for the CPU


backend.offer("cpu", _triton)

# Triton's interpreter cuts bfloat16 off where a GPU rounds, and `rescale` does so once more.
ERROR = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
N, C, H, W = 2, 3, 7, 9
Case = Callable[[Tensor], Tensor]


def made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=made(0))


def share(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=made(seed))


def labels(*shape: int, seed: int = 1) -> Tensor:
    """Labels of which some are void."""
    found = torch.randint(0, C, shape, generator=made(seed))
    return torch.where(share(*shape, seed=seed + 1) < 0.2, -100, found)


def weights(*shape: int, seed: int = 3) -> Tensor:
    w = 2 * share(*shape, seed=seed)
    return torch.where(w < 0.4, 0, w)


LABEL, LARGE = labels(N, H, W), labels(N, 2 * H, 2 * W - 1)
ABSENT = torch.where(LABEL == 2, 0, LABEL)
PIXEL, ELEMENT = weights(N, H, W), weights(N, C, H, W)
CLASS = share(C, seed=6) + 0.1
MASK = (share(N, C, H, W, seed=2) < 0.3).float()
VOID_MASK = torch.where(ELEMENT < 0.5, 255.0, MASK)
SOFT = MASK * share(N, C, H, W, seed=5)
PLACES = torch.randint(-1, W, (N, C, H), generator=made(12))  # the last axis is of the classes
IMAGE = 60 * share(N, 3, H, W, seed=11)
COUNT = torch.tensor(12.0)
BOX = torch.cat([10 * share(12, 2, seed=7), 10 * share(12, 2, seed=8) + 4], 1)
OTHER = torch.cat([10 * share(12, 2, seed=9), 10 * share(12, 2, seed=10) + 4], 1)
BOX[:2] = OTHER[:2]  # perfect
BOX[2] = torch.tensor([9.0, 8.0, 2.0, 3.0])  # inverted
BOX[3] = torch.tensor([9.0, 1.0, 2.0, 3.0])  # along one axis only
BINS = 9 * share(N, C, H, seed=14) - 0.5


def like(x: Tensor, z: Tensor) -> Tensor:
    """An option in the precision of the logits, so that the definition has it in float64."""
    return x.double() if z.dtype == torch.float64 else x


def summed(text: str, target: Tensor, **options: Any) -> Case:
    criterion = parse(text)
    return lambda z: criterion(z, target, **{k: like(x, z) for k, x in options.items()})


CASES: dict[str, Case] = {
    "cross_entropy": lambda z: F.cross_entropy_loss(z, LABEL),
    "cross_entropy, class weight": lambda z: F.cross_entropy_loss(
        z, LABEL, class_weight=like(CLASS, z), weight=like(PIXEL, z)
    ),
    "cross_entropy, smoothing": lambda z: F.cross_entropy_loss(
        z, LABEL, class_weight=like(CLASS, z), label_smoothing=0.2
    ),
    "cross_entropy, none": lambda z: F.cross_entropy_loss(
        z, LABEL, label_smoothing=0.1, reduction="none"
    ),
    "cross_entropy, uint8": lambda z: F.cross_entropy_loss(
        z, torch.where(LABEL < 0, 255, LABEL).byte(), ignore_index=255, reduction="sum"
    ),
    "balanced_cross_entropy": lambda z: F.balanced_cross_entropy_loss(
        z, LABEL, weight=like(PIXEL, z)
    ),
    "focal": lambda z: F.focal_loss(z, LABEL),
    "focal, gamma 0.5": lambda z: F.focal_loss(z, LABEL, gamma=0.5, alpha=like(CLASS, z)),
    "focal, none": lambda z: F.focal_loss(z, LABEL, weight=like(PIXEL, z), reduction="none"),
    "dice": lambda z: F.dice_loss(z, LABEL, weight=like(PIXEL, z)),
    "dice, batch": lambda z: F.dice_loss(z, LABEL, pool="batch", beta=2.0),
    "dice, skip": lambda z: F.dice_loss(z, ABSENT, absent="skip", smooth=0.0),
    "dice, none": lambda z: F.dice_loss(z, ABSENT, reduction="none", smooth=0.0),
    "jaccard, class weight": lambda z: F.jaccard_loss(z, LABEL, class_weight=like(CLASS, z)),
    "tversky": lambda z: F.tversky_loss(z, LABEL, alpha=0.3, beta=0.7),
    "cross_entropy + dice": summed("cross_entropy + dice", LABEL),
    "three of one pass": summed("cross_entropy + 0.5*focal(gamma=3) + dice", LABEL, weight=PIXEL),
    "two passes": summed(
        "cross_entropy(label_smoothing=0.1) + dice(ignore_index=0)", LABEL.clamp(min=0)
    ),
    "at target size": lambda z: AtTargetSize(CrossEntropyLoss(), align_corners=True)(z, LARGE),
    "at target size, sum": lambda z: AtTargetSize(parse("cross_entropy + dice"))(z, LARGE),
    "at target size, focal": lambda z: AtTargetSize(parse("focal"))(z, LARGE),
    "at target size, binary": lambda z: AtTargetSize(parse("binary_cross_entropy + binary_dice"))(
        z, (LARGE.unsqueeze(1) == torch.arange(C).reshape(-1, 1, 1)).float()
    ),
    "deep supervision": lambda z: DeepSupervision(parse("cross_entropy + dice"))(
        [z, z[:, :, ::2, ::3].contiguous(), z[:, :, :2, :3].contiguous()], LABEL
    ),
    "binary_cross_entropy": lambda z: F.binary_cross_entropy_loss(z, VOID_MASK, ignore_index=255),
    "binary_cross_entropy, pos_weight": lambda z: F.binary_cross_entropy_loss(
        z, MASK, pos_weight=like(CLASS, z), weight=like(ELEMENT, z), count=like(COUNT, z)
    ),
    "binary_cross_entropy, none": lambda z: F.binary_cross_entropy_loss(
        z, MASK.bool(), weight=like(ELEMENT, z), reduction="none"
    ),
    "binary_focal": lambda z: F.binary_focal_loss(z, MASK),
    "binary_focal, gamma 0.5": lambda z: F.binary_focal_loss(
        z, VOID_MASK, gamma=0.5, alpha=None, ignore_index=255
    ),
    "binary_focal, labels": lambda z: F.binary_focal_loss(z, ClassScores(PLACES), ignore_index=3),
    "varifocal": lambda z: F.varifocal_loss(z, like(SOFT, z), count=like(SOFT.sum(), z)),
    "varifocal, fixed": lambda z: F.varifocal_loss(
        z, like(SOFT, z), gamma=1.5, detach_weight=True, reduction="none"
    ),
    "quality_focal": lambda z: F.quality_focal_loss(z, like(SOFT, z), weight=like(ELEMENT, z)),
    "quality_focal, labels": lambda z: F.quality_focal_loss(
        z,
        ClassScores(PLACES, like(share(N, C, H, seed=13), z)),
        weight=like(weights(N, C, H, 1), z),
        count=like(COUNT, z),
    ),
    "binary_dice": lambda z: F.binary_dice_loss(z, MASK, weight=like(ELEMENT, z)),
    "binary_jaccard, batch": lambda z: F.binary_jaccard_loss(z, MASK.byte(), pool="batch"),
    "binary_tversky, none": lambda z: F.binary_tversky_loss(
        z, VOID_MASK, ignore_index=255, reduction="none"
    ),
    "binary_cross_entropy + binary_dice": summed(
        "binary_cross_entropy + binary_dice", MASK, weight=ELEMENT
    ),
    "binary, pos_weight": summed(
        "2*binary_cross_entropy(pos_weight=3) + binary_dice + binary_focal", MASK
    ),
    **{
        f"structure, {variant}": lambda z, v=variant: F.structure_loss(
            z, VOID_MASK, window=5, variant=v, ignore_index=255
        )
        for variant in ("corrected", "released", "equation")
    },
    "structure, none": lambda z: F.structure_loss(
        z, like(SOFT, z), window=15, weight=like(ELEMENT, z), reduction="none"
    ),
    "ncut": lambda z: F.ncut_loss(z, like(IMAGE, z), radius=2.5),
    "ncut, none": lambda z: F.ncut_loss(z, like(IMAGE[:, :1], z), radius=3, reduction="none"),
}
ROWS: dict[str, Case] = {
    **{
        f"{kind}, {fmt}": lambda z, kind=kind, fmt=fmt: getattr(F, f"{kind}_loss")(
            z, like(OTHER, z), fmt=fmt
        )
        for kind, fmt in (("iou", "xywh"), ("giou", "xyxy"), ("diou", "cxcywh"), ("ciou", "xyxy"))
    },
    "giou, weight": lambda z: F.giou_loss(
        z, like(OTHER, z), weight=like(weights(12), z), reduction="none"
    ),
    "ciou, released": lambda z: F.ciou_loss(
        z, like(OTHER, z), weight=like(weights(12), z), variant="released"
    ),
    "ciou, count": lambda z: F.ciou_loss(z, like(OTHER, z), count=like(COUNT, z)),
}
DISTRIBUTIONS: dict[str, Case] = {
    "distribution_focal": lambda z: F.distribution_focal_loss(
        z, like(BINS, z), weight=like(weights(N, C, H), z), count=7
    ),
    "distribution_focal, none": lambda z: F.distribution_focal_loss(
        z, like(BINS, z), reduction="none"
    ),
}


def compared(case: Case, logits: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """The case on the Triton operators against the definition, of the same rounded logits."""
    given = logits.to(dtype).clone().requires_grad_()
    exact = given.detach().double().requires_grad_()
    with backend.use("reference"):
        expected = case(exact)
        up = torch.rand(expected.shape, generator=made(20), dtype=torch.float64) + 0.5
        (expected * up).sum().backward()
    values: list[Tensor] = []
    ran = backend.which(lambda: values.append(case(given)))
    assert set(ran.values()) == {"cpu"}, ran
    (value,) = values
    (value * up.float()).sum().backward()
    assert value.dtype == torch.float32
    assert given.grad is not None
    assert given.grad.dtype == dtype
    assert given.grad.stride() == given.stride()
    top = float(expected.detach().abs().max())
    torch.testing.assert_close(value.double(), expected, rtol=3e-6, atol=1e-6 * top)
    gap = (given.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert gap <= ERROR[dtype], f"gradient off by {gap:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_losses(name: str) -> None:
    compared(CASES[name], draw(N, C, H, W))


@pytest.mark.parametrize("name", ROWS)
def test_boxes(name: str) -> None:
    compared(ROWS[name], BOX)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_bins(name: str) -> None:
    compared(DISTRIBUTIONS[name], draw(N, C, H, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    ["focal", "at target size, sum", "binary_focal", "binary_cross_entropy + binary_dice"],
)
def test_half_precision_with_the_classes_innermost(name: str, dtype: torch.dtype) -> None:
    z = draw(N, C, H, W).to(memory_format=torch.channels_last)
    compared(CASES[name], z, dtype)


@pytest.mark.parametrize("shape", [(20, 5), (2, 3, 11), (1, 2, 3, 2, 4)])
def test_spaces(shape: tuple[int, ...]) -> None:
    """Rows of scores, lines and volumes."""
    target = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=made(15))
    mask = (share(*shape, seed=16) < 0.4).float()
    for case in (
        functools.partial(F.focal_loss, target=target),
        functools.partial(parse("cross_entropy + dice"), target=target),
        functools.partial(F.binary_dice_loss, target=mask),
    ):
        compared(case, draw(*shape))


def test_void_hides_nan() -> None:
    """A loss over void pixels that hold NaN is finite, and gives them no gradient."""
    out = LABEL == -100
    z = draw(N, C, H, W)
    z.movedim(1, -1)[out] = math.nan
    mask = torch.where(out.unsqueeze(1), 255.0, MASK)
    for case in (
        summed("cross_entropy + focal + dice", LABEL),
        lambda z: parse("binary_cross_entropy + binary_dice")(z, mask, ignore_index=255),
        lambda z: F.structure_loss(z, mask, window=5, ignore_index=255),
    ):
        compared(case, z)
        given = z.clone().requires_grad_()
        case(given).backward()
        assert (given.grad.movedim(1, -1)[out] == 0).all()


def test_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take part, and what they return is what torch.compile is told."""
    backend.missing()
    versions = ops._direct["cpu"]
    called: set[str] = set()

    def spied(name: str, *args: Any) -> Any:
        called.add(name)
        found, told = versions[name](*args), ops._FAKES[name](*args)
        if name != "rescale":
            found_all, told_all = [x if isinstance(x, tuple) else (x,) for x in (found, told)]
            for ours, right in zip(found_all, told_all, strict=True):
                assert ours.shape == right.shape, name
                assert ours.dtype == right.dtype, name
                assert ours.stride() == right.stride(), name
            assert len({id(x) for x in found_all}) == len(found_all)
        return found

    assert {version.__module__.rpartition(".")[0] for version in versions.values()} == {TRITON}
    spies = {name: functools.partial(spied, name) for name in versions}
    monkeypatch.setitem(ops._direct, "cpu", spies)
    ran: set[str] = set()
    for case, z in (
        (CASES["balanced_cross_entropy"], draw(N, C, H, W)),
        (CASES["at target size, sum"], draw(N, C, H, W)),
        (CASES["cross_entropy, smoothing"], draw(N, C, H, W)),
        (CASES["binary_cross_entropy, pos_weight"], draw(N, C, H, W)),
        (CASES["binary_focal, labels"], draw(N, C, H, W)),
        (CASES["binary_cross_entropy + binary_dice"], draw(N, C, H, W)),
        (CASES["structure, released"], draw(N, C, H, W)),
        (CASES["ncut"], draw(N, C, H, W)),
        (ROWS["ciou, count"], BOX),
        (DISTRIBUTIONS["distribution_focal"], draw(N, C, H, 8)),
    ):
        given = z.clone().requires_grad_()
        values: list[Tensor] = []
        ran |= backend.which(lambda: values.append(case(given))).keys()  # noqa: B023
        values[0].backward()
    ran |= backend.which(F.edge_weight, MASK).keys()
    assert called == set(ops.SCHEMAS)
    assert ran == set(VERSIONS)
