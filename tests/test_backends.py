"""Every fast version against the definition in float64: values, gradients, and what it must not do.

On a machine with a GPU everything here runs on it as well.
"""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch
from torch import Tensor

import denseloss
from denseloss import AtTargetSize, ClassScores, CrossEntropyLoss, DeepSupervision, backend
from denseloss import functional as F
from denseloss.compose import parse
from denseloss.primitives.edges import edge_sums
from denseloss.primitives.fused import VERSIONS
from denseloss.primitives.sigmoid import sigmoid_overlap, sigmoid_sums
from denseloss.primitives.softmax import softmax_overlap, softmax_pass

DEVICES = [name for name in ("cpu", "cuda") if name in backend.available()]
if "cuda" in DEVICES and not torch.cuda.is_available():
    DEVICES.remove("cuda")

ERROR = {torch.float32: 6e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
if os.environ.get("DENSELOSS_KERNELS"):  # those of tests/test_sanitizers.py
    # Between the checks of the sanitizers no loop is vectorised: one lane sums up what 16 did.
    ERROR[torch.float32] = 2e-6
N, C, H, W = 2, 5, 33, 47


def made(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=made(seed))


def labels(*shape: int, classes: int = C, void: bool = True, seed: int = 1) -> Tensor:
    found = torch.randint(0, classes, shape, generator=made(seed))
    if void:
        found[torch.rand(shape, generator=made(seed + 1)) < 0.1] = -100
    return found


def share(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=made(seed))


def weights(*shape: int, seed: int = 3) -> Tensor:
    w = 2 * share(*shape, seed=seed)
    return torch.where(w < 0.3, 0, w)


MASK = (share(N, C, H, W) < 0.3).float()
QUALITY = MASK * share(N, C, H, W, seed=5)
LABEL = labels(N, H, W)
PLAIN = labels(N, H, W, void=False)
PIXEL = weights(N, H, W)
ELEMENT = weights(N, C, H, W)
CLASS = share(C, seed=6) + 0.1
BOX = torch.cat([10 * share(90, 2, seed=7), 10 * share(90, 2, seed=8) + 4], 1)
OTHER = torch.cat([10 * share(90, 2, seed=9), 10 * share(90, 2, seed=10) + 4], 1)
BOX[:5] = OTHER[:5]  # perfect
BOX[5] = BOX[6, [2, 3, 0, 1]]  # inverted, most likely
BOX[7] = torch.tensor([3.0, 3.0, 3.0, 3.0])
BOX[8:12] = BOX[8:12, [2, 1, 0, 3]]
BOX[12:15, 2] = BOX[12:15, 0]
BOX[15:18, 3] = BOX[15:18, 1]
COUNT = torch.tensor(12.0)
IMAGE = 60 * share(N, 3, H, W, seed=11)
SPARSE = ClassScores(torch.randint(-1, W, (N, C, H), generator=made(12)), share(N, C, H, seed=13))
BINS = 15.9 * share(N, C, H, seed=14)


def like(x: Tensor | None, z: Tensor) -> Tensor | None:
    """An option in the precision of the logits, so that the oracle has it in float64."""
    if x is None:
        return None
    return x.to(z.device, z.dtype if z.dtype == torch.float64 else torch.float32)


def on(x: Tensor, z: Tensor) -> Tensor:
    return x.to(z.device)


AT_SIZE = {
    size: (labels(N, *size), weights(N, *size), (share(N, C, *size) < 0.3).float())
    for size in ((66, 94), (131, 190), (20, 30), (33, 94), (1, 1), (260, 1), (99, 150))
}
# Read once: torch.compile does not trace a parser.
SUMS = {
    text: parse(text)
    for text in (
        "cross_entropy + dice",
        "cross_entropy + 0.5*focal(gamma=3) + dice - 0.2*jaccard",
        "cross_entropy(label_smoothing=0.1) + tversky(ignore_index=3) + dice(ignore_index=3)",
        "cross_entropy(label_smoothing=0.1) + dice + focal(gamma=1.5)",
    )
}

CASES = {
    "cross_entropy": lambda z: F.cross_entropy_loss(z, on(PLAIN, z)),
    "cross_entropy, void": lambda z: F.cross_entropy_loss(z, on(LABEL, z)),
    "cross_entropy, uint8": lambda z: F.cross_entropy_loss(
        z, on(PLAIN.byte(), z), ignore_index=255
    ),
    "cross_entropy, int32": lambda z: F.cross_entropy_loss(z, on(LABEL.int(), z)),
    "cross_entropy, int16": lambda z: F.cross_entropy_loss(z, on(LABEL.short(), z)),
    "cross_entropy, [n 1 *s]": lambda z: F.cross_entropy_loss(z, on(LABEL, z).unsqueeze(1)),
    "cross_entropy, weight": lambda z: F.cross_entropy_loss(z, on(LABEL, z), weight=like(PIXEL, z)),
    "cross_entropy, weight [1 1 w]": lambda z: F.cross_entropy_loss(
        z, on(LABEL, z), weight=like(PIXEL[:1, :1], z)
    ),
    "cross_entropy, class weight": lambda z: F.cross_entropy_loss(
        z, on(LABEL, z), class_weight=like(CLASS, z)
    ),
    "cross_entropy, smoothing": lambda z: F.cross_entropy_loss(
        z, on(LABEL, z), label_smoothing=0.2, class_weight=like(CLASS, z), weight=like(PIXEL, z)
    ),
    "cross_entropy, sum": lambda z: F.cross_entropy_loss(z, on(LABEL, z), reduction="sum"),
    "cross_entropy, none": lambda z: F.cross_entropy_loss(
        z, on(LABEL, z), reduction="none", label_smoothing=0.1
    ),
    "balanced_cross_entropy": lambda z: F.balanced_cross_entropy_loss(z, on(LABEL, z)),
    "balanced_cross_entropy, weight": lambda z: F.balanced_cross_entropy_loss(
        z, on(LABEL, z), weight=like(PIXEL, z)
    ),
    **{
        f"focal, gamma {g}": lambda z, g=g: F.focal_loss(z, on(LABEL, z), gamma=g)
        for g in (0, 0.5, 1, 2, 3.3)
    },
    "focal, alpha": lambda z: F.focal_loss(z, on(LABEL, z), alpha=like(CLASS, z)),
    "focal, alpha 0.3": lambda z: F.focal_loss(z, on(LABEL, z), alpha=0.3, weight=like(PIXEL, z)),
    "focal, none": lambda z: F.focal_loss(z, on(LABEL, z), reduction="none"),
    "dice": lambda z: F.dice_loss(z, on(LABEL, z), weight=like(PIXEL, z)),
    "dice, batch": lambda z: F.dice_loss(z, on(LABEL, z), pool="batch"),
    "dice, none": lambda z: F.dice_loss(z, on(LABEL, z), reduction="none"),
    "jaccard": lambda z: F.jaccard_loss(z, on(PLAIN, z)),
    "tversky": lambda z: F.tversky_loss(z, on(LABEL, z), alpha=0.3, beta=0.7, absent="skip"),
    "sum of two": lambda z: SUMS["cross_entropy + dice"](z, on(LABEL, z)),
    "sum of four": lambda z: SUMS["cross_entropy + 0.5*focal(gamma=3) + dice - 0.2*jaccard"](
        z, on(LABEL, z), weight=like(PIXEL, z)
    ),
    "sum of two passes": lambda z: SUMS[
        "cross_entropy(label_smoothing=0.1) + tversky(ignore_index=3) + dice(ignore_index=3)"
    ](z, on(PLAIN, z)),
    "binary_cross_entropy": lambda z: F.binary_cross_entropy_loss(z, on(MASK, z)),
    "binary_cross_entropy, pos_weight 3": lambda z: F.binary_cross_entropy_loss(
        z, on(MASK, z), pos_weight=3.0
    ),
    "binary_cross_entropy, pos_weight [c]": lambda z: F.binary_cross_entropy_loss(
        z, on(MASK, z), pos_weight=like(CLASS, z)
    ),
    "binary_cross_entropy, void": lambda z: F.binary_cross_entropy_loss(
        z, on(torch.where(ELEMENT < 0.5, 255.0, MASK), z), ignore_index=255
    ),
    "binary_cross_entropy, overshoot": lambda z: F.binary_cross_entropy_loss(
        z, like(1.3 * QUALITY - 0.1, z), weight=like(ELEMENT, z)
    ),
    "binary_cross_entropy, count": lambda z: F.binary_cross_entropy_loss(
        z, on(MASK, z), weight=like(ELEMENT, z), count=like(COUNT, z)
    ),
    "binary_cross_entropy, none": lambda z: F.binary_cross_entropy_loss(
        z, on(MASK, z), weight=like(ELEMENT, z), reduction="none"
    ),
    **{
        f"binary_focal, gamma {g}": lambda z, g=g: F.binary_focal_loss(z, on(MASK, z), gamma=g)
        for g in (0, 0.5, 1, 2, 3.3)
    },
    "binary_focal, count": lambda z: F.binary_focal_loss(z, on(MASK, z), count=12),
    "binary_focal, overshoot": lambda z: F.binary_focal_loss(z, like(1.1 * MASK, z)),
    "binary_focal, bool": lambda z: F.binary_focal_loss(z, on(MASK.bool(), z), alpha=None),
    "binary_focal, soft": lambda z: F.binary_focal_loss(
        z, like(QUALITY, z), weight=like(PIXEL, z).unsqueeze(1), reduction="sum"
    ),
    "binary_focal, int64": lambda z: F.binary_focal_loss(z, on(MASK.long(), z), ignore_index=0),
    "binary_focal, labels": lambda z: F.binary_focal_loss(
        z, ClassScores(on(SPARSE.label, z)), ignore_index=3
    ),
    "quality_focal": lambda z: F.quality_focal_loss(z, like(QUALITY, z), weight=like(ELEMENT, z)),
    "quality_focal, alpha": lambda z: F.quality_focal_loss(z, like(QUALITY, z), beta=1, alpha=0.3),
    "quality_focal, labels": lambda z: F.quality_focal_loss(
        z, ClassScores(on(SPARSE.label, z), like(SPARSE.score, z))
    ),
    "quality_focal, labels, weight": lambda z: F.quality_focal_loss(
        z,
        ClassScores(on(SPARSE.label, z), like(SPARSE.score, z)),
        weight=like(weights(N, C, H, 1), z),
        beta=3.3,
    ),
    "varifocal": lambda z: F.varifocal_loss(z, like(QUALITY, z)),
    "varifocal, some negative": lambda z: F.varifocal_loss(
        z, like(1.5 * QUALITY - 0.5, z), count=like(QUALITY.sum(), z)
    ),
    "quality_focal, some negative": lambda z: F.quality_focal_loss(z, like(QUALITY - 0.4, z)),
    "quality_focal, negative labels": lambda z: F.quality_focal_loss(
        z, ClassScores(on(SPARSE.label, z), like(1.005 - 2 * SPARSE.score, z))
    ),
    "varifocal, fixed": lambda z: F.varifocal_loss(
        z, like(QUALITY, z), gamma=1.5, detach_weight=True, reduction="none"
    ),
    "varifocal, labels": lambda z: F.varifocal_loss(
        z, ClassScores(on(SPARSE.label, z).int(), like(SPARSE.score, z))
    ),
    "binary_dice": lambda z: F.binary_dice_loss(z, on(MASK, z), weight=like(ELEMENT, z)),
    "binary_jaccard": lambda z: F.binary_jaccard_loss(z, on(MASK.byte(), z), pool="batch"),
    "binary_tversky": lambda z: F.binary_tversky_loss(
        z, on(torch.where(ELEMENT < 0.5, 255.0, MASK), z), ignore_index=255, reduction="none"
    ),
    **{
        f"structure, {variant}": lambda z, v=variant: F.structure_loss(z, on(MASK, z), variant=v)
        for variant in ("corrected", "released", "equation")
    },
    "structure, soft": lambda z: F.structure_loss(
        z, like(QUALITY, z), weight=like(ELEMENT, z), window=7, gamma=3
    ),
    "structure, void": lambda z: F.structure_loss(
        z, on(torch.where(ELEMENT < 0.5, 255.0, MASK), z), ignore_index=255, variant="released"
    ),
    "ncut": lambda z: F.ncut_loss(z, like(IMAGE, z)),
    "ncut, wide": lambda z: F.ncut_loss(z, like(IMAGE[:, :1], z), radius=2.5, sigma_intensity=30),
    **{
        f"at target size, {size}": lambda z, size=size: AtTargetSize(CrossEntropyLoss())(
            z, on(AT_SIZE[size][0], z)
        )
        for size in AT_SIZE
    },
    "at target size, corners": lambda z: AtTargetSize(CrossEntropyLoss(), align_corners=True)(
        z, on(AT_SIZE[99, 150][0], z), weight=like(AT_SIZE[99, 150][1], z)
    ),
    "at target size, sum": lambda z: AtTargetSize(
        SUMS["cross_entropy(label_smoothing=0.1) + dice + focal(gamma=1.5)"]
    )(z, on(AT_SIZE[99, 150][0], z)),
    "at target size, binary": lambda z: AtTargetSize(denseloss.BinaryDiceLoss())(
        z, AT_SIZE[66, 94][2].to(z)
    ),
    "deep supervision": lambda z: DeepSupervision(SUMS["cross_entropy + dice"])(
        [z, 0.5 * z[:, :, ::2, ::3], z[:, :, :9, :8]], on(LABEL, z)
    ),
}
ROWS = {
    **{
        f"{kind}, {fmt}": lambda z, kind=kind, fmt=fmt: getattr(F, f"{kind}_loss")(
            z, like(OTHER, z), fmt=fmt
        )
        for kind in ("iou", "giou", "diou", "ciou")
        for fmt in ("xyxy", "xywh", "cxcywh")
    },
    "ciou, released": lambda z: F.ciou_loss(z, like(OTHER, z), variant="released"),
    "ciou, count": lambda z: F.ciou_loss(z, like(OTHER, z), count=like(COUNT, z)),
    "giou, count": lambda z: F.giou_loss(z, like(OTHER, z), weight=like(weights(90), z), count=7),
    "ciou, weight": lambda z: F.ciou_loss(
        z, like(OTHER, z), weight=like(weights(90), z), reduction="none"
    ),
}


def compared(case, z: Tensor, dtype: torch.dtype, device: str, *, error: float = 0.0) -> None:
    """The case in a dtype on the fast backend against float64 and the definition."""
    near = z.to(dtype)  # what rounding does to the input is not the kernel's
    exact = near.double().requires_grad_()
    with backend.use("reference"):
        expected = case(exact)
        up = torch.rand(expected.shape, generator=made(20), dtype=torch.float64) + 0.5
        (expected * up).sum().backward()
    given = near.to(device).clone().requires_grad_()
    before = given.detach().clone()
    value = case(given)
    (value * up.to(value)).sum().backward()
    assert value.dtype == torch.float32
    assert given.grad.dtype == dtype
    assert torch.equal(given, before)
    torch.testing.assert_close(
        value.double().cpu(), expected, rtol=3e-6, atol=1e-6 * expected.detach().abs().max().item()
    )
    size = exact.grad.norm().clamp_min(1e-30)
    gap = (given.grad.double().cpu() - exact.grad).norm() / size
    # A gradient below 6e-5 has fewer digits in float16: no result can be nearer than its rounding.
    rounding = (exact.grad.to(dtype).double() - exact.grad).norm() / size
    assert gap <= max(ERROR[dtype], error, 1.1 * rounding), f"gradient off by {gap:.2e}"
    with torch.no_grad():
        assert torch.equal(case(given), value.detach())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ERROR, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_dense_losses(name, dtype, device) -> None:
    compared(CASES[name], draw(N, C, H, W), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy, smoothing",
        "sum of four",
        "binary_tversky",
        "binary_focal, gamma 2",
        "binary_cross_entropy, pos_weight [c]",
        "at target size, sum",
        "varifocal, fixed",
        "focal, none",
    ],
)
def test_channels_last(name, device) -> None:
    z = draw(N, C, H, W).to(memory_format=torch.channels_last)
    compared(CASES[name], z, torch.float32, device)
    compared(CASES[name], z, torch.bfloat16, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ERROR, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", ROWS)
def test_boxes(name, dtype, device) -> None:
    # Half-precision coordinates make ties, where the two sides of a minimum differ by rounding.
    compared(ROWS[name], BOX, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bins", [2, 17, 33])
def test_bins(bins, device) -> None:
    z = draw(N, C, H, bins)
    for dtype in ERROR:
        for options in ({}, {"weight": weights(N, C, H)}, {"reduction": "none"}):

            def case(z, options=options):
                given = {k: like(v, z) if k == "weight" else v for k, v in options.items()}
                return F.distribution_focal_loss(z, like(BINS, z) - 1, **given)

            compared(case, z, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("classes", [2, 21, 33, 150, 1000])
def test_numbers_of_classes(classes, device) -> None:
    t = labels(1, 23, classes=classes)
    for sum_ in ("cross_entropy + dice", "focal", "cross_entropy(label_smoothing=0.1)"):
        for last in (False, True):
            z = draw(1, classes, 23)
            if last:
                z = z.mT.contiguous().mT
            # The sum over the classes of a softmax rounds once for each.
            error = 3e-8 * classes
            compared(lambda z, s=sum_: parse(s)(z, on(t, z)), z, torch.float32, device, error=error)


@pytest.mark.parametrize("device", DEVICES)
def test_spaces(device) -> None:
    """Rows of scores, lines, volumes and single pixels."""
    for shape in ((700, 7), (3, 7, 50), (2, 3, 5, 6, 7), (1, 2, 1, 1)):
        t = labels(shape[0], *shape[2:], classes=shape[1], void=False)
        m = (share(*shape) < 0.4).float()
        for case in (
            lambda z, t=t: F.cross_entropy_loss(z, on(t, z)),
            lambda z, t=t: parse("cross_entropy + dice")(z, on(t, z)),
            lambda z, t=t: F.focal_loss(z, on(t, z), reduction="none"),
            lambda z, m=m: F.binary_dice_loss(z, on(m, z)),
            lambda z, m=m: F.binary_focal_loss(z, on(m, z)),
            lambda z, m=m: F.structure_loss(z, on(m, z)),
        ):
            compared(case, draw(*shape), torch.float32, device)


# ---------------------------------------------------------------- the fast versions do run


@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_are_called(device, monkeypatch) -> None:
    """A fast version that declined everything would pass all of the above."""
    called = set()
    for name, version in list(VERSIONS.items()):

        def spied(*args, name=name, version=version, **kwargs):
            result = version(*args, **kwargs)
            if type(result) is not backend.Declined:
                called.add(name)
            return result

        monkeypatch.setitem(backend.table[name], device, spied)
    z, boxes = draw(N, C, H, W).to(device), BOX.to(device)
    for case in CASES.values():
        case(z)
    for case in ROWS.values():
        case(boxes)
    F.distribution_focal_loss(z, torch.zeros(N, C, H, device=device))
    denseloss.EdgeWeight()(MASK.to(device))
    assert called == set(VERSIONS)


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of all operators that are called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.append(str(function).rsplit(".", 1)[0])
        return function(*args, **(kwargs or {}))

    def passes(self) -> list[str]:
        names = ("softmax", "softmax_backward", "sigmoid", "sigmoid_backward", "elementwise")
        return [
            name.removeprefix("denseloss.")
            for name in self.called
            if name.startswith("denseloss.") and name.removeprefix("denseloss.") in names
        ]


def passes(loss, *inputs) -> list[str]:
    """The passes over the logits of a call and its gradient."""
    with Operators() as mode:
        loss(*inputs).backward()
    return mode.passes()


@pytest.mark.parametrize("device", DEVICES)
def test_a_sum_is_one_pass_each_way(device) -> None:
    z = draw(N, C, H, W).to(device).requires_grad_()
    y, m = LABEL.to(device), MASK.to(device)
    once = ["softmax", "softmax_backward"]
    for text in (
        "cross_entropy + focal + dice + 2*tversky(alpha=0.3)",
        "dice + jaccard",
        "balanced_cross_entropy + dice",
        "cross_entropy(class_weight=[1, 2, 3, 4, 5]) + dice(pool='batch')",
    ):
        assert passes(parse(text), z, y) == once, text
        assert passes(AtTargetSize(parse(text)), z, labels(N, 66, 94).to(device)) == once, text
    smooth = parse("dice + cross_entropy(label_smoothing=0.1)")
    assert len(passes(smooth, z, y)) == 4  # nobody had asked for the smoothed map before
    assert passes(smooth, z, y) == once
    for text in (
        "binary_cross_entropy + binary_dice",
        "binary_tversky(alpha=0.3) + binary_cross_entropy(pos_weight=3)",
        "binary_dice + binary_jaccard",
    ):
        criterion = parse(text)
        passes(criterion, z, m)
        assert passes(criterion, z, m) == ["sigmoid", "sigmoid_backward"], text
    # a loss alone is not charged for what it does not ask for
    assert passes(AtTargetSize(CrossEntropyLoss()), z, labels(N, 66, 94).to(device)) == once
    maps = [z, z[:, :, ::2, ::3].contiguous()]
    assert (
        passes(DeepSupervision(parse("cross_entropy + dice")), maps, y)
        == 2 * ["softmax"] + ["softmax_backward"] * 2
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_sum_takes_few_launches(device) -> None:
    """Forward and backward; each is some microseconds, and on a GPU tiny inputs are all of that."""
    z = draw(1, 3, 8, 8).to(device).requires_grad_()
    y, m = labels(1, 8, 8, classes=3).to(device), MASK[:1, :3, :8, :8].contiguous().to(device)
    for text, target in (("cross_entropy + dice", y), ("binary_cross_entropy + binary_dice", m)):
        criterion = parse(text)
        for _ in range(2):
            with Operators() as mode:
                criterion(z, target).backward()
            z.grad = None
        assert len(mode.called) <= 14, mode.called
        counted = [n for n in mode.called if n not in ("aten.detach", "aten.alias")]
        assert len(counted) <= 12, counted


@pytest.mark.parametrize("device", DEVICES)
def test_why_the_definition_runs(device) -> None:
    z, m, boxes = draw(N, C, H, W).to(device), MASK.to(device), BOX.to(device)
    label = torch.zeros(N, C, H, dtype=torch.long, device=device)
    scores = ClassScores(label)
    last = z.to(memory_format=torch.channels_last)
    for why, loss, inputs, options in (
        ("logits are float64", F.binary_focal_loss, (z.double(), m), {}),
        ("logits are empty", F.binary_focal_loss, (z[:0], m[:0]), {}),
        (
            "logits are neither contiguous nor channels_last",
            F.binary_cross_entropy_loss,
            (z.mT.contiguous().mT, m),
            {},
        ),
        (
            "a target, weight or other constant requires grad",
            F.varifocal_loss,
            (z, m.clone().requires_grad_()),
            {},
        ),
        (
            "pos_weight is neither one number nor one per channel",
            F.binary_cross_entropy_loss,
            (z, m),
            {"pos_weight": torch.ones(C, 1, W, device=device)},
        ),
        (
            "logits are channels_last, whose classes are not those of ClassScores",
            F.quality_focal_loss,
            (last, scores),
            {},
        ),
        (
            "weight differs between the classes of a place",
            F.quality_focal_loss,
            (z, scores),
            {"weight": ELEMENT.to(device)},
        ),
    ):
        found = backend.which(loss, *inputs, **options)
        assert found["element_loss"] == f"reference: {why}"
    why = backend.which(F.giou_loss, boxes.double(), boxes)
    assert why == {"box_loss": "reference: boxes are float64"}
    why = backend.which(F.giou_loss, boxes.T.contiguous().T, boxes)
    assert why["box_loss"].startswith("reference: boxes are n")
    rows = z.transpose(0, 1)
    why = backend.which(F.distribution_focal_loss, rows, torch.zeros(C, N, H, device=device))
    assert why["bin_loss"].startswith("reference: logits are n")
    assert backend.which(F.giou_loss, boxes, boxes) == {"box_loss": device}
    torch.func.grad(lambda z: _noted(F.binary_focal_loss, z, m))(z)
    assert NOTED == {"element_loss": "reference: torch.func is active"}


NOTED: dict[str, str] = {}


def _noted(loss, *inputs):
    NOTED.update(backend.which(loss, *inputs))
    return loss(*inputs)


# ---------------------------------------------------------------- what must not happen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    [
        "sum of four",
        "binary_cross_entropy, count",
        "binary_focal, gamma 2",
        "quality_focal, labels",
        "structure, released",
        "ncut",
        "at target size, sum",
    ],
)
def test_second_backward_and_gradient_of_gradient(name, device) -> None:
    case = CASES[name]
    z = draw(N, C, H, W).to(device).requires_grad_()
    value = case(z)
    first = torch.autograd.grad(value, z, retain_graph=True)[0].clone()
    second = torch.autograd.grad(3.7 * value, z, retain_graph=True)[0]
    torch.testing.assert_close(second, 3.7 * first, rtol=1e-5, atol=1e-9)
    # A penalty on the gradient, as the definition has it.
    (g,) = torch.autograd.grad(value, z, create_graph=True)
    (penalty,) = torch.autograd.grad(g.square().sum(), z)
    with backend.use("reference"):
        y = z.detach().cpu().double().requires_grad_()
        (h,) = torch.autograd.grad(case(y), y, create_graph=True)
        (expected,) = torch.autograd.grad(h.square().sum(), y)
    assert expected.abs().max() > 0
    assert (penalty.double().cpu() - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["giou, xyxy", "giou, count", "ciou, released", "ciou, weight"])
def test_gradients_of_gradients_of_boxes(name, device) -> None:
    found = []
    for leaf in (BOX.to(device), BOX.double()):
        x = leaf.clone().requires_grad_()
        with backend.use("reference" if leaf.dtype == torch.float64 else None):
            (grad,) = torch.autograd.grad(ROWS[name](x).sum(), x, create_graph=True)
            (again,) = torch.autograd.grad(grad[20:].square().sum(), x)  # proper boxes
        found.append(again.double().cpu())
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_no_host_read_and_no_copy_under_fake_tensors(device) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        for name in ("binary_focal, count", "varifocal, labels", "quality_focal"):
            z = torch.empty(N, C, H, W, device=device, requires_grad=True)
            mode.allow_non_fake_inputs = True
            CASES[name](z).backward()
            assert z.grad.shape == z.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy, smoothing",
        "focal, gamma 2",
        "dice, none",
        "binary_focal, gamma 2",
        "binary_dice",
        "structure, soft",
    ],
)
def test_void_pixels_may_hold_anything(name, device) -> None:
    for poison in (float("nan"), float("inf"), -1e30):
        z = draw(N, C, H, W)
        clean = z.clone()
        dense = name.startswith(("binary", "structure"))
        void = (ELEMENT == 0) if dense else ((PIXEL == 0) | (LABEL == -100)).unsqueeze(1)
        if name in ("focal, gamma 2", "dice, none"):
            void = (LABEL == -100).unsqueeze(1)
        if name == "binary_focal, gamma 2":
            continue
        z = torch.where(void, poison, z)
        values = []
        for x in (z, clean):
            x = x.to(device).requires_grad_()
            value = CASES[name](x)
            value.sum().backward()
            values.append(value.detach())
            assert not x.grad.cpu()[void.expand(x.shape)].any()
        assert torch.equal(*values)


