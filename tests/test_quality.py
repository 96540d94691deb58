"""Quality focal and varifocal loss: classification against a soft quality."""

from math import inf, log, nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from denseloss import ClassScores, functional
from tests.comparison import (
    DTYPES,
    Case,
    agree,
    elements,
    finite,
    masks,
    proof,
    reduced,
    same,
    value_and_gradient,
)

# --- oracles --------------------------------------------------------------------------------------


def bce(z, q):
    return -q * F.logsigmoid(z) - (1 - q) * F.logsigmoid(-z)


def in_range(q):
    """Background is 0 and below; a rounding above 1 is 1, what is further out is no quality."""
    return 0.0 if q <= 0 else q if q <= 1 else 1.0 if q <= 1.01 else nan


def quality_focal_loss(
    logits, quality, *, beta=2.0, alpha=None, weight=None, count=None, reduction="mean"
):
    """|q − p|^β BCE(p, q), in the YOLOv5 manner times α q + (1 − α)(1 − q)."""
    values, counts = {}, {}
    for place, z, raw, w in elements(logits, quality, weight, None):
        q = in_range(raw)
        price = 1.0 if alpha is None else alpha * q + (1 - alpha) * (1 - q)
        if beta == 0:
            focus = 1.0
        elif q in (0, 1):  # then |q − p| is p or 1 − p, whose power has a gradient down to 0
            focus = torch.exp(beta * F.logsigmoid(-z if q == 1 else z))
        else:
            gap = (q - torch.sigmoid(z)).abs()
            focus = gap**beta if gap > 0 else 0.0  # the cusp
        values[place] = w * price * focus * bce(z, q)
        counts[place] = w
    return reduced(values, counts, tuple(logits.shape), logits, reduction, count)


def varifocal_loss(
    logits,
    quality,
    *,
    alpha=0.75,
    gamma=2.0,
    detach_weight=False,
    weight=None,
    count=None,
    reduction="mean",
):
    """q BCE(p, q) where q > 0, α p^γ BCE(p, 0) where q = 0."""
    values, counts = {}, {}
    for place, z, raw, w in elements(logits, quality, weight, None):
        q = in_range(raw)
        if q != 0:
            value = q * bce(z, q)
        else:
            focus = torch.exp(gamma * F.logsigmoid(z)) if gamma != 0 else torch.ones(())
            if detach_weight:
                focus = focus.detach()
            value = alpha * focus * bce(z, 0.0)
        values[place] = w * value
        counts[place] = w
    return reduced(values, counts, tuple(logits.shape), logits, reduction, count)


ORACLES = {"quality_focal_loss": quality_focal_loss, "varifocal_loss": varifocal_loss}
every = pytest.mark.parametrize("name", sorted(ORACLES))

# --- equal to the oracle --------------------------------------------------------------------------


@st.composite
def qualities(draw) -> Case:
    """As detectors have them: most are 0, some are an IoU, a few are 1; any shape."""
    case = draw(masks(soft=False, ignore=False))
    quality = case.target.to(case.logits.dtype)
    found = draw(st.sampled_from([0.125, 0.6, 1.0]))
    quality = quality * torch.linspace(found, 1, quality.numel()).reshape(quality.shape)
    quality = quality.to(case.logits.dtype)
    if not case.options and draw(st.booleans()):
        flat = (tensor.flatten() for tensor in (case.logits, quality, case.void))
        logits, quality, void = flat
        return Case(logits, quality, {}, void)
    return Case(case.logits, quality, case.options, case.void)


@proof
@given(qualities(), st.sampled_from([0, 1, 1.5, 2, 3]), st.sampled_from([None, 0.25, 0.75]))
def test_quality_focal(case, beta, alpha):
    options = {"beta": beta, "alpha": alpha} | case.options
    loss = functional.quality_focal_loss
    agree(loss, quality_focal_loss, *case[:2], void=case.void, **options)


@proof
@given(
    qualities(),
    st.sampled_from([0, 0.5, 1, 2, 3]),
    st.sampled_from([0.25, 0.75, 1]),
    st.booleans(),
)
def test_varifocal(case, gamma, alpha, detach_weight):
    options = {"gamma": gamma, "alpha": alpha, "detach_weight": detach_weight} | case.options
    agree(functional.varifocal_loss, varifocal_loss, *case[:2], void=case.void, **options)


