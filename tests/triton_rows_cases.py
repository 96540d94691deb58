"""The Triton kernels against the definitions in float64; `test_triton_rows` runs these.

They need TRITON_INTERPRET=1, set before triton is imported: a process of their own.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from denseloss import backend, functional

pytest.importorskip("triton")

from denseloss.primitives.cuda.bins import bins
from denseloss.primitives.cuda.boxes import boxes
from denseloss.primitives.cuda.edge import edge
from denseloss.primitives.cuda.labels import label_count
from denseloss.primitives.cuda.launch import SPAN, total
from denseloss.primitives.cuda.pointwise import pointwise
from denseloss.primitives.cuda.region import region, region_backward
from denseloss.primitives.cuda.rescale import rescale

NAN, INF = math.nan, math.inf
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPE = (2, 3, 17, 13)  # two programs, the second of odd size
BCE, FOCAL, QUALITY, VARIFOCAL, CONSTANT = range(5)
KINDS = [BCE, FOCAL, QUALITY, VARIFOCAL, CONSTANT]
GAMMAS = [0.0, 1.0, 2.0, 1.5, 0.5]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def agree(actual: Tensor, expected: Tensor, tolerance: float = 5e-7) -> None:
    """Equal up to a relative error in L2, with NaN and 0 at the same places."""
    actual, expected = actual.double(), expected.detach().double()
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual - expected).nan_to_num().norm() / expected.nan_to_num().norm().clamp(min=1e-30)
    assert error <= tolerance


def differentiated(
    values: Callable[[Tensor], Tensor], logits: Tensor, upstream: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The definition's values in float64, and the gradient of their sum under the upstream."""
    z = logits.double().requires_grad_()
    with backend.use("reference"):
        value = values(z)
    # What is void has gradient 0 whatever comes from above.
    upstream = torch.where(value.detach() == 0, 0, torch.as_tensor(upstream).double())
    (value * upstream).sum().backward()
    return value.detach(), z.grad


def definition(
    kind: int, target: Tensor, weight: Tensor | None, a: Any, g: float, ignore: float | None
) -> Callable[[Tensor], Tensor]:
    """w v of each element as a function of the logits."""
    t = target.double()
    w = None if weight is None else weight.double()
    if ignore is not None:
        void = t == ignore
        t = torch.where(void, 0, t)
        w = torch.where(void, 0, torch.ones_like(t) if w is None else w)
    common: dict[str, Any] = {"weight": w, "reduction": "none"}
    alpha = None if isinstance(a, float) and a < 0 else a
    if kind == BCE:
        return lambda z: functional.binary_cross_entropy_loss(z, t, pos_weight=a, **common)
    if kind == FOCAL:
        return lambda z: functional.binary_focal_loss(z, t, alpha=alpha, gamma=g, **common)
    if kind == QUALITY:
        return lambda z: functional.quality_focal_loss(z, t, alpha=alpha, beta=g, **common)
    return lambda z: functional.varifocal_loss(
        z, t, alpha=a, gamma=g, detach_weight=kind == CONSTANT, **common
    )


