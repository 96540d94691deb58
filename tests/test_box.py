"""IoU, GIoU, DIoU and CIoU of box pairs."""

from math import atan, inf, nan, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from denseloss import backend, functional
from denseloss.primitives.boxes import box_pairs
from tests.comparison import (
    DTYPES,
    agree,
    finite,
    places,
    proof,
    randoms,
    reduced,
    same,
    value_and_gradient,
)

# --- oracles --------------------------------------------------------------------------------------


def corners(box, fmt):
    a, b, c, d = box.double()
    if fmt == "xyxy":
        return a, b, c, d
    if fmt == "xywh":
        return a, b, a + c, b + d
    if fmt == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    raise ValueError(fmt)


class Pair:
    """The quantities of one pair of boxes; a size below 0 counts as 0."""

    def __init__(self, box, target_box, fmt):
        x1, y1, x2, y2 = corners(box, fmt)
        tx1, ty1, tx2, ty2 = corners(target_box, fmt)
        self.w, self.h = (x2 - x1).relu(), (y2 - y1).relu()
        self.tw, self.th = (tx2 - tx1).relu(), (ty2 - ty1).relu()
        overlap_w = (torch.minimum(x2, tx2) - torch.maximum(x1, tx1)).relu()
        overlap_h = (torch.minimum(y2, ty2) - torch.maximum(y1, ty1)).relu()
        # around all corners: an inverted box lies inside its hull, too
        xs, ys = torch.stack([x1, x2, tx1, tx2]), torch.stack([y1, y2, ty1, ty2])
        hull_w, hull_h = xs.amax() - xs.amin(), ys.amax() - ys.amin()
        self.intersection = overlap_w * overlap_h
        self.union = self.w * self.h + self.tw * self.th - self.intersection
        self.hull = hull_w * hull_h
        self.diagonal2 = hull_w**2 + hull_h**2
        self.distance2 = ((x1 + x2 - tx1 - tx2) / 2) ** 2 + ((y1 + y2 - ty1 - ty2) / 2) ** 2
        self.folded = 0.0
        for length, hull in ((x2 - x1, hull_w), (y2 - y1, hull_h)):
            if length <= 0 and hull != 0:
                self.folded = self.folded - length / hull
        self.identical = bool((box == target_box).all()) and bool(x2 >= x1) and bool(y2 >= y1)

    def iou(self):
        if self.union == 0:
            return self.union + float(self.identical)
        return self.intersection / self.union

    def giou(self):
        if self.hull == 0:
            return self.iou()
        return self.iou() - (self.hull - self.union) / self.hull

    def diou(self):
        if self.diagonal2 == 0:
            return self.iou()
        return self.iou() - self.distance2 / self.diagonal2

    def ciou(self):
        v = 4 / pi**2 * (torch.atan2(self.tw, self.th) - torch.atan2(self.w, self.h)) ** 2
        if v == 0:
            return self.diou()
        alpha = (v / (1 - self.iou() + v)).detach()
        return self.diou() - alpha * v

    def ciou_released(self):
        """The value of CIoU, its α v with the gradient times w² + h²."""
        scale = (self.w**2 + self.h**2).detach()
        part = self.diou() - self.ciou()
        return self.ciou() - scale * (part - part.detach()) + (part - part.detach())


def box_loss(score):
    def loss(
        boxes,
        target_boxes,
        *,
        fmt="xyxy",
        variant="equation",
        weight=None,
        count=None,
        reduction="mean",
    ):
        chosen = Pair.ciou_released if variant == "released" else score
        shape = tuple(boxes.shape[:-1])
        weight = (torch.ones(()) if weight is None else weight).expand(shape)
        values, counts = {}, {}
        for place in places(shape):
            if weight[place] == 0:
                continue
            pair = Pair(boxes[place], target_boxes[place], fmt)
            values[place] = float(weight[place]) * (1 - chosen(pair) + pair.folded)
            counts[place] = float(weight[place])
        return reduced(values, counts, shape, boxes, reduction, count)

    return loss


