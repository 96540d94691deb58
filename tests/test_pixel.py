"""Cross entropy and focal losses: one value per pixel or element."""

from math import exp, inf, log, nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from denseloss import functional
from tests.comparison import (
    DTYPES,
    Case,
    agree,
    class_maps,
    elements,
    finite,
    masks,
    pixels,
    proof,
    reduced,
    same,
    value_and_gradient,
)

# --- oracles --------------------------------------------------------------------------------------


def cross_entropy_loss(
    logits,
    target,
    *,
    class_weight=None,
    label_smoothing=0.0,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    """−Σ w cw[t] log p_t / Σ w cw[t]; a soft target's mean divides by Σ w."""
    values, counts = {}, {}
    classes = logits.shape[1]
    cw = [1.0] * classes if class_weight is None else class_weight.double().tolist()
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        log_p = z.log_softmax(0)
        value = 0.0
        for c in range(classes):
            smoothed = (1 - label_smoothing) * t[c] + label_smoothing / classes
            value = value - cw[c] * smoothed * log_p[c]
        values[place] = w * value
        soft = target.is_floating_point()
        counts[place] = w if soft else w * sum(cw[c] * t[c] for c in range(classes))
    return reduced(values, counts, (len(logits), *logits.shape[2:]), logits, reduction, count)


def balanced_cross_entropy_loss(
    logits, target, *, weight=None, ignore_index=-100, count=None, reduction="mean"
):
    """Cross entropy with class weight 1/(pixels of the class in the batch)."""
    classes = logits.shape[1]
    pixel_count = [0.0] * classes
    for pixel in pixels(logits, target, weight, ignore_index):
        for c in range(classes):
            pixel_count[c] += pixel.target[c]
    cw = [1 / found if found != 0 else 0.0 for found in pixel_count]
    values, counts = {}, {}
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        log_p = z.log_softmax(0)
        values[place] = -w * sum(cw[c] * t[c] * log_p[c] for c in range(classes))
        counts[place] = w * sum(cw[c] * t[c] for c in range(classes))
    return reduced(values, counts, (len(logits), *logits.shape[2:]), logits, reduction, count)


def focal_loss(
    logits,
    target,
    *,
    gamma=2.0,
    alpha=None,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    """Σ_c t_c α_c (1 − p_c)^γ (−log p_c), mean over Σ w."""
    values, counts = {}, {}
    classes = logits.shape[1]
    if alpha is None:
        alpha = 1.0
    price = alpha.double().tolist() if isinstance(alpha, Tensor) else [alpha] * classes
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        value = 0.0
        for c in range(classes):
            log_p = z.log_softmax(0)[c]
            others = torch.cat([z[:c], z[c + 1 :]])
            log_rest = others.logsumexp(0) - z.logsumexp(0)  # log(1 − p)
            focus = torch.exp(gamma * log_rest) if gamma != 0 else 1.0
            value = value - t[c] * price[c] * focus * log_p
        values[place] = w * value
        counts[place] = w
    return reduced(values, counts, (len(logits), *logits.shape[2:]), logits, reduction, count)


def in_range(t):
    """A mask a little outside [0, 1] is brought into it; further out it is none."""
    return min(max(t, 0.0), 1.0) if -0.5 < t < 1.5 else nan


def binary_cross_entropy_loss(
    logits,
    target,
    *,
    pos_weight=None,
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    """−(pos_weight t log p + (1 − t) log(1 − p)), mean over Σ w."""
    if not isinstance(pos_weight, Tensor):
        pos_weight = torch.tensor(1.0 if pos_weight is None else pos_weight)
    if pos_weight.ndim == 1:
        pos_weight = pos_weight.reshape(-1, *(1 for _ in logits.shape[2:]))
    pos_weight = pos_weight.double().expand(logits.shape)
    values, counts = {}, {}
    for place, z, raw, w in elements(logits, target, weight, ignore_index):
        t = in_range(raw)
        value = -pos_weight[place] * t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)
        values[place] = w * value
        counts[place] = w
    return reduced(values, counts, tuple(logits.shape), logits, reduction, count)


def binary_focal_loss(
    logits,
    target,
    *,
    gamma=2.0,
    alpha=0.25,
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    """α_t (1 − p_t)^γ BCE, mean over Σ w."""
    values, counts = {}, {}
    for place, z, raw, w in elements(logits, target, weight, ignore_index):
        t = in_range(raw)
        alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
        bce = -t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)
        if gamma == 0:
            focus = 1.0
        elif t in (0, 1):  # 1 − p_t is p or 1 − p, whose power has a gradient down to 0
            focus = torch.exp(gamma * F.logsigmoid(-z if t == 1 else z))
        else:
            p = torch.sigmoid(z)
            focus = (1 - (p * t + (1 - p) * (1 - t))) ** gamma
        values[place] = w * alpha_t * focus * bce
        counts[place] = w
    return reduced(values, counts, tuple(logits.shape), logits, reduction, count)


ORACLES = {
    "cross_entropy_loss": cross_entropy_loss,
    "balanced_cross_entropy_loss": balanced_cross_entropy_loss,
    "focal_loss": focal_loss,
    "binary_cross_entropy_loss": binary_cross_entropy_loss,
    "binary_focal_loss": binary_focal_loss,
}
EXCLUSIVE = ["cross_entropy_loss", "balanced_cross_entropy_loss", "focal_loss"]
INDEPENDENT = ["binary_cross_entropy_loss", "binary_focal_loss"]

# --- equal to the oracle --------------------------------------------------------------------------

gammas = st.sampled_from([0, 0.25, 0.5, 1, 2, 5.0])


def per_class(case: Case) -> Tensor:
    return torch.linspace(0.3, 1.9, case.logits.shape[1])


@proof
@given(class_maps(), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy(case, weigh_classes, label_smoothing):
    class_weight = per_class(case) if weigh_classes else None
    agree(
        functional.cross_entropy_loss,
        cross_entropy_loss,
        case.logits,
        case.target,
        void=case.void,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        **case.options,
    )


@proof
@given(class_maps())
def test_balanced_cross_entropy(case):
    agree(
        functional.balanced_cross_entropy_loss,
        balanced_cross_entropy_loss,
        case.logits,
        case.target,
        void=case.void,
        **case.options,
    )


@proof
@given(class_maps(), gammas, st.sampled_from(["none", "number", "tensor"]))
def test_focal(case, gamma, price):
    agree(
        functional.focal_loss,
        focal_loss,
        case.logits,
        case.target,
        void=case.void,
        gamma=gamma,
        alpha={"none": None, "number": 0.7, "tensor": per_class(case)}[price],
        **case.options,
    )


@proof
@given(masks(), st.sampled_from(["none", "number", "scalar", "channels", "map"]))
def test_binary_cross_entropy(case, price):
    channels, space = case.logits.shape[1], case.logits.shape[2:]
    pos_weight = {
        "none": None,
        "number": 3.0,
        "scalar": torch.tensor(3.0),
        "channels": per_class(case),
        "map": torch.linspace(0.5, 4, channels).reshape(-1, *(1 for _ in space)),
    }[price]
    agree(
        functional.binary_cross_entropy_loss,
        binary_cross_entropy_loss,
        case.logits,
        case.target,
        void=case.void,
        pos_weight=pos_weight,
        **case.options,
    )


@proof
@given(masks(), gammas, st.sampled_from([None, 0.25, 0.9]))
def test_binary_focal(case, gamma, alpha):
    agree(
        functional.binary_focal_loss,
        binary_focal_loss,
        case.logits,
        case.target,
        void=case.void,
        gamma=gamma,
        alpha=alpha,
        **case.options,
    )


# --- values that can be checked by hand -----------------------------------------------------------


def test_cross_entropy_by_hand():
    """Pixel 1: p = (1/2, 1/2); pixel 2: p = (3/4, 1/4)."""
    logits = torch.tensor([[[0.0, log(3.0)], [0.0, 0.0]]])
    target = torch.tensor([[0, 1]])
    same(
        functional.cross_entropy_loss(logits, target, reduction="none"), [[log(2.0), 2 * log(2.0)]]
    )
    same(functional.cross_entropy_loss(logits, target), 1.5 * log(2.0))
    class_weight = torch.tensor([1.0, 3.0])
    same(
        functional.cross_entropy_loss(logits, target, class_weight=class_weight),
        (1 + 3 * 2) / 4 * log(2.0),
    )
    same(
        functional.cross_entropy_loss(logits, target, weight=torch.tensor([[3.0, 1.0]])),
        (3 + 2) / 4 * log(2.0),
    )


def test_balanced_cross_entropy_by_hand():
    """Three pixels of class 0 at ln 2 each and one of class 1 at 2 ln 2: each class counts half."""
    logits = torch.tensor([[[0.0, 0.0, 0.0, log(3.0)], [0.0, 0.0, 0.0, 0.0]]])
    target = torch.tensor([[0, 0, 0, 1]])
    same(functional.balanced_cross_entropy_loss(logits, target), (log(2.0) + 2 * log(2.0)) / 2)
    same(
        functional.balanced_cross_entropy_loss(logits, target, reduction="none"),
        [[log(2.0) / 3] * 3 + [2 * log(2.0)]],
    )


def test_every_present_class_has_the_same_total_weight():
    logits = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(2, 5, 5, dtype=torch.long)
    target[0, 0, :3] = 1
    target[1, 2, 2] = 3  # class 2 is absent
    nll = F.cross_entropy(logits, target, reduction="none")
    expected = sum(nll[target == c].mean() for c in (0, 1, 3)) / 3
    same(functional.balanced_cross_entropy_loss(logits, target), expected, 1e-12)


def test_balanced_cross_entropy_counts_what_the_call_sees():
    """The same image twice changes nothing, and void pixels do not count."""
    logits, target = torch.randn(1, 3, 6), torch.tensor([[0, 0, 0, 0, 1, 2]])
    alone = functional.balanced_cross_entropy_loss(logits, target)
    same(functional.balanced_cross_entropy_loss(logits.repeat(2, 1, 1), target.repeat(2, 1)), alone)
    wider = torch.cat([logits, torch.randn(1, 3, 4)], -1)
    void = torch.cat([target, torch.full((1, 4), -100)], -1)
    same(functional.balanced_cross_entropy_loss(wider, void), alone)


def test_balanced_cross_entropy_is_hed_for_two_classes():
    """Xie & Tu 2015 weigh edges by |Y−|/|Y|, the rest by |Y+|/|Y|; ours divides by their sum."""
    logits, target = torch.randn(1, 2, 20), (torch.arange(20) < 3).long()[None]
    nll = F.cross_entropy(logits, target, reduction="none")
    beta = torch.where(target == 1, 17 / 20, 3 / 20)
    same(functional.balanced_cross_entropy_loss(logits, target), (beta * nll).sum() / beta.sum())


def test_focal_by_hand():
    """At p = 1/2: (1/2)² ln 2, times α = 1/4 in the binary form."""
    zeros = torch.zeros(1, 2, 1)
    same(functional.focal_loss(zeros, torch.tensor([[1]])), 0.25 * log(2.0))
    same(
        functional.focal_loss(zeros, torch.tensor([[1]]), alpha=torch.tensor([1.0, 3.0])),
        0.75 * log(2.0),
    )
    one = torch.zeros(1, 1, 1)
    same(functional.binary_focal_loss(one, torch.ones(1, 1, 1)), 0.0625 * log(2.0))
    same(functional.binary_focal_loss(one, torch.zeros(1, 1, 1)), 0.1875 * log(2.0))
    same(functional.binary_focal_loss(one, torch.ones(1, 1, 1), alpha=None), 0.25 * log(2.0))


@pytest.mark.parametrize(("p", "times"), [(0.9, 100), (0.968, 1000)])
def test_focal_is_the_papers_hundred_and_thousand_times_smaller(p, times):
    """Lin et al. 2017, section 3.2: γ = 2 against cross entropy at p_t = 0.9 and p_t ≈ 0.968."""
    z = torch.tensor(log(p / (1 - p))).reshape(1, 1, 1)
    focal = functional.binary_focal_loss(z, torch.ones(1, 1, 1), alpha=None)
    entropy = functional.binary_cross_entropy_loss(z, torch.ones(1, 1, 1))
    assert (entropy / focal).item() == pytest.approx(times, rel=0.03)


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, log(3.0)]]])  # p = 1/2, 3/4
    target = torch.tensor([[[1.0, 0.0]]])
    expected = [[[log(2.0), 2 * log(2.0)]]]
    same(functional.binary_cross_entropy_loss(logits, target, reduction="none"), expected)
    same(functional.binary_cross_entropy_loss(logits, target, pos_weight=4.0), 3 * log(2.0))
    weight = torch.tensor([[[3.0, 1.0]]])
    same(functional.binary_cross_entropy_loss(logits, target, weight=weight), 5 / 4 * log(2.0))