def scene(kind: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and weights of one shape, with void elements that hold NaN."""
    z = (4 * torch.randn(SHAPE)).to(dtype)
    t = torch.rand(SHAPE) if kind >= QUALITY else torch.rand(SHAPE).round()
    t[torch.rand(SHAPE) < 0.4] = 0
    w = 2 * torch.rand(SHAPE)
    void = torch.rand(SHAPE) < 0.1
    w[void], z[void] = 0, NAN
    t[torch.rand(SHAPE) < 0.1] = 255
    return z, t, w


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_pointwise(kind: int, dtype: torch.dtype) -> None:
    z, t, w = scene(kind, dtype)
    upstream = torch.randn(SHAPE)
    # QUALITY has an infinite gradient at p = t for g < 1.
    gammas = {BCE: GAMMAS[:1], QUALITY: GAMMAS[:4]}.get(kind, GAMMAS)
    for g in gammas:
        value, slope = differentiated(definition(kind, t, w, 0.25, g, 255), z, 0.37 * upstream)
        sums, values, grad = pointwise(
            z, t, None, w, None, kind, 0.25, g, 255.0, upstream, 0.37, True, True, True
        )
        agree(values, value)
        agree(sums, torch.stack([0.37 * value.sum(), w[t != 255].sum()]))
        agree(grad, slope, TOLERANCE[dtype])
        assert grad.dtype == dtype
        assert (values[(w == 0) | (t == 255)] == 0).all()
        assert (grad[(w == 0) | (t == 255)] == 0).all()


@pytest.mark.parametrize("kind", [FOCAL, QUALITY])
def test_pointwise_without_balance(kind: int) -> None:
    z, t, w = scene(kind, torch.float32)
    value, slope = differentiated(definition(kind, t, w, -1.0, 2.0, 255), z, 1.0)
    _, values, grad = pointwise(
        z, t, None, w, None, kind, -1.0, 2.0, 255.0, None, 1.0, False, True, True
    )
    agree(values, value)
    agree(grad, slope)


TARGETS = [*FLOATS, torch.uint8, torch.bool, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", TARGETS)
def test_targets_of_any_dtype(dtype: torch.dtype) -> None:
    z = 3 * torch.randn(SHAPE)
    t = torch.rand(SHAPE).round()
    ignore = None if dtype == torch.bool else 255.0
    if ignore is not None:
        t[0, 0] = ignore
    t = t.to(dtype)
    value, slope = differentiated(definition(FOCAL, t, None, 0.25, 2.0, ignore), z, 1.0)
    sums, values, grad = pointwise(
        z, t, None, None, None, FOCAL, 0.25, 2.0, ignore, None, 1.0, True, True, True
    )
    agree(values, value)
    agree(grad, slope)
    agree(sums[1], (t != 255).sum())
    w = torch.where(t == 255, 0, 1).double()
    t = torch.where(t == 255, 0, t).double()
    p = z.double().sigmoid()
    expected = torch.stack([w * p * t, w * p, w * t, w, 0 * w, w], -1).sum((2, 3))
    agree(region(z, t.to(dtype), w.float(), None, False), expected)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 3, 2), (3, 2, 1, 0)])
def test_pos_weight_in_any_layout(order: tuple[int, ...]) -> None:
    def laid_out(x: Tensor) -> Tensor:
        inverse = sorted(range(4), key=order.__getitem__)
        return x.permute(order).contiguous().permute(inverse)

    z, t, w = (laid_out(x) for x in scene(BCE, torch.float32))
    b = torch.tensor([0.5, 1.0, 3.0])
    value, slope = differentiated(definition(BCE, t, w, b, 0.0, 255), z, 1.0)
    _, values, grad = pointwise(
        z, t, None, w, b, BCE, 1.0, 0.0, 255.0, None, 1.0, False, True, True
    )
    agree(values, value)
    agree(grad, slope)
    assert values.stride() == grad.stride() == z.stride()


@pytest.mark.parametrize("classes", [1, 5, 80])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("scored", [False, True])
def test_labels(scored: bool, dtype: torch.dtype, classes: int) -> None:
    rows = 3000 // classes
    z = 3 * torch.randn(3, rows // 3, classes)
    label = torch.randint(0, classes, z.shape[:2])
    background = torch.rand(label.shape) < 0.3
    ignore = 255.0
    label[torch.rand(label.shape) < 0.1] = 255
    if dtype != torch.uint8:
        label[background] = -1
        label[0, :2] = torch.tensor([classes, -7])
    if dtype == torch.int64:
        label[0, 2] = 2**40
    w = torch.rand(label.shape).masked_fill(torch.rand(label.shape) < 0.1, 0)
    score = torch.rand(label.shape) if scored else None
    z[(w == 0) | (label == 255)] = NAN

    t = torch.zeros(z.shape, dtype=torch.float64)
    for i, j in itertools.product(*map(range, label.shape)):
        if 0 <= label[i, j] < classes:
            t[i, j, label[i, j]] = 1 if score is None else score[i, j]
    valid = (label != 255) & (w != 0)
    outside = valid & ((label < -1) | (label >= classes))
    full = torch.where(outside, NAN, torch.where(valid, w, 0)).unsqueeze(-1).expand(z.shape)

    kind = QUALITY if scored else FOCAL
    value, slope = differentiated(definition(kind, t, full, 0.25, 2.0, None), z, 0.5)
    sums, values, grad = pointwise(
        z,
        label.to(dtype),
        score,
        w,
        None,
        kind,
        0.25,
        2.0,
        ignore,
        torch.tensor(0.5),
        1.0,
        True,
        True,
        True,
    )
    agree(values, value)
    agree(grad, slope)
    agree(sums, torch.stack([value.sum(), full.double().sum()]))
    assert (grad[~valid] == 0).all()


def test_a_class_may_be_void() -> None:
    z = torch.randn(4, 2)
    _, values, _ = pointwise(
        z,
        torch.tensor([0, 1, -1, 1]),
        None,
        None,
        None,
        BCE,
        1.0,
        0.0,
        1.0,
        None,
        1.0,
        False,
        True,
        False,
    )
    expected = torch.nn.functional.softplus(z)
    expected[0, 0] -= z[0, 0]
    expected[[1, 3]] = 0
    agree(values, expected)


def test_only_what_is_asked_for() -> None:
    z, t = torch.randn(5, 7), torch.rand(5, 7)
    for sums, values, grad in itertools.product([False, True], repeat=3):
        found = pointwise(
            z, t, None, None, None, BCE, 1.0, 0.0, None, None, 1.0, sums, values, grad
        )
        assert [x.numel() for x in found] == [2 * sums, 35 * values, 35 * grad]


@pytest.mark.parametrize("bad", [-0.5, 1.5, 255.0, NAN, INF])
def test_a_target_that_is_no_share_never_scores(bad: float) -> None:
    z, t = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    t[0, 1, 2] = bad
    for kind in KINDS:
        sums, values, grad = pointwise(
            z, t, None, None, None, kind, 0.25, 2.0, None, None, 1.0, True, True, True
        )
        where = torch.zeros(z.shape, dtype=torch.bool)
        where[0, 1, 2] = True
        assert torch.equal(values.isnan(), where)
        assert torch.equal(grad.isnan(), where)
        assert sums[0].isnan()
        assert region(z, t, None, None, kind == 0)[0, 1, [0, 2]].isnan().all()
    score = torch.rand(4)
    score[1] = bad
    _, values, _ = pointwise(
        torch.randn(4, 3),
        torch.tensor([0, 2, -1, 1]),
        score,
        None,
        None,
        QUALITY,
        -1.0,
        2.0,
        None,
        None,
        1.0,
        False,
        True,
        False,
    )
    assert values.isnan().nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("held", [NAN, INF, -INF])
def test_void_is_exactly_zero_whatever_it_holds(held: float) -> None:
    z, t, w = torch.randn(2, 3, 8), torch.rand(2, 3, 8), torch.rand(2, 3, 8)
    void = torch.rand(z.shape) < 0.5
    z[void], t[void], w[void] = held, held, 0
    upstream = torch.where(void, held, 1.0)
    for kind in KINDS:
        sums, values, grad = pointwise(
            z, t, None, w, None, kind, 0.25, 2.0, None, upstream, 1.0, True, True, True
        )
        assert (values[void] == 0).all()
        assert (grad[void] == 0).all()
        assert sums.isfinite().all()
        assert region(z, t, w, None, kind == 0).isfinite().all()
        grads = torch.ones(2, 3, 3)
        assert (region_backward(z, t, w, None, kind == 0, grads)[void] == 0).all()


@pytest.mark.parametrize("size", [30.0, 100.0, 1e4])
def test_finite_and_exact_at_large_logits(size: float) -> None:
    z = torch.tensor([-size, size]).repeat_interleave(3)
    t = torch.tensor([0.0, 0.5, 1.0]).repeat(2)
    for kind, g in itertools.product(KINDS, GAMMAS):
        value, slope = differentiated(definition(kind, t[None], None, 0.25, g, None), z[None], 1.0)
        _, values, grad = pointwise(
            z, t, None, None, None, kind, 0.25, g, None, None, 1.0, False, True, True
        )
        agree(values, value[0])
        agree(grad, slope[0])


def test_empty() -> None:
    for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        z = torch.zeros(shape)
        sums, values, grad = pointwise(
            z, z, None, None, None, FOCAL, 0.25, 2.0, None, None, 1.0, True, True, True
        )
        assert sums.tolist() == [0, 0]
        assert values.shape == grad.shape == shape
        assert torch.equal(region(z, z, None, None, True), torch.zeros(*shape[:2], 6))
        grads = torch.zeros(*shape[:2], 3)
        assert region_backward(z, z, None, None, True, grads).shape == shape
        z = torch.zeros(*shape[:2], 2, shape[2])
        assert edge(z, None, None, 5.0, 3, False).shape == z.shape
    sums, values, grad = boxes(
        torch.zeros(0, 4), torch.zeros(0, 4), None, 3, 0, None, 1.0, True, True, True
    )
    assert (sums.tolist(), values.shape, grad.shape) == ([0, 0], (0,), (0, 4))
    sums, values, grad = bins(torch.zeros(0, 7), torch.zeros(0), None, None, 1.0, True, True, True)
    assert (sums.tolist(), values.shape, grad.shape) == ([0, 0], (0,), (0, 7))
    assert label_count(torch.zeros(2, 0, dtype=torch.int64), None, -100, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [0, 1, 2, SPAN, 2 * SPAN + 3])
def test_total(count: int) -> None:
    partial = torch.randn(2, 3, count)
    agree(total(partial), partial.double().sum(-1), 1e-6)


# Boxes. Eighths are exact in float32, so that ties stay ties in every format.
LOSSES = [functional.iou_loss, functional.giou_loss, functional.diou_loss, functional.ciou_loss]
FORMATS = ["xyxy", "xywh", "cxcywh"]
ODD_PAIRS = [
    ((1, 1, 3, 4), (1, 1, 3, 4)),  # the same
    ((1, 1, 3, 4), (2, 2, 3, 4)),  # shared corner
    ((0, 0, 1, 1), (1, 0, 2, 1)),  # touching
    ((0, 0, 1, 1), (5, 6, 7, 9)),  # apart
    ((0, 0, 8, 8), (2, 3, 4, 5)),  # one inside the other
    ((3, 1, 1, 4), (1, 1, 3, 4)),  # inverted in x
    ((3, 4, 1, 1), (3, 4, 1, 1)),  # inverted in both, and the same
    ((3, 4, 1, 1), (0, 0, 5, 5)),
    ((2, 2, 2, 2), (2, 2, 2, 2)),  # points
    ((2, 2, 2, 2), (0, 0, 4, 4)),
    ((0, 0, 4, 4), (2, 2, 2, 2)),
    ((1, 0, 1, 4), (1, 0, 1, 4)),  # lines
    ((1, 0, 1, 4), (0, 2, 4, 2)),
    ((0, 2, 4, 2), (0, 0, 4, 4)),
]


def in_format(corners: Tensor, fmt: str) -> Tensor:
    first, last = corners[..., :2], corners[..., 2:]
    if fmt == "xyxy":
        return corners
    return torch.cat([first if fmt == "xywh" else (first + last) / 2, last - first], -1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", range(3))
@pytest.mark.parametrize("kind", range(4))
def test_boxes(kind: int, fmt: int, dtype: torch.dtype) -> None:
    odd = torch.tensor(ODD_PAIRS).float()
    drawn = (torch.randint(0, 128, (300, 2, 4)) / 8).to(dtype).float()
    pairs = in_format(torch.cat([odd, drawn]), FORMATS[fmt])
    a, b = pairs[:, 0].contiguous().to(dtype), pairs[:, 1].contiguous()
    w = torch.rand(len(pairs)).masked_fill(torch.arange(len(pairs)) % 10 == 9, 0)
    a[w == 0] = NAN
    upstream = torch.randn(len(pairs))
    value, slope = differentiated(
        lambda x: LOSSES[kind](x, b.double(), fmt=FORMATS[fmt], weight=w, reduction="none"),
        a,
        0.37 * upstream,
    )
    sums, values, grad = boxes(a, b, w, kind, fmt, upstream, 0.37, True, True, True)
    agree(values, value)
    agree(sums, torch.stack([0.37 * value.sum(), w.sum()]))
    assert grad.isfinite().all()
    assert (grad[w == 0] == 0).all()
    # Where a length is just 0, the derivative of its clamp is a matter of the version of torch.
    first, last = torch.cat([odd, drawn]).split(2, -1)
    size = last - first
    shared = last.amin(1) - first.amax(1)
    smooth = ((size[:, 0] != 0) & (shared != 0)).all(-1)
    assert smooth.sum() > 250
    agree(grad[smooth], slope[smooth], TOLERANCE[dtype])


@pytest.mark.parametrize("kind", range(4))
def test_boxes_that_are_the_same_score_zero(kind: int) -> None:
    corners = torch.rand(200, 2, 2).sort(1).values.flatten(1)
    for scale, (fmt, name) in itertools.product([1e-6, 1.0, 1e6], enumerate(FORMATS)):
        a = in_format(corners * scale, name)
        _, values, grad = boxes(a, a.clone(), None, kind, fmt, None, 1.0, False, True, True)
        assert (values == 0).all()
        assert (grad.abs() * scale <= 1e-6).all()


def test_a_box_of_nan_never_scores() -> None:
    a = torch.tensor([[0.0, 0, 1, 1]]).repeat(5, 1)
    for i in range(4):
        a[i, i] = NAN
    for kind, fmt in itertools.product(range(4), range(3)):
        _, values, _ = boxes(a, a[4:].repeat(5, 1), None, kind, fmt, None, 1.0, False, True, False)
        assert values.isnan().tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 16, 17, 300])
def test_bins(count: int, dtype: torch.dtype) -> None:
    rows = 30
    z = (3 * torch.randn(rows, count)).to(dtype)
    y = (count + 1) * torch.rand(rows) - 1
    y[:6] = torch.tensor([0.0, count - 1, 1e9, -INF, INF, NAN])
    w = torch.rand(rows).masked_fill(torch.arange(rows) % 10 == 9, 0)
    z[w == 0] = NAN
    y[19] = NAN  # void
    upstream = torch.randn(rows)
    value, slope = differentiated(
        lambda x: functional.distribution_focal_loss(x, y.double(), weight=w, reduction="none"),
        z,
        0.37 * upstream,
    )
    sums, values, grad = bins(z, y, w, upstream, 0.37, True, True, True)
    agree(values, value)
    agree(sums, torch.stack([0.37 * value.sum(), w.sum()]))
    agree(grad, slope, TOLERANCE[dtype])
    assert (grad[w == 0] == 0).all()


def test_bins_at_large_logits() -> None:
    z = 1e4 * torch.randn(20, 16)
    y = 15 * torch.rand(20)
    value, slope = differentiated(
        lambda x: functional.distribution_focal_loss(x, y.double(), reduction="none"), z, 0.5
    )
    sums, _, grad = bins(z, y, None, torch.tensor(0.5), 1.0, True, False, True)
    agree(sums[0], value.sum())
    agree(grad, slope)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_region(layout: torch.memory_format, entropy: bool, dtype: torch.dtype) -> None:
    z, t, w = (x.contiguous(memory_format=layout) for x in scene(0, dtype))
    grads = torch.randn(2, 3, 3)
    valid = (w != 0) & (t != 255)
    own = definition(0, t, w, 1.0, 0.0, 255)

    def sums(x: Tensor) -> Tensor:
        p = torch.where(valid, x, 0).sigmoid()
        v = own(x) if entropy else torch.zeros_like(x)
        weight = torch.where(valid, w, 0).double()
        both = weight * p * torch.where(valid, t, 0)
        terms = [both, weight * p, weight * torch.where(valid, t, 0), valid, v, weight]
        return torch.stack(terms, -1).sum((2, 3))

    upstream = torch.zeros(2, 3, 6)
    upstream[..., [0, 1, 4]] = grads
    value, slope = differentiated(sums, z, upstream)
    agree(region(z, t, w, 255.0, entropy), value)
    grad = region_backward(z, t, w, 255.0, entropy, grads)
    agree(grad, slope, TOLERANCE[dtype])
    assert (grad[~valid] == 0).all()
    assert grad.stride() == z.stride()
    assert grad.dtype == dtype


@pytest.mark.parametrize("shape", [(3, 70), (3, 2, 1), (2, 1, 2500), (1, 70, 40), (2, 2, 5, 7, 9)])
def test_region_of_any_shape(shape: tuple[int, ...]) -> None:
    p, t = torch.rand(shape), torch.rand(shape)
    dims = tuple(range(2, len(shape)))
    expected = torch.stack([p * t, p, t, p != 0, 0 * p, p != 0], -1)
    if len(shape) > 2:
        expected = expected.sum(dims)
    for layout in (
        [torch.channels_last_3d, torch.contiguous_format] if len(shape) == 5 else LAYOUTS[:1]
    ):
        z, target = (x.contiguous(memory_format=layout) for x in (p.logit(), t))
        agree(region(z, target, None, None, False), expected, 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rescale(dtype: torch.dtype) -> None:
    for factor in (1.0, 0.5, -3.0):
        grad = torch.randn(3, 1500).to(dtype)
        expected = (grad.float() * factor).to(dtype)
        rescale(grad, torch.tensor(factor))
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("dtype", "window"),
    [*((dtype, 15) for dtype in TARGETS), *((torch.float32, window) for window in (1, 31, 201))],
)
def test_edge(dtype: torch.dtype, window: int, inside: bool) -> None:
    t = torch.rand(2, 1, 19, 53)
    if not dtype.is_floating_point:
        t = t.round()
    t = t.to(dtype)
    border = "valid" if inside else "zero"
    expected = functional.edge_weight(t.double(), gamma=5, window=window, border=border)
    agree(edge(t, None, None, 5.0, window, inside), expected, 2e-7)


@pytest.mark.parametrize("inside", [False, True])
def test_edge_with_void(inside: bool) -> None:
    t = torch.rand(1, 2, 35, 140).round()
    w = torch.rand(t.shape).masked_fill(torch.rand(t.shape) < 0.2, 0)
    t[torch.rand(t.shape) < 0.2] = 255
    t[w == 0] = NAN
    valid = (w != 0) & (t != 255)
    clean = torch.where(valid, t, 0)
    border = "valid" if inside else "zero"
    expected = functional.edge_weight(clean.double(), gamma=5, window=15, border=border)
    expected = torch.where(valid, w * expected, 0)
    found = edge(t, w, 255.0, 5.0, 15, inside)
    agree(found, expected, 2e-7)
    mean = edge(t, w, 255.0, -1.0, 15, inside)
    agree(mean, edge(clean, None, None, -1.0, 15, inside), 0)
    agree(torch.where(valid, w * (1 + 5 * (mean - clean).abs()), 0), expected, 2e-7)


def test_edge_far_from_edges_is_one() -> None:
    t = torch.ones(1, 1, 40, 50)
    assert (edge(t, None, None, 5.0, 31, False)[..., 15:-15, 15:-15] == 1).all()
    assert (edge(t, None, None, 5.0, 31, True) == 1).all()
    t[0, 0, 3, 5] = 255
    assert edge(t, None, None, 5.0, 31, False).isnan().nonzero().tolist() == [[0, 0, 3, 5]]


@pytest.mark.parametrize("classes", [1, 21, 5000])  # the last is too many for a histogram
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_count(dtype: torch.dtype, classes: int) -> None:
    label = torch.randint(0, min(classes, 200), (2, 61, 73)).to(dtype)
    w = torch.rand(label.shape).masked_fill(torch.rand(label.shape) < 0.2, 0)
    label[torch.rand(label.shape) < 0.1] = 255
    if classes <= 255:
        assert label_count(label, None, -100, classes).isnan().all()
    label[w == 0] = 254 if classes < 254 else 0
    expected = torch.bincount(label[(label != 255) & (w != 0)].long(), minlength=classes)
    assert torch.equal(label_count(label, w, 255, classes), expected.float())
    for bad in (-1, 2**40) if dtype == torch.int64 else ():
        label[0, 0, 0], w[0, 0, 0] = bad, 1
        assert label_count(label, w, 255, classes).isnan().all()