@pytest.mark.parametrize("device", DEVICES)
def test_labels_that_are_no_class_are_not_read_through(device) -> None:
    z = draw(N, C, H, W).to(device)
    for bad in (C, -1, 2**31 - 1, -(2**31)):
        t = PLAIN.int().clone()
        t[1, 2, 3] = bad
        t = t.to(device)
        for loss in (
            F.cross_entropy_loss,
            F.balanced_cross_entropy_loss,
            F.focal_loss,
            F.dice_loss,
        ):
            assert loss(z, t).isnan()
        none = F.cross_entropy_loss(z, t, reduction="none").cpu()
        assert none.isnan().sum() == 1
        assert none[1, 2, 3].isnan()
    assert F.cross_entropy_loss(z, torch.full((N, H, W), 2**62, device=device)).isnan()
    scores = F.quality_focal_loss(
        z, ClassScores(torch.full((N, C, H), W, device=device)), reduction="none"
    )
    assert scores.isnan().all()
    assert F.binary_dice_loss(z, 255 * MASK.to(device)).isnan()
    assert F.structure_loss(z, 255 * MASK.to(device)).isnan()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_large_logits(value, device) -> None:
    z = torch.where(MASK.bool(), value, -value).to(device)
    for name, case in CASES.items():
        x = z.clone().requires_grad_()
        result = case(x)
        result.sum().backward()
        assert result.isfinite().all(), name
        assert x.grad.isfinite().all(), name