ORACLES = {
    "iou_loss": box_loss(Pair.iou),
    "giou_loss": box_loss(Pair.giou),
    "diou_loss": box_loss(Pair.diou),
    "ciou_loss": box_loss(Pair.ciou),
}
FORMATS = ("xyxy", "xywh", "cxcywh")
every = pytest.mark.parametrize("name", list(ORACLES))
penalised = pytest.mark.parametrize("name", ["giou_loss", "diou_loss", "ciou_loss"])

# --- equal to the oracle --------------------------------------------------------------------------


def as_format(xyxy: Tensor, fmt: str) -> Tensor:
    low, high = xyxy[..., :2], xyxy[..., 2:]
    return {
        "xyxy": xyxy,
        "xywh": torch.cat([low, high - low], -1),
        "cxcywh": torch.cat([(low + high) / 2, high - low], -1),
    }[fmt]


@st.composite
def pairs(draw):
    """Boxes on a grid of 1/8 that every dtype and format holds exactly.

    Predictions lie 1/16 beside it, so that no two edges tie: at a tie the gradient is a choice.
    """
    random, dtype = draw(randoms), draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (1,), (5,), (2, 3)]))
    scales = [1.0] if dtype == torch.float16 else [1.0, 2.0**-20, 2.0**20]
    scale = draw(st.sampled_from(scales))
    boxes = []
    for _ in range(2):
        low = random.integers(40, *shape, 2)
        boxes.append(torch.cat([low, low + 1 + random.integers(22, *shape, 2)], -1) / 8)
    predicted, target = boxes[0].double() + 1 / 16, boxes[1].double()
    odd = draw(st.sampled_from([0.0, 0.4]))
    for swapped in ([2, 1, 0, 3], [0, 3, 2, 1], [0, 1, 0, 3]):  # in x, in y, without width
        chosen = random.uniform(*shape) < odd
        predicted = torch.where(chosen[..., None], predicted[..., swapped], predicted)
    fmt = draw(st.sampled_from(FORMATS))
    options = {"fmt": fmt}
    if draw(st.booleans()):
        options["count"] = draw(st.sampled_from([0, 3, 2.5, torch.tensor(7)]))
    void = torch.zeros(shape, dtype=torch.bool)
    if draw(st.booleans()):
        weight = random.uniform(*shape) * 2 + 0.1
        void = random.uniform(*shape) < draw(st.sampled_from([0.0, 0.4, 1.0]))
        options["weight"] = torch.where(void, 0.0, weight).float()
    poison = random.choice([nan, float("inf"), -float("inf")], *shape, 4)
    predicted = torch.where(void[..., None], poison, as_format(predicted * scale, fmt))
    target = torch.where(void[..., None], poison.flip(-1), as_format(target * scale, fmt))
    return predicted.to(dtype), target.to(dtype), options, void[..., None]


@every
@proof
@given(case=pairs())
def test_boxes(name, case):
    boxes, target_boxes, options, void = case
    agree(getattr(functional, name), ORACLES[name], boxes, target_boxes, void=void, **options)
    if name == "ciou_loss":
        options["variant"] = "released"
        agree(functional.ciou_loss, ORACLES[name], boxes, target_boxes, void=void, **options)


# --- values that can be checked by hand -----------------------------------------------------------

ASPECT = 4 / pi**2 * (atan(2) - atan(1 / 2)) ** 2