def test_label_smoothing_of_equal_logits_changes_nothing():
    """Szegedy et al. 2016: the smoothed target still sums to 1."""
    target = torch.tensor([[2, 0]])
    for label_smoothing in (0.0, 0.1, 1.0):
        loss = functional.cross_entropy_loss(
            torch.zeros(1, 5, 2), target, label_smoothing=label_smoothing
        )
        same(loss, log(5.0))


def test_soft_target_minimum_is_the_target():
    """The gradient of cross entropy in the logits is p − t."""
    t = torch.tensor([[[0.2], [0.5], [0.3]]], dtype=torch.float64)
    _, gradient = value_and_gradient(functional.cross_entropy_loss, t.log(), t)
    same(gradient, torch.zeros(1, 3, 1), 1e-12)


# --- identities -----------------------------------------------------------------------------------


@proof
@given(class_maps())
def test_focal_without_focus_is_cross_entropy(case):
    entropy = functional.cross_entropy_loss
    agree(
        lambda *a, **k: functional.focal_loss(*a, gamma=0, **k),
        lambda *a, **k: entropy(*a, **k).double(),
        *case[:2],
        **case.options,
    )


@proof
@given(masks())
def test_binary_focal_without_focus_and_balance_is_binary_cross_entropy(case):
    entropy = functional.binary_cross_entropy_loss
    agree(
        lambda *a, **k: functional.binary_focal_loss(*a, gamma=0, alpha=None, **k),
        lambda *a, **k: entropy(*a, **k).double(),
        *case[:2],
        **case.options,
    )