@pytest.mark.parametrize("device", DEVICES)
def test_nan_and_infinite_logits_as_in_the_definition(device) -> None:
    for name in ("cross_entropy", "dice", "binary_focal, gamma 2", "binary_dice", "quality_focal"):
        for bad in (float("nan"), float("inf"), float("-inf")):
            z = draw(N, C, H, W)
            z[1, 2, 3, 4] = bad
            fast = CASES[name](z.to(device)).cpu()
            with backend.use("reference"):
                plain = CASES[name](z)
            assert torch.equal(fast.isnan(), plain.isnan()), (name, bad)
            assert torch.equal(fast.isinf(), plain.isinf()), (name, bad)


@pytest.mark.parametrize("device", DEVICES)
def test_views(device) -> None:
    """Expanded, strided, transposed and unaligned inputs equal their copies."""
    big = draw(N + 1, C + 1, H + 3, 2 * W)
    views = {
        "strided": big[1:, 1:, 3:, ::2],
        "unaligned": draw(N * C * H * W + 1).view(-1)[1:].view(N, C, H, W),
        "transposed": draw(N, C, W, H).mT,
        "expanded": draw(1, C, 1, W).expand(N, C, H, W),
        "one image": draw(1, C, H, W).expand(N, C, H, W),
    }
    for kind, z in views.items():
        for name in (
            "sum of four",
            "binary_focal, gamma 2",
            "binary_dice",
            "structure, soft",
            "ncut",
            "at target size, sum",
        ):
            x, y = (v.to(device).requires_grad_() for v in (z, z.clone().contiguous()))
            one, other = CASES[name](x), CASES[name](y)
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7, msg=f"{kind}, {name}")
            grads = torch.autograd.grad(one, x)[0], torch.autograd.grad(other, y)[0]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7, msg=f"{kind}, {name}")
    target = torch.randint(0, C, (N, W, H), generator=made()).mT
    z = draw(N, C, H, W).to(device)
    assert torch.equal(
        F.cross_entropy_loss(z, target.to(device)),
        F.cross_entropy_loss(z, target.contiguous().to(device)),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_empty(device) -> None:
    for shape in ((0, C, H, W), (N, C, 0, W), (N, 0, H, W)):
        z = torch.zeros(shape, device=device, requires_grad=True)
        t = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
        m = torch.zeros(shape, device=device)
        losses = [F.binary_focal_loss(z, m), F.binary_dice_loss(z, m), F.structure_loss(z, m)]
        if shape[1]:
            losses += [F.cross_entropy_loss(z, t), parse("cross_entropy + dice")(z, t)]
        for value in losses:
            assert value == 0
            value.backward()


@pytest.mark.skipif("cpu" not in DEVICES, reason="torch's own sums do not promise it")
def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    z = draw(3, 7, 200, 211)
    t, m = labels(3, 200, 211, classes=7), (share(3, 7, 200, 211) < 0.3).float()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = []
            for case in (
                lambda z: parse("cross_entropy + dice")(z, t),
                lambda z: F.binary_dice_loss(z, m),
                lambda z: F.structure_loss(z, m),
                lambda z: AtTargetSize(CrossEntropyLoss())(z[:, :, ::4, ::4], t),
            ):
                x = z.clone().requires_grad_()
                value = case(x)
                value.backward()
                results += [value.detach(), x.grad]
            found.append(results)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ---------------------------------------------------------------- inside PyTorch


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_operators_do_not_take_runs_the_definition(device) -> None:
    z = draw(N, C, H, W).to(device).requires_grad_()
    soft = torch.softmax(draw(N, C, H, W, seed=30), 1).to(device).requires_grad_()
    assert torch.autograd.grad(F.cross_entropy_loss(z, soft), soft)[0].abs().sum() > 0
    w = PIXEL.to(device).clone().requires_grad_()
    loss = F.cross_entropy_loss(z, PLAIN.to(device), weight=w)
    assert torch.autograd.grad(loss, w)[0].abs().sum() > 0
    q = QUALITY.to(device).clone().requires_grad_()
    assert torch.autograd.grad(F.quality_focal_loss(z, q), q)[0].abs().sum() > 0
    target = OTHER.to(device).clone().requires_grad_()
    loss = F.giou_loss(BOX.to(device).clone().requires_grad_(), target)
    assert torch.autograd.grad(loss, target)[0].abs().sum() > 0
    assert F.cross_entropy_loss(z.double(), PLAIN.to(device)).dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_transforms(device) -> None:
    z = draw(N, C, 6, 5).to(device)
    t, m = PLAIN[:, :6, :5].to(device), MASK[:, :, :6, :5].to(device)
    for loss, target in (
        (F.cross_entropy_loss, t),
        (F.dice_loss, t),
        (F.binary_focal_loss, m),
        (F.structure_loss, m),
        (parse("cross_entropy + dice"), t),
    ):
        grad = torch.func.grad(loss)(z, target)
        x = z.clone().requires_grad_()
        torch.testing.assert_close(grad, torch.autograd.grad(loss(x, target), x)[0])
        each = torch.func.vmap(lambda z, t, loss=loss: loss(z[None], t[None]))(z, target)
        torch.testing.assert_close(each[1], loss(z[1:], target[1:]))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device) -> None:
    with torch.autocast(device, dtype=torch.bfloat16):
        z = (draw(N, C, H, 8).to(device) @ draw(8, W, seed=4).to(device)).requires_grad_()
        assert z.dtype == torch.bfloat16
        value = parse("cross_entropy + dice")(z, PLAIN.to(device))
    value.backward()
    assert value.dtype == torch.float32
    assert z.grad.dtype == torch.bfloat16