@pytest.mark.parametrize(
    ("name", "box", "target_box", "expected"),
    [
        # A quarter of each overlaps: 1 of 7, in a hull of 9, centres √2 of √18 apart.
        ("iou_loss", [0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7),
        ("giou_loss", [0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 9),
        ("diou_loss", [0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 18),
        ("ciou_loss", [0, 0, 2, 2], [1, 1, 3, 3], 1 - 1 / 7 + 2 / 18),
        # Disjoint: 3 between two unit squares, hull 5 x 1.
        ("iou_loss", [0, 0, 1, 1], [4, 0, 5, 1], 1),
        ("giou_loss", [0, 0, 1, 1], [4, 0, 5, 1], 1 + 3 / 5),
        ("diou_loss", [0, 0, 1, 1], [4, 0, 5, 1], 1 + 16 / 26),
        # Lying and standing: 1 of 3, hull 4, centres √½ of √8 apart.
        ("giou_loss", [0, 0, 2, 1], [0, 0, 1, 2], 1 - 1 / 3 + 1 / 4),
        ("diou_loss", [0, 0, 2, 1], [0, 0, 1, 2], 1 - 1 / 3 + 1 / 16),
        (
            "ciou_loss",
            [0, 0, 2, 1],
            [0, 0, 1, 2],
            1 - 1 / 3 + 1 / 16 + ASPECT**2 / (2 / 3 + ASPECT),
        ),
    ],
)
@pytest.mark.parametrize("fmt", FORMATS)
def test_by_hand(name, box, target_box, expected, fmt):
    boxes = as_format(torch.tensor([box]).double(), fmt)
    target_boxes = as_format(torch.tensor([target_box]).double(), fmt)
    loss = getattr(functional, name)
    same(loss(boxes, target_boxes, fmt=fmt), expected, 1e-12)
    same(loss(target_boxes, boxes, fmt=fmt), expected, 1e-12)  # the measures are symmetric


def test_the_mean_counts_boxes_by_weight():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [nan, 0, 1, 1]])
    target_boxes = torch.tensor([[0.0, 0, 1, 1], [1, 1, 3, 3], [0, 0, 1, 1]])
    weight = torch.tensor([1.0, 3.0, 0.0])
    same(functional.iou_loss(boxes, target_boxes, weight=weight), 3 / 4 * 6 / 7)
    each = functional.iou_loss(boxes, target_boxes, weight=weight, reduction="none")
    same(each, [0, 3 * 6 / 7, 0])


# --- what the papers promise ----------------------------------------------------------------------


def random_boxes(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    low, size = torch.rand(count, 2).double() * 6, torch.rand(count, 2).double() * 4 + 0.1
    return torch.cat([low, low + size], -1).to(dtype)


def test_ranges_and_order():
    """0 ≤ 1 − IoU ≤ 1, IoU is never below GIoU or DIoU, and DIoU never below CIoU; all below 3."""
    boxes, target_boxes = random_boxes(200), random_boxes(200)
    iou, giou, diou, ciou = (
        getattr(functional, name)(boxes, target_boxes, reduction="none") for name in ORACLES
    )
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= iou) & (giou <= 2)).all()
    assert ((diou >= iou) & (diou <= 2)).all()
    assert ((ciou >= diou) & (ciou <= 3)).all()


def test_ciou_is_diou_at_equal_aspect():
    boxes = random_boxes(50)
    target_boxes = torch.cat([boxes[:, :2] + 1, boxes[:, :2] + 1], -1)
    target_boxes[:, 2:] += 2 * (boxes[:, 2:] - boxes[:, :2])
    diou = value_and_gradient(functional.diou_loss, boxes, target_boxes)
    ciou = value_and_gradient(functional.ciou_loss, boxes, target_boxes)
    same(ciou[0], diou[0], 1e-12)
    same(ciou[1], diou[1], 1e-12)


def test_a_box_inside_the_target():
    """GIoU is then IoU and does not pull to the centre (Zheng et al. 2020); DIoU does."""
    boxes, target_boxes = torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 10, 10]])
    move = torch.tensor([1.0, 1, 1, 1])
    iou, _ = value_and_gradient(functional.iou_loss, boxes, target_boxes)
    giou, slope = value_and_gradient(functional.giou_loss, boxes, target_boxes)
    same(giou, iou)
    same((slope * move).sum(), 0)
    _, slope = value_and_gradient(functional.diou_loss, boxes, target_boxes)
    assert (slope * move).sum() < -0.01