def test_softmax_of_two_is_the_sigmoid_of_the_difference():
    logits = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    target = torch.randint(2, (2, 3, 4))
    difference, mask = logits[:, 1:] - logits[:, :1], target[:, None]
    same(
        functional.cross_entropy_loss(logits, target),
        functional.binary_cross_entropy_loss(difference, mask),
        1e-12,
    )
    same(
        functional.focal_loss(logits, target, gamma=1.5),
        functional.binary_focal_loss(difference, mask, gamma=1.5, alpha=None),
        1e-12,
    )


@pytest.mark.parametrize("name", EXCLUSIVE)
def test_a_constant_added_to_all_logits_changes_nothing(name):
    """Exact in float32 for multiples of 1/64 up to 1e4, so only the loss can lose digits."""
    loss = getattr(functional, name)
    logits = (torch.randn(2, 3, 4, 4) * 64).round() / 64
    target = torch.randint(3, (2, 4, 4))
    for reduction in ("none", "mean"):
        value, gradient = value_and_gradient(loss, logits, target, reduction=reduction)
        shifted, slope = value_and_gradient(loss, logits + 1e4, target, reduction=reduction)
        same(shifted, value)
        same(slope, gradient)


# --- the ends of the range ------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 0.25, 0.5, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_focal_gradient_is_finite_for_every_gamma(gamma, dtype):
    z = torch.tensor([-1e4, -90, -17, -9, 0, 9, 17, 90, 1e4], dtype=dtype)
    for label in (0, 1):
        mask = torch.full((1, 1, 9), label)
        binary = functional.binary_focal_loss
        finite(binary, z.reshape(1, 1, 9), mask, gamma=gamma)
        agree(binary, binary_focal_loss, z.reshape(1, 1, 9), mask, gamma=gamma)
        logits = torch.stack([-z / 2, z / 2])[None]
        agree(functional.focal_loss, focal_loss, logits, mask[:, 0], gamma=gamma)