OPERATORS = torch.ops.denseloss


@pytest.mark.skipif("cpu" not in DEVICES, reason="no kernels")
def test_opcheck() -> None:
    z, t, w = draw(N, C, 6, 8), PLAIN[:, :6, :8].contiguous(), PIXEL[:, :6, :8].contiguous()
    m = MASK[:, :, :6, :8].contiguous()
    one, sums = torch.tensor(1.5), draw(N, C, 5)
    forms = (1.0, 2.0, 0.0, 0.0, 0.5, 1.0), (0.0, 1.0, 1.0, 3.0, 0.0, 1.0)
    for name, args in {
        "elementwise": (z, m, None, None, None, 1, 0.25, 2.0, None, None, 1.0, True, False, True),
        "boxes": (BOX, OTHER, None, 4, 0, one, 1.0, True, True, True),
        "bins": (z, BINS[:, :, :6].contiguous(), None, None, 1.0, True, True, True),
        "edge": (m, None, None, 5.0, 3, False),
        "association": (z.softmax(1), IMAGE[:, :, :6, :8].contiguous(), 3.0, 10.0, 4.0),
        "association_backward": (z, z[:, 0].contiguous(), CLASS.expand(N, C), CLASS.expand(N, C)),
        "label_count": (t, w, -100, C),
        "class_values": (t, CLASS),
        "weighted_mean": (w, w, None, True),
        "weighted_mean_backward": (one, one, w, True),
        "ratio": (sums, *forms, 0.0),
        "ratio_backward": (CLASS.expand(N, C).contiguous(), sums, *forms),
        "softmax": (z, t, w, CLASS, -100, True, 5, [], False),
        "softmax_backward": (z, t, w, CLASS, -100, w, w, w, sums, [], False),
        "sigmoid": (z, m, None, CLASS, None, 5, True),
        "sigmoid_backward": (z, m, None, CLASS, None, sums, CLASS.expand(N, C).contiguous()),
    }.items():
        torch.library.opcheck(getattr(OPERATORS, name).default, args)


