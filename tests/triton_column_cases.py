"""The kernels of `column` and `association` against float64, run by Triton's interpreter.

Not collected by itself: `test_triton_column` runs it in a process where TRITON_INTERPRET is set
before triton is imported.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.primitives import affinity, void
from denseloss.primitives.cuda.association import association, association_backward
from denseloss.primitives.cuda.column import column, column_backward
from denseloss.primitives.likelihood import TINY

TOLERANCE = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUM = 3e-7  # of sums in float32, whatever the dtype of the logits
NOTHING: tuple[int, ...] = ()

# --- oracle ---------------------------------------------------------------------------------------


def oracle(case: dict[str, Any], grads: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """What `column` returns and the gradient, in float64 by the plain definitions."""
    z = case["logits"].double().requires_grad_()
    resized = z
    if case["size"]:
        resized = F.interpolate(
            z, size=case["size"], mode="bilinear", align_corners=case["align_corners"]
        )
    c = z.shape[1]
    resized, label, w = void.pixels(resized, case["target"], case["weight"], case["ignore"])
    hot = F.one_hot(label, c).movedim(-1, 1)
    log_p = resized.log_softmax(1)
    p = log_p.exp()
    log_p_t = log_p.gather(1, label.unsqueeze(1)).squeeze(1)
    miss = (p * (1 - hot)).sum(1).clamp_min(TINY)
    values, counts = [], []
    for k, (gamma, e) in enumerate(zip(case["gamma"], case["smoothing"], strict=True)):
        cw = torch.ones(c) if case["class_weight"] is None else case["class_weight"][k]
        cw = cw.double()
        even = (cw.reshape(-1, *[1] * (z.ndim - 2)) * -log_p).sum(1)
        values.append(w * (cw[label] * (1 - e) * miss**gamma * -log_p_t + e / c * even))
        counts.append(w * cw[label])

    def summed(*maps: Tensor) -> Tensor:
        return torch.stack([x.flatten(2).sum(2) for x in maps], 2)

    empty = z.new_zeros(len(z), 0, *label.shape[1:])
    entropy = summed(
        torch.stack(values, 1) if values else empty, torch.stack(counts, 1) if counts else empty
    )
    sums = summed(w.unsqueeze(1) * p * hot, w.unsqueeze(1) * p, w.unsqueeze(1) * hot)
    weights = summed(w.unsqueeze(1), (w != 0).double().unsqueeze(1))[:, 0]
    total = torch.zeros(())
    if grads["grad_entropy"] is not None:
        total = total + (grads["grad_entropy"].double() * entropy[..., 0]).sum()
    if grads["grad_sums"] is not None:
        total = total + (grads["grad_sums"].double() * sums[..., :2]).sum()
    if grads["upstream"] is not None:
        total = total + torch.where(w == 0, 0, grads["upstream"].double() * values[0]).sum()
    (grad,) = torch.autograd.grad(total, z)
    value = values[0].detach() if case["values"] else torch.zeros(0)
    return entropy.detach(), sums.detach(), weights, value, grad


def distance(ours: Tensor, right: Tensor) -> float:
    """Relative L2 distance; NaN must be where it is right, and only there."""
    assert ours.shape == right.shape
    assert torch.equal(ours.isnan(), right.isnan())
    ours, right = ours.double().nan_to_num(), right.double().nan_to_num()
    return float((ours - right).norm() / right.norm().clamp_min(1e-30))


# --- cases ----------------------------------------------------------------------------------------


def drawn(
    n: int = 2,
    c: int = 3,
    space: tuple[int, ...] = (5, 7),
    *,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    labels: torch.dtype = torch.int64,
    gamma: tuple[float, ...] = (0.0,),
    smoothing: tuple[float, ...] | None = None,
    class_weight: bool = False,
    weight: bool = False,
    overlap: bool = True,
    values: bool = False,
    size: tuple[int, ...] = NOTHING,
    align_corners: bool = False,
    ignore: int = 255,
    scale: float = 3.0,
) -> dict[str, Any]:
    """Arguments of `column`; some pixels are void and, where nothing is resized, hold NaN."""
    torch.manual_seed(n * 1000 + c * 10 + len(space))
    logits = (torch.randn(n, c, *space) * scale).to(dtype)
    target = torch.randint(0, c, (n, *(size or space))).to(labels)
    target[torch.rand(target.shape) < 0.2] = ignore
    w = torch.rand(target.shape) + 0.5
    w[torch.rand(target.shape) < 0.2] = 0
    if not size:
        out = (target == ignore) | ((w == 0) & weight)
        logits.movedim(1, -1)[out] = torch.nan
    if last:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    return {
        "logits": logits,
        "target": target,
        "weight": w if weight else None,
        "class_weight": torch.rand(len(gamma), c) + 0.5 if class_weight else None,
        "gamma": gamma,
        "smoothing": smoothing or (0.0,) * len(gamma),
        "ignore": ignore,
        "overlap": overlap,
        "values": values,
        "size": size,
        "align_corners": align_corners,
    }


def agree(case: dict[str, Any], *, upstream: bool = False) -> None:
    """Both operators equal the oracle, with random slopes."""
    n, c = case["logits"].shape[:2]
    k = len(case["gamma"])
    grads: dict[str, Tensor | None] = dict.fromkeys(("grad_entropy", "grad_sums", "upstream"))
    if upstream:
        grads["upstream"] = torch.randn(case["target"].shape)
    else:
        grads["grad_entropy"] = torch.rand(n, k) + 0.5 if k else None
        grads["grad_sums"] = torch.randn(n, c, 2) if case["overlap"] else None
    before = case["logits"].clone()
    with torch.no_grad():
        found = column(**case)
        backward = {x: case[x] for x in case if x not in ("overlap", "values")}
        grad = column_backward(
            *[backward.pop(x) for x in ("logits", "target", "weight", "class_weight")],
            *[backward.pop(x) for x in ("gamma", "smoothing", "ignore")],
            *grads.values(),
            **backward,
        )
    right = oracle(case, grads)
    torch.testing.assert_close(case["logits"], before, rtol=0, atol=0, equal_nan=True)
    assert found[1].numel() == (n * c * 3 if case["overlap"] else 0)
    assert distance(found[0], right[0]) < SUM
    assert not case["overlap"] or distance(found[1], right[1]) < SUM
    assert distance(found[2], right[2]) < SUM
    assert distance(found[3], right[3]) < SUM
    assert grad.dtype == case["logits"].dtype
    assert grad.stride() == case["logits"].stride()
    tolerance = TOLERANCE[grad.dtype] * (2 if case["size"] and grad.dtype == torch.float32 else 1)
    assert distance(grad, right[4]) < tolerance
    if not case["size"]:
        void_pixels = (case["target"] == case["ignore"]).unsqueeze(1).expand_as(grad)
        assert (grad[void_pixels] == 0).all()


@pytest.mark.parametrize(
    ("c", "last"),
    [(1, False), (2, True), (3, True), (21, False), (21, True), (33, False), (150, True)],
)
def test_classes(c: int, last: bool) -> None:
    agree(drawn(c=c, last=last, gamma=(0.0, 2.0), class_weight=True, weight=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("labels", "ignore"), [(torch.uint8, 255), (torch.int32, -100)])
def test_dtypes(dtype: torch.dtype, labels: torch.dtype, ignore: int) -> None:
    agree(drawn(c=21, dtype=dtype, labels=labels, ignore=ignore, weight=True, last=ignore > 0))


TERMS: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
    ((), ()),
    ((0.0,), (0.0,)),
    ((0.0,), (0.1,)),
    ((1.0,), (0.0,)),
    ((2.0,), (0.0,)),
    ((0.5,), (0.3,)),
    ((3.5, 0.0, 2.0), (0.0, 1.0, 0.2)),
]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("class_weight", [False, True])
def test_terms(terms: tuple[tuple[float, ...], tuple[float, ...]], class_weight: bool) -> None:
    gamma, smoothing = terms
    for overlap in (False, True) if gamma else (True,):
        agree(drawn(c=5, gamma=gamma, smoothing=smoothing, class_weight=class_weight,
                    overlap=overlap))  # fmt: skip


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [NOTHING, (6, 4)])
def test_values(gamma: float, size: tuple[int, ...]) -> None:
    case = drawn(c=3, space=(3, 2) if size else (5, 7), gamma=(gamma,), smoothing=(0.1,),
                 weight=True, overlap=False, values=True, size=size)  # fmt: skip
    agree(case, upstream=True)


@pytest.mark.parametrize("space", [(1,), (300,), (2, 3, 4), (37, 41)])
def test_space(space: tuple[int, ...]) -> None:
    """From one pixel to several tiles for each program's loop."""
    agree(drawn(c=4, space=space, weight=True))
    agree(drawn(c=4, space=space, last=True))


