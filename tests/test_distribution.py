"""Distribution focal loss and the mean of the distribution it trains."""

from math import log, nan

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from tests.comparison import (
    DTYPES,
    Case,
    agree,
    assert_gradient,
    assert_value,
    finite,
    places,
    poisoned,
    proof,
    randoms,
    reduced,
    same,
    value_and_gradient,
)

# --- oracles --------------------------------------------------------------------------------------


def distribution_focal_loss(logits, target, *, weight=None, count=None, reduction="mean"):
    """−(i + 1 − y) log p_i − (y − i) log p_{i+1}, i = ⌊y⌋, y clamped to [0, k − 1]."""
    bins = logits.shape[-1]
    weight = (torch.ones(()) if weight is None else weight).expand(target.shape)
    values, counts = {}, {}
    for place in places(target.shape):
        w = float(weight[place])
        if w == 0:
            continue
        y = float(target[place].double().clamp(0, bins - 1))
        log_p = logits[place].double().log_softmax(0)
        i = int(y) if y == y else 0  # NaN stays in the value
        value = -(i + 1 - y) * log_p[i]
        if y > i:
            value = value - (y - i) * log_p[i + 1]
        values[place] = w * value
        counts[place] = w
    return reduced(values, counts, tuple(target.shape), logits, reduction, count)


def distribution_mean(logits):
    """Σ i p_i."""
    p = logits.double().softmax(-1)
    return sum(i * p[..., i] for i in range(p.shape[-1]))


ORACLES = {
    "distribution_focal_loss": distribution_focal_loss,
    "distribution_mean": distribution_mean,
}

# --- equal to the oracle --------------------------------------------------------------------------

shapes = st.sampled_from([(), (1,), (5,), (3, 4), (2, 3, 2), (0,)])


@st.composite
def distributions(draw) -> Case:
    random, dtype, shape = draw(randoms), draw(st.sampled_from(DTYPES)), draw(shapes)
    bins = draw(st.integers(2, 9))
    logits = random.normal(*shape, bins) * 3
    target = random.uniform(*shape) * (bins + 1) - 1  # some below 0, some above k − 1
    exact = random.uniform(*shape) < 0.3
    target = torch.where(exact, target.round(), target)
    options = {}
    void = torch.zeros(shape, dtype=torch.bool)
    if draw(st.booleans()):
        void = random.uniform(*shape) < draw(st.sampled_from([0.0, 0.4, 1.0]))
        options["weight"] = torch.where(void, 0.0, random.uniform(*shape) * 2 + 0.1).float()
        logits = poisoned(logits, void[..., None], random)
        target = torch.where(void, random.choice([nan, 1e9, -1e9], *shape), target)
    kind = draw(st.sampled_from([dtype, torch.float32]))
    return Case(logits.to(dtype), target.to(kind), options, void[..., None])


@proof
@given(distributions())
def test_distribution_focal(case):
    loss = functional.distribution_focal_loss
    agree(loss, distribution_focal_loss, *case[:2], void=case.void, **case.options)


@proof
@given(randoms, shapes, st.integers(1, 9), st.sampled_from(DTYPES))
def test_distribution_mean(random, shape, bins, dtype):
    logits = (random.normal(*shape, bins) * 3).to(dtype)
    value, gradient = value_and_gradient(functional.distribution_mean, logits)
    expected, slope = value_and_gradient(distribution_mean, logits.double())
    assert_value(value, expected, dtype)
    assert_gradient(gradient, slope, dtype)


# --- values that can be checked by hand -----------------------------------------------------------


def test_by_hand():
    """p = 1/2, 1/4, 1/8, 1/8."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for y, expected in [
        (0.0, log(2)),
        (0.5, log(2) / 2 + log(4) / 2),
        (1.25, 0.75 * log(4) + 0.25 * log(8)),
        (2.0, log(8)),
        (3.0, log(8)),
        (-4.0, log(2)),
        (9.0, log(8)),
    ]:
        same(functional.distribution_focal_loss(logits, torch.tensor(y)), expected)
    same(functional.distribution_mean(logits), 0.25 + 2 / 8 + 3 / 8)


def test_a_whole_target_is_cross_entropy():
    """Also the last one, y = k − 1, where others index one bin too far."""
    logits = torch.randn(8, 8, dtype=torch.float64)
    target = torch.arange(8)
    for reduction in ("none", "mean", "sum"):
        same(
            functional.distribution_focal_loss(logits, target.double(), reduction=reduction),
            F.cross_entropy(logits, target, reduction=reduction),
            1e-12,
        )


def test_the_minimum_is_the_target():
    """Li et al. 2020, after equation 6: p_i = i + 1 − y, so the mean decodes to y."""
    for y in (0.3, 2.0, 4.75):
        p = torch.full((6,), 1e-300, dtype=torch.float64)
        i = int(y)
        p[i], p[i + 1] = i + 1 - y, y - i if y > i else 1e-300
        logits = p.log()
        target = torch.tensor(y, dtype=torch.float64)
        value, gradient = value_and_gradient(
            functional.distribution_focal_loss, logits, target, reduction="sum"
        )
        same(gradient, torch.zeros(6), 1e-12)
        same(value, -sum(q * log(q) for q in (i + 1 - y, y - i) if q > 0), 1e-12)
        same(functional.distribution_mean(logits), y, 1e-12)


def test_equal_logits_cost_log_k_for_every_target():
    target = torch.linspace(0, 15, 31)
    loss = functional.distribution_focal_loss(torch.zeros(31, 16), target, reduction="none")
    same(loss, torch.full((31,), log(16)))
    same(functional.distribution_mean(torch.zeros(31, 16)), torch.full((31,), 7.5))


@pytest.mark.parametrize("bins", [2, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_at_and_beyond_the_ends(bins, dtype):
    """Outside [0, k − 1] is clamped, and trained as if it were the end."""
    logits = torch.randn(6, bins).to(dtype)
    last = bins - 1.0
    beyond = torch.tensor([-1e4, -0.5, 0.0, last, last + 0.5, 1e4], dtype=dtype)
    ends = torch.tensor([0.0, 0, 0, last, last, last], dtype=dtype)
    loss = functional.distribution_focal_loss
    agree(loss, distribution_focal_loss, logits, beyond)
    same(loss(logits, beyond, reduction="none"), loss(logits, ends, reduction="none"), 0)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_the_ends_of_the_range(scale):
    logits = torch.tensor([[1.0, -1, 0], [-1, 1, -1], [0, 0, 1]]) * scale
    for y in (0.0, 0.5, 1.0, 1.7, 2.0):
        target = torch.full((3,), y)
        finite(functional.distribution_focal_loss, logits, target)
        agree(functional.distribution_focal_loss, distribution_focal_loss, logits, target)
    same(functional.distribution_mean(logits), [0, 1, 2])


def test_a_target_that_is_no_number_never_scores():
    loss = functional.distribution_focal_loss
    value = loss(torch.randn(2, 4), torch.tensor([nan, 1.0]), reduction="none")
    assert value[0].isnan()
    assert value[1].isfinite()


def test_nothing_that_counts_is_zero_with_a_graph():
    logits, target = torch.full((3, 4), nan), torch.full((3,), nan)
    loss, void = functional.distribution_focal_loss, torch.tensor(True)
    agree(loss, distribution_focal_loss, logits, target, void=void, weight=torch.zeros(3))
    agree(loss, distribution_focal_loss, logits[:0], target[:0])
