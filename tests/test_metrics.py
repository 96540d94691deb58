"""F scores: the overlap sums of hard predictions."""

from math import nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from tests.comparison import assert_value, class_maps, masks, proof, same, value_and_gradient
from tests.test_region import binary_members, dice_score, members, region

# --- oracles --------------------------------------------------------------------------------------


def hard(found, threshold):
    for image, c, p, t, w in found:
        yield image, c, p if threshold is None else (p > threshold).double(), t, w


def scores(found, logits, beta, smooth, pool, absent, class_weight, reduction):
    dice = dice_score(beta, smooth)

    def miss(i, p, t):
        return 1 - dice(i, p, t)

    return region(found, miss, logits, pool, absent, class_weight, reduction)


def f_score(
    logits,
    target,
    *,
    beta=1.0,
    threshold=0.5,
    smooth=1e-5,
    pool="batch",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
):
    found = hard(members(logits, target, weight, ignore_index), threshold)
    return scores(found, logits, beta, smooth, pool, absent, class_weight, reduction)


def binary_f_score(
    logits,
    target,
    *,
    beta=1.0,
    threshold=0.5,
    smooth=1e-5,
    pool="batch",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=None,
    reduction="mean",
):
    found = hard(binary_members(logits, target, weight, ignore_index), threshold)
    return scores(found, logits, beta, smooth, pool, absent, class_weight, reduction)


ORACLES = {"f_score": f_score, "binary_f_score": binary_f_score}
every = pytest.mark.parametrize("name", list(ORACLES))

# --- equal to the oracle --------------------------------------------------------------------------


def compare(name, case, data):
    options = case.options | {
        "beta": data.draw(st.sampled_from([0.5, 1, 2])),
        "threshold": data.draw(st.sampled_from([None, 0.3, 0.5, 0.8])),
        "smooth": data.draw(st.sampled_from([0, 1e-5, 1])),
        "pool": data.draw(st.sampled_from(["image", "batch"])),
        "absent": data.draw(st.sampled_from(["count", "skip"])),
    }
    if data.draw(st.booleans()):
        options["class_weight"] = torch.linspace(0.3, 1.9, case.logits.shape[1])
    if case.void.all():
        return  # a score of nothing is neither right nor wrong
    for reduction in ("none", "mean", "sum"):
        actual = getattr(functional, name)(*case[:2], reduction=reduction, **options)
        expected = ORACLES[name](*case[:2], reduction=reduction, **options)
        assert_value(actual, expected, case.logits.dtype)


@proof
@given(case=class_maps(), data=st.data())
def test_f_score(case, data):
    compare("f_score", case, data)


@proof
@given(case=masks(), data=st.data())
def test_binary_f_score(case, data):
    compare("binary_f_score", case, data)


# --- values that can be checked by hand -----------------------------------------------------------


def test_by_hand():
    """Found 3, of which 2 are right; 4 were to be found: precision 2/3, recall 1/2."""
    logits = torch.tensor([[[2.0, 0.1, 3.0, -1.0, -2.0, -0.1]]])
    mask = torch.tensor([[[1, 1, 0, 1, 1, 0]]])
    same(functional.binary_f_score(logits, mask, smooth=0), 4 / 7)
    same(functional.binary_f_score(logits, mask, smooth=0, beta=2), 10 / 19)
    same(functional.binary_f_score(logits, mask, smooth=0, beta=0.5), 2.5 / 4)
    same(functional.binary_f_score(logits, mask, smooth=1), 5 / 8)
    # only p > 0.8: the first and third, sigmoid(2) = 0.88
    same(functional.binary_f_score(logits, mask, smooth=0, threshold=0.8), 2 / 6)


def test_exactly_the_threshold_is_not_found():
    logits, mask = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    same(functional.binary_f_score(logits, mask, smooth=0), 0)
    same(functional.binary_f_score(logits + 1e-3, mask, smooth=0), 1)


def test_a_pixel_can_belong_to_no_class():
    """Softmax above one half is stricter than argmax: three equal classes are all missed."""
    logits, target = torch.zeros(1, 3, 5), torch.tensor([[0, 0, 1, 1, 2]])
    same(functional.f_score(logits, target, smooth=0), 0)
    same(
        functional.f_score(logits, target, smooth=0, threshold=0.3, reduction="none"),
        [4 / 7] * 2 + [1 / 3],
    )


def test_a_class_nowhere_and_never_found_is_perfect():
    logits = torch.tensor([[[9.0, 9.0], [-9.0, -9.0]]])
    target = torch.tensor([[0, 0]])
    same(functional.f_score(logits, target, reduction="none"), [1, 1])
    same(functional.f_score(logits, target, smooth=0, reduction="none"), [1, 1])
    each = functional.f_score(logits, target, absent="skip", reduction="none")
    same(each, [1, 0])
    same(functional.f_score(-logits, target, absent="skip"), 0, 1e-4)


@every
@pytest.mark.parametrize("pool", ["image", "batch"])
@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_dice_loss_is_one_minus_the_soft_score(name, pool, beta):
    loss = {"f_score": functional.dice_loss, "binary_f_score": functional.binary_dice_loss}[name]
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(2, (2, 4, 5) if name == "f_score" else (2, 3, 4, 5))
    options = {"pool": pool, "beta": beta, "smooth": 0.7}
    for reduction in ("none", "mean"):
        score, up = value_and_gradient(
            getattr(functional, name),
            logits,
            target,
            threshold=None,
            reduction=reduction,
            **options,
        )
        dice, down = value_and_gradient(loss, logits, target, reduction=reduction, **options)
        same(score, 1 - dice, 1e-12)
        same(up, -down, 1e-12)


@every
def test_the_score_pools_over_the_batch_unless_told(name):
    logits = torch.randn(3, 2, 6, dtype=torch.float64) * 3
    target = torch.randint(2, (3, 6) if name == "f_score" else (3, 2, 6))
    score = getattr(functional, name)
    assert score(logits, target, reduction="none").shape == (2,)
    assert score(logits, target, pool="image", reduction="none").shape == (3, 2)
    same(score(logits, target), score(logits, target, pool="batch"), 0)


@every
def test_void_holds_anything(name):
    logits = torch.randn(2, 3, 6) * 3
    target = torch.randint(
        3 if name == "f_score" else 2, (2, 6) if name == "f_score" else (2, 3, 6)
    )
    half = functional.f_score if name == "f_score" else functional.binary_f_score
    expected = half(logits[..., :4], target[..., :4])
    logits[..., 4:], target[..., 4:] = nan, 255
    same(half(logits, target, ignore_index=255), expected)


@pytest.mark.parametrize("label", [3, 99, -1])
def test_a_label_that_is_no_class_never_gives_a_finite_score(label):
    logits, target = torch.randn(1, 3, 4), torch.tensor([[0, 1, label, 2]])
    assert functional.f_score(logits, target).isnan()
    assert functional.f_score(logits, target, ignore_index=label).isfinite()
