"""Dice, Jaccard and Tversky: one value per class, from overlap sums."""

from collections import defaultdict
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional
from denseloss.contract import arguments, kinds
from tests.comparison import (
    agree,
    class_maps,
    elements,
    finite,
    masks,
    pixels,
    proof,
    reduced,
    same,
    short_proof,
    trained,
    value_and_gradient,
)

# --- oracles --------------------------------------------------------------------------------------


def members(logits, target, weight, ignore_index):
    """(image, class, p, t, w) of every pixel and class that counts, under exclusive classes."""
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        p = z.softmax(0)
        for c in range(len(z)):
            yield place[0], c, p[c], t[c], w


def binary_members(logits, target, weight, ignore_index):
    """The same under independent channels."""
    for place, z, t, w in elements(logits, target, weight, ignore_index):
        yield place[0], place[1], torch.sigmoid(z), t, w


def region(members, score, logits, pool, absent, class_weight, count, reduction):
    """1 − score(I, P, T) of every class of every image, or of every class of the batch.

    I = (P + T − Σ w |p − t|)/2, which is Σ w p t where t is 0 or 1.
    """
    images, classes = logits.shape[:2]
    difference, prediction, truth = (defaultdict(float) for _ in range(3))
    for image, c, p, t, w in members:
        entry = {"image": (image, c), "batch": (c,)}[pool]
        difference[entry] += w * abs(p - t)
        prediction[entry] += w * p
        truth[entry] += w * t
    values, counts = {}, {}
    for entry in truth:  # an entry without a pixel that counts is not in there
        if absent == "skip" and truth[entry] == 0:
            continue
        price = 1.0 if class_weight is None else float(class_weight[entry[-1]])
        intersection = (prediction[entry] + truth[entry] - difference[entry]) / 2
        values[entry] = price * (1 - score(intersection, prediction[entry], truth[entry]))
        counts[entry] = price
    shape = (images, classes) if pool == "image" else (classes,)
    return reduced(values, counts, shape, logits, reduction, count)


def fraction(numerator, denominator):
    """0/0 is a class that is nowhere and was found nowhere: the score is perfect."""
    return numerator / denominator if denominator != 0 else numerator + 1.0


def dice_score(beta, smooth):
    def score(i, p, t):
        numerator = (1 + beta**2) * i + smooth
        return fraction(numerator, (1 + beta**2) * i + beta**2 * (t - i) + (p - i) + smooth)

    return score


def jaccard_score(smooth):
    return lambda i, p, t: fraction(i + smooth, p + t - i + smooth)


def tversky_score(alpha, beta, smooth):
    return lambda i, p, t: fraction(i + smooth, i + alpha * (p - i) + beta * (t - i) + smooth)


