"""The Triton kernels against the definitions in float64; `test_triton_rows` runs these.

They need TRITON_INTERPRET=1, set before triton is imported: a process of their own.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from denseloss.primitives.cuda import labels as label_kernels
from denseloss.primitives.cuda import mean as mean_kernels
from denseloss.primitives.cuda import sigmoid as sigmoid_kernels
from denseloss.primitives.cuda.bins import bins
from denseloss.primitives.cuda.boxes import boxes
from denseloss.primitives.cuda.elementwise import elementwise
from denseloss.primitives.cuda.labels import class_values, label_count
from denseloss.primitives.cuda.launch import SPAN, total
from denseloss.primitives.cuda.mean import weighted_mean, weighted_mean_backward
from denseloss.primitives.cuda.ratio import ratio, ratio_backward
from denseloss.primitives.cuda.rescale import rescale
from denseloss.primitives.cuda.sigmoid import sigmoid, sigmoid_backward
from denseloss.primitives.cuda.windows import edge

NAN, INF = math.nan, math.inf
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TINY = torch.finfo(torch.float32).tiny
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
    value = values(z)
    # What is void has gradient 0 whatever comes from above.
    upstream = torch.where(value.detach() == 0, 0, torch.as_tensor(upstream).double())
    (value * upstream).sum().backward()
    return value.detach(), z.grad


def cleared(
    target: Tensor, weight: Tensor | None, ignore: float | None, *, quality: bool = False
) -> tuple[Tensor, Tensor]:
    """Targets in [0, 1] or NaN, and weights, in float64 and 0 where void."""
    t = target.double()
    w = torch.ones_like(t) if weight is None else weight.double()
    if ignore is not None:
        w = torch.where(t == ignore, 0, w)
    far = t > 1.01 if quality else (t <= -0.5) | (t >= 1.5)
    t = torch.where(far, NAN, t.clamp(0, 1))
    return torch.where(w == 0, 0, t), w


def definition(
    kind: int, target: Tensor, weight: Tensor | None, a: Any, g: float, ignore: float | None
) -> Callable[[Tensor], Tensor]:
    """w v of each element as a function of the logits; a tensor ``a`` is the pos_weight."""
    t, w = cleared(target, weight, ignore, quality=kind >= QUALITY)

    def values(z: Tensor) -> Tensor:
        z = torch.where(w == 0, 0, z)
        p, q = z.sigmoid(), (-z).sigmoid()
        yes, no = -F.logsigmoid(z), -F.logsigmoid(-z)
        ce = t * yes + (1 - t) * no
        if kind == BCE:
            b = a.double().reshape(1, -1, 1, 1) if isinstance(a, Tensor) else a
            return w * (b * t * yes + (1 - t) * no)
        if kind >= VARIFOCAL:
            factor = torch.where(t == 0, a * p.clamp_min(TINY) ** g, t)
            return w * (factor.detach() if kind == CONSTANT else factor) * ce
        balance = 1 if a < 0 else a * t + (1 - a) * (1 - t)
        miss = t * q + (1 - t) * p if kind == FOCAL else (t * q - (1 - t) * p).abs()
        return w * balance * miss.clamp_min(TINY) ** g * ce

    return values


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
def test_elementwise(kind: int, dtype: torch.dtype) -> None:
    z, t, w = scene(kind, dtype)
    upstream = torch.randn(SHAPE)
    # QUALITY has an infinite gradient at p = t for g < 1.
    gammas = {BCE: GAMMAS[:1], QUALITY: GAMMAS[:4]}.get(kind, GAMMAS)
    for g in gammas:
        value, slope = differentiated(definition(kind, t, w, 0.25, g, 255), z, 0.37 * upstream)
        sums, values, grad = elementwise(
            z, t, None, w, None, kind, 0.25, g, 255.0, upstream, 0.37, True, True, True
        )
        agree(values, value)
        agree(sums, torch.stack([0.37 * value.sum(), w[t != 255].sum()]))
        agree(grad, slope, TOLERANCE[dtype])
        assert grad.dtype == dtype
        assert (values[(w == 0) | (t == 255)] == 0).all()
        assert (grad[(w == 0) | (t == 255)] == 0).all()


@pytest.mark.parametrize("kind", [FOCAL, QUALITY])
def test_elementwise_without_balance(kind: int) -> None:
    z, t, w = scene(kind, torch.float32)
    value, slope = differentiated(definition(kind, t, w, -1.0, 2.0, 255), z, 1.0)
    _, values, grad = elementwise(
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
    sums, values, grad = elementwise(
        z, t, None, None, None, FOCAL, 0.25, 2.0, ignore, None, 1.0, True, True, True
    )
    agree(values, value)
    agree(grad, slope)
    agree(sums[1], (t != 255).sum())
    expected, present, *_ = overlap(z, t, None, None, ignore)
    found = sigmoid(z, t, None, None, ignore, 5, False)
    agree(found[0], expected)
    assert torch.equal(found[1], present)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (1, 0, 3, 2), (3, 2, 1, 0)])
def test_pos_weight_in_any_layout(order: tuple[int, ...]) -> None:
    def laid_out(x: Tensor) -> Tensor:
        inverse = sorted(range(4), key=order.__getitem__)
        return x.permute(order).contiguous().permute(inverse)

    z, t, w = (laid_out(x) for x in scene(BCE, torch.float32))
    b = torch.tensor([0.5, 1.0, 3.0])
    value, slope = differentiated(definition(BCE, t, w, b, 0.0, 255), z, 1.0)
    _, values, grad = elementwise(
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
    sums, values, grad = elementwise(
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
    _, values, _ = elementwise(
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
    expected = F.softplus(z)
    expected[0, 0] -= z[0, 0]
    expected[[1, 3]] = 0
    agree(values, expected)


def test_only_what_is_asked_for() -> None:
    z, t = torch.randn(5, 7), torch.rand(5, 7)
    for sums, values, grad in itertools.product([False, True], repeat=3):
        found = elementwise(
            z, t, None, None, None, BCE, 1.0, 0.0, None, None, 1.0, sums, values, grad
        )
        assert [x.numel() for x in found] == [2 * sums, 35 * values, 35 * grad]


@pytest.mark.parametrize("bad", [-0.5, 1.5, 255.0, NAN, INF])
def test_a_target_that_is_no_share_never_scores(bad: float) -> None:
    z, t = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    t[0, 1, 2] = bad
    where = torch.zeros(z.shape, dtype=torch.bool)
    where[0, 1, 2] = True
    for kind in KINDS:
        if kind >= QUALITY and bad < 0:
            continue
        sums, values, grad = elementwise(
            z, t, None, None, None, kind, 0.25, 2.0, None, None, 1.0, True, True, True
        )
        assert torch.equal(values.isnan(), where)
        assert torch.equal(grad.isnan(), where)
        assert sums[0].isnan()
    found, _, wrong, _ = sigmoid(z, t, None, None, None, 5, True)
    assert found.isnan().nonzero().tolist() == [[0, 1, 0], [0, 1, 2], [0, 1, 4]]
    assert wrong.isnan().nonzero().tolist() == [[0, 1]]
    for columns, entropy in ((torch.ones(2, 3, 3), None), (None, torch.ones(2, 3))):
        grad = sigmoid_backward(z, t, None, None, None, columns, entropy)
        assert torch.equal(grad.isnan(), where)
    score = torch.rand(4)
    score[1] = max(bad, 1.5)
    _, values, _ = elementwise(
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
        sums, values, grad = elementwise(
            z, t, None, w, None, kind, 0.25, 2.0, None, upstream, 1.0, True, True, True
        )
        assert (values[void] == 0).all()
        assert (grad[void] == 0).all()
        assert sums.isfinite().all()
    for x in sigmoid(z, t, w, None, None, 5, True):
        assert x.isfinite().all()
    grad = sigmoid_backward(z, t, w, None, None, torch.full((2, 3, 5), NAN), torch.ones(2, 3))
    assert (grad[void] == 0).all()


@pytest.mark.parametrize("size", [30.0, 100.0, 1e4])
def test_finite_and_exact_at_large_logits(size: float) -> None:
    z = torch.tensor([-size, size]).repeat_interleave(3)
    t = torch.tensor([0.0, 0.5, 1.0]).repeat(2)
    for kind, g in itertools.product(KINDS, GAMMAS):
        value, slope = differentiated(definition(kind, t[None], None, 0.25, g, None), z[None], 1.0)
        _, values, grad = elementwise(
            z, t, None, None, None, kind, 0.25, g, None, None, 1.0, False, True, True
        )
        agree(values, value[0])
        agree(grad, slope[0])


def test_empty() -> None:
    for shape in [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        z = torch.zeros(shape)
        sums, values, grad = elementwise(
            z, z, None, None, None, FOCAL, 0.25, 2.0, None, None, 1.0, True, True, True
        )
        assert sums.tolist() == [0, 0]
        assert values.shape == grad.shape == shape
        found = sigmoid(z, z, None, None, None, 3, True)
        assert [x.shape[2:] for x in found] == [(3,), (), (), ()]
        assert not any(x.any() for x in found)
        grads = torch.zeros(*shape[:2], 3)
        assert sigmoid_backward(z, z, None, None, None, grads, None).shape == shape
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
IOU, GIOU, DIOU, CIOU, CIOU_RELEASED = BOX_KINDS = range(5)
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


def quotient(part: Tensor, whole: Tensor, empty: Tensor | float = 0.0) -> Tensor:
    nothing = whole.abs() < TINY
    return torch.where(nothing, empty, part / torch.where(nothing, 1, whole))


def angle(size: Tensor) -> Tensor:
    """atan(w/h), 0 for a box without size"""
    longest = size.detach().amax(-1, keepdim=True)
    w, h = (size / torch.where(longest == 0, 1, longest)).unbind(-1)
    return torch.atan2(w, torch.where((w == 0) & (h == 0), 1, h))


def box_loss(a: Tensor, b: Tensor, kind: int, fmt: str) -> Tensor:
    """The loss of each pair in float64."""

    def ends(x: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x[..., :2], x[..., 2:]
        first = x - y / 2 if fmt == "cxcywh" else x
        return first, y if fmt == "xyxy" else first + y

    (a1, a2), (b1, b2) = ends(a), ends(b)
    size_a, size_b = (a2 - a1).relu(), (b2 - b1).relu()
    shared = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).relu()
    highest = torch.maximum(torch.maximum(a2, b2), torch.maximum(a1, b1))
    lowest = torch.minimum(torch.minimum(a2, b2), torch.minimum(a1, b1))
    hull = highest - lowest
    inter = shared.prod(-1)
    union = size_a.prod(-1) + size_b.prod(-1) - inter
    same = (a1 == b1).all(-1) & (a2 == b2).all(-1) & (a2 >= a1).all(-1)
    iou = quotient(inter, union, same.double())
    inverted = torch.where(a2 <= a1, quotient(a1 - a2, hull), 0)
    value = 1 - iou + inverted.sum(-1)
    if kind == GIOU:
        value = value + quotient(hull.prod(-1) - union, hull.prod(-1))
    if kind >= DIOU:
        centres = ((a1 - b1) + (a2 - b2)) / 2
        value = value + quotient(centres.square().sum(-1), hull.square().sum(-1))
    if kind >= CIOU:
        v = 4 / math.pi**2 * (angle(size_b) - angle(size_a)) ** 2
        aspect = quotient(v, 1 - iou + v).detach() * v
        if kind == CIOU_RELEASED:
            factor = size_a.detach().square().sum(-1)
            aspect = aspect.detach() + factor * (aspect - aspect.detach())
        value = value + aspect
    return value


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fmt", range(3))
@pytest.mark.parametrize("kind", BOX_KINDS)
def test_boxes(kind: int, fmt: int, dtype: torch.dtype) -> None:
    odd = torch.tensor(ODD_PAIRS).float()
    drawn = (torch.randint(0, 128, (300, 2, 4)) / 8).to(dtype).float()
    pairs = in_format(torch.cat([odd, drawn]), FORMATS[fmt])
    a, b = pairs[:, 0].contiguous().to(dtype), pairs[:, 1].contiguous()
    w = torch.rand(len(pairs)).masked_fill(torch.arange(len(pairs)) % 10 == 9, 0)
    upstream = torch.randn(len(pairs))
    value, slope = differentiated(
        lambda x: w * box_loss(x, b.double(), kind, FORMATS[fmt]), a, 0.37 * upstream
    )
    a[w == 0] = NAN
    sums, values, grad = boxes(a, b, w, kind, fmt, upstream, 0.37, True, True, True)
    agree(values, value)
    agree(sums, torch.stack([0.37 * value.sum(), w.sum()]))
    agree(grad, slope, TOLERANCE[dtype])
    assert (grad[w == 0] == 0).all()


@pytest.mark.parametrize("kind", BOX_KINDS)
def test_boxes_that_are_the_same_score_zero(kind: int) -> None:
    corners = torch.rand(200, 2, 2).sort(1).values.flatten(1)
    for scale, (fmt, name) in itertools.product([1e-6, 1.0, 1e6], enumerate(FORMATS)):
        a = in_format(corners * scale, name)
        _, values, grad = boxes(a, a.clone(), None, kind, fmt, None, 1.0, False, True, True)
        assert (values == 0).all()
        assert (grad.abs() * scale <= 1e-6).all()


def test_an_inverted_box_is_mended() -> None:
    """Wherever it lies, its gradient opens it; one of size 0 has that gradient, too."""
    a = torch.tensor([[3.0, 0, 1, 2], [1, 0, 1, 2], [30, 0, 10, 2]])
    b = torch.tensor([[1.0, 0, 3, 2]]).repeat(3, 1)
    for kind in BOX_KINDS:
        _, values, grad = boxes(a, b, None, kind, 0, None, 1.0, False, True, True)
        assert (values >= 1).all()
        assert (grad[:, 0] - grad[:, 2] > 0).all()


@pytest.mark.parametrize("held", [NAN, INF, -INF])
def test_a_box_that_is_not_finite_never_scores(held: float) -> None:
    a = torch.tensor([[0.0, 0, 1, 1]]).repeat(10, 1)
    b = a.clone()
    for i in range(4):
        a[i, i] = b[4 + i, i] = held
    a[9, 0], w = held, torch.ones(10)
    w[9] = 0
    for kind, fmt in itertools.product(BOX_KINDS, range(3)):
        _, values, grad = boxes(a, b, w, kind, fmt, None, 1.0, False, True, True)
        assert values.isnan().tolist() == [True] * 8 + [False] * 2
        assert grad.isnan().tolist() == [[True] * 4] * 8 + [[False] * 4] * 2
        assert (grad[9] == 0).all()


def bracket(z: Tensor, target: Tensor, w: Tensor) -> Tensor:
    """Distribution focal loss: the cross entropy with the bins around the target."""
    valid = w != 0
    y = torch.where(valid, target.double(), 0).clamp(0, z.shape[1] - 1)
    low = y.nan_to_num().floor().long().clamp(max=max(z.shape[1] - 2, 0))
    high = (low + 1).clamp(max=z.shape[1] - 1)
    log_p = torch.where(valid[:, None], z, 0).log_softmax(1)
    at_low, at_high = (log_p.gather(1, i[:, None])[:, 0] for i in (low, high))
    return -w.double() * ((1 - (y - low)) * at_low + (y - low) * at_high)


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
    value, slope = differentiated(lambda x: bracket(x, y, w), z, 0.37 * upstream)
    sums, values, grad = bins(z, y, w, upstream, 0.37, True, True, True)
    agree(values, value)
    agree(sums, torch.stack([0.37 * value.sum(), w.sum()]))
    agree(grad, slope, TOLERANCE[dtype])
    assert (grad[w == 0] == 0).all()


def test_bins_at_large_logits() -> None:
    z = 1e4 * torch.randn(20, 16)
    y = 15 * torch.rand(20)
    value, slope = differentiated(lambda x: bracket(x, y, torch.ones(20)), z, 0.5)
    sums, _, grad = bins(z, y, None, torch.tensor(0.5), 1.0, True, False, True)
    agree(sums[0], value.sum())
    agree(grad, slope)


def overlap(
    z: Tensor, target: Tensor, weight: Tensor | None, b: Tensor | None, ignore: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `sigmoid` returns with 5 sums and the entropy, in float64 with a graph."""
    t, w = cleared(target, weight, ignore)
    p = torch.where(w == 0, 0, z.double()).sigmoid()
    between = torch.where(t >= 1, 1, torch.where(t <= 0, 0, 0.5))
    lower = torch.where(p < t, 1, torch.where(p > t, 0, between))
    both = torch.minimum(p, t).detach() + lower * (p - p.detach())
    wrong = definition(BCE, target, weight, 1.0 if b is None else b, 0.0, ignore)(z.double())

    def summed(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1).sum(2)

    sums = torch.stack([summed(w * x) for x in (both, p, t, p * p, t * t)], 2)
    return sums, (summed(w != 0) > 0).float(), summed(wrong), summed(w)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("sums", "entropy"), [*itertools.product([0, 3, 5], [False, True])])