def test_programs_go_through_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denseloss.primitives.cuda.column.PROGRAMS", 4)
    agree(drawn(n=2, c=21, space=(18, 20), weight=True, values=True))


RATIOS = [
    ((2, 3), (8, 12)),
    ((1, 2), (4, 16)),
    ((3, 5), (7, 11)),
    ((5, 9), (3, 4)),
    ((2, 3), (2, 7)),
    ((1, 1), (3, 2)),
    ((1, 5), (1, 9)),
    ((4, 3), (1, 1)),
    ((3, 4), (3, 4)),
]


@pytest.mark.parametrize(
    ("ratio", "align_corners"),
    [(ratio, False) for ratio in RATIOS] + [(ratio, True) for ratio in RATIOS[2:]],
)
def test_resize(ratio: tuple[tuple[int, ...], tuple[int, ...]], align_corners: bool) -> None:
    space, size = ratio
    agree(drawn(n=1, c=3, space=space, size=size, align_corners=align_corners))


@pytest.mark.parametrize("c", [1, 2, 21, 33, 150])
def test_resize_classes(c: int) -> None:
    agree(drawn(n=2, c=c, space=(2, 3), size=(4, 5), last=c % 2 == 0, gamma=(2.0,), weight=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_resize_seams(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows for each program, several programs in each direction."""
    monkeypatch.setattr("denseloss.primitives.cuda.upsample.PROGRAMS", 6)
    last = dtype == torch.float16
    agree(drawn(n=1, c=64, space=(7, 11), size=(9, 13), dtype=dtype, last=last, weight=True))


def test_resize_terms() -> None:
    agree(drawn(n=1, c=5, space=(3, 4), size=(7, 9), gamma=(0.0, 0.5), smoothing=(0.1, 0.0),
                class_weight=True, labels=torch.uint8, overlap=False))  # fmt: skip


def test_resize_void_hides_nan() -> None:
    """A logit under void pixels only may be NaN."""
    case = drawn(n=1, c=3, space=(4, 5), size=(8, 10))
    case["logits"][:, :, 2, 2] = torch.nan
    case["target"][:, 3:7, 3:7] = case["ignore"]
    clean = {**case, "logits": case["logits"].nan_to_num(0.5)}
    slopes = (torch.ones(1, 1), torch.ones(1, 3, 2), None)
    for ours, right in zip(column(**case), column(**clean), strict=True):
        assert torch.equal(ours, right)
    options = (case["target"], None, None, case["gamma"], case["smoothing"], case["ignore"])
    grad = column_backward(case["logits"], *options, *slopes, (8, 10), False)
    assert torch.equal(
        grad, column_backward(clean["logits"], *options, *slopes, (8, 10), align_corners=False)
    )
    assert (grad[:, :, 2, 2] == 0).all()


@pytest.mark.parametrize(
    ("labels", "wrong", "size"),
    [(torch.uint8, 7, ()), (torch.int64, -1, (4, 6)), (torch.int64, 2**32, ())],
)
def test_labels_that_are_no_class(labels: torch.dtype, wrong: int, size: tuple[int, ...]) -> None:
    """All sums of that image are NaN, the gradient of that pixel, and of nothing void."""
    case = drawn(n=2, c=3, space=(2, 3) if size else (5, 7), labels=labels, size=size)
    case["target"][0, 1, 1] = wrong
    entropy, sums, weights, _ = column(**case)
    assert entropy[0].isnan().all()
    assert sums[0].isnan().all()
    assert weights[0, 0].isnan()
    assert weights[0, 1] == (case["target"][0] != case["ignore"]).sum()
    assert not any(x[1].isnan().any() for x in (entropy, sums, weights))
    agree(case)


def test_slopes_of_nan_leave_void_alone() -> None:
    case = drawn(c=3)
    grad = column_backward(
        *[case[x] for x in ("logits", "target", "weight", "class_weight", "gamma", "smoothing")],
        case["ignore"], torch.full((2, 1), torch.nan), torch.full((2, 3, 2), torch.nan), None,
        NOTHING, align_corners=False,
    )  # fmt: skip
    outside = (case["target"] == case["ignore"]).unsqueeze(1).expand_as(grad)
    assert (grad[outside] == 0).all()
    assert grad[~outside].isnan().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits(gamma: float) -> None:
    case = drawn(c=3, scale=1e4, gamma=(gamma,), smoothing=(0.1,))
    agree(case)
    agree(drawn(c=3, scale=30, gamma=(gamma,), overlap=False))
    case["logits"] = torch.full_like(case["logits"], -1e4)
    agree(case)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8)
    found = column(logits, target, None, None, (0.0,), (0.0,), 255, True, True, (), False)
    assert [x.shape for x in found] == [
        (shape[0], 1, 2), (shape[0], 3, 3), (shape[0], 2), target.shape,
    ]  # fmt: skip
    assert not any(x.any() for x in found)
    slopes = (torch.ones(shape[0], 1), None, None)
    options = (target, None, None, (0.0,), (0.0,), 255)
    assert column_backward(logits, *options, *slopes, (), False).shape == shape


def test_all_void_is_zero() -> None:
    case = drawn(c=3)
    case["target"][:] = case["ignore"]
    case["logits"][:] = torch.nan
    assert not any(x.any() for x in column(**case))


# --- association ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "channels"), [(1, 1), (3, 3), (20, 1)])
def test_association(k: int, channels: int) -> None:
    radius, intensity, space = 2.5, 10.0, 4.0
    torch.manual_seed(k)
    probability = torch.randn(2, k, 6, 9).softmax(1)
    image = torch.rand(2, channels, 6, 9) * 30
    within, total, filtered, degree = association(probability, image, radius, intensity, space)
    p = probability.double().requires_grad_()
    right = affinity.association(
        p, image.double(), radius=radius, sigma_intensity=intensity, sigma_space=space
    )
    assert distance(within, right.within.detach()) < SUM
    assert distance(total, right.total.detach()) < SUM
    slopes = torch.randn(2, 2, k)
    (grad,) = torch.autograd.grad((slopes[0] * right.within + slopes[1] * right.total).sum(), p)
    assert distance(association_backward(filtered, degree, *slopes), grad) < 5e-7


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.1, 5.0, 40.0])
def test_association_radius(radius: float) -> None:
    p, image = torch.rand(1, 2, 3, 4), torch.rand(1, 1, 3, 4)
    found = association(p, image, radius, 1e-30, 4.0)
    right = affinity.association.__wrapped__(  # type: ignore[attr-defined]
        p.double(), image.double(), radius=radius, sigma_intensity=1e-30, sigma_space=4.0
    )
    assert distance(found[0], right.within) < SUM
    assert distance(found[1], right.total) < SUM


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 2, 0, 3)])
def test_association_of_nothing(shape: tuple[int, ...]) -> None:
    p = torch.zeros(shape)
    within, total, filtered, degree = association(p, p, 5.0, 10.0, 4.0)
    assert not within.any()
    assert within.shape == total.shape == shape[:2]
    assert association_backward(filtered, degree, within, total).shape == shape
