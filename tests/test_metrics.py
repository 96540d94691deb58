"""F scores: the overlap sums of hard predictions."""

from collections import defaultdict
from functools import partial
from math import nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denseloss import functional, metrics
from tests.comparison import (
    class_maps,
    elements,
    masks,
    pixels,
    places,
    proof,
    same,
    value_and_gradient,
)
from tests.test_region import dice_score

# --- oracles --------------------------------------------------------------------------------------


def decided(logits, target, weight, ignore_index, decision):
    """(image, class, p, t, w) of every pixel and class that counts, p after the decision."""
    for place, z, t, w in pixels(logits, target, weight, ignore_index):
        p, best = z.softmax(0), z.tolist().index(max(z.tolist()))
        for c in range(len(z)):
            if decision == "argmax":
                taken = float(c == best)
            else:
                taken = p[c] if decision is None else float(p[c] > decision)
            yield place[0], c, taken, t[c], w


def binary_decided(logits, target, weight, ignore_index, threshold):
    """The same under independent channels."""
    for place, z, t, w in elements(logits, target, weight, ignore_index):
        p = torch.sigmoid(z)
        yield place[0], place[1], p if threshold is None else float(p > threshold), t, w


def scores(found, logits, beta, smooth, pool, absent, class_weight, reduction):
    """The score of what is in the target or was predicted; all else has none."""
    sums = defaultdict(lambda: [0.0, 0.0, 0.0])
    for image, c, p, t, w in found:
        entry = sums[(image, c) if pool == "image" else (c,)]
        entry[0] += w * (p + t - abs(p - t)) / 2
        entry[1] += w * p
        entry[2] += w * t
    values, counts = {}, {}
    for entry, (both, predicted, true) in sums.items():
        if true == 0 and (absent == "skip" or predicted == 0):
            continue
        price = 1.0 if class_weight is None else float(class_weight[entry[-1]])
        values[entry] = price * dice_score(beta, smooth)(both, predicted, true)
        counts[entry] = price
    if reduction == "none":
        shape = logits.shape[:2] if pool == "image" else logits.shape[1:2]
        flat = [float(values.get(place, nan)) for place in places(shape)]
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)
    total, count = float(sum(values.values())), sum(counts.values())
    value = total if reduction == "sum" else total / count if count else nan
    return torch.tensor(value, dtype=torch.float64)


def f_score(
    logits,
    target,
    *,
    beta=1.0,
    decision="argmax",
    smooth=1e-5,
    pool="batch",
    absent="count",
    class_weight=None,
    weight=None,
    ignore_index=-100,
    reduction="mean",
):
    found = decided(logits, target, weight, ignore_index, decision)
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
    found = binary_decided(logits, target, weight, ignore_index, threshold)
    return scores(found, logits, beta, smooth, pool, absent, class_weight, reduction)


ORACLES = {"f_score": f_score, "binary_f_score": binary_f_score}
every = pytest.mark.parametrize("name", list(ORACLES))

# --- equal to the oracle --------------------------------------------------------------------------


def compare(name, case, data):
    options = case.options | {
        "beta": data.draw(st.sampled_from([0.5, 1, 2])),
        "smooth": data.draw(st.sampled_from([0, 1e-5, 1])),
        "pool": data.draw(st.sampled_from(["image", "batch"])),
        "absent": data.draw(st.sampled_from(["count", "skip"])),
    }
    if name == "f_score":
        options["decision"] = data.draw(st.sampled_from([None, 0.3, 0.5, 0.8, "argmax"]))
    else:
        options["threshold"] = data.draw(st.sampled_from([None, 0.3, 0.5, 0.8]))
    if data.draw(st.booleans()):
        options["class_weight"] = torch.linspace(0.3, 1.9, case.logits.shape[1])
    for reduction in ("none", "mean", "sum"):
        actual = getattr(functional, name)(*case[:2], reduction=reduction, **options)
        expected = ORACLES[name](*case[:2], reduction=reduction, **options)
        wide = case.logits.dtype == torch.float64
        assert actual.dtype == (torch.float64 if wide else torch.float32)
        rtol, atol = (1e-10, 1e-12) if wide else (1e-5, 1e-6)
        torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol, equal_nan=True)


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


def test_the_decision_of_exclusive_classes():
    """Softmax above one half is stricter than argmax; of equal classes the first is taken."""
    logits, target = torch.zeros(1, 3, 5), torch.tensor([[0, 0, 1, 1, 2]])
    score = partial(functional.f_score, logits, target, smooth=0, reduction="none")
    same(score(), [4 / 7, 0, 0])
    same(score(decision=0.5), [0, 0, 0])
    same(score(decision=0.3), [4 / 7] * 2 + [1 / 3])
    # soft: p = 1/3 everywhere
    same(score(decision=None), [(4 / 3) / (5 / 3 + 2)] * 2 + [(2 / 3) / (5 / 3 + 1)])
    logits[0, :, 0] = torch.tensor([0.45, 0.25, 0.3]).log()  # argmax needs no majority
    assert score()[0] > 0
    with pytest.raises(ValueError, match=r"decision must be 'argmax' or a number in .*'argmax'"):
        score(decision="argmaks")
    with pytest.raises(TypeError, match="unknown keyword 'threshold'"):
        score(threshold=0.5)


