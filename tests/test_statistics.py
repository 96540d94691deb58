"""The comparison's statistics: by hand, by brute force, against scipy, and by simulation."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from denseloss.compare.results import Comparison, Needed
from denseloss.compare.statistics import (
    Components,
    Measured,
    compare,
    components,
    effect_size,
    estimate,
    holm,
    needed,
    permutation_test,
    summary,
)
from denseloss.compare.statistics import (
    probability_of_improvement as improved,
)
from denseloss.report.numbers import Estimate
from denseloss.tasks.scores import Additive, Metric, Scored

Array = np.ndarray
Pair = tuple[Scored, Scored]

DICE = Metric(key="dice", name="Dice", higher_is_better=True, unit="", definition="")
HD95 = Metric(key="hd95", name="HD95", higher_is_better=False, unit="px", definition="")


def mean(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


def dice(sums: Array) -> Array:
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


def averaged(scores: Array) -> Additive:
    """The mean over images, of float64[seeds images]."""
    return Additive(np.stack([scores, np.ones_like(scores)], axis=-1), mean)


def together(counts: Array) -> Additive:
    """The Dice of all images together, of float64[seeds images 3]."""
    return Additive(counts, dice)


def measured(scores: Array, seeds: tuple[int, ...] | None = None) -> Measured:
    seeds = tuple(range(len(scores))) if seeds is None else seeds
    return Measured(seeds=seeds, scored=averaged(scores), per_image=scores)


def normal_scores(rng: np.random.Generator, seeds: int, images: int) -> Array:
    by_seed, by_image = rng.normal(size=(seeds, 1)), rng.normal(size=(1, images))
    return 0.8 + 0.02 * by_seed + 0.05 * by_image + 0.03 * rng.normal(size=(seeds, images))


def squares(scores: Array) -> tuple[float, float, float]:
    """The parts of the variance from the squares of the analysis of variance."""
    seeds, images = scores.shape
    rows, columns = scores.mean(1), scores.mean(0)
    rest = scores - rows[:, None] - columns + scores.mean()
    interaction = (rest**2).sum() / ((seeds - 1) * (images - 1) * seeds * images)
    return rows.var(ddof=1) / seeds, columns.var(ddof=1) / images, interaction


# --- the estimate


def test_value_is_the_mean_over_seeds_of_the_score() -> None:
    counts = np.array([[[1.0, 2, 2], [3, 4, 6]], [[0, 2, 2], [4, 4, 6]]])
    # Seed 0: 2 * 4 / (6 + 8); seed 1: 2 * 4 / (6 + 8), whatever the images' own Dice.
    assert estimate(together(counts)).value == pytest.approx(8 / 14)
    minus = together(counts * np.array([0.5, 1, 1]))
    assert estimate(together(counts), minus=minus).value == pytest.approx(4 / 14)


def test_variance_of_a_mean_is_that_of_the_analysis_of_variance() -> None:
    scores = normal_scores(np.random.default_rng(0), 5, 12)
    found = components(averaged(scores), draws=40_000)
    by_seed, by_image, interaction = squares(scores)
    assert found.by_seed == pytest.approx(by_seed)
    assert found.by_image == pytest.approx(by_image, rel=0.04)
    assert found.interaction == pytest.approx(interaction, rel=0.04)
    expected = by_seed + by_image - interaction
    assert found.variance == pytest.approx(expected, rel=0.04)


def test_bootstrap_is_the_one_over_all_draws() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, (3, 4, 3)).astype(float)
    each = np.array(
        [dice(counts[:, list(draw)].sum(1)) for draw in itertools.product(range(4), repeat=3)]
    )
    found = components(together(counts), draws=100_000)
    assert found.by_image == pytest.approx(each.mean(1).var(), rel=0.03)
    own = each - each.mean(1, keepdims=True)
    own = own - own.mean(0)
    assert found.interaction == pytest.approx((own**2).sum(1).mean() / (3 * 2), rel=0.03)
    # Seeds too: 2 of 3 drawn with replacement, alone.
    values = dice(counts.sum(1))
    seeds = [values[list(draw)].mean() for draw in itertools.product(range(3), repeat=2)]
    assert found.by_seed == pytest.approx(np.var(seeds))


def test_where_only_seeds_vary_it_is_the_t_test() -> None:
    scores = np.array([0.71, 0.74, 0.72, 0.77])
    for images in (1, 6):
        counts = averaged(np.repeat(scores[:, None], images, 1))
        baseline = averaged(np.full((4, images), 0.7))
        test = stats.ttest_1samp(scores - 0.7, 0)
        found = components(counts, minus=baseline)
        result = found.estimate(0.9)
        assert found.p_value() == pytest.approx(test.pvalue)
        assert result.low == pytest.approx(test.confidence_interval(0.9).low)
        assert result.high == pytest.approx(test.confidence_interval(0.9).high)
        assert result.freedom == pytest.approx(3)
        assert result.standard_error == pytest.approx(stats.sem(scores))


def test_with_one_seed_it_is_the_t_test_over_images() -> None:
    scores = np.random.default_rng(2).normal(0.1, 0.2, (1, 9))
    found = components(averaged(scores), draws=40_000)
    test = stats.ttest_1samp(scores[0], 0)
    assert found.freedom(0.95) == 8
    assert found.p_value() == pytest.approx(test.pvalue, rel=0.1)
    assert found.estimate().low == pytest.approx(test.confidence_interval().low, abs=0.004)


def test_one_seed_and_one_image_have_no_interval() -> None:
    result = estimate(averaged(np.array([[0.5]])))
    assert result.value == 0.5
    assert all(
        math.isnan(x) for x in (result.low, result.high, result.standard_error, result.freedom)
    )
    assert math.isnan(components(averaged(np.array([[0.5]]))).p_value())


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (4, 5)])
def test_where_nothing_varies_the_interval_is_a_point(shape: tuple[int, int]) -> None:
    # 0.1 * 3 is not 0.3: rounding is no evidence.
    one, other = averaged(np.full(shape, 0.3)), averaged(np.full(shape, 0.1 * 3))
    found = components(one, minus=other)
    assert (found.value, found.variance, found.p_value()) == (0, 0, 1)
    result = estimate(one)
    assert result.low == result.high == result.value == pytest.approx(0.3)
    assert components(one).p_value() == 0


def test_interval_and_p_agree_at_every_level() -> None:
    scores = normal_scores(np.random.default_rng(3), 3, 10) - 0.72
    found = components(averaged(scores))
    p = found.p_value()
    assert 0 < p < 1
    for factor, outside in ((1.001, True), (0.999, False)):
        result = found.estimate(1 - factor * p)
        assert (result.low > 0 or result.high < 0) is outside
    assert 2 < found.freedom(0.95) < 9
    half = stats.t.ppf(0.975, found.freedom(0.95)) * found.estimate().standard_error
    assert found.half_width(0.95) == pytest.approx(half)


def test_interval_by_hand() -> None:
    # 0.04 from 3 seeds and 0.09 - 0.03 from 31 images: t is 4.3027 and 2.0423.
    found = Components(value=1, seeds=3, images=31, by_seed=4, by_image=9, interaction=3)
    assert found.variance == 10
    assert found.half_width(0.95) == pytest.approx(math.sqrt(4.3027**2 * 4 + 2.0423**2 * 6), 1e-4)
    # Never less than either part shows by itself.
    noisy = Components(value=1, seeds=3, images=31, by_seed=4, by_image=9, interaction=8)
    assert noisy.variance == 9


def test_a_score_without_an_image_of_the_class_is_left_out() -> None:
    # Image 0 alone has the class, and is often not drawn.
    counts = np.zeros((3, 4, 3))
    counts[:, 0] = [[8, 10, 10], [7, 10, 10], [9, 10, 10]]
    result = estimate(together(counts))
    assert result.value == pytest.approx(0.8)
    assert result.standard_error == pytest.approx(0.1 / math.sqrt(3))
    never = estimate(together(np.zeros((3, 4, 3))))
    assert math.isnan(never.value)
    assert math.isnan(never.low)


def test_a_class_that_no_draw_finds_has_a_value_without_an_interval() -> None:
    # Two images, each with one of the two classes: a draw is one image, and lacks the other.
    def both(sums: Array) -> Array:
        return (sums[..., 0] / sums[..., 1] + sums[..., 2] / sums[..., 3]) / 2

    scored = Additive(np.array([[[1.0, 2, 0, 0], [0, 0, 3, 4]]] * 3), both)
    found = components(scored)
    assert found.value == pytest.approx(0.625)
    assert math.isnan(found.estimate().low)
    assert math.isnan(found.p_value())
    one = Measured(seeds=(0, 1, 2), scored=scored, per_image=np.ones((3, 2)))
    words = compare({"a": one, "b": one}, baseline="a", metric=DICE, pooling="pooled")["b"]
    assert words.verdict == "undecided"
    assert "no CI" in words.words
    assert "nan" not in words.words


def test_scores_of_many_classes_may_warn_of_empty_ones() -> None:
    def over_classes(sums: Array) -> Array:
        parts = sums.reshape(*sums.shape[:-1], 3, -1)
        return np.nanmean(2 * parts[..., 0, :] / (parts[..., 1, :] + parts[..., 2, :]), axis=-1)

    rng = np.random.default_rng(4)
    counts = rng.integers(0, 5, (3, 6, 6)).astype(float)
    counts[:, :, 1::2] = 0
    assert estimate(Additive(counts, over_classes)).value == pytest.approx(
        dice(counts[..., ::2].sum(1)).mean()
    )


def test_same_seed_same_numbers_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    one, other = together(rng.random((3, 20, 3))), together(rng.random((3, 20, 3)))

    def everything(seed: int) -> tuple[Estimate, float]:
        return (
            estimate(one, minus=other, draws=300, seed=seed),
            permutation_test(one, other, draws=300, seed=seed),
        )

    first = everything(7)
    assert everything(7) == first
    assert everything(8) != first
    monkeypatch.setattr("denseloss.compare.statistics._CHUNK", 1000)
    assert everything(7)[0].high == pytest.approx(first[0].high)
    assert everything(7)[1] == first[1]


def test_the_numbers_of_a_report_stay_what_they_are() -> None:
    # As they were when statistics took counts and a function of their sums.
    rng = np.random.default_rng(24)
    one, other = (together(counts.astype(float)) for counts in rng.integers(1, 1000, (2, 3, 30, 3)))
    assert dataclasses.astuple(estimate(one, minus=other)) == pytest.approx(
        (
            0.109621514630376,
            -0.258707302425239,
            0.477950331685992,
            0.105261190172364,
            2.57720768161,
        ),
        rel=1e-9,
    )
    assert permutation_test(one, other, draws=999) == 0.305


def test_wrong_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[seeds images k\], got \(3, 4\)"):
        together(np.zeros((3, 4)))
    for empty in ((3, 0, 3), (0, 4, 3)):
        with pytest.raises(ValueError, match="must be a seed and an image"):
            estimate(together(np.zeros(empty)))
    one, other = together(np.ones((3, 4, 3))), together(np.ones((2, 4, 3)))
    for function in (components, estimate):
        with pytest.raises(ValueError, match="same seeds and images"):
            function(one, minus=other)
    with pytest.raises(ValueError, match="same seeds and images"):
        permutation_test(one, other)


def test_a_score_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="must be"):
        estimate(Additive(np.ones((3, 4, 2)), lambda sums: sums))


# --- the permutation test


def test_permutations_by_brute_force() -> None:
    rng = np.random.default_rng(6)
    one, other = rng.integers(1, 9, (2, 3, 6, 3)).astype(float)
    values = []
    for swap in itertools.product((False, True), repeat=6):
        keep = ~np.array(swap)[:, None]
        a, b = np.where(keep, one, other), np.where(keep, other, one)
        values.append((dice(a.sum(1)) - dice(b.sum(1))).mean())
    expected = np.mean(np.abs(values) >= abs(values[0]) - 1e-12)
    assert permutation_test(together(one), together(other)) == pytest.approx(expected)


def test_permutations_agree_with_scipy() -> None:
    rng = np.random.default_rng(7)
    one, other = rng.normal(0.3, 1, (2, 10)), rng.normal(0, 1, (2, 10))
    expected = stats.permutation_test(
        (one.mean(0), other.mean(0)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    own, base = averaged(one), averaged(other)
    assert permutation_test(own, base) == pytest.approx(expected)
    drawn = permutation_test(own, base, draws=500)
    assert drawn == pytest.approx(expected, abs=5 * math.sqrt(expected / 500))
    assert drawn * 501 == pytest.approx(round(drawn * 501))


def test_the_smallest_p_is_that_of_the_images() -> None:
    for images in (1, 2, 5):
        one = np.full((5, images), 0.9) + np.arange(images) / 100
        assert permutation_test(averaged(one), averaged(one * 0.5)) == 2.0 ** (1 - images)
    many = averaged(np.full((2, 40), 0.9))
    half = averaged(np.full((2, 40), 0.45))
    assert permutation_test(many, half, draws=999) == 1 / 1000
    assert permutation_test(many, many, draws=999) == 1


def test_an_undefined_difference_has_no_p() -> None:
    assert math.isnan(permutation_test(together(np.zeros((2, 3, 3))), together(np.ones((2, 3, 3)))))


# --- a score that sorts


@dataclass(frozen=True)
class Detections:
    """What one network found, each in an image."""

    image: Array
    confidence: Array
    correct: Array

    def joined(self, other: "Detections", images: int) -> "Detections":
        """With those of another network, whose images come after these."""
        return Detections(
            np.concatenate([self.image, other.image + images]),
            np.concatenate([self.confidence, other.confidence]),
            np.concatenate([self.correct, other.correct]),
        )

    def average_precision(self, weights: Array, objects: Array) -> Array:
        """With weighted images, float64[draws]; NaN without objects."""
        order = np.argsort(-self.confidence)
        weight = weights[:, self.image[order]]
        hit = weight * self.correct[order]
        precision = hit.cumsum(1) / np.maximum(weight.cumsum(1), 1e-300)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        area = (precision * hit).sum(1)
        return np.divide(area, objects, out=np.full_like(area, np.nan), where=objects > 0)


@dataclass(frozen=True)
class AveragePrecision:
    """A score that is no function of sums over images: all detections are sorted together."""

    networks: tuple[Detections, ...]
    objects: Array

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.networks), len(self.objects)

    @property
    def width(self) -> int:
        return 4 * sum(len(network.image) for network in self.networks)

    def of(self, rows: Sequence[int]) -> "AveragePrecision":
        return replace(self, networks=tuple(self.networks[row] for row in rows))

    def value(self, weights: Array | None = None) -> Array:
        if weights is None:
            return self.value(np.ones((1, len(self.objects))))[0]
        objects = weights @ self.objects
        return np.stack([one.average_precision(weights, objects) for one in self.networks], -1)

    def swapped(self, other: "AveragePrecision", swaps: Array) -> tuple[Array, Array]:
        images = len(self.objects)
        pairs = zip(self.networks, other.networks, strict=True)
        both = replace(
            self,
            networks=tuple(own.joined(others, images) for own, others in pairs),
            # An image's objects are there whoever looks for them.
            objects=np.concatenate([self.objects, self.objects]),
        )
        kept = 1 - swaps
        return both.value(np.hstack([kept, swaps])), both.value(np.hstack([swaps, kept]))


def detected(
    rng: np.random.Generator,
    seeds: int,
    images: int,
    *,
    ahead: float = 0,
    luck: float = 0.1,
) -> tuple[AveragePrecision, AveragePrecision]:
    """About ten detections in an image; the first loss is surer of right ones if it is `ahead`."""
    objects = rng.poisson(6, images)
    ease = rng.beta(6, 2, images)

    def network(better: float) -> Detections:
        hits = rng.binomial(objects, ease)
        misses = rng.poisson(5.5, images)
        image = np.concatenate([np.repeat(np.arange(images), n) for n in (hits, misses)])
        correct = np.arange(len(image)) < hits.sum()
        sure = 1.5 + better + luck * rng.normal()
        return Detections(image, rng.normal(size=len(image)) + sure * correct, correct)

    def loss(better: float) -> AveragePrecision:
        networks = tuple(network(better) for _ in range(seeds))
        return AveragePrecision(networks, objects.astype(float))

    return loss(ahead), loss(0)


def by_definition(found: Detections, objects: Array, times: Array) -> float:
    """Average precision with each image there so many times, threshold by threshold."""
    images = np.repeat(np.arange(len(objects)), times)
    confidence = np.concatenate([found.confidence[found.image == image] for image in images])
    correct = np.concatenate([found.correct[found.image == image] for image in images])
    recall, precision = [0.0], []
    for threshold in sorted(set(confidence), reverse=True):
        right = correct[confidence >= threshold]
        recall.append(right.sum() / objects[images].sum())
        precision.append(right.mean())
    return sum((recall[k + 1] - recall[k]) * max(precision[k:]) for k in range(len(precision)))


def test_a_weighted_image_counts_as_so_many() -> None:
    rng = np.random.default_rng(21)
    ap = detected(rng, 2, 7)[0]
    summed = together(rng.integers(1, 9, (2, 7, 3)).astype(float))
    times = rng.multinomial(6, np.full(7, 1 / 7), size=5)
    for weights in (times, np.ones((1, 7), int)):
        scores = ap.value(weights.astype(float))
        sums = summed.value(weights.astype(float))
        for draw, one, other in zip(weights, scores, sums, strict=True):
            expected = [by_definition(network, ap.objects, draw) for network in ap.networks]
            assert one == pytest.approx(expected)
            assert other == pytest.approx(dice(np.repeat(summed.counts, draw, axis=1).sum(1)))
    assert ap.value() == pytest.approx(scores[0])
    assert summed.value() == pytest.approx(sums[0])


def test_a_sorted_score_is_swapped_image_by_image() -> None:
    one, other = detected(np.random.default_rng(22), 2, 6, ahead=1)
    swaps = np.array(list(itertools.product((0.0, 1.0), repeat=6)))
    changes = []
    for swap, *both in zip(swaps, *one.swapped(other, swaps), strict=True):
        for scores, side, rest in ((both[0], one, other), (both[1], other, one)):
            networks = []
            for own, others in zip(side.networks, rest.networks, strict=True):
                joined = own.joined(others, 6)
                keep = np.concatenate([swap[own.image] == 0, swap[others.image] == 1])
                networks.append(
                    Detections(
                        joined.image[keep] % 6, joined.confidence[keep], joined.correct[keep]
                    )
                )
            assert scores == pytest.approx(replace(side, networks=tuple(networks)).value())
        changes.append((both[0] - both[1]).mean())
    expected = np.mean(np.abs(changes) >= abs(changes[0]) - 1e-12)
    assert permutation_test(one, other) == pytest.approx(expected)


def of_detections(scored: AveragePrecision) -> Measured:
    none = np.full(scored.shape, np.nan)
    return Measured(seeds=tuple(range(scored.shape[0])), scored=scored, per_image=none)


def test_average_precision_gets_verdicts_as_any_score() -> None:
    rng = np.random.default_rng(23)
    metric = Metric(key="ap", name="AP", higher_is_better=True, unit="", definition="")

    def verdict(ahead: float) -> Comparison:
        one, other = detected(rng, 3, 500, ahead=ahead)
        assert 4_500 < len(one.networks[0].image) < 5_500
        losses = {"a": of_detections(other), "b": of_detections(one)}
        return compare(
            losses, baseline="a", metric=metric, pooling="pooled", draws=1000, swaps=1000
        )["b"]

    equal = verdict(0)
    assert equal.verdict == "undecided"
    assert equal.difference.low < 0 < equal.difference.high
    better = verdict(0.6)
    assert better.verdict == "better"
    assert 0 < better.difference.low < better.difference.value < better.difference.high < 0.3
    assert better.p == better.p_corrected < 0.05
    assert better.words.startswith("`b` beats `a` by 0.")


# --- Holm, improvement, effect size


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06 again, 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[::2] == pytest.approx([0.03, 0.04])
    assert math.isnan(adjusted[1])


def test_improvement_by_hand() -> None:
    # Image 0: 3 of 4 pairs; image 1: every pair a tie; image 2: none.
    one = np.array([[0.9, 0.5, 0.1], [0.6, 0.5, 0.2]])
    other = np.array([[0.7, 0.5, 0.8], [0.5, 0.5, 0.9]])
    result = improved(one, other)
    assert result.value == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert 0 <= result.low < result.value < result.high <= 1
    assert improved(one, other, higher_is_better=False).value == pytest.approx(1 - result.value)
    swapped = improved(other, one)
    assert swapped.low == pytest.approx(1 - result.high)


def test_improvement_that_never_fails_is_not_certain() -> None:
    one, other = np.full((5, 30), 0.9), np.full((5, 30), 0.8)
    result = improved(one, other)
    assert (result.value, result.high) == (1, 1)
    assert result.low == pytest.approx(stats.binomtest(5, 5).proportion_ci().low)
    assert improved(other, one).high == pytest.approx(1 - result.low)
    assert improved(one[:1], other[:1]).low == pytest.approx(0.025 ** (1 / 30))
    equal = improved(one, one)
    assert (equal.low, equal.value, equal.high) == (0.5, 0.5, 0.5)


def test_effect_size_by_hand() -> None:
    one = np.array([[3.0, 5, 4], [5, 5, 6]])
    other = np.array([[3.0, 3, 3], [3, 3, 3]])
    # Differences of the means: 1, 2, 2.
    assert effect_size(one, other) == pytest.approx((5 / 3) / math.sqrt(1 / 3))
    assert effect_size(other, one) == -effect_size(one, other)
    assert effect_size(one, one) == 0
    assert effect_size(one + 0.1, one) == math.inf
    assert effect_size(one, one + 0.1) == -math.inf
    assert math.isnan(effect_size(one[:, :1], other[:, :1]))


def test_images_without_a_score_are_left_out() -> None:
    one = np.array([[0.9, 0.5, np.nan], [0.8, 0.6, 0.7]])
    other = one - np.array([0.1, 0.2, 0.1])
    assert effect_size(one, other) == pytest.approx(effect_size(one[:, :2], other[:, :2]))
    assert improved(one, other).value == improved(one[:, :2], other[:, :2]).value
    assert math.isnan(improved(one * np.nan, other).value)


# --- what is needed


def found_with(by_seed: float, by_image: float, interaction: float) -> Components:
    return Components(
        value=0.0,
        seeds=5,
        images=30,
        by_seed=by_seed,
        by_image=by_image,
        interaction=interaction,
    )


def test_needed_seeds_are_those_of_the_t_test() -> None:
    # Only seeds vary, standard deviation 0.02: the textbook's paired t test.
    result = needed(found_with(0.02**2 / 5, 0, 0), effect=0.015, alpha=0.05)

    def power(n: int) -> float:
        shift = 0.015 / (0.02 / math.sqrt(n))
        return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, shift))

    expected = next(n for n in range(5, 100) if power(n) >= 0.8)
    assert result.seeds == expected - 5 > 0
    # No number of images makes up for the luck of five starts.
    assert result.images is None


def test_needed_images_where_images_vary() -> None:
    result = needed(found_with(0, 0.1**2 / 30, 0), effect=0.03, alpha=0.01)
    assert result.seeds is None
    assert result.images is not None
    assert 90 < result.images < 130  # z alone: (2.576 + 0.842)^2 / 0.3^2 = 130 in all.


def test_needed_is_nothing_where_there_is_enough() -> None:
    result = needed(found_with(1e-8, 1e-8, 0), effect=0.01, alpha=0.01)
    assert (result.seeds, result.images) == (0, 0)


def test_needed_knows_its_limits() -> None:
    huge = needed(found_with(1.0, 1.0, 0), effect=1e-4, alpha=0.01)
    assert (huge.seeds, huge.images) == (None, None)
    one_seed = components(averaged(np.random.default_rng(0).random((1, 9))))
    assert needed(one_seed, effect=0.1, alpha=0.01).images is None
    # Five images: no permutation test gets below 2 / 2^5, whatever the seeds.
    few = Components(value=0, seeds=5, images=5, by_seed=1e-9, by_image=1e-9, interaction=0)
    assert needed(few, effect=0.1, alpha=0.01) == Needed(effect=0.1, seeds=None, images=3)
    with pytest.raises(ValueError, match="above 0"):
        needed(few, effect=0.0, alpha=0.01)


# --- the verdict


def against(shift: float, **options: object) -> tuple[str, str]:
    rng = np.random.default_rng(9)
    level = rng.normal(0.8, 0.1, 30)
    scores = {
        name: level + add + rng.normal(0, 0.004, (5, 1)) + rng.normal(0, 0.01, (5, 30))
        for name, add in (("cross_entropy", 0.0), ("dice", shift), ("focal", 0.0))
    }
    metric = options.pop("metric", DICE)
    assert isinstance(metric, Metric)
    results = compare(
        {name: measured(x) for name, x in scores.items()},
        baseline="cross_entropy",
        metric=metric,
        pooling="image",
    )
    return results["dice"].verdict, results["dice"].words


def test_a_big_difference_is_found_and_said() -> None:
    verdict, words = against(0.05)
    assert verdict == "better"
    assert words.startswith("`dice` beats `cross_entropy` by 0.05")
    assert " Dice (95 % CI 0.0" in words
    assert words.endswith("corrected p < 0.001)")
    verdict, words = against(-0.05)
    assert verdict == "worse"
    assert words.startswith("`dice` loses to `cross_entropy` by 0.0")
    assert "-" not in words


def test_lower_is_better_for_a_distance() -> None:
    verdict, words = against(-0.05, metric=HD95)
    assert verdict == "better"
    assert words.startswith("`dice` beats `cross_entropy` by 0.0")
    assert " px HD95 (95 % CI 0.0" in words
    assert against(0.05, metric=HD95)[0] == "worse"


def test_no_difference_is_said_with_what_is_needed() -> None:
    verdict, words = against(0.0)
    assert verdict == "undecided"
    assert words.startswith("no difference between `dice` and `cross_entropy` detectable")
    assert "corrected p = " in words
    assert words.endswith(
        ("would be needed for an effect of 0.01", "found with a chance of at least 80 %")
    )


def compared_pair(
    own: Array, baseline: Array, *, metric: Metric = DICE, others: int = 0, **options: float
) -> Comparison:
    """`own` against `baseline`, both float64[seeds images], among further losses like it."""
    scores = {"a": baseline, "b": own} | {f"like b {i}": own for i in range(others)}
    return compare(
        {loss: measured(x) for loss, x in scores.items()},
        baseline="a",
        metric=metric,
        pooling="image",
        effect=options.get("effect", 0.01),
    )["b"]


def test_scores_that_do_not_vary_say_nothing_about_power() -> None:
    varied = normal_scores(np.random.default_rng(17), 5, 30)
    for scores in (np.zeros((5, 30)), varied):
        same = compared_pair(scores, scores)
        assert same.words == (
            "the Dice of `b` and of `a` does not differ at all on any held-out image, so nothing "
            "can be said about power"
        )
        assert (same.needed.seeds, same.needed.images) == (None, None)
    # Every image differs by the same, but three images are too few for the permutation test.
    few = compared_pair(np.full((5, 3), 0.5), np.full((5, 3), 0.25))
    assert few.verdict == "undecided"
    assert few.words.endswith("; nothing can be said about power, as the variance is not known")


def test_a_pooled_comparison_has_no_numbers_made_of_single_images() -> None:
    # Better on the small images, worse on the large one, which decides when they are pooled.
    rng = np.random.default_rng(18)
    truth = np.array([10.0] * 9 + [10_000])
    shares = {"a": [0.5] * 9 + [0.9], "b": [0.9] * 9 + [0.5]}
    losses = {}
    for loss, share in shares.items():
        overlap = truth * np.array(share) * (1 + 0.01 * rng.normal(size=(5, 1)))
        whole = np.broadcast_to(truth, overlap.shape)
        losses[loss] = Measured(
            seeds=tuple(range(5)),
            scored=together(np.stack([overlap, whole, whole], -1)),
            per_image=overlap / whole,
        )
    pooled = compare(losses, baseline="a", metric=DICE, pooling="pooled")["b"]
    assert pooled.difference.value < -0.3
    assert all(
        math.isnan(value) for value in dataclasses.astuple(pooled.probability_of_improvement)
    )
    assert math.isnan(pooled.effect_size)
    alone = compare(losses, baseline="a", metric=DICE, pooling="image")["b"]
    assert alone.probability_of_improvement.value == pytest.approx(0.9)
    assert alone.effect_size > 0


def test_an_interval_without_0_and_an_undecided_verdict_are_explained() -> None:
    rng = np.random.default_rng(19)
    base = rng.normal(0.8, 0.1, (5, 30))
    noise = rng.normal(size=(5, 30))
    noise = (noise - noise.mean()) / noise.std()
    remark = ", interval not corrected, corrected p = "
    alone, many = (
        compared_pair(base - 0.04 + 0.12 * noise, base, others=others) for others in (0, 8)
    )
    assert alone.verdict == "worse"
    assert "not corrected" not in alone.words
    assert (many.verdict, many.difference) == ("undecided", alone.difference)
    assert many.difference.high < 0
    assert many.p < 0.05 < many.p_corrected
    assert remark in many.words
    # Five images: the permutation test cannot get below 2 / 2^5, whatever the interval.
    five = compared_pair(base[:, :5] + 0.2 + 0.01 * noise[:, :5], base[:, :5])
    assert five.verdict == "undecided"
    assert five.difference.low > 0
    assert ", the permutation test disagrees, corrected p = " in five.words
    # Where the interval holds 0 there is nothing to explain.
    assert remark not in compared_pair(base + 0.12 * noise, base, others=8).words


def test_the_interval_of_a_difference_ends_where_scores_end() -> None:
    own, baseline = np.array([[1.0, 1, 0.9], [0, 0, 0.1]]), np.array([[0.0, 0, 0.1], [1, 1, 0.8]])
    found = compared_pair(own, baseline)
    assert (found.difference.low, found.difference.high) == (-1, 1)
    assert "95 % CI -1.000 to 1.000" in found.words
    distance = compared_pair(own, baseline, metric=HD95).difference
    assert distance.low < -1
    assert distance.high > 1
    assert distance.standard_error == found.difference.standard_error
    one = compared_pair(own[:1, :1], baseline[:1, :1]).difference
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_very_many_seeds_are_not_counted() -> None:
    rng = np.random.default_rng(20)
    base = rng.normal(0.8, 0.1, (2, 30))
    own = base + np.array([[0.2], [-0.2]]) + rng.normal(0, 0.001, (2, 30))
    found = compared_pair(own, base)
    assert found.needed.seeds is not None
    assert found.needed.seeds > 100
    assert found.words.endswith("; more than 100 more seeds would be needed for an effect of 0.01")
    few = compared_pair(own, base, effect=0.2)
    assert few.needed.seeds is not None
    assert f"; about {few.needed.seeds} more seeds would be needed" in few.words
    rng = np.random.default_rng(25)
    base = rng.normal(0.8, 0.1, (5, 30))
    both = compared_pair(base + rng.normal(0, 0.2, (5, 30)), base)
    assert both.needed.images is not None
    assert "; more than 100 more seeds, or about 1,2" in both.words
    assert " more held-out images, would be needed for an effect of 0.01" in both.words
    never = compared_pair(base + rng.normal(0, 0.2, (5, 30)), base, effect=1e-4)
    assert never.needed == Needed(effect=1e-4, seeds=None, images=None)
    assert "nor 10,000 more held-out images alone would do" in never.words


def test_one_seed_never_decides() -> None:
    rng = np.random.default_rng(10)
    base = rng.random((1, 30))
    results = compare(
        {"a": measured(base), "b": measured(base + 0.5 + 0.01 * rng.random((1, 30)))},
        baseline="a",
        metric=DICE,
        pooling="image",
    )
    assert results["b"].verdict == "undecided"
    assert results["b"].difference.low > 0
    assert math.isnan(results["b"].p_corrected)
    assert results["b"].words.startswith("one seed cannot tell `b` and `a` apart from the luck")


def test_losses_are_paired_by_the_seeds_both_have() -> None:
    rng = np.random.default_rng(11)
    scores = rng.random((5, 20))
    own = Measured(
        seeds=(4, 0, 2, 9), scored=averaged(scores[[4, 0, 2, 3]]), per_image=scores[[4, 0, 2, 3]]
    )
    results = compare(
        {"b": own, "a": measured(scores), "c": measured(scores[:2], (7, 8))},
        baseline="a",
        metric=DICE,
        pooling="image",
    )
    assert list(results) == ["b", "c"]
    assert results["b"].seeds == 3
    assert results["b"].difference.value == results["b"].difference.high == 0
    assert results["b"].probability_of_improvement.value == pytest.approx(0.5)
    assert results["b"].p == 1
    assert (results["c"].seeds, results["c"].verdict) == (0, "undecided")
    assert "no seed that both finished" in results["c"].words
    assert math.isnan(results["c"].difference.value)


def test_an_undefined_score_is_undecided() -> None:
    nothing, some = (
        Measured(
            seeds=(0, 1),
            scored=together(np.full((2, 5, 3), count)),
            per_image=np.full((2, 5), score),
        )
        for count, score in ((0.0, np.nan), (1.0, 1.0))
    )
    result = compare({"a": some, "b": nothing}, baseline="a", metric=DICE, pooling="pooled")["b"]
    assert result.verdict == "undecided"
    assert "undefined" in result.words
    assert (result.needed.seeds, result.needed.images) == (None, None)


def test_bad_comparisons_are_refused() -> None:
    good = measured(np.random.default_rng(0).random((3, 4)))
    with pytest.raises(ValueError, match="baseline 'x' is not among"):
        compare({"a": good}, baseline="x", metric=DICE, pooling="image")
    bad = Measured(seeds=(0, 1), scored=good.scored, per_image=good.per_image)
    with pytest.raises(ValueError, match="2 seeds, but scores of 3 and scores per image of 3"):
        compare({"a": good, "b": bad}, baseline="a", metric=DICE, pooling="image")
    assert compare({"a": good}, baseline="a", metric=DICE, pooling="image") == {}


def test_summary_counts_the_verdicts() -> None:
    rng = np.random.default_rng(12)
    level = rng.normal(0.7, 0.1, 20)
    shifts = {"ce": 0.0, "a": 0.1, "b": 0.2, "c": -0.1, "d": 0.0}
    scores = {k: measured(level + v + rng.normal(0, 0.01, (5, 20))) for k, v in shifts.items()}
    results = compare(scores, baseline="ce", metric=DICE, pooling="image")
    text = summary(results, baseline="ce", metric=DICE)
    assert text == (
        "Of the 4 losses compared with `ce` in Dice, 2 beat it (`a`, `b`), 1 loses to it (`c`) "
        "and 1 is undecided (`d`). `b` is furthest ahead; whether it beats the other winners was "
        "not tested. Undecided does not mean equal: it was not shown either way."
    )
    assert "only loss" in summary({}, baseline="ce", metric=DICE)


# --- simulations: does it hold what it promises?


def varying(seed: float, image: float, both: float) -> Callable[..., Pair]:
    """Two losses equal in expectation; each network and each image has its own offset."""

    def make(rng: np.random.Generator, seeds: int, images: int) -> Pair:
        def one() -> Additive:
            return averaged(
                0.8
                + seed * rng.normal(size=(seeds, 1))
                + image * rng.normal(size=(1, images))
                + both * rng.normal(size=(seeds, images))
            )

        return one(), one()

    return make


def skewed(rng: np.random.Generator, seeds: int, images: int) -> Pair:
    """Scores in [0, 1], most near 1, and some images that most networks miss altogether."""
    level, hard = rng.beta(5, 1, images), rng.random(images) < 0.1

    def one() -> Additive:
        noise = 0.02 * rng.normal(size=(seeds, 1)) + 0.02 * rng.normal(size=images)
        scores = np.clip(level + noise + 0.05 * rng.normal(size=(seeds, images)), 0, 1)
        return averaged(np.where(hard & (rng.random((seeds, images)) < 0.6), 0, scores))

    return one(), one()


def pooled(rng: np.random.Generator, seeds: int, images: int) -> Pair:
    """Overlap, predicted and true pixels; few images hold most of them."""
    truth, ease = rng.lognormal(5, 1, images), rng.beta(8, 2, images)

    def one() -> Additive:
        noise = 0.03 * rng.normal(size=(seeds, 1)) + 0.03 * rng.normal(size=images)
        recall = np.clip(ease + noise + 0.05 * rng.normal(size=(seeds, images)), 0, 1)
        size = 0.1 * rng.normal(size=(seeds, 1)) + 0.2 * rng.normal(size=(seeds, images))
        predicted = truth * np.exp(size)
        overlap = recall * np.minimum(predicted, truth)
        return together(np.stack([overlap, predicted, np.broadcast_to(truth, overlap.shape)], -1))

    return one(), one()


def per_image(scored: Scored) -> Array:
    """The images' scores that `averaged` took the mean of."""
    assert isinstance(scored, Additive)
    return scored.counts[..., 0]


