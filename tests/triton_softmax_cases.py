"""The kernels of `softmax` and `association` against float64, run by Triton's interpreter.

Not collected by itself: `test_triton_softmax` runs it in a process where TRITON_INTERPRET is set
before triton is imported.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.primitives import affinity
from denseloss.primitives.cuda import softmax as kernels
from denseloss.primitives.cuda import softmax_resized
from denseloss.primitives.cuda.affinity import association, association_backward
from denseloss.primitives.cuda.softmax import softmax, softmax_backward

TOLERANCE = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUM = 3e-7  # of sums in float32, whatever the dtype of the logits
NOTHING: tuple[int, ...] = ()
TINY = torch.finfo(torch.float32).tiny
ALL = ("entropy", "miss", "smooth", "sums")

# --- oracle ---------------------------------------------------------------------------------------


def oracle(case: dict[str, Any], grads: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
    """What `softmax` returns and the gradient, in float64 by the plain definitions."""
    z = case["logits"].double().requires_grad_()
    resized = z
    if case["size"]:
        resized = F.interpolate(
            z, size=case["size"], mode="bilinear", align_corners=case["align_corners"]
        )
    n, c = z.shape[:2]
    label = case["target"].long()
    w = torch.ones(label.shape) if case["weight"] is None else case["weight"]
    valid = (label != case["ignore"]) & (w != 0)
    known = (label >= 0) & (label < c)
    w = torch.where(valid, torch.where(known, w.double(), torch.nan), 0)
    label = torch.where(valid & known, label, 0)
    hot = F.one_hot(label, c).movedim(-1, 1)
    # Where a pixel is void, its logits are not looked at.
    log_p = torch.where(valid.unsqueeze(1), resized, 0).log_softmax(1)
    p, w1 = log_p.exp(), w.unsqueeze(1)
    entropy = torch.where(valid, -log_p.gather(1, label.unsqueeze(1)).squeeze(1), 0)
    others = (p * (1 - hot)).sum(1)  # 1 - p_t, and 0 where that is lost in p_t
    miss = torch.where(valid, others + (others.clamp_min(TINY) - others).detach(), TINY)
    smooth = torch.zeros(0).double()
    if case["spread"] is not None:
        share = case["spread"].double().reshape(-1, *[1] * (z.ndim - 2))
        smooth = torch.where(valid, -(share * log_p).sum(1), 0)
    columns = [w1 * p * hot, w1 * p, w1 * hot, w1 * p * p, w1 * hot * hot]
    sums = torch.stack([x.reshape(n, c, -1).sum(2) for x in columns], 2)[..., : case["sums"]]
    present = valid.reshape(n, -1).any(1).double().unsqueeze(1).expand(n, c)
    total = torch.zeros(())
    for x, name in ((entropy, "entropy"), (miss, "miss"), (smooth, "smooth")):
        up = grads[f"grad_{name}"]
        if up is not None:
            total = total + torch.where(valid, up.double() * x, 0).sum()
    if grads["grad_sums"] is not None:
        total = total + (grads["grad_sums"].double().nan_to_num() * sums).sum()
    grad = torch.autograd.grad(total, z)[0] if total.requires_grad else torch.zeros_like(z)
    nothing = torch.zeros(0)
    maps = (entropy, miss, w) if case["entropy"] else (nothing,) * 3
    counted = (sums, present) if case["sums"] else (nothing,) * 2
    return tuple(x.detach() for x in (*maps, smooth, *counted, grad))


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
    weight: bool = False,
    spread: bool = False,
    entropy: bool = True,
    sums: int = 3,
    size: tuple[int, ...] = NOTHING,
    align_corners: bool = False,
    ignore: int = 255,
    scale: float = 3.0,
) -> dict[str, Any]:
    """Arguments of `softmax`; some pixels are void and, where nothing is resized, hold NaN."""
    torch.manual_seed(n * 1000 + c * 10 + len(space))
    logits = (torch.randn(n, c, *space) * scale).to(dtype)
    target = torch.randint(0, c, (n, *(size or space))).to(labels)
    target[torch.rand(target.shape) < 0.2] = ignore
    w = torch.rand(target.shape) + 0.5
    w[torch.rand(target.shape) < 0.2] = 0
    if not size:
        logits.movedim(1, -1)[void(target, w if weight else None, ignore)] = torch.nan
    if last:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    return {
        "logits": logits,
        "target": target,
        "weight": w if weight else None,
        "spread": torch.rand(c) + 0.5 if spread else None,
        "ignore": ignore,
        "entropy": entropy,
        "sums": sums,
        "size": size,
        "align_corners": align_corners,
    }


def void(target: Tensor, weight: Tensor | None, ignore: int) -> Tensor:
    out = target == ignore
    return out if weight is None else out | (weight == 0)


def slopes(case: dict[str, Any], given: tuple[str, ...] = ALL) -> dict[str, Tensor | None]:
    """What comes from above for the results that there are. It may be NaN where it is not read."""
    grads: dict[str, Tensor | None] = {}
    out = void(case["target"], case["weight"], case["ignore"])
    own = case["entropy"]
    for name, asked in (("entropy", own), ("miss", own), ("smooth", case["spread"] is not None)):
        up = torch.randn(case["target"].shape).masked_fill(out, torch.nan)
        grads[f"grad_{name}"] = up if asked and name in given else None
    grads["grad_sums"] = None
    if case["sums"] and "sums" in given:
        grads["grad_sums"] = torch.randn(*case["logits"].shape[:2], case["sums"])
        grads["grad_sums"][..., [2, 4][: 1 + (case["sums"] == 5)]] = torch.nan
    return grads


def backward(case: dict[str, Any], grads: dict[str, Tensor | None]) -> Tensor:
    inputs = (case[x] for x in ("logits", "target", "weight", "spread", "ignore"))
    return softmax_backward(*inputs, *grads.values(), case["size"], case["align_corners"])


def agree(case: dict[str, Any], *given: str) -> None:
    """Both operators equal the oracle, with random slopes of what is given (all)."""
    grads = slopes(case, given or ALL)
    before = case["logits"].clone()
    found = softmax(**case)
    grad = backward(case, grads)
    *right, slope = oracle(case, grads)
    torch.testing.assert_close(case["logits"], before, rtol=0, atol=0, equal_nan=True)
    for ours, theirs in zip(found, right, strict=True):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) < SUM
    assert grad.dtype == case["logits"].dtype
    assert grad.stride() == case["logits"].stride()
    # Slopes of both signs meet at a logit that is resized, and cancel.
    tolerance = TOLERANCE[grad.dtype] * (3 if case["size"] and grad.dtype == torch.float32 else 1)
    assert distance(grad, slope) < tolerance
    out = void(case["target"], case["weight"], case["ignore"])
    entropy, miss, weights, smooth, *_ = found
    if case["entropy"]:
        assert (entropy[out] == 0).all()
        assert (miss[out] == TINY).all()
        assert (weights[out] == 0).all()
    assert case["spread"] is None or (smooth[out] == 0).all()
    if not case["size"]:
        assert (grad.movedim(1, -1)[out] == 0).all()


@pytest.mark.parametrize("sums", [3, 5])
@pytest.mark.parametrize(
    ("c", "last"),
    [(1, False), (2, True), (3, True), (4, False), (5, False), (21, False), (21, True),
     (33, False), (150, True)],
)  # fmt: skip
def test_classes(c: int, last: bool, sums: int) -> None:
    agree(drawn(c=c, last=last, weight=True, sums=sums, spread=sums == 3))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("labels", "ignore"), [(torch.uint8, 255), (torch.int32, -100)])
def test_dtypes(dtype: torch.dtype, labels: torch.dtype, ignore: int) -> None:
    agree(drawn(c=21, dtype=dtype, labels=labels, ignore=ignore, weight=True, last=ignore > 0))


ASKED = [(e, s, k) for e in (False, True) for s in (False, True) for k in (0, 3, 5)]


@pytest.mark.parametrize(("entropy", "spread", "sums"), ASKED)
def test_only_what_is_asked_for(entropy: bool, spread: bool, sums: int) -> None:
    for size in (NOTHING, (4, 3)):
        agree(drawn(n=1, c=3, space=(2, 3) if size else (5, 7), entropy=entropy, spread=spread,
                    sums=sums, size=size))  # fmt: skip


@pytest.mark.parametrize(
    "given", [(name,) for name in (*ALL, "")] + [("smooth", "sums"), ("miss", "sums")]
)
def test_slopes_of_some(given: tuple[str, ...]) -> None:
    for sums in (3, 5):
        agree(drawn(c=4, weight=True, spread=True, sums=sums), *given)
    agree(drawn(n=1, c=2, space=(3, 2), spread=True, size=(4, 3)), *given)


@pytest.mark.parametrize("space", [(), (1,), (300,), (2, 3, 4), (37, 41)])
def test_space(space: tuple[int, ...]) -> None:
    """From one pixel to several tiles for each program's loop."""
    agree(drawn(c=4, space=space, weight=True))
    agree(drawn(c=4, space=space, last=True, sums=5))