@pytest.mark.parametrize(
    "name",
    [
        "sum of four",
        "binary_focal, gamma 2",
        "quality_focal, labels",
        "binary_cross_entropy, count",
        "binary_cross_entropy, pos_weight [c]",
        "structure, released",
        "at target size, sum",
        "ncut",
        "binary_dice",
        "balanced_cross_entropy",
        "focal, none",
    ],
)
def test_compiled(name) -> None:
    torch._dynamo.reset()
    z = draw(N, C, H, W)
    compiled = torch.compile(CASES[name], fullgraph=True, backend="aot_eager")
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    one, other = compiled(x), CASES[name](y)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        torch.autograd.grad(one.sum(), x)[0], torch.autograd.grad(other.sum(), y)[0]
    )


@pytest.mark.parametrize("kernels", ["here", "missing"])
def test_the_first_call_may_be_compiled(kernels: str) -> None:
    """In a fresh process, where the kernels are not loaded yet."""
    import os
    import subprocess
    import sys

    code = (
        "import torch, denseloss;"
        "f = torch.compile(denseloss.BinaryFocalLoss(), fullgraph=True, backend='aot_eager');"
        "z = torch.zeros(1, 1, 4, requires_grad=True);"
        "f(z, torch.ones(1, 1, 4)).backward(); print(z.grad.sum().item())"
    )
    environment = {**os.environ, **({"DENSELOSS_KERNELS": "no.so"} if kernels == "missing" else {})}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 0


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    """Index arithmetic in 64 bit: what lies beyond 2^31 is read, and its gradient is written."""
    count = 2**31 + 4096
    z = torch.zeros(1, 1, count, dtype=torch.bfloat16)
    t = torch.zeros(1, 1, count, dtype=torch.uint8)
    z[..., -1], t[..., -1] = 3.0, 1
    z.requires_grad_()
    value = F.binary_cross_entropy_loss(z, t, reduction="sum")
    value.backward()
    assert z.grad[0, 0, -1].item() == pytest.approx(-0.0474, abs=1e-3)
    assert z.grad[0, 0, -2].item() == 0.5
    assert value.item() == pytest.approx((count - 1) * 0.693147 + 0.0486, rel=1e-4)