SCENARIOS: dict[str, Callable[..., Pair]] = {
    "seeds": varying(0.03, 0, 0.03),
    "images": varying(0.002, 0.1, 0.01),
    "interaction": varying(0, 0, 0.1),
    "seeds and images": varying(0.02, 0.1, 0.02),
    "skewed": skewed,
    "pooled": pooled,
    "sorted": detected,
}


def coverage(scenario: str, seeds: int, images: int, repetitions: int, *levels: float) -> Array:
    """How often the interval of each level holds the true difference, which is 0."""
    make = SCENARIOS[scenario]
    rng = np.random.default_rng(1000 * seeds + images)
    held = np.zeros(len(levels))
    for _ in range(repetitions):
        one, other = make(rng, seeds, images)
        found = components(one, minus=other, draws=300)
        held += [abs(found.value) <= found.half_width(level) for level in levels]
    return held / repetitions


def margin(rate: float, repetitions: int) -> float:
    """Three and a half binomial standard deviations."""
    return 3.5 * math.sqrt(rate * (1 - rate) / repetitions)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_intervals_hold_the_truth(scenario: str) -> None:
    rate = coverage(scenario, 3, 30, 300, 0.95)
    assert rate >= 0.95 - margin(0.95, 300)


@pytest.mark.slow
@pytest.mark.parametrize("images", [3, 8, 30, 67])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_intervals_hold_the_truth_everywhere(scenario: str, seeds: int, images: int) -> None:
    levels, repetitions = (0.95, 0.99), 300 if scenario == "sorted" else 1500  # Sorting is slow.
    rates = coverage(scenario, seeds, images, repetitions, *levels)
    for level, rate in zip(levels, rates, strict=True):
        # A quarter of the error more: scores that are not normal, and only 300 draws.
        assert rate >= level - (1 - level) / 4 - margin(level, repetitions), rates