# --- values that can be checked by hand -----------------------------------------------------------


def test_quality_focal_by_hand():
    """At p = 1/2 the cross entropy is ln 2 for every quality."""
    logits, quality = torch.zeros(3), torch.tensor([0.0, 0.75, 1.0])
    loss = functional.quality_focal_loss(logits, quality, reduction="none")
    same(loss, [log(2) / 4, log(2) / 16, log(2) / 4])
    loss = functional.quality_focal_loss(logits, quality, alpha=0.25, reduction="none")
    same(loss, [0.75 * log(2) / 4, 0.375 * log(2) / 16, 0.25 * log(2) / 4])
    loss = functional.quality_focal_loss(logits, quality, beta=1, reduction="none")
    same(loss, [log(2) / 2, log(2) / 4, log(2) / 2])


def test_varifocal_by_hand():
    logits, quality = torch.zeros(3), torch.tensor([0.0, 0.75, 1.0])
    loss = functional.varifocal_loss(logits, quality, reduction="none")
    same(loss, [0.75 * 0.25 * log(2), 0.75 * log(2), log(2)])
    loss = functional.varifocal_loss(logits, quality, alpha=0.5, gamma=1, reduction="none")
    same(loss, [0.5 * 0.5 * log(2), 0.75 * log(2), log(2)])
    weight = torch.tensor([2.0, 0.0, 2.0])
    same(functional.varifocal_loss(logits, quality, weight=weight), (0.1875 + 1) / 2 * log(2))


@every
@pytest.mark.parametrize("q", [0.1, 0.5, 0.7, 0.9])
def test_the_minimum_is_the_quality(name, q):
    """Li et al. 2020: quality focal loss is least at σ = y; so is varifocal."""
    z = torch.tensor([log(q / (1 - q))], dtype=torch.float64)
    loss, quality = getattr(functional, name), torch.tensor([q], dtype=torch.float64)
    value, gradient = value_and_gradient(loss, z, quality)
    same(gradient, [0.0], 1e-12)
    for other in (z - 0.5, z + 0.5):
        assert loss(other, quality) > value


# --- identities -----------------------------------------------------------------------------------


def test_quality_focal_without_focus_is_binary_cross_entropy():
    logits, quality = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, quality)
    same(functional.quality_focal_loss(logits, quality, beta=0), expected, 1e-12)


def test_quality_focal_of_hard_labels_is_focal():
    """The generalisation of Li et al. 2020: with q in {0, 1} it is focal loss, γ = β."""
    logits, mask = torch.randn(2, 3, 8, dtype=torch.float64), torch.randint(2, (2, 3, 8)).double()
    same(
        functional.quality_focal_loss(logits, mask, beta=1.5),
        functional.binary_focal_loss(logits, mask, gamma=1.5, alpha=None),
        1e-12,
    )
    same(
        functional.quality_focal_loss(logits, mask, alpha=0.25),
        functional.binary_focal_loss(logits, mask, alpha=0.25),
        1e-12,
    )


def test_varifocal_of_hard_labels_is_half_focal():
    """Negatives are focal loss with weight α, positives plain cross entropy."""
    logits = torch.randn(9, dtype=torch.float64)
    focal = functional.binary_focal_loss(
        logits.reshape(1, 1, 9), torch.zeros(1, 1, 9), alpha=None, reduction="none"
    )
    same(
        functional.varifocal_loss(logits, torch.zeros(9), reduction="none"),
        0.75 * focal.flatten(),
        1e-12,
    )
    same(
        functional.varifocal_loss(logits, torch.ones(9)),
        F.binary_cross_entropy_with_logits(logits, torch.ones(9).double()),
        1e-12,
    )


def test_detached_weight_keeps_the_value_and_drops_a_gradient():
    """d(α p^γ b) is α p^γ db when the weight is constant: at z = 0, γ = 2, α p^γ p against more."""
    z, q = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
    value, whole = value_and_gradient(functional.varifocal_loss, z, q, reduction="sum")
    constant, part = value_and_gradient(
        functional.varifocal_loss, z, q, reduction="sum", detach_weight=True
    )
    same(constant, value, 0)
    same(part / 3.7, [0.75 * 0.25 * 0.5])
    same(whole / 3.7, [0.75 * (0.25 * 0.5 + 2 * 0.5 * 0.25 * log(2))])