@pytest.mark.parametrize("smooth", [0, 1e-5, 1])
def test_a_class_that_nothing_speaks_about_has_no_score(smooth):
    logits = torch.tensor([[[9.0, 9.0], [-9.0, -9.0], [-9.0, -9.0]]])
    target = torch.tensor([[0, 0]])
    score = partial(functional.f_score, smooth=smooth)
    assert_nan(score(logits, target, reduction="none"), [1, nan, nan])
    same(score(logits, target), 1)
    same(score(logits, target, reduction="sum"), 1)
    # predicted but absent: 0, unless absent classes are skipped
    wrong = logits.roll(1, 1)
    lost = smooth / (2 + smooth)
    assert_nan(score(wrong, target, reduction="none"), [lost, lost, nan])
    same(score(wrong, target), lost)
    assert_nan(score(wrong, target, absent="skip", reduction="none"), [lost, nan, nan])
    # all void: nothing is left to take a mean of
    for options in ({"ignore_index": 0}, {"weight": torch.zeros(1, 2)}):
        assert_nan(score(logits, target, reduction="none", **options), [nan] * 3)
        assert_nan(score(logits, target, **options), nan)
        same(score(logits, target, reduction="sum", **options), 0)
    # image by image: the second has no score of any class
    two, both = logits.repeat(2, 1, 1), torch.tensor([[0, 0], [7, 7]])
    each = score(two, both, pool="image", ignore_index=7, reduction="none")
    assert_nan(each, [[1, nan, nan], [nan] * 3])
    same(score(two, both, pool="image", ignore_index=7), 1)


@pytest.mark.parametrize("smooth", [0, 1e-5, 1])
def test_a_channel_that_nothing_speaks_about_has_no_score(smooth):
    logits = torch.tensor([[[9.0, 9.0], [-9.0, -9.0], [9.0, -9.0]]])
    target = torch.tensor([[[1, 1], [0, 0], [0, 0]]])
    score = partial(functional.binary_f_score, smooth=smooth)
    lost = smooth / (1 + smooth)
    assert_nan(score(logits, target, reduction="none"), [1, nan, lost])
    same(score(logits, target), (1 + lost) / 2)
    assert_nan(score(logits, target, absent="skip", reduction="none"), [1, nan, nan])
    weight = torch.tensor([0.0, 1, 1]).reshape(1, 3, 1)
    assert_nan(score(logits, target, weight=weight, reduction="none"), [nan, nan, lost])
    assert_nan(score(logits[:, 1:2], target[:, 1:2]), nan)


def assert_nan(actual, expected):
    """Equal, NaN where NaN is expected."""
    expected = torch.tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@every
@pytest.mark.parametrize("pool", ["image", "batch"])
@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_dice_loss_is_one_minus_the_soft_score(name, pool, beta):
    loss = {"f_score": functional.dice_loss, "binary_f_score": functional.binary_dice_loss}[name]
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(2, (2, 4, 5) if name == "f_score" else (2, 3, 4, 5))
    options = {"pool": pool, "beta": beta, "smooth": 0.7}
    hardness = {"decision" if name == "f_score" else "threshold": None}
    for reduction in ("none", "mean"):
        score, up = value_and_gradient(
            getattr(functional, name),
            logits,
            target,
            reduction=reduction,
            **hardness,
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


def test_scores_of_counts_are_those_of_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(40, generator=generator) > 0.5 for _ in range(2))
    tp = (prediction & target).sum()
    fp, fn = (prediction & ~target).sum(), (~prediction & target).sum()
    p, r = tp / (tp + fp), tp / (tp + fn)
    expected = {
        "f1": 2 * p * r / (p + r),
        "f2": 5 * p * r / (4 * p + r),
        "iou": tp / (prediction | target).sum(),
        "precision": p,
        "recall": r,
    }
    for kind, value in expected.items():
        found = metrics.overlap_score(tp, fp, fn, kind=kind)
        torch.testing.assert_close(found, value.double(), rtol=1e-6, atol=0)
        array = metrics.overlap_score(tp.numpy(), fp.numpy(), fn.numpy(), kind=kind)
        assert float(array) == float(found)
    logits = torch.where(prediction, 1.0, -1.0)[None, None]
    dice = metrics.binary_f_score(logits, target[None, None], smooth=0)
    torch.testing.assert_close(dice.double(), expected["f1"].double())


@pytest.mark.parametrize("kind", ["f1", "f2", "iou", "precision", "recall"])
def test_nothing_to_score_is_nan_and_nothing_right_is_0(kind: str) -> None:
    tp, fp, fn = torch.tensor([0, 0, 0, 3]), torch.tensor([0, 2, 0, 0]), torch.tensor([0, 0, 2, 0])
    found = metrics.overlap_score(tp, fp, fn, kind=kind)  # type: ignore[arg-type]
    assert found.isnan().tolist() == [True, False, False, False]
    assert found[1:].tolist() == [0, 0, 1]


def test_an_unknown_kind_of_score_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of f1, f2, iou, precision, recall"):
        metrics.overlap_score(1, 2, 3, kind="dice")  # type: ignore[arg-type]