def test_the_trade_off_of_ciou_is_constant_in_backward():
    """Its gradient is DIoU's plus α ∂v, with α the number v / (1 − IoU + v)."""
    boxes, target_boxes = random_boxes(20), random_boxes(20)
    _, diou = value_and_gradient(functional.diou_loss, boxes, target_boxes, reduction="sum")
    _, ciou = value_and_gradient(functional.ciou_loss, boxes, target_boxes, reduction="sum")
    iou = 1 - functional.iou_loss(boxes, target_boxes, reduction="none")
    x = boxes.clone().requires_grad_()
    w, h = (x[:, 2:] - x[:, :2]).unbind(-1)
    tw, th = (target_boxes[:, 2:] - target_boxes[:, :2]).unbind(-1)
    v = 4 / pi**2 * (torch.atan(tw / th) - torch.atan(w / h)) ** 2
    alpha = (v / (1 - iou + v)).detach()
    (aspect,) = torch.autograd.grad(3.7 * (alpha * v).sum(), x)
    same(ciou, diou + aspect, 1e-10)


@penalised
def test_disjoint_boxes_are_pulled_together(name):
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1e-3, 1e-3], [-500, 30, -400, 31]])
    target_boxes = torch.tensor([[9.0, 9, 12, 12], [800, 800, 900, 900], [500, 30, 600, 31]])
    value, gradient = value_and_gradient(
        getattr(functional, name), boxes, target_boxes, reduction="none"
    )
    assert (value > 1).all()
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(1) > 1e-6).all()


def test_iou_alone_does_not_pull():
    boxes, target_boxes = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[9.0, 9, 12, 12]])
    value, gradient = value_and_gradient(functional.iou_loss, boxes, target_boxes)
    same(value, 1, 0)
    assert (gradient == 0).all()


# --- every scale ----------------------------------------------------------------------------------

SCALES = [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6]


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_identical_boxes_are_exactly_zero_at_every_scale(name, dtype, fmt):
    for scale in SCALES:
        xyxy = random_boxes(100) * scale
        xyxy = torch.cat([xyxy, xyxy - 5 * scale, torch.tensor([[1, 1, 2, 2]]) * scale])
        boxes = as_format(xyxy, fmt).to(dtype)
        exact = boxes.double()
        sizes = exact[:, 2:] - exact[:, :2] if fmt == "xyxy" else exact[:, 2:]
        boxes = boxes[boxes.isfinite().all(1) & (sizes > 0).all(1)]
        if len(boxes) == 0:
            assert dtype == torch.float16
            continue
        value, gradient = value_and_gradient(
            getattr(functional, name), boxes, boxes.clone(), fmt=fmt, reduction="none"
        )
        assert (value == 0).all(), (scale, value.abs().max())
        if dtype != torch.float16:  # at 1e-6 the true gradient is 1e6, above what float16 holds
            assert gradient.isfinite().all()


@every
@pytest.mark.parametrize("scale", SCALES)
def test_scale_changes_nothing(name, scale):
    boxes, target_boxes = random_boxes(50), random_boxes(50)
    loss, oracle = getattr(functional, name), ORACLES[name]
    expected, slope = value_and_gradient(loss, boxes, target_boxes, reduction="none")
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        scaled = (boxes * scale).to(dtype), (target_boxes * scale).to(dtype)
        value, gradient = value_and_gradient(loss, *scaled, reduction="none")
        same(value, expected, tolerance)
        same(gradient.double() * scale, slope, tolerance * 10)
        same(value, oracle(*scaled, reduction="none"), tolerance)


@every
def test_half_precision_boxes_of_a_large_image(name):
    """Areas above 65504 overflow float16; 600 pixels squared is 360000."""
    boxes, target_boxes = torch.tensor([[0.0, 0, 600, 600]]), torch.tensor([[8.0, 8, 640, 640]])
    for dtype in (torch.float16, torch.bfloat16):
        agree(getattr(functional, name), ORACLES[name], boxes.to(dtype), target_boxes.to(dtype))


# --- degenerate and inverted boxes ----------------------------------------------------------------

DEGENERATE = {
    "no width": [2.0, 1, 2, 3],
    "no height": [1.0, 2, 3, 2],
    "no area": [2.0, 2, 2, 2],
    "at the origin": [0.0, 0, 0, 0],
    "far away": [90.0, 90, 90, 90],
}
INVERTED = {
    "in x": [3.0, 1, 1, 3],
    "in y": [1.0, 3, 3, 1],
    "in both": [3.0, 3, 1, 1],
    "flat": [3.0, 2, 1, 2],
    "around": [9.0, 9, -9, -9],
}
OTHERS = {"proper": [1.0, 1, 3, 3], "elsewhere": [5.0, 6, 7, 9]} | DEGENERATE | INVERTED
degenerate = pytest.mark.parametrize("shape", list(DEGENERATE))