# --- outside the range ----------------------------------------------------------------------------


def test_varifocal_of_a_negative_quality_is_background():
    """As yolov3 #901 has it: a generalised IoU as quality. As written the loss would fall to −∞."""
    for q, z, value, slope in [
        (0.0, 8.0, 5.9962, 0.7533),
        (-0.3, 8.0, 5.9962, 0.7533),
        (-1e-8, 8.0, 5.9962, 0.7533),
        (-0.3, 60.0, 45.0, 0.75),
        (-7.0, 60.0, 45.0, 0.75),
    ]:
        found = value_and_gradient(
            functional.varifocal_loss, torch.tensor([[z]]), torch.tensor([[q]])
        )
        same(found[0], value, 1e-4)
        same(found[1], [[3.7 * slope]], 1e-3)
    assert functional.varifocal_loss(torch.tensor([[60.0]]), torch.tensor([[1.2]])).isnan()


@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compact", [False, True])
def test_qualities_outside_their_range(name, dtype, compact):
    """All below 0 is background, a rounding above 1 is 1, and NaN is no quality."""
    loss = getattr(functional, name)
    z = torch.linspace(-60, 60, 9).to(dtype)

    def found(q, **options):
        quality = torch.full((9,), q, dtype=dtype)
        if compact:  # the score of class 1 of two
            given = ClassScores(torch.ones(9, dtype=torch.long), quality)
            logits = torch.stack([torch.zeros_like(z), z], -1)
        else:
            given, logits = quality, z
        return value_and_gradient(loss, logits, given, reduction="none", **options)

    background, perfect = found(0.0), found(1.0)
    for q in (-1e-4, -0.3, -0.75, -1e4, -inf):
        for one, other in zip(found(q), background, strict=True):
            assert torch.equal(one, other)
    for one, other in zip(found(1.008), perfect, strict=True):
        assert torch.equal(one, other)
    for q in (1.02, 1.4, 255.0, inf, nan):
        value, gradient = found(q)
        wrong, right = (value[:, 1], value[:, 0]) if compact else (value, torch.zeros(()))
        assert wrong.isnan().all()
        assert right.isfinite().all()
        assert gradient.isnan().any()
        value, gradient = found(q, weight=torch.zeros(9, 1) if compact else torch.zeros(9))
        assert (value == 0).all()
        assert (gradient == 0).all()


@every
def test_a_quality_that_learns_is_pushed_only_inside_its_range(name):
    z = torch.zeros(4, dtype=torch.float64)
    q = torch.tensor([-0.2, 0.3, 1.0, 1.005], dtype=torch.float64, requires_grad=True)
    getattr(functional, name)(z, q, reduction="sum").backward()
    assert q.grad[0] == q.grad[3] == 0
    assert (q.grad[1:3] != 0).all()


# --- the ends of the range ------------------------------------------------------------------------


@every
@pytest.mark.parametrize("power", [0, 0.25, 0.5, 1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(name, power, dtype):
    loss, word = getattr(functional, name), {"q": "beta", "v": "gamma"}[name[0]]
    z = torch.tensor([-1e4, -90, -17, -9, 0, 9, 17, 90, 1e4], dtype=dtype)
    for q in (0.0, 1.0):
        quality = torch.full((9,), q, dtype=dtype)
        agree(loss, ORACLES[name], z, quality, **{word: power})
    for q in (0.0, 0.25, 0.5, 1.0):  # z = 0 and q = 1/2 is the cusp of |q − p|^β
        finite(loss, z, torch.full((9,), q, dtype=dtype), **{word: power})


@every
def test_nothing_that_counts_is_zero_with_a_graph(name):
    nothing = torch.full((3, 4), float("nan"))
    loss = getattr(functional, name)
    agree(loss, ORACLES[name], nothing, nothing, void=torch.tensor(True), weight=torch.zeros(3, 1))
    agree(loss, ORACLES[name], nothing[:0], nothing[:0])