@pytest.mark.parametrize("gamma", [0, 0.25, 0.5, 1, 2])
def test_binary_focal_with_soft_targets_is_finite(gamma):
    z = torch.tensor([-1e4, -30, 0, 30, 1e4]).reshape(1, 1, 5)
    for t in (0.0, 0.3, 0.5, 1.0):
        finite(functional.binary_focal_loss, z, torch.full((1, 1, 5), t), gamma=gamma)


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("name", EXCLUSIVE)
def test_saturated_softmax(name, scale):
    logits = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0], [0.0, 0.0, -1.0]]).T[None] * scale
    for labels in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        agree(getattr(functional, name), ORACLES[name], logits, torch.tensor([labels]))


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_saturated_sigmoid(name, scale):
    logits = torch.tensor([[[1.0, -1.0, 0.5, -0.5]]]) * scale
    for mask in ([0, 1, 1, 0], [1, 0, 0, 1]):
        agree(getattr(functional, name), ORACLES[name], logits, torch.tensor([[mask]]))


def test_cross_entropy_of_a_sure_and_right_pixel_keeps_its_small_value():
    """−log p ≈ e^−z must not be rounded to 0 by forming p first."""
    z = torch.tensor([[[12.0], [0.0]]])
    loss = functional.cross_entropy_loss(z, torch.tensor([[0]]))
    assert loss.item() == pytest.approx(exp(-12), rel=1e-2)
    loss = functional.binary_cross_entropy_loss(torch.full((1, 1, 1), 40.0), torch.ones(1, 1, 1))
    assert loss.item() == pytest.approx(exp(-40), rel=1e-3)