def against_all(shapes) -> tuple[Tensor, Tensor]:
    """Every one of these shapes paired with every other kind of box."""
    some = torch.tensor(list(shapes), dtype=torch.float64)
    others = torch.tensor(list(OTHERS.values()), dtype=torch.float64)
    return some.repeat_interleave(len(others), 0), others.repeat(len(some), 1)


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_degenerate_boxes_are_finite(name, dtype, fmt):
    loss = getattr(functional, name)
    for scale in SCALES:
        one, two = (
            as_format(b * scale, fmt).to(dtype).nan_to_num() for b in against_all(OTHERS.values())
        )
        if dtype == torch.float16 and scale < 1e-2:  # true gradients above what float16 holds
            assert loss(one, two, fmt=fmt, reduction="none").isfinite().all()
        else:
            finite(loss, one, two, fmt=fmt)
            finite(loss, one, one.clone(), fmt=fmt)


@every
@degenerate
def test_degenerate_values(name, shape):
    """Against a proper box the definition still has a value, but for the aspect of a point."""
    box = torch.tensor([DEGENERATE[shape]], dtype=torch.float64)
    target_boxes = torch.tensor([OTHERS["proper"]], dtype=torch.float64)
    if name == "ciou_loss" and (box[0, :2] == box[0, 2:]).all():
        assert getattr(functional, name)(box, target_boxes) >= 1
        return
    expected = ORACLES[name](box, target_boxes)
    same(getattr(functional, name)(box, target_boxes), expected, 1e-12)
    same(getattr(functional, name)(target_boxes, box), ORACLES[name](target_boxes, box), 1e-12)


@every
@degenerate
@pytest.mark.parametrize("fmt", FORMATS)
def test_two_identical_boxes_without_area_score_zero(name, shape, fmt):
    for dtype in DTYPES:
        for scale in (1e-6, 1.0, 100.0):
            box = as_format(torch.tensor([DEGENERATE[shape]]).double() * scale, fmt).to(dtype)
            same(getattr(functional, name)(box, box.clone(), fmt=fmt), 0, 0)


@every
def test_two_different_boxes_without_area_do_not_score_zero(name):
    boxes = torch.tensor([[2.0, 2, 2, 2], [1, 2, 3, 2], [2, 1, 2, 3]])
    target_boxes = torch.tensor([[3.0, 2, 3, 2], [1, 3, 3, 3], [2, 1, 2, 4]])
    assert (getattr(functional, name)(boxes, target_boxes, reduction="none") >= 1).all()


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_an_inverted_box_never_scores_zero(name, dtype, fmt):
    """Not against any box, not against itself, and not against itself the right way round."""
    loss = getattr(functional, name)
    one, two = against_all(INVERTED.values())
    upright = torch.cat(
        [torch.minimum(one[:, :2], one[:, 2:]), torch.maximum(one[:, :2], one[:, 2:])], -1
    )
    for scale in SCALES:
        if dtype == torch.float16 and not 1e-2 <= scale <= 1e2:
            continue
        odd, others, sorted_ = (as_format(b * scale, fmt).to(dtype) for b in (one, two, upright))
        assert (loss(odd, others, fmt=fmt, reduction="none") >= 1).all()
        assert (loss(others, odd, fmt=fmt, reduction="none") >= 1).all()
        assert (loss(odd, sorted_, fmt=fmt, reduction="none") >= 1).all()
        assert (loss(odd, odd.clone(), fmt=fmt, reduction="none") >= 1).all()


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_pair_that_is_not_finite_is_nan(name, dtype, fmt):
    """Wherever it is not finite and however; the pairs beside it and void ones are as ever."""
    box = as_format(torch.tensor([[0.0, 0, 2, 2]]), fmt).to(dtype)
    target = as_format(torch.tensor([[1.0, 1, 3, 4]]), fmt).to(dtype)
    odd = [(torch.full_like(box, inf), torch.full_like(box, inf))]
    for value in (inf, -inf, nan):
        for at in range(4):
            bad = box.clone()
            bad[0, at] = value
            odd += [(bad, target), (box, bad), (bad, bad)]
    boxes = torch.cat([b for first, _ in odd for b in (first, box)])
    targets = torch.cat([b for _, second in odd for b in (second, target)])
    loss = getattr(functional, name)
    weight = torch.ones(len(boxes))
    weight[-2] = 0
    value, gradient = value_and_gradient(
        loss, boxes, targets, fmt=fmt, weight=weight, reduction="none"
    )
    wanted = loss(box, target, fmt=fmt)
    assert value[:-2:2].isnan().all()
    assert gradient[:-2:2].isnan().all()
    assert value[-2] == 0
    assert (gradient[-2] == 0).all()
    same(value[1::2], wanted.expand(len(odd)), 0)
    assert gradient[1::2].isfinite().all()
    assert loss(boxes, targets, fmt=fmt).isnan()