def dice_loss(
    logits,
    target,
    *,
    beta=1.0,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    found = members(logits, target, weight, ignore_index)
    score = dice_score(beta, smooth)
    return region(found, score, logits, pool, absent, class_weight, count, reduction)


def binary_dice_loss(
    logits,
    target,
    *,
    beta=1.0,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    found = binary_members(logits, target, weight, ignore_index)
    score = dice_score(beta, smooth)
    return region(found, score, logits, pool, absent, class_weight, count, reduction)


def jaccard_loss(
    logits,
    target,
    *,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    found = members(logits, target, weight, ignore_index)
    return region(
        found, jaccard_score(smooth), logits, pool, absent, class_weight, count, reduction
    )


def binary_jaccard_loss(
    logits,
    target,
    *,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    found = binary_members(logits, target, weight, ignore_index)
    return region(
        found, jaccard_score(smooth), logits, pool, absent, class_weight, count, reduction
    )


def tversky_loss(
    logits,
    target,
    *,
    alpha=0.5,
    beta=0.5,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    count=None,
    reduction="mean",
):
    found = members(logits, target, weight, ignore_index)
    score = tversky_score(alpha, beta, smooth)
    return region(found, score, logits, pool, absent, class_weight, count, reduction)


def binary_tversky_loss(
    logits,
    target,
    *,
    alpha=0.5,
    beta=0.5,
    smooth=1.0,
    pool="image",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=None,
    count=None,
    reduction="mean",
):
    found = binary_members(logits, target, weight, ignore_index)
    score = tversky_score(alpha, beta, smooth)
    return region(found, score, logits, pool, absent, class_weight, count, reduction)


ORACLES = {
    "dice_loss": dice_loss,
    "binary_dice_loss": binary_dice_loss,
    "jaccard_loss": jaccard_loss,
    "binary_jaccard_loss": binary_jaccard_loss,
    "tversky_loss": tversky_loss,
    "binary_tversky_loss": binary_tversky_loss,
}
TARGETS = {name: kinds(getattr(functional, name))["target"].name for name in ORACLES}
EXCLUSIVE = [name for name, target in TARGETS.items() if target == "ClassMap"]
INDEPENDENT = [name for name, target in TARGETS.items() if target == "Masks"]

every = pytest.mark.parametrize("name", sorted(ORACLES))
exclusive = pytest.mark.parametrize("name", EXCLUSIVE)
independent = pytest.mark.parametrize("name", INDEPENDENT)

# --- equal to the oracle --------------------------------------------------------------------------


@st.composite
def formulas(draw, name):
    """Keywords of the loss itself."""
    known = {
        "smooth": [0, 1e-5, 1, 3.5],
        "pool": ["image", "batch"],
        "absent": ["count", "skip"],
        "alpha": [0, 0.3, 1],
        "beta": [0.5, 1, 2],
    }
    taken = [option for option in known if option in arguments(getattr(functional, name))]
    return {option: draw(st.sampled_from(known[option])) for option in taken}


def compare(name, case, data):
    options = data.draw(formulas(name)) | case.options
    if data.draw(st.booleans()):
        options["class_weight"] = torch.linspace(0.3, 1.9, case.logits.shape[1])
    loss, oracle = getattr(functional, name), ORACLES[name]
    agree(loss, oracle, case.logits, case.target, void=case.void, **options)


@exclusive
@proof
@given(case=class_maps(), data=st.data())
def test_exclusive_classes(name, case, data):
    compare(name, case, data)


@independent
@proof
@given(case=masks(), data=st.data())
def test_independent_channels(name, case, data):
    compare(name, case, data)


# --- values that can be checked by hand -----------------------------------------------------------

# Four pixels with p = 3/4, 3/4, 1/4, 1/4 where t = 1, 0, 1, 0: I = 1, P = 2, T = 2.
LOGITS = torch.logit(torch.tensor([[[0.75, 0.75, 0.25, 0.25]]], dtype=torch.float64))
MASK = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("binary_dice_loss", {}, 1 - 3 / 5),
        ("binary_dice_loss", {"smooth": 0}, 1 - 1 / 2),
        ("binary_dice_loss", {"smooth": 0, "beta": 2}, 1 - 1 / 2),
        ("binary_jaccard_loss", {}, 1 - 2 / 4),
        ("binary_jaccard_loss", {"smooth": 0}, 1 - 1 / 3),
        ("binary_tversky_loss", {}, 1 - 2 / 3),
        ("binary_tversky_loss", {"smooth": 0, "alpha": 0.3, "beta": 0.7}, 1 - 1 / 2),
        ("binary_tversky_loss", {"smooth": 0, "alpha": 1, "beta": 3}, 1 - 1 / 5),
    ],
)
def test_by_hand(name, options, expected):
    loss = getattr(functional, name)
    same(loss(LOGITS, MASK, **options), expected, 1e-12)
    same(loss(LOGITS, MASK, reduction="none", **options), [[expected]], 1e-12)


def test_exclusive_classes_by_hand():
    """Two pixels, p_0 = 3/4 and 1/4, labels 0 and 0. Class 0: I = P = 1, T = 2; class 1: P = 1."""
    logits = torch.logit(torch.tensor([[[0.75, 0.25], [0.25, 0.75]]], dtype=torch.float64)) / 2
    target = torch.tensor([[0, 0]])
    same(functional.dice_loss(logits, target, reduction="none"), [[1 - 3 / 4, 1 - 1 / 2]], 1e-12)
    same(functional.dice_loss(logits, target), 3 / 8, 1e-12)
    same(functional.dice_loss(logits, target, absent="skip"), 1 / 4, 1e-12)
    class_weight = torch.tensor([3.0, 1.0])
    same(functional.dice_loss(logits, target, class_weight=class_weight), 5 / 16, 1e-12)
    each = functional.dice_loss(logits, target, class_weight=class_weight, reduction="none")
    same(each, [[3 / 4, 1 / 2]], 1e-12)


def test_tversky_prices_what_the_paper_says():
    """Salehi et al. 2017, equation 3: α multiplies false positives, β false negatives."""
    sure = torch.tensor([[[40.0, 40.0, 40.0, -40.0]]], dtype=torch.float64)
    too_much = torch.tensor([[[1, 0, 0, 0]]])
    too_little = torch.tensor([[[1, 1, 1, 1]]])
    options = {"smooth": 0, "alpha": 0.25, "beta": 1.0}
    same(functional.binary_tversky_loss(sure, too_much, **options), 1 - 1 / (1 + 0.25 * 2))
    same(functional.binary_tversky_loss(sure, too_little, **options), 1 - 3 / (3 + 1.0 * 1))


@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_dice_is_one_minus_f_beta(beta):
    """F-β = (1 + β²) precision · recall / (β² precision + recall)."""
    logits = torch.randn(1, 1, 30, dtype=torch.float64)
    mask = torch.rand(1, 1, 30) < 0.5
    p = logits.sigmoid()
    precision, recall = p[mask].sum() / p.sum(), p[mask].sum() / mask.sum()
    f = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    same(functional.binary_dice_loss(logits, mask, beta=beta, smooth=0), 1 - f, 1e-12)


# --- identities -----------------------------------------------------------------------------------


def equal(loss, other, case, **options):
    """The two have the same value and gradient on `case`."""
    agree(loss, lambda *a, **k: other(*a, **k).double(), *case[:2], **case.options, **options)


@short_proof
@given(class_maps(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from(["image", "batch"]))
def test_dice_and_jaccard_are_tversky(case, smooth, pool):
    def dice(*inputs, **options):
        return functional.dice_loss(*inputs, smooth=2 * smooth, **options)

    def jaccard(*inputs, **options):
        return functional.jaccard_loss(*inputs, smooth=smooth, **options)

    def tversky(price):
        return partial(functional.tversky_loss, alpha=price, beta=price, smooth=smooth)

    equal(dice, tversky(0.5), case, pool=pool)
    equal(jaccard, tversky(1.0), case, pool=pool)


@short_proof
@given(masks(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from(["image", "batch"]))
def test_binary_dice_and_jaccard_are_tversky(case, smooth, pool):
    def dice(*inputs, **options):
        return functional.binary_dice_loss(*inputs, smooth=2 * smooth, **options)

    def jaccard(*inputs, **options):
        return functional.binary_jaccard_loss(*inputs, smooth=smooth, **options)

    def tversky(price):
        return partial(functional.binary_tversky_loss, alpha=price, beta=price, smooth=smooth)

    equal(dice, tversky(0.5), case, pool=pool)
    equal(jaccard, tversky(1.0), case, pool=pool)


def test_dice_and_jaccard_rank_alike():
    """Without smoothing, J = D / (2 − D), in scores."""
    logits, mask = torch.randn(3, 2, 9, dtype=torch.float64), torch.randint(2, (3, 2, 9))
    dice = 1 - functional.binary_dice_loss(logits, mask, smooth=0, reduction="none")
    jaccard = 1 - functional.binary_jaccard_loss(logits, mask, smooth=0, reduction="none")
    same(jaccard, dice / (2 - dice), 1e-12)


@pytest.mark.parametrize("name", [name for name in EXCLUSIVE if "binary_" + name in ORACLES])
def test_exclusive_classes_are_channels_of_the_softmax(name):
    """The binary form on logit(softmax) and the one-hot labels is the plain form."""
    logits, target = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(3, (2, 4, 5))
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    channels = torch.logit(logits.softmax(1))
    for reduction in ("none", "mean"):
        same(
            getattr(functional, name)(logits, target, reduction=reduction),
            getattr(functional, "binary_" + name)(channels, one_hot, reduction=reduction),
            1e-10,
        )
    same(
        getattr(functional, name)(logits, target),
        getattr(functional, name)(logits, one_hot.double()),
        1e-12,
    )


@independent
@pytest.mark.parametrize("smooth", [0, 1])
def test_a_perfect_prediction_is_zero(name, smooth):
    mask = torch.tensor([[[1, 0, 1, 1], [0, 0, 0, 0]]])
    logits = (mask.double() * 2 - 1) * 1e4
    same(getattr(functional, name)(logits, mask, smooth=smooth, reduction="none"), [[0, 0]], 0)


# --- soft targets ---------------------------------------------------------------------------------


def soft(name):
    """Logits of random probabilities, and these as the target."""
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    return logits, logits.softmax(1) if name in EXCLUSIVE else logits.sigmoid()


@every
@pytest.mark.parametrize("pool", ["image", "batch"])
def test_zero_at_the_target_and_more_elsewhere(name, pool):
    loss = partial(getattr(functional, name), smooth=0, pool=pool, reduction="none")
    logits, target = soft(name)
    weight = torch.rand(2, 1, 4, 5)
    same(loss(logits, target, weight=weight), torch.zeros_like(loss(logits, target)), 1e-12)
    # in float32, where the fast versions run
    same(loss(logits.float(), target.float()), torch.zeros_like(loss(logits, target)), 1e-6)
    for step in (1e-3, 0.3, -1e-3, -3):
        moved = logits.clone()
        moved[0, 0, 0, 0] += step
        away = loss(moved, target, weight=weight)
        assert (away >= -1e-12).all()
        assert away.max() > 0


@every
@pytest.mark.parametrize("smooth", [0, 1])
def test_training_ends_at_the_target(name, smooth):
    """Against Σ w p t it would end at 0 or 1: the truth of 0.3 is then best rounded."""
    logits = torch.randn(1, 2, 6, 6)
    target = torch.full((1, 2, 6, 6), 0.3)
    if name in EXCLUSIVE:
        target[:, 1] = 0.7
    end = trained(partial(getattr(functional, name), smooth=smooth), logits, target)
    same(end.softmax(1) if name in EXCLUSIVE else end.sigmoid(), target, 5e-4)


# --- what counts ----------------------------------------------------------------------------------


@every
def test_pool_sums_over_the_batch_before_dividing(name):
    """Pooling equals one image that holds the pixels of all images."""
    loss = getattr(functional, name)
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    target = torch.randint(2, (3, 5) if name in EXCLUSIVE else (3, 2, 5))
    longer = logits.movedim(0, -2).reshape(1, 2, 15)
    together = target.movedim(0, -2).reshape(1, *target.shape[1:-1], 15)
    pooled = loss(logits, target, pool="batch", reduction="none")
    assert pooled.shape == (2,)
    same(pooled, loss(longer, together, reduction="none")[0], 1e-12)
    assert loss(logits, target, reduction="none").shape == (3, 2)


@every
def test_absent_classes_can_be_left_out(name):
    """Counted, a class without a target pixel is punished for what was predicted; skipped, not."""
    loss = getattr(functional, name)
    target = torch.zeros(1, 6, dtype=torch.long)
    if name in INDEPENDENT:
        target = torch.stack([1 - target, target], 1)
    logits = torch.randn(1, 2, 6, dtype=torch.float64)
    counted = loss(logits, target, reduction="none")
    skipped, gradient = value_and_gradient(loss, logits, target, absent="skip")
    assert counted[0, 1] > 0
    same(loss(logits, target), counted.mean(), 1e-12)
    same(skipped, counted[0, 0], 1e-12)
    each = loss(logits, target, absent="skip", reduction="none")
    same(each, [[counted[0, 0].item(), 0]], 1e-12)
    if name in INDEPENDENT:
        assert (gradient[:, 1] == 0).all()


@every
def test_an_image_of_void_does_not_count(name):
    loss = getattr(functional, name)
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    target = torch.randint(2, (2, 4) if name in EXCLUSIVE else (2, 3, 4))
    alone = loss(logits[:1], target[:1])
    target[1], logits[1] = 255, float("nan")
    same(loss(logits, target, ignore_index=255), alone, 1e-12)
    each = loss(logits, target, ignore_index=255, reduction="none")
    assert (each[1] == 0).all()


@independent
def test_a_channel_of_void_does_not_count(name):
    loss = getattr(functional, name)
    logits, target = torch.randn(1, 2, 4, dtype=torch.float64), torch.randint(2, (1, 2, 4))
    weight = torch.tensor([1.0, 0.0]).reshape(1, 2, 1)
    logits[:, 1] = float("nan")
    for pool in ("image", "batch"):
        alone = loss(logits[:, :1], target[:, :1], pool=pool)
        same(loss(logits, target, weight=weight, pool=pool), alone, 1e-12)


@every
def test_nothing_that_counts_is_zero_with_a_graph(name):
    loss = getattr(functional, name)
    logits = torch.full((2, 3, 4), float("nan"))
    target = torch.full((2, 4) if name in EXCLUSIVE else (2, 3, 4), 255)
    for pool in ("image", "batch"):
        for options in ({"ignore_index": 255}, {"weight": torch.zeros(2, 1, 4)}):
            options["pool"] = pool
            agree(loss, ORACLES[name], logits, target, void=torch.tensor(True), **options)
        agree(loss, ORACLES[name], logits[:0], target[:0], pool=pool)
        agree(loss, ORACLES[name], logits[..., :0], target[..., :0], pool=pool)


@every
def test_nothing_to_find_and_nothing_found_without_smoothing(name):
    """0/0: the class is nowhere and the prediction of it is exactly 0."""
    loss = getattr(functional, name)
    logits = torch.stack([torch.full((1, 4), 1e4), torch.full((1, 4), -1e4)], 1)
    target = torch.zeros(1, 4, dtype=torch.long)
    if name in INDEPENDENT:
        target = torch.stack([1 - target, target], 1)
    same(loss(logits, target, smooth=0, reduction="none"), [[0, 0]], 0)
    finite(loss, logits, target, smooth=0)
    finite(loss, -logits, target, smooth=0)


@every
def test_saturated(name):
    logits = torch.tensor([[[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0]]]) * 1e4
    for labels in ([0, 1, 0], [1, 0, 1], [1, 1, 1]):
        target = torch.tensor([labels])
        if name in INDEPENDENT:
            target = torch.stack([1 - target, target], 1)
        agree(getattr(functional, name), ORACLES[name], logits, target)


@exclusive
@pytest.mark.parametrize("label", [3, 99, -1])
def test_a_label_that_is_no_class_never_gives_a_finite_loss(name, label):
    loss = getattr(functional, name)
    logits, target = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, 0], [2, label, 1, 0]])
    for pool in ("image", "batch"):
        assert loss(logits, target, pool=pool).isnan()
        assert loss(logits, target, pool=pool, reduction="sum").isnan()
        assert loss(logits, target, pool=pool, ignore_index=label).isfinite()
    assert loss(logits, target, absent="skip").isnan()
    assert loss(logits, target, reduction="none")[0].isfinite().all()


@every
def test_half_precision_sums_do_not_overflow(name):
    """70000 pixels are more than float16 holds."""
    shape = (1, 2, 70_000)
    logits = torch.full(shape, 8.0).half()
    logits[:, 1] = -8
    target = torch.zeros(1, 70_000, dtype=torch.uint8)
    if name in INDEPENDENT:
        target = torch.stack([1 - target, target], 1)
    value = getattr(functional, name)(logits, target)
    assert value.dtype == torch.float32
    expected = getattr(functional, name)(logits.double(), target)
    same(value, expected, 1e-5)