def test_sigmoid(sums: int, entropy: bool, layout: torch.memory_format, dtype: torch.dtype) -> None:
    z, t, w = (x.contiguous(memory_format=layout) for x in scene(0, dtype))
    t = torch.where((t != 255) & (torch.rand(SHAPE) < 0.3), torch.rand(SHAPE), t)
    w[1, 2] = 0
    b = torch.tensor([0.5, 1.0, 3.0]) if layout == LAYOUTS[0] else None
    x = z.double().requires_grad_()
    right = overlap(x, t, w, b, 255)
    found = sigmoid(z, t, w, b, 255.0, sums, entropy)
    agree(found[0], right[0][..., :sums] if sums else torch.zeros(0))
    assert torch.equal(found[1], right[1])
    assert found[1].sum() == 5
    for ours, theirs in zip(found[2:], right[2:], strict=True):
        agree(ours, theirs if entropy else torch.zeros(0))

    columns = torch.randn(2, 3, sums) if sums else None
    slope = torch.randn(2, 3) if entropy else None
    above = torch.zeros(())
    if columns is not None:
        above = above + (right[0][..., :sums] * columns).sum()
    if slope is not None:
        above = above + (right[2] * slope).sum()
    expected = torch.zeros_like(x)
    if sums or entropy:
        (expected,) = torch.autograd.grad(above, x)
    grad = sigmoid_backward(z, t, w, b, 255.0, columns, slope)
    agree(grad, expected, TOLERANCE[dtype])
    assert (grad[(w == 0) | (t == 255)] == 0).all()
    assert grad.stride() == z.stride()
    assert grad.dtype == dtype