@pytest.mark.slow
def test_intervals_are_no_wider_than_they_must_be() -> None:
    # With 5 seeds or more, and where not all of the variance is interaction.
    for scenario in ("seeds", "images", "seeds and images", "pooled"):
        for seeds in (5, 10):
            assert coverage(scenario, seeds, 67, 1500, 0.95) <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize(("images", "least"), [(3, 0.83), (8, 0.84), (30, 0.90), (67, 0.91)])
def test_a_long_tail_on_few_images_is_the_limit(images: int, least: float) -> None:
    # The score of one loss. What the docstring admits, no less and no more.
    truth = skewed(np.random.default_rng(99), 200, 20_000)[0].value().mean()
    rng = np.random.default_rng(images)
    held = 0
    for _ in range(1000):
        found = components(skewed(rng, 10, images)[0], draws=300)
        held += abs(found.value - truth) <= found.half_width(0.95)
    assert least <= held / 1000 <= 0.97


@pytest.mark.slow
def test_percentiles_of_the_bootstrap_would_not_do() -> None:
    rng = np.random.default_rng(16)
    held = 0
    for _ in range(300):
        one, other = varying(0.03, 0, 0.03)(rng, 3, 30)
        difference = per_image(one) - per_image(other)
        drawn = [
            difference[np.ix_(rng.integers(0, 3, 3), rng.integers(0, 30, 30))].mean()
            for _ in range(300)
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= 0 <= high
    assert held / 300 < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_improvement_holds_the_truth(seeds: int) -> None:
    # With one seed it is about these networks, so they have no offsets.
    make = varying(0.02 if seeds > 1 else 0, 0.05, 0.03)
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(1000):
        one, other = make(rng, seeds, 30)
        result = improved(per_image(one), per_image(other))
        held += result.low <= 0.5 <= result.high
    assert held / 1000 >= 0.94 - margin(0.94, 1000)


def networks(
    rng: np.random.Generator, seeds: int, images: int, shift: float = 0
) -> list[np.ndarray]:
    """Scores of six losses; every network has its own offset, each loss its own images."""
    level = rng.normal(0.8, 0.1, images)
    return [
        level
        + (shift if i else 0)
        + 0.03 * rng.normal(size=(seeds, 1))
        + 0.03 * rng.normal(size=images)
        + 0.05 * rng.normal(size=(seeds, images))
        for i in range(6)
    ]


def verdicts(losses: list[np.ndarray]) -> list[str]:
    """Of all but the first."""
    results = compare(
        {str(i): measured(scores) for i, scores in enumerate(losses)},
        baseline="0",
        metric=DICE,
        pooling="image",
        draws=200,
        swaps=499,
        seed=0,
    )
    return [result.verdict for result in results.values()]


def family(rng: np.random.Generator, seeds: int, images: int, shift: float = 0) -> list[str]:
    """Verdicts of five losses against a sixth."""
    return verdicts(networks(rng, seeds, images, shift))


def false_verdicts(seeds: int, images: int, repetitions: int) -> float:
    rng = np.random.default_rng(seeds + images)
    return float(
        np.mean([set(family(rng, seeds, images)) != {"undecided"} for _ in range(repetitions)])
    )


@pytest.mark.slow
def test_adding_seeds_after_an_undecided_verdict_costs_what_the_report_says() -> None:
    # 8115 comparisons gave 3.1 % and 6.0 %.
    rng = np.random.default_rng(7)
    first = second = 0
    for _ in range(1000):
        losses = networks(rng, 14, 40)
        shown = set(verdicts([scores[:5] for scores in losses])) != {"undecided"}
        first += shown
        second += shown or set(verdicts(losses)) != {"undecided"}
    assert abs(first / 1000 - 0.031) < margin(0.031, 1000)
    assert abs(second / 1000 - 0.060) < margin(0.060, 1000)


def test_equal_losses_get_no_verdict() -> None:
    assert false_verdicts(2, 67, 50) <= 0.05 + margin(0.05, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "images"), [(2, 67), (3, 8), (3, 67), (5, 30), (10, 67)])