@every
@pytest.mark.parametrize("fmt", FORMATS)
def test_far_boxes_overflow_alike_on_both_paths(name, fmt):
    random = torch.Generator().manual_seed(1)
    sizes = torch.tensor([0.0, 1.0, 1e10, 1e18, 1e19, 1e25, 2e38, 3.4e38])
    boxes, targets = (
        sizes[torch.randint(8, (4000, 4), generator=random)]
        * (1 - 2 * torch.randint(2, (4000, 4), generator=random))
        for _ in range(2)
    )
    loss = getattr(functional, name)
    fast = loss(boxes, targets, fmt=fmt, reduction="none")
    with backend.use("reference"):
        plain = loss(boxes, targets, fmt=fmt, reduction="none")
    for kind in (torch.isnan, torch.isinf):
        assert torch.equal(kind(fast), kind(plain))


# --- inverted and collapsed boxes are mended ------------------------------------------------------

STARTS = {
    "inverted in x": [7.0, 3, 3, 7],
    "inverted in y": [3.0, 7, 7, 3],
    "inverted in both": [7.0, 7, 3, 3],
    "the same extent, reversed": [10.0, 10, 0, 0],
    "no width": [5.0, 3, 5, 7],
    "no height": [3.0, 5, 7, 5],
    "a point": [5.0, 5, 5, 5],
    "inverted far away": [40.0, 40, 30, 30],
}


@penalised
@pytest.mark.parametrize(
    ("fmt", "dtype"), [*((fmt, torch.float32) for fmt in FORMATS), ("xywh", torch.float64)]
)
def test_descent_mends_inverted_and_collapsed_boxes(name, fmt, dtype):
    loss = getattr(functional, name)
    boxes = as_format(torch.tensor(list(STARTS.values()), dtype=dtype), fmt).requires_grad_()
    target = as_format(torch.tensor([[0.0, 0, 10, 10]], dtype=dtype), fmt).expand(8, 4)
    assert (loss(boxes, target, fmt=fmt, reduction="none") >= 1 - 1e-6)[[0, 1, 2, 3, 7]].all()
    optimiser, least = torch.optim.Adam([boxes], lr=0.1), torch.full((8,), inf, dtype=dtype)
    for step in range(2000):
        optimiser.zero_grad()
        value = loss(boxes, target, fmt=fmt, reduction="none")
        value.sum().backward()
        optimiser.step()
        if step >= 1900:  # steps of 0.1 go on around the target
            least = torch.minimum(least, value.detach())
    assert (least < 0.01).all(), dict(zip(STARTS, least.tolist(), strict=True))
    assert (value < 0.1).all()


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_an_inverted_side_adds(name, dtype):
    """Here 4 of the 10 of the hull, with the slopes 1/h by the length and d/h² by the hull."""
    target = torch.tensor([[0.0, 0, 10, 10]], dtype=dtype)
    inside = torch.tensor([[7.0, 3, 3, 7]], dtype=dtype)
    _, slope = value_and_gradient(functional.iou_loss, inside, target, reduction="sum")
    same(slope, 3.7 * torch.tensor([[0.1, 0, -0.1, 0]]), 4e-3)
    value = functional.iou_loss(inside, target)
    same(value, 1.4)
    outside = torch.tensor([[12.0, 3, 8, 7]], dtype=dtype)  # the hull is 12 wide
    value, slope = value_and_gradient(functional.iou_loss, outside, target, reduction="sum")
    same(value, 1 + 4 / 12, 1e-6)
    same(slope, 3.7 * torch.tensor([[1 / 12 - 4 / 144, 0, -1 / 12, 0]]), 4e-3)
    flat = torch.tensor([[5.0, 3, 5, 7]], dtype=dtype)
    value, slope = value_and_gradient(getattr(functional, name), flat, target, reduction="sum")
    assert value >= 1
    assert slope[0, 0] > 0.3
    assert slope[0, 2] < -0.3


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_proper_boxes_have_nothing_added(name, dtype):
    pairs = box_pairs(random_boxes(100, dtype), random_boxes(100, dtype), None, "xyxy")
    assert (pairs.inverted == 0).all()