def test_the_slope_of_the_overlap_where_prediction_and_truth_are_equal() -> None:
    z = torch.tensor([[[0.0, 0.0, 0.0, 200.0, -200.0, 200.0]]])
    t = torch.tensor([[[0.5, 0.4, 0.6, 1.0, 0.0, 0.9]]])
    columns = torch.tensor([[[1.0, 0.0, NAN]]])  # the third is not read
    grad = sigmoid_backward(z, t, None, None, None, columns, None)
    assert grad.tolist() == [[[0.125, 0.0, 0.25, 0.0, 0.0, 0.0]]]
    z[0, 0, 3:5] = torch.tensor([17.5, -17.5])  # p is 1 in float32, but its slope is not yet 0
    grad = sigmoid_backward(z, t, None, None, None, columns, None)
    torch.testing.assert_close(grad[0, 0, 3].item(), math.exp(-17.5))
    assert grad[0, 0, 4] == 0


@pytest.mark.parametrize("shape", [(3, 70), (3, 2, 1), (2, 1, 2500), (1, 70, 40), (2, 2, 5, 7, 9)])
def test_sigmoid_of_any_shape(shape: tuple[int, ...]) -> None:
    p, t = torch.rand(shape), torch.rand(shape)
    for layout in (
        [torch.channels_last_3d, torch.contiguous_format] if len(shape) == 5 else LAYOUTS[:1]
    ):
        z, target = (x.contiguous(memory_format=layout) for x in (p.logit(), t))
        expected, present, *_ = overlap(z, target, None, None, None)
        found = sigmoid(z, target, None, None, None, 5, False)
        agree(found[0], expected, 1e-6)
        assert torch.equal(found[1], present)