@pytest.mark.parametrize("label", [3, 99, -1, -7])
@pytest.mark.parametrize("name", EXCLUSIVE)
def test_a_label_that_is_no_class_never_gives_a_finite_loss(name, label):
    loss = getattr(functional, name)
    logits, target = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, 0], [2, label, 1, 0]])
    assert loss(logits, target).isnan()
    assert loss(logits, target, reduction="sum").isnan()
    each = loss(logits, target, reduction="none")
    assert each[1, 1].isnan()
    if name != "balanced_cross_entropy_loss":  # there the label has no count of its own
        assert each.isnan().sum() == 1
    assert loss(logits, target, ignore_index=label).isfinite()


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_nothing_that_counts_is_zero_with_a_graph(name):
    loss = getattr(functional, name)
    logits = torch.full((2, 3, 4), float("nan"))
    target = torch.full((2, 4) if name in EXCLUSIVE else (2, 3, 4), 255)
    for options in ({"ignore_index": 255}, {"weight": torch.zeros(2, 1, 4)}):
        agree(loss, ORACLES[name], logits, target, void=torch.tensor(True), **options)
    agree(loss, ORACLES[name], logits[:0], target[:0])
    agree(loss, ORACLES[name], logits[..., :0], target[..., :0])


@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_a_little_outside_its_range_is_brought_into_it(name, dtype):
    """Resampling overshoots. As written, −0.1 would reward sure scores without a lower bound."""
    loss = getattr(functional, name)
    z = torch.tensor([[[-60.0, -8, 0, 8, 60]]], dtype=dtype)
    for out, end in ((-0.25, 0.0), (-1e-3, 0.0), (1.25, 1.0), (1.004, 1.0)):
        for kind in (dtype, torch.float32, torch.float64):
            given, wanted = (torch.full((1, 1, 5), t, dtype=kind) for t in (out, end))
            one = value_and_gradient(loss, z, given, reduction="none")
            other = value_and_gradient(loss, z, wanted, reduction="none")
            same(one[0], other[0], 1e-6)
            same(one[1], other[1], 1e-6)
            assert (one[0] >= 0).all()
    for out in (-0.5, 1.5, 255.0, -inf, inf, nan):
        given = torch.tensor([[[0.0, 1.0, out, 1.0, 0.0]]], dtype=dtype)
        value = loss(z, given, reduction="none")
        assert value.isnan().flatten().tolist() == [False, False, True, False, False]
        masked = loss(z, given, weight=(given == given.clamp(0, 1)).float(), reduction="none")
        assert masked.isfinite().all()


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_mask_of_labels_is_as_ever_beside_one_that_overshoots(name):
    """A block with one odd target takes another way through the kernel than one without."""
    loss = getattr(functional, name)
    z, mask = torch.randn(1, 1, 5000), (torch.rand(1, 1, 5000) < 0.3).float()
    wanted = value_and_gradient(loss, z, mask, reduction="none")
    mask[0, 0, 17] = 1.2 if mask[0, 0, 17] else -0.2
    mask[0, 0, 4000] = 1.2 if mask[0, 0, 4000] else -0.2
    found = value_and_gradient(loss, z, mask, reduction="none")
    same(found[0], wanted[0])
    same(found[1], wanted[1])