@pytest.mark.parametrize("alone", [0, 100])
def test_programs_go_through_several_tiles(monkeypatch: pytest.MonkeyPatch, alone: int) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 4)
    monkeypatch.setattr(kernels, "ALONE", alone)
    agree(drawn(n=2, c=21, space=(18, 20), weight=True))


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


@pytest.mark.parametrize("c", [1, 2, 4, 21, 33, 150])
def test_resize_classes(c: int) -> None:
    agree(drawn(n=2, c=c, space=(2, 3), size=(4, 5), last=c % 2 == 0, weight=True, sums=5))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_resize_seams(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows for each program, several programs in each direction."""
    monkeypatch.setattr(softmax_resized, "PROGRAMS", 6)
    last = dtype == torch.float16
    agree(drawn(n=1, c=64, space=(7, 11), size=(9, 13), dtype=dtype, last=last, weight=True))


def test_resize_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of an image in one program."""
    monkeypatch.setattr(softmax_resized, "PROGRAMS", 1)
    agree(drawn(n=2, c=5, space=(4, 3), size=(7, 9), weight=True, spread=True))


def test_resize_labels() -> None:
    agree(drawn(n=1, c=5, space=(3, 4), size=(7, 9), labels=torch.uint8, sums=0, spread=True))


def test_resize_void_hides_nan() -> None:
    """A logit under void pixels only may be NaN."""
    case = drawn(n=1, c=3, space=(4, 5), size=(8, 10))
    case["logits"][:, :, 2, 2] = torch.nan
    case["target"][:, 3:7, 3:7] = case["ignore"]
    clean = {**case, "logits": case["logits"].nan_to_num(0.5)}
    for ours, right in zip(softmax(**case), softmax(**clean), strict=True):
        assert torch.equal(ours, right)
    grads = slopes(case)
    grad = backward(case, grads)
    assert torch.equal(grad, backward(clean, grads))
    assert (grad[:, :, 2, 2] == 0).all()


@pytest.mark.parametrize(
    ("labels", "wrong", "size"),
    [(torch.uint8, 7, ()), (torch.int64, -1, (4, 6)), (torch.int64, 2**32, ())],
)
def test_labels_that_are_no_class(labels: torch.dtype, wrong: int, size: tuple[int, ...]) -> None:
    """All sums of that image are NaN, the weight and gradient of that pixel, and nothing void."""
    for sums in (3, 5):
        case = drawn(n=2, c=3, space=(2, 3) if size else (5, 7), labels=labels, size=size,
                     sums=sums)  # fmt: skip
        case["target"][0, 1, 1] = wrong
        entropy, miss, weights, _, total, present = softmax(**case)
        assert total[0].isnan().all()
        assert weights.isnan().nonzero().tolist() == [[0, 1, 1]]
        assert not any(x.isnan().any() for x in (entropy, miss, total[1], present))
        agree(case)


def test_slopes_of_nan_leave_void_alone() -> None:
    case = drawn(c=3, spread=True)
    for name, grads in {name: slopes(case, (name,)) for name in ALL}.items():
        grads[f"grad_{name}"] = torch.full_like(grads[f"grad_{name}"], torch.nan)
        grad = backward(case, grads)
        out = (case["target"] == case["ignore"]).unsqueeze(1).expand_as(grad)
        assert (grad[out] == 0).all()
        assert grad[~out].isnan().all()


def test_extreme_logits() -> None:
    case = drawn(c=3, scale=1e4, spread=True)
    agree(case)
    agree(drawn(c=3, scale=30, sums=5))
    case["logits"] = torch.full_like(case["logits"], -1e4)
    agree(case)


@pytest.mark.parametrize("held", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite(held: float) -> None:
    """NaN and inf never score; a class at -inf has p = 0."""
    case = drawn(n=1, c=3, space=(6,), ignore=-1, sums=0)
    case["target"][:] = torch.arange(6) % 3
    case["logits"] = torch.randn(1, 3, 6)
    case["logits"][0, 1, :3] = held
    found = softmax(**case)
    for ours, right in zip(found[:2], oracle(case, slopes(case, ("",))), strict=False):
        torch.testing.assert_close(ours.double(), right, rtol=3e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [NOTHING, (4, 9)])
def test_nothing_cancels(size: tuple[int, ...]) -> None:
    """Each value and slope has its digits, from nearly right to nearly wrong pixels."""
    case = drawn(n=1, c=3, space=(1, 17), ignore=-1, sums=0, labels=torch.int32)
    case["target"][:] = torch.arange(17) % 3
    case["logits"] = torch.zeros(1, 3, 1, 17)
    case["logits"][0, 1, 0] = 2.5 * torch.arange(-8, 9)  # float64 has digits, too
    case["logits"][0, 2, 0] = -7.5
    if size:
        case |= {"size": size, "target": torch.arange(36, dtype=torch.int32).reshape(1, 4, 9) % 3}
    grads = slopes(case)
    found = softmax(**case)
    for ours, right in zip(found[:2], oracle(case, grads), strict=False):
        torch.testing.assert_close(ours.double(), right, rtol=3e-6, atol=0)
    for name in () if size else ("entropy", "miss"):
        grads = slopes(case, (name,))
        *_, slope = oracle(case, grads)
        torch.testing.assert_close(backward(case, grads).double(), slope, rtol=3e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    logits, spread = torch.zeros(shape), torch.ones(3)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8)
    found = softmax(logits, target, None, spread, 255, True, 5, (), False)
    assert [x.shape for x in found] == [*[target.shape] * 4, (shape[0], 3, 5), (shape[0], 3)]
    assert not any(x.any() for x in found)
    up = torch.zeros(target.shape)
    grad = softmax_backward(logits, target, None, spread, 255, up, up, up, None, (), False)
    assert grad.shape == shape


def test_all_void_is_zero() -> None:
    for sums in (3, 5):
        case = drawn(c=3, sums=sums, spread=True)
        case["target"][:] = case["ignore"]
        case["logits"][:] = torch.nan
        entropy, miss, *rest = softmax(**case)
        assert (miss == TINY).all()
        assert not any(x.any() for x in (entropy, *rest))
        assert not backward(case, slopes(case)).any()


# --- association ----------------------------------------------------------------------------------


definition = affinity.association.__wrapped__  # type: ignore[attr-defined]


@pytest.mark.parametrize(("k", "channels"), [(1, 1), (3, 3), (20, 1)])
def test_association(k: int, channels: int) -> None:
    radius, intensity, space = 2.5, 10.0, 4.0
    torch.manual_seed(k)
    probability = torch.randn(2, k, 6, 9).softmax(1)
    image = torch.rand(2, channels, 6, 9) * 30
    within, total, filtered, degree = association(probability, image, radius, intensity, space)
    p = probability.double().requires_grad_()
    right = definition(
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
    right = definition(
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