@pytest.mark.parametrize("alone", [0, 100])
def test_sigmoid_programs_go_through_several_tiles(
    alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sigmoid_kernels, "PROGRAMS", 6)
    monkeypatch.setattr(sigmoid_kernels, "ALONE", alone)
    monkeypatch.setattr(sigmoid_kernels, "SUM_TILE", 64)
    z, t, w = scene(0, torch.float32)
    found = sigmoid(z, t, w, None, 255.0, 5, True)
    for ours, right in zip(found, overlap(z, t, w, None, 255), strict=True):
        agree(ours, right)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rescale(dtype: torch.dtype) -> None:
    for factor in (1.0, 0.5, -3.0):
        grad = torch.randn(3, 1500).to(dtype)
        expected = (grad.float() * factor).to(dtype)
        rescale(grad, torch.tensor(factor))
        torch.testing.assert_close(grad, expected)


def edges(t: Tensor, window: int, inside: bool) -> Tensor:
    """1 + 5 |window mean - t|"""
    mean = F.avg_pool2d(t.double(), window, 1, window // 2, count_include_pad=not inside)
    return 1 + 5 * (mean - t.double()).abs()


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
    expected = edges(t, window, inside)
    agree(edge(t, None, None, 5.0, window, inside), expected, 2e-7)


@pytest.mark.parametrize("inside", [False, True])
def test_edge_with_void(inside: bool) -> None:
    t = torch.rand(1, 2, 35, 140).round()
    w = torch.rand(t.shape).masked_fill(torch.rand(t.shape) < 0.2, 0)
    t[torch.rand(t.shape) < 0.2] = 255
    t[w == 0] = NAN
    valid = (w != 0) & (t != 255)
    clean = torch.where(valid, t, 0)
    expected = torch.where(valid, w * edges(clean, 15, inside), 0)
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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [1, 21])
def test_class_values(dtype: torch.dtype, classes: int) -> None:
    label, values = torch.randint(0, 30, (2, 31, 37)), torch.rand(classes)
    label[0, 0, 0] = 255 if dtype == torch.uint8 else -100
    if dtype == torch.int64:
        label[0, 0, 1] = 2**32
    label = label.to(dtype)
    known = (label >= 0) & (label < classes)
    found = class_values(label, values)
    assert torch.equal(found, torch.where(known, values[torch.where(known, label, 0).long()], 0))
    assert class_values(label[:0], values).shape == (0, 31, 37)