def test_the_released_gradient_of_ciou():
    """∂v/∂w = 8/π² (atan(w_t/h_t) − atan(w/h)) · −h, and w for h: without 1/(w² + h²)."""
    boxes, target_boxes = random_boxes(20), random_boxes(20)
    value, exact = value_and_gradient(functional.ciou_loss, boxes, target_boxes, reduction="sum")
    other, released = value_and_gradient(
        functional.ciou_loss, boxes, target_boxes, reduction="sum", variant="released"
    )
    same(other, value, 0)
    _, diou = value_and_gradient(functional.diou_loss, boxes, target_boxes, reduction="sum")
    w, h = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    tw, th = (target_boxes[:, 2:] - target_boxes[:, :2]).unbind(-1)
    tilt = torch.atan(tw / th) - torch.atan(w / h)
    v = 4 / pi**2 * tilt**2
    iou = 1 - functional.iou_loss(boxes, target_boxes, reduction="none")
    by_size = (8 / pi**2 * v / (1 - iou + v) * tilt)[:, None] * torch.stack([-h, w], -1)
    same(released, diou + 3.7 * torch.cat([-by_size, by_size], -1), 1e-10)
    same((exact - diou) * (w**2 + h**2)[:, None], released - diou, 1e-10)
    fast = value_and_gradient(
        functional.ciou_loss,
        boxes.float(),
        target_boxes.float(),
        reduction="sum",
        variant="released",
    )
    same(fast[0], value, 1e-5)
    same(fast[1], released, 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_released_gradient_of_a_tiny_box_fits_half_precision(dtype):
    boxes = torch.tensor([[0.5, 0.5, 6e-8, 1.2e-7]], dtype=dtype)
    target_boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2]], dtype=dtype)
    value, gradient = value_and_gradient(
        functional.ciou_loss, boxes, target_boxes, fmt="cxcywh", variant="released"
    )
    assert (gradient.abs() < 10).all()
    same(value, functional.ciou_loss(boxes, target_boxes, fmt="cxcywh"), 0)


# --- nothing --------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """How many operators run inside."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_boxes_cost_next_to_nothing(name, dtype):
    boxes = torch.zeros(0, 4, dtype=dtype, requires_grad=True)
    for options in ({}, {"weight": torch.zeros(0)}, {"count": 3}, {"reduction": "none"}):
        with Calls() as calls:
            value = getattr(functional, name)(boxes, boxes.detach(), **options)
        assert calls.count <= 15  # of some 60 for one box
        assert (value == 0).all()
        value.sum().backward()


@every
def test_nothing_that_counts_is_zero_with_a_graph(name):
    loss, boxes = getattr(functional, name), torch.full((3, 4), nan)
    agree(loss, ORACLES[name], boxes, boxes, void=torch.tensor(True), weight=torch.zeros(3))
    agree(loss, ORACLES[name], boxes[:0], boxes[:0])