def test_box_mean_and_edges_at_borders() -> None:
    for window in (3, 5, 31, 93):
        for border in ("zero", "valid"):
            for target in (MASK, QUALITY):
                fast = denseloss.EdgeWeight(window=window, border=border)(target)
                with backend.use("reference"):
                    plain = denseloss.EdgeWeight(window=window, border=border)(target.double())
                torch.testing.assert_close(fast.double(), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns", [0, 3, 5])
def test_passes_alone(columns) -> None:
    """All that a pass can give, and the gradient of each part alone, as in the definition."""
    z, made_of = draw(N, C, H, W), {"columns": columns}
    cases = {
        "softmax": (softmax_pass, (LABEL, PIXEL, -100), {"entropy": True, "spread": CLASS}),
        "sigmoid": (sigmoid_sums, (QUALITY, ELEMENT, None), {"entropy": CLASS}),
    }
    for name, (run, given, asked) in cases.items():
        found = []
        for leaf in (z, z.double()):
            x = leaf.clone().requires_grad_()
            with backend.use("reference" if leaf.dtype == torch.float64 else None):
                done = run(x, *given, **asked, **made_of)
            sums = None if done.overlap is None else done.overlap.sums
            parts = [done.entropy, done.weight, sums]
            if name == "softmax":  # of void pixels the definition has some number, the pass 0
                valid = done.weight != 0
                maps = (done.entropy, done.miss, done.smooth)
                parts = [done.weight, sums, *(torch.where(valid, m, 0) for m in maps)]
            grads = []
            for i, part in enumerate(p for p in parts if p is not None and p.requires_grad):
                up = torch.rand(part.shape, generator=made(i), dtype=torch.float64)
                total = (part * up.to(part.dtype)).sum()
                grads += torch.autograd.grad(total, x, retain_graph=True)
            found.append([p.detach().double() for p in parts if p is not None] + grads)
        assert len(found[0]) == len(found[1])
        for fast, exact in zip(*found, strict=True):
            assert (fast.double() - exact).norm() <= 1e-6 * exact.norm() + 1e-12, name


def test_primitives_alone() -> None:
    z = draw(N, C, H, W)
    for fast, args in (
        (softmax_overlap, (z, LABEL, PIXEL, -100)),
        (sigmoid_overlap, (z, MASK, ELEMENT, None)),
    ):
        for pool in ("image", "batch"):
            one = fast(*args, pool=pool)
            with backend.use("reference"):
                other = fast(*(a.double() if i == 0 else a for i, a in enumerate(args)), pool=pool)
            torch.testing.assert_close(one.sums.double(), other.sums, rtol=2e-6, atol=1e-6)
            assert torch.equal(one.present.double(), other.present)
    one = edge_sums(z, MASK, None, None, gamma=5.0, window=31, plain=True)
    with backend.use("reference"):
        other = edge_sums(z.double(), MASK, None, None, gamma=5.0, window=31, plain=True)
    torch.testing.assert_close(one.plain_weight.double(), other.plain_weight)
    torch.testing.assert_close(one.weight.double(), other.weight, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- found by fuzzing


def test_threads_do_not_see_each_others_passes() -> None:
    criterion = AtTargetSize(parse("cross_entropy + dice"))
    data = [(draw(1, 3, 6, 6, seed=i), labels(1, 12, 12, classes=3, seed=i)) for i in range(4)]
    expected = [criterion(*x).item() for x in data]
    wrong = []

    def work(i: int) -> None:
        for _ in range(150):
            value = criterion(*data[i]).item()
            if abs(value - expected[i]) > 1e-5:
                wrong.append(value)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_a_criterion_that_changes_the_logits_gets_them() -> None:
    small, target = draw(1, 3, 4, 4), labels(1, 8, 8, classes=3)
    full = torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear")

    def tripled(_, args):
        return (3 * args[0], args[1])

    summed, replaced = parse("cross_entropy + dice"), CrossEntropyLoss()
    summed.register_forward_pre_hook(tripled)
    own = replaced.forward
    replaced.forward = lambda z, t: own(3 * z, t)
    for criterion in (summed, replaced):
        torch.testing.assert_close(AtTargetSize(criterion)(small, target), criterion(full, target))
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: tripled(module, args) if type(module) is CrossEntropyLoss else None
    )
    try:
        loss = CrossEntropyLoss()
        torch.testing.assert_close(AtTargetSize(loss)(small, target), loss(full, target))
    finally:
        hook.remove()


def test_void_under_an_infinite_upstream() -> None:
    z = draw(2, 2, 3).requires_grad_()
    t = torch.zeros(2, 2, 3)
    t[0] = 255
    for upstream in (float("inf"), float("nan")):
        z.grad = None
        (F.binary_cross_entropy_loss(z, t, ignore_index=255) * upstream).backward()
        assert not z.grad[0].any()
        assert not z.grad[1].isfinite().any()


def test_keywords_in_any_order_and_rare_dtypes() -> None:
    z = draw(N, C, H, W)
    assert F.focal_loss(gamma=2.0, logits=z, target=LABEL) == F.focal_loss(z, LABEL)
    assert F.cross_entropy_loss(class_weight=None, target=LABEL, logits=z) == F.cross_entropy_loss(
        z, LABEL
    )
    for dtype in (torch.uint16, torch.uint32):
        assert F.cross_entropy_loss(z, PLAIN.to(dtype)) == F.cross_entropy_loss(z, PLAIN)
    p = share(C).requires_grad_()
    rare = ClassScores(SPARSE.label.clamp(max=W - 1))
    F.binary_cross_entropy_loss(z, rare, pos_weight=p).backward()
    assert p.grad.abs().sum() > 0


def test_another_default_dtype() -> None:
    small, target = draw(1, 3, 5, 7), labels(1, 11, 13, classes=3)
    expected = AtTargetSize(CrossEntropyLoss())(small, target)
    torch.set_default_dtype(torch.float64)
    try:
        if "cpu" in DEVICES:
            from denseloss.primitives.cpu import softmax

            softmax._remembered.cache_clear()
        assert AtTargetSize(CrossEntropyLoss())(small, target) == expected
    finally:
        torch.set_default_dtype(torch.float32)