@pytest.mark.parametrize("size", [0, 1, 5000, 50000])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_weighted_mean(counted: bool, divide: bool, size: int) -> None:
    v, w = torch.randn(size) + 1, torch.rand(size)
    w[::3] = 0
    v[::6] = NAN
    count = torch.rand(size) if counted else None
    whole = w.double().sum() if count is None else count.double().sum()
    part = torch.where(w == 0, 0, w * v.double()).sum()
    whole_or_one = whole if divide and whole != 0 else 1
    mean, total = weighted_mean(v, w, count, divide)
    agree(total, whole)
    agree(mean, part / whole_or_one)
    grad = weighted_mean_backward(torch.tensor(0.7), total, w, divide)
    agree(grad, 0.7 * w.double() / whole_or_one)
    nan = weighted_mean_backward(torch.tensor(NAN), total, w, divide)
    assert torch.equal(nan.isnan(), w != 0)


def test_weighted_mean_of_several_blocks_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_kernels, "PROGRAMS", 4)
    monkeypatch.setattr(mean_kernels, "BLOCK", 256)
    v, w = torch.randn(5000), torch.rand(5000)
    found, total = weighted_mean(v, w, None, True)
    agree(found, (v.double() * w).sum() / w.double().sum())
    agree(total, w.double().sum())