def test_equal_losses_get_no_verdict_anywhere(seeds: int, images: int) -> None:
    assert false_verdicts(seeds, images, 600) <= 0.05 + margin(0.05, 600)


def test_retraining_is_what_the_t_test_adds() -> None:
    # Networks that differ by the luck of their start: images alone find "differences".
    rng = np.random.default_rng(13)
    images_alone = both = 0
    for _ in range(100):
        one, other = varying(0.03, 0, 0.03)(rng, 3, 67)
        swapped = permutation_test(one, other, draws=499)
        images_alone += swapped < 0.05
        both += max(swapped, components(one, minus=other, draws=300).p_value()) < 0.05
    assert images_alone > 50
    assert both <= 100 * (0.05 + margin(0.05, 100))


def test_a_big_true_difference_is_found() -> None:
    rng = np.random.default_rng(14)
    found = [family(rng, 5, 30, shift=0.15) for _ in range(10)]
    assert np.mean([verdict == "better" for row in found for verdict in row]) > 0.9


@pytest.mark.slow
def test_what_is_needed_is_what_it_takes() -> None:
    # The advice from true components reaches the promised power in new data.
    effect, alpha = 0.03, 0.01
    found = Components(
        value=0,
        seeds=3,
        images=30,
        by_seed=2 * (0.02**2 / 3),
        by_image=2 * (0.03**2 / 30),
        interaction=0,
    )
    advice = needed(found, effect=effect, alpha=alpha).seeds
    assert advice is not None
    rng = np.random.default_rng(15)
    hits = 0
    for _ in range(1000):
        one, other = varying(0.02, 0.03, 0)(rng, 3 + advice, 30)
        one = averaged(per_image(one) + effect)
        hits += components(one, minus=other, draws=300).p_value() < alpha
    assert abs(hits / 1000 - 0.8) < 0.07