def test_weighted_mean_over_nothing() -> None:
    """0 without counts; NaN where a weight is."""
    v, w = torch.tensor([NAN, INF]), torch.zeros(2)
    for divide in (False, True):
        mean, total = weighted_mean(v, w, None, divide)
        assert mean == total == 0
        assert weighted_mean_backward(torch.tensor(1.0), total, w, divide).tolist() == [0, 0]
    mean, total = weighted_mean(torch.ones(2), torch.ones(2), torch.zeros(2), True)
    assert (mean, total) == (2, 0)
    assert weighted_mean_backward(torch.ones(()), total, torch.ones(2), True).tolist() == [1, 1]
    w[0] = NAN
    mean, total = weighted_mean(torch.ones(2), w, None, True)
    assert mean.isnan()
    assert total.isnan()
    grad = weighted_mean_backward(torch.ones(()), total, w, True)
    assert grad.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (70, 5), (2, 100, 3), (0, 3), (4, 1)])
def test_ratio(shape: tuple[int, ...]) -> None:
    sums = torch.rand(shape)
    above, below = torch.randn(shape[-1] + 1).double(), torch.rand(shape[-1] + 1).double()
    sums.view(-1, shape[-1])[1:2] = below[-1] = 0  # an empty row
    x = sums.double().requires_grad_()
    right = quotient((x * above[:-1]).sum(-1) + above[-1], (x * below[:-1]).sum(-1) + below[-1], 7)
    agree(ratio(sums, above.tolist(), below.tolist(), 7.0), right, 2e-6)
    several = torch.randn(shape[:-1])
    one = torch.randn(()).expand(shape[:-1])
    for upstream in (several, one, several.transpose(0, -1).contiguous().transpose(0, -1)
                     if several.ndim else several):  # fmt: skip
        (expected,) = torch.autograd.grad((right * upstream).sum(), x, retain_graph=True)
        grad = ratio_backward(upstream, sums, above.tolist(), below.tolist())
        agree(grad, expected, 2e-6)
        assert (grad.view(-1, shape[-1])[1:2] == 0).all()


def test_ratio_of_what_is_perfect_is_one() -> None:
    """Dice of predictions that are the truth."""
    x = 1000 * torch.rand(50, 1).expand(50, 3).contiguous()
    assert (ratio(x, [2, 0, 0, 1.0], [0, 1, 1, 1.0], 1.0) == 1).all()
    empty = ratio(torch.zeros(2, 3), [2, 0, 0, 0], [0, 1, 1, 0], 1.0)
    assert empty.tolist() == [1, 1]
    nan = ratio_backward(torch.full((2,), NAN), torch.zeros(2, 3), [2, 0, 0, 0], [0, 1, 1, 0])
    assert not nan.any()
    with pytest.raises(ValueError, match="6 sums"):
        ratio(torch.zeros(6), [0.0] * 7, [0.0] * 7, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_beside_the_range(kind: int) -> None:
    """Rounding and resampling overshoot: that is brought back. What cannot be meant is NaN."""
    t = torch.tensor([-0.49, -1e-7, 1.0000001, 1.01, 1.02, 1.49, -0.5, -3.0, -INF, 1.5, INF, NAN])
    z = torch.linspace(-2, 2, len(t))
    right, slope = differentiated(definition(kind, t, None, 0.25, 2.0, None), z, 1.0)
    _, values, grad = elementwise(
        z, t, None, None, None, kind, 0.25, 2.0, None, None, 1.0, False, True, True
    )
    agree(values, right)
    agree(grad, slope)
    assert values.isnan().sum() == (5 if kind >= QUALITY else 6)
    # The void value is compared before.
    _, values, _ = elementwise(
        z, t, None, None, None, kind, 0.25, 2.0, 0.0, None, 1.0, False, True, True
    )
    assert (values != 0).all()
    agree(values, right)
    _, values, _ = elementwise(
        z, t, None, None, None, kind, 0.25, 2.0, -3.0, None, 1.0, False, True, True
    )
    assert values[7] == 0


def test_label_count_of_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BLOCK", 64), ("PROGRAMS", 70)):
        monkeypatch.setattr(label_kernels, name, value)
    label = torch.randint(0, 7, (2, 61, 73))
    label[0, 0] = 255
    expected = torch.bincount(label[label != 255], minlength=7).float()
    assert torch.equal(label_count(label, None, 255, 7), expected)
    label[1, 2, 3] = 7
    assert label_count(label, None, 255, 7).isnan().all()
