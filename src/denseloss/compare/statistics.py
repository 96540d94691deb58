"""How sure a comparison can be: intervals, tests and the verdict, over trained networks and images.

A score has two sources of luck: the seed (start and order of the training) and the held-out images.
Every network is scored on the same images: the two are *crossed*. Two losses share both: they are
*paired*. What a score is made of is not known here, only how it follows from weights of the images
(`Scored`). The same seed gives the same numbers again.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from denseloss.compare.results import Comparison, Needed
from denseloss.report.numbers import Estimate, plural
from denseloss.tasks.scores import Metric, Pooling, Scored

Array = NDArray[np.float64]

POWER = 0.8
"""The chance of finding a true effect for which `needed` asks."""

MOST_SEEDS = 100
"""More seeds than these are told as "more than 100": beyond, the number means nothing."""

_CAP = 10_000  # More seeds or images than this are no advice.
_CHUNK = 2_000_000  # Numbers held at a time: 16 MB.
_ROUNDING = 1e-12  # Of the scores' size: what is smaller is rounding and counts as zero.


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the networks trained with one loss did on the held-out images.

    Attributes:
        seeds: Of the finished trials.
        scored: The score of all images, by seed.
        per_image: float64[seeds images], each image's own score, NaN where it has none.
    """

    seeds: tuple[int, ...]
    scored: Scored
    per_image: Array


@dataclass(frozen=True, kw_only=True)
class Components:
    """The variance of a mean over seeds and images, by where it comes from; NaN is unknown.

    `by_seed` and `by_image` both contain the interaction, as the squares of an analysis of variance
    do: each is what is seen when seeds alone, or images alone, are drawn anew.

    Attributes:
        value: The mean over the seeds of the score.
        seeds: How many.
        images: How many.
        by_seed: Variance of the value under new seeds; NaN with one seed.
        by_image: Variance of the value under new images; NaN with one image.
        interaction: What both contain, a network's luck with an image; NaN with one of either.
    """

    seeds: int
    images: int
    value: float = math.nan
    by_seed: float = math.nan
    by_image: float = math.nan
    interaction: float = math.nan

    @property
    def variance(self) -> float:
        """Of the value under new seeds and new images; NaN with one of each.

        Both parts contain the interaction, so it is subtracted once; the result is at least as
        large as each part. With one seed (or image) it is the part of the images (or seeds).
        """
        if self.seeds == 1 or self.images == 1:
            return self.by_image if self.seeds == 1 else self.by_seed
        both = self.by_seed + self.by_image - self.interaction
        if math.isnan(both):
            return math.nan
        return max(both, self.by_seed, self.by_image)

    def half_width(self, level: float) -> float:
        """Of the confidence interval of the value; NaN where there is none.

        Each part of the variance is multiplied by the square of its own t quantile (Howe 1974). The
        factor with fewer levels, mostly the seeds, takes its whole part, the other one the rest.
        One freedom for the sum (Satterthwaite 1946) fails: when three seeds agree by luck, the sum
        seems as well known as the many images, and a 1 % test fails in up to 3 % of cases.

        Args:
            level: Of confidence, in (0, 1).
        """
        return self._reach((1 - level) / 2)

    def freedom(self, level: float) -> float:
        """Degrees of freedom of a t interval as wide as `half_width(level)`, level in (0, 1)."""
        if math.isnan(self.variance):
            return math.nan
        free = [free for free, part in self._parts() if part > 0]
        if len(set(free)) < 2:
            return free[0] if free else self._parts()[0][0]
        tail = (1 - level) / 2
        ratio = self._reach(tail) / math.sqrt(self.variance)

        def excess(freedom: float) -> float:
            return -float(special.stdtrit(freedom, tail)) - ratio

        # Rounding may put an end a little on the wrong side of 0.
        return float(optimize.brentq(excess, 0.999 * min(free), 1.001 * max(free)))

    def p_value(self) -> float:
        """Two-sided p of "the true value is 0", under new seeds and new images.

        At this p the interval just reaches 0, so the two always agree; where only one factor varies
        it is a t test. (Sign flips over seeds need no normal distribution, but with 5 seeds their p
        is never below 2 / 32, too large for any correction.)

        Returns:
            p, at least 1e-15; NaN where the variance is unknown. Where nothing varies, 1 for a
            value of 0 and else 0.
        """
        if math.isnan(self.variance):
            return math.nan
        if self.value == 0:
            return 1.0
        if self.variance == 0:
            return 0.0

        def excess(log_tail: float) -> float:
            return self._reach(math.exp(log_tail)) - abs(self.value)

        lowest = math.log(5e-16)
        if excess(lowest) <= 0:
            return 1e-15
        return 2 * math.exp(optimize.brentq(excess, lowest, math.log(0.5), xtol=1e-9))

    def estimate(self, level: float = 0.95) -> Estimate:
        """The value with its confidence interval, of a level in (0, 1)."""
        half = self.half_width(level)
        return Estimate(
            value=self.value,
            low=self.value - half,
            high=self.value + half,
            standard_error=math.sqrt(self.variance),
            freedom=self.freedom(level),
        )

    def _reach(self, tail: float) -> float:
        """Half of the width of the interval that leaves out `tail` at each end."""
        return math.sqrt(
            sum(float(special.stdtrit(free, tail)) ** 2 * part for free, part in self._parts())
        )

    def _parts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(freedom, variance) of the factor with fewer levels and of the rest."""
        if self.seeds < 2 or self.images < 2:
            return (max(1, self.seeds * self.images - 1), self.variance), (math.inf, 0.0)
        seeds, images = (self.seeds - 1, self.by_seed), (self.images - 1, self.by_image)
        few, many = (seeds, images) if self.seeds <= self.images else (images, seeds)
        return few, (many[0], self.variance - few[1])

    def projected(self, seeds: int, images: int) -> "Components":
        """What to expect with other numbers of seeds and images: 2 at least of each, as now."""
        interaction = self.interaction * (self.seeds * self.images) / (seeds * images)
        own_seed = max(0.0, self.by_seed - self.interaction) * self.seeds / seeds
        own_image = max(0.0, self.by_image - self.interaction) * self.images / images
        return replace(
            self,
            seeds=seeds,
            images=images,
            by_seed=own_seed + interaction,
            by_image=own_image + interaction,
            interaction=interaction,
        )


def components(
    scored: Scored, *, minus: Scored | None = None, draws: int = 2000, seed: int = 0
) -> Components:
    """The variance of the mean score, or of a paired difference, by its sources.

    A crossed bootstrap. Images are drawn with replacement, the same for all seeds and both losses;
    N - 1 of N, which makes the variance of the draws unbiased (Rao and Wu 1988). Seeds need not be
    drawn: the mean over them is linear, so what drawing S - 1 of S would add is known exactly.
    Owen's (2007) pigeonhole bootstrap draws both at once and counts the interaction three times;
    here it is told apart.

    A draw with an undefined score of any seed (no image with the class was drawn) is left out.

    Args:
        scored: Of the networks of a loss.
        minus: Of the loss to subtract, for the same seeds and images.
        draws: How many times the images are drawn.
        seed: Of the draws.

    Returns:
        The components; all NaN if the score of a seed is undefined; those of the images NaN if it
        is in (almost) every draw.

    Raises:
        ValueError: If there are no seeds or no images, or not those of `minus`.
    """
    sides = _sides(scored, minus)
    seeds, images = scored.shape
    values = [side.value() for side in sides]
    each = _difference(values)
    if np.isnan(each).any():
        return Components(seeds=seeds, images=images)
    tiny = _tiny(*values)
    drawn = _drawn(sides, draws, seed) if images > 1 else np.empty((0, seeds))
    by_seed = by_image = interaction = math.nan
    if seeds > 1:
        by_seed = _zeroed(float(each.var(ddof=1)) / seeds, tiny**2)
    if len(drawn) > 1:
        by_image = _zeroed(float(drawn.mean(1).var(ddof=1)), tiny**2)
    if len(drawn) > 1 and seeds > 1:
        own = (drawn - drawn.mean(1, keepdims=True)) - (each - each.mean())
        total = float((own - own.mean(0)).var(0, ddof=1).sum())
        interaction = _zeroed(total / (seeds * (seeds - 1)), tiny**2)
    return Components(
        value=_zeroed(float(each.mean()), tiny),
        seeds=seeds,
        images=images,
        by_seed=by_seed,
        by_image=by_image,
        interaction=interaction,
    )


def estimate(
    scored: Scored,
    *,
    minus: Scored | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean over seeds of the score, or of a paired difference, with its confidence interval.

    The variance is that of a crossed bootstrap over seeds and images (`components`), the interval
    is value ± `Components.half_width`. (Percentiles of the bootstrap reach no further than the
    worst seed: with three seeds, 95 % of them hold the truth in 81 % of cases.)

    With one seed the interval is over images alone and says nothing about another training; with
    one image it is over seeds alone and says nothing about another image; with one of each it is
    NaN. Where nothing varies it is a point.

    In simulation (tests/test_statistics.py) the 95 % interval of a difference holds the truth in
    93 to 99.9 % of cases, with 2 to 10 seeds and 3 to 67 images, for normal, skewed and pooled
    scores. It is above 98 % with 2 or 3 seeds, whose agreement may be luck, and where most of the
    variance is interaction. The weak case is the score of a *single* loss with a long tail (some
    images at 0, most at 0.9) on few images: about 87 to 90 % with 3 or 8 images, 93 to 96 % with
    30, since a tail that was not drawn cannot be seen.

    Args:
        scored: Of the networks of a loss.
        minus: Of the loss to subtract, for the same seeds and images.
        level: Of confidence, in (0, 1).
        draws: How many times the images are drawn.
        seed: Of the draws.

    Returns:
        The estimate; NaN if the score of a seed is undefined.

    Raises:
        ValueError: As `components`.

    Source:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007. Rao and Wu,
        Resampling inference with complex survey data, JASA 83, 1988. Howe, Approximate confidence
        limits on the mean of X + Y where X and Y are two tabled independent random variables, JASA
        69, 1974. Satterthwaite, An approximate distribution of estimates of variance components,
        Biometrics Bulletin 2(6), 1946.
    """
    return components(scored, minus=minus, draws=draws, seed=seed).estimate(level)


def permutation_test(
    scored: Scored, baseline: Scored, *, draws: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of a paired permutation test: the losses' labels are swapped, image by image.

    All seeds of an image are swapped together, which keeps what an image does to every network.
    Images are swapped before they are scored, so pooled scores are tested as well. The null: *for
    these trained networks*, what the two losses did on an image could as well be the other way
    round. It speaks about new images, not about networks trained anew.

    All 2^N swaps are tried where that is no more than twice `draws` (a swap and its opposite are
    the same two-sided). Else p = (1 + k) / (1 + draws), k being the draws at least as far from zero
    as what was seen (Phipson and Smyth 2010), so p is never 0. p is at least 2 / 2^N: five images
    can never show anything at 0.05. A swap with an undefined score counts as far from zero.

    Args:
        scored: Of the networks of a loss.
        baseline: Of the other loss, for the same seeds and images.
        draws: How many swaps are drawn.
        seed: Of the draws.

    Returns:
        p, NaN if the difference is undefined.

    Raises:
        ValueError: As `components`.
    """
    values = [side.value() for side in _sides(scored, baseline)]
    seen = abs(float(_difference(values).mean()))
    if math.isnan(seen):
        return math.nan
    far = seen - _tiny(*values)
    images = scored.shape[1]
    exact = images - 1 <= math.log2(draws)
    swaps = _all_swaps(images) if exact else _random_swaps(images, scored.width, draws, seed)
    extreme = total = 0
    for swap in swaps:
        own, other = scored.swapped(baseline, swap)
        extreme += int((~(np.abs((own - other).mean(-1)) < far)).sum())
        total += len(swap)
    return extreme / total if exact else (1 + extreme) / (1 + total)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: the chance of any false finding among all of them stays below the level.

    The i-th smallest of m is multiplied by m - i + 1, and is at least as large as the one before.
    NaN, a test that could not be made, stays NaN but counts in m: a loss whose trials failed does
    not make it easier for the others.

    Args:
        p_values: In [0, 1] or NaN.

    Returns:
        The adjusted values, in the same order.

    Source:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6(2), 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def probability_of_improvement(
    per_image: Array, baseline: Array, *, higher_is_better: bool = True, level: float = 0.95
) -> Estimate:
    """Probability that a network trained with the loss beats one trained with the baseline.

    On a held-out image, over all pairs of a seed of the one and a seed of the other; ties count
    half, and images on which a network has no score are left out. The variance is that of a
    U-statistic's linear part, over seeds and images as in `estimate`; the interval is cut at 0 and
    1. Where every pair agrees, its open end is the exact binomial bound (Clopper and Pearson 1934)
    for as many trials as seeds or images, the fewer of the two (images with one seed). In
    simulation the 95 % interval holds the truth in 93 to 98 % of cases with 8 images and more, in
    90 % at the worst with 3.

    Args:
        per_image: float64[seeds images], a score each.
        baseline: The same of the baseline.
        higher_is_better: False for a distance.
        level: Of confidence, in (0, 1).

    Returns:
        The probability, NaN if no image is left.

    Raises:
        ValueError: If the shapes differ, or are not [seeds images].

    Source:
        Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice,
        NeurIPS 2021, section 4.3, here with images for tasks.
    """
    own, other = _scored_by_all(per_image, baseline)
    seeds, images = own.shape
    if seeds == 0 or images == 0:
        return Components(seeds=seeds, images=images).estimate(level)
    if not higher_is_better:
        own, other = -own, -other
    wins = np.stack([((x > other) + 0.5 * (x == other)).mean(0) for x in own])
    losses = np.stack([((own > x) + 0.5 * (own == x)).mean(0) for x in other])
    linear = wins + losses - wins.mean(0)
    result = _linear_components(linear).estimate(level)
    low, high = max(0.0, result.low), min(1.0, result.high)
    if result.standard_error == 0 and result.value in (0.0, 1.0):
        bound = ((1 - level) / 2) ** (1 / (images if seeds == 1 else min(seeds, images)))
        low, high = (bound, 1.0) if result.value == 1 else (0.0, 1 - bound)
    elif math.isnan(result.low):
        low = high = math.nan
    return replace(result, low=low, high=high)


def effect_size(per_image: Array, baseline: Array) -> float:
    """Cohen's d_z over images: mean over standard deviation of the paired differences.

    The difference of an image is that of the means over seeds. Images on which any network has no
    score are left out.

    Args:
        per_image: float64[seeds images], a score each.
        baseline: The same of the baseline.

    Returns:
        d_z, in the sign of the difference. Without spread it is 0 if the mean is 0 and else
        infinite; NaN with fewer than two images.

    Raises:
        ValueError: If the shapes differ, or are not [seeds images].
    """
    own, other = _scored_by_all(per_image, baseline)
    if own.shape[0] == 0 or own.shape[1] < 2:
        return math.nan
    difference = own.mean(0) - other.mean(0)
    tiny = _tiny(own, other)
    mean = _zeroed(float(difference.mean()), tiny)
    spread = _zeroed(float(difference.std(ddof=1)), tiny)
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / spread


def needed(found: Components, *, effect: float, alpha: float, power: float = POWER) -> Needed:
    """How many more seeds, or images, would show a true difference of some size.

    The chance is that of `Components.p_value` (noncentral t), as if the variances that were found
    were the true ones: with few seeds they are rough, and so is the advice. Of the permutation test
    only the smallest p that so many images can give is heeded.

    Args:
        found: The components of the paired difference.
        effect: The true difference to be found, > 0.
        alpha: Two-sided level of the test, such as 0.05 over the number of losses (the strictest
            of Holm's).
        power: The chance to reach.

    Returns:
        The numbers; None where that alone never does, needs more than 10 000, or is unknown: with
        one seed or one image so far, or where nothing varied, as scores that are all 0.

    Raises:
        ValueError: If `effect` is not above 0.
    """
    if not effect > 0:
        raise ValueError(f"effect must be above 0, got {effect}")
    # Written so that a variance of NaN is unknown as well.
    if found.seeds < 2 or found.images < 2 or not found.variance > 0:
        return Needed(effect=effect, seeds=None, images=None)

    def enough(seeds: int, images: int) -> bool:
        if 2.0 ** (1 - images) >= alpha:
            return False
        return _power(found.projected(seeds, images), effect, alpha) >= power

    return Needed(
        effect=effect,
        seeds=_first(lambda more: enough(found.seeds + more, found.images)),
        images=_first(lambda more: enough(found.seeds, found.images + more)),
    )


def compare(
    measured: Mapping[str, Measured],
    *,
    baseline: str,
    metric: Metric,
    pooling: Pooling,
    level: float = 0.95,
    effect: float = 0.01,
    draws: int = 2000,
    swaps: int = 10_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Each loss against the baseline, paired by the seeds that both have finished and by image.

    The p of a comparison is the larger of two, so a verdict must pass both tests. The permutation
    test over images assumes nothing about the scores, but takes the networks as given: two networks
    always differ, by the luck of their starts if nothing else, and enough images show it. The t
    test answers for a new training, but trusts the normal distribution. With one shared seed there
    is no p, as nothing speaks about a new training. The permutation test decides nothing with fewer
    than 6 images, or than 8 with five losses. Holm's correction is over all losses of this metric.

    A loss is better, or worse, if its corrected p is below 1 - level *and* the interval of the
    difference leaves out 0. The interval is not corrected; that of a metric without a unit, a share
    of 1, is cut at -1 and 1. The probability of improvement and the effect size are made of the
    images' own scores and may contradict a pooled score: they are NaN for the pooling `"pooled"`.

    In simulation, five losses no different from the baseline, each network with an offset of its
    own, get any such verdict in 0 to 5 % of comparisons, with 2 to 10 seeds and 8 to 67 images.

    Args:
        measured: By loss, the baseline among them.
        baseline: The loss that the others are compared with.
        metric: What the score is.
        pooling: How it is taken.
        level: Of confidence, in (0, 1).
        effect: The smallest difference that matters, > 0, in the metric's unit.
        draws: Of the bootstrap.
        swaps: Of the permutation test.
        seed: Of both.

    Returns:
        A comparison for each loss but the baseline, in their order.

    Raises:
        ValueError: If the baseline is missing, or arrays do not fit each other.
    """
    if baseline not in measured:
        raise ValueError(f"the baseline {baseline!r} is not among {list(measured)}")
    others = [loss for loss in measured if loss != baseline]
    alpha = (1 - level) / max(1, len(others))
    pairs = [_shared(measured[loss], measured[baseline]) for loss in others]
    tested = [_tested(*pair, draws=draws, swaps=swaps, seed=seed) for pair in pairs]
    corrected = holm([p for _, p in tested])
    results = {}
    for loss, (own, other), (found, p), p_corrected in zip(
        others, pairs, tested, corrected, strict=True
    ):
        difference = _possible(found.estimate(level), metric)
        improvement, size = Components(seeds=0, images=0).estimate(level), math.nan
        if pooling == "image":
            improvement = probability_of_improvement(
                own.per_image,
                other.per_image,
                higher_is_better=metric.higher_is_better,
                level=level,
            )
            size = effect_size(own.per_image, other.per_image)
        result = Comparison(
            metric=metric.key,
            pooling=pooling,
            seeds=found.seeds,
            images=found.images,
            difference=difference,
            p=p,
            p_corrected=p_corrected,
            probability_of_improvement=improvement,
            effect_size=size,
            needed=needed(found, effect=effect, alpha=alpha),
            verdict=_verdict(difference, p_corrected, level, metric),
            words="",
        )
        results[loss] = replace(result, words=_words(loss, baseline, result, metric, level))
    return results


def summary(comparisons: Mapping[str, Comparison], *, baseline: str, metric: Metric) -> str:
    """All verdicts in one sentence or three: how many losses, who is ahead, what is not shown.

    Args:
        comparisons: By loss, as `compare` gives them.
        baseline: The loss they were compared with.
        metric: What the score is.
    """
    if not comparisons:
        return f"`{baseline}` is the only loss, so there is nothing to compare it with."
    losses = {
        verdict: [loss for loss, found in comparisons.items() if found.verdict == verdict]
        for verdict in ("better", "worse", "undecided")
    }
    parts = []
    for verdict, one, several in (
        ("better", "beats it", "beat it"),
        ("worse", "loses to it", "lose to it"),
        ("undecided", "is undecided", "are undecided"),
    ):
        if names := [f"`{loss}`" for loss in losses[verdict]]:
            what = one if len(names) == 1 else several
            parts.append(f"{len(names)} {what} ({', '.join(names)})")
    many = len(comparisons)
    compared = f"the {many} losses" if many > 1 else "the one loss"
    told = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    text = f"Of {compared} compared with `{baseline}` in {metric.name}, {told}."
    if len(losses["better"]) > 1:
        first = max(losses["better"], key=lambda loss: abs(comparisons[loss].difference.value))
        text += f" `{first}` is furthest ahead; whether it beats the other winners was not tested."
    if losses["undecided"]:
        text += " Undecided does not mean equal: it was not shown either way."
    return text


def _sides(scored: Scored, minus: Scored | None) -> list[Scored]:
    sides = [scored] if minus is None else [scored, minus]
    first, last = sides[0].shape, sides[-1].shape
    if 0 in first:
        raise ValueError(f"there must be a seed and an image, got {first} of them")
    if last != first:
        raise ValueError(f"both losses must have the same seeds and images, got {first} and {last}")
    return sides


def _difference(values: Sequence[Array]) -> Array:
    """The first of one or two sides, less the second."""
    return values[0] - values[1] if len(values) > 1 else values[0]


def _scored_by_all(per_image: Array, baseline: Array) -> tuple[Array, Array]:
    """The scores of the images on which every network has one."""
    own, other = np.asarray(per_image, np.float64), np.asarray(baseline, np.float64)
    if own.ndim != 2 or own.shape != other.shape:
        raise ValueError(
            f"scores must be [seeds images] of the same seeds and images, "
            f"got {own.shape} and {other.shape}"
        )
    keep = ~(np.isnan(own).any(0) | np.isnan(other).any(0))
    return own[:, keep], other[:, keep]


def _drawn(sides: Sequence[Scored], draws: int, seed: int) -> Array:
    """Scores, or differences, of draws of the images: float64[draws seeds], all defined."""
    images = sides[0].shape[1]
    rng = np.random.default_rng(seed)
    drawn = []
    for size in _sizes(draws, images + 2 * sides[0].width):
        times = rng.multinomial(images - 1, np.full(images, 1 / images), size=size)
        weights: Array = times * np.float64(images / (images - 1))
        drawn.append(_difference([side.value(weights) for side in sides]))
    result = np.concatenate(drawn)
    return result[~np.isnan(result).any(1)]


def _linear_components(values: Array) -> Components:
    """Of the mean of float64[seeds images], where the bootstrap's variances are known exactly."""
    seeds, images = values.shape
    tiny, mean = _tiny(values), float(values.mean())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - rows[:, None] - columns

    def variance(deviations: Array, freedom: int, count: int) -> float:
        squares = float((deviations**2).sum())
        return _zeroed(squares / (freedom * count), tiny**2) if freedom else math.nan

    return Components(
        value=mean,
        seeds=seeds,
        images=images,
        by_seed=variance(rows, seeds - 1, seeds),
        by_image=variance(columns, images - 1, images),
        interaction=variance(rest, (seeds - 1) * (images - 1), seeds * images),
    )


def _tiny(*values: Array) -> float:
    return _ROUNDING * max(float(np.abs(value).max()) for value in values)


def _zeroed(value: float, tiny: float) -> float:
    return 0.0 if abs(value) <= tiny else value


def _sizes(total: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // width)
    yield from (min(step, total - start) for start in range(0, total, step))


def _all_swaps(images: int) -> Iterator[Array]:
    """Every swap in which the first image stays: the others are their opposites."""
    number = np.arange(2 ** (images - 1))[:, None]
    for part in np.array_split(number, max(1, number.size * images // _CHUNK)):
        yield ((part >> np.arange(images)) & 1).astype(np.float64)


def _random_swaps(images: int, width: int, draws: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    for size in _sizes(draws, images + 3 * width):
        yield rng.integers(0, 2, (size, images), dtype=np.int8).astype(np.float64)


def _power(expected: Components, effect: float, alpha: float) -> float:
    error = math.sqrt(expected.variance)
    if error == 0:
        return 1.0
    bound, shift = expected.half_width(1 - alpha) / error, effect / error
    if shift > 10 * bound:  # Certain, and beyond what the noncentral t is computed well for.
        return 1.0
    return float(stats.nct.sf(bound, expected.freedom(1 - alpha), shift))


def _first(enough: Callable[[int], bool]) -> int | None:
    """The smallest number from 0 to the cap that is enough, all above it being enough as well."""
    high = next(filter(enough, (0, *(2**k for k in range(_CAP.bit_length())), _CAP)), None)
    return None if high is None else bisect_left(range(high), x=True, lo=high // 2, key=enough)


def _shared(own: Measured, other: Measured) -> tuple[Measured, Measured]:
    """Both losses, at the seeds that both have finished."""
    seeds = tuple(sorted(set(own.seeds) & set(other.seeds)))

    def part(one: Measured) -> Measured:
        if not len(one.seeds) == one.scored.shape[0] == len(one.per_image):
            raise ValueError(
                f"{len(one.seeds)} seeds, but scores of {one.scored.shape[0]} and scores per image "
                f"of {len(one.per_image)}"
            )
        rows = [one.seeds.index(seed) for seed in seeds]
        return Measured(seeds=seeds, scored=one.scored.of(rows), per_image=one.per_image[rows])

    return part(own), part(other)


def _tested(
    own: Measured, other: Measured, *, draws: int, swaps: int, seed: int
) -> tuple[Components, float]:
    """The components of a difference, and the larger p of both tests."""
    seeds, images = own.scored.shape
    if 0 in (seeds, images):
        return Components(seeds=seeds, images=images), math.nan
    found = components(own.scored, minus=other.scored, draws=draws, seed=seed)
    if seeds == 1:
        return found, math.nan
    swapped = permutation_test(own.scored, other.scored, draws=swaps, seed=seed)
    # Not max(): it drops a NaN that comes second.
    return found, float(np.maximum(swapped, found.p_value()))


def _possible(difference: Estimate, metric: Metric) -> Estimate:
    """The difference with its interval cut at what two scores can differ by."""
    if metric.unit:
        return difference
    low, high = (float(np.clip(end, -1.0, 1.0)) for end in (difference.low, difference.high))
    return replace(difference, low=low, high=high)


def _excludes_zero(difference: Estimate) -> bool:
    return difference.low > 0 or difference.high < 0


def _verdict(
    difference: Estimate, p: float, level: float, metric: Metric
) -> Literal["better", "worse", "undecided"]:
    if not (_excludes_zero(difference) and p < 1 - level):
        return "undecided"
    return "better" if (difference.value > 0) == metric.higher_is_better else "worse"


def _words(loss: str, baseline: str, found: Comparison, metric: Metric, level: float) -> str:
    """The verdict as a sentence."""
    both, difference = f"`{loss}` and `{baseline}`", found.difference
    if 0 in (found.seeds, found.images):
        return f"{both} have no seed that both finished: nothing to compare"
    if math.isnan(difference.value):
        return f"{both} cannot be compared in {metric.name}: it is undefined"
    number = _numbers(difference, metric)
    unit = f"{metric.unit} {metric.name}".strip()
    corrected = f"corrected {_p_words(found.p_corrected)}"

    def span(low: float, high: float) -> str:
        return f"{100 * level:g} % CI {number(low)} to {number(high)}"

    if found.verdict != "undecided":
        verb = "beats" if found.verdict == "better" else "loses to"
        ends = sorted((abs(difference.low), abs(difference.high)))
        return (
            f"`{loss}` {verb} `{baseline}` by {number(abs(difference.value))} {unit} "
            f"({span(*ends)}, {corrected})"
        )
    interval = "no CI" if math.isnan(difference.low) else span(difference.low, difference.high)
    told = f"difference {number(difference.value)} {unit}, {interval}"
    if found.seeds == 1:
        over = "" if found.images == 1 else ", over images alone"
        return f"one seed cannot tell {both} apart from the luck of the start ({told}{over})"
    if difference.standard_error == 0 and difference.value == 0:
        return (
            f"the {metric.name} of `{loss}` and of `{baseline}` does not differ at all on any "
            "held-out image, so nothing can be said about power"
        )
    if _excludes_zero(difference):
        # It would read as a contradiction to "no difference".
        corrects = found.p < 1 - level
        told += ", interval not corrected" if corrects else ", the permutation test disagrees"
    return (
        f"no difference between {both} detectable at this budget ({told}, {corrected}); "
        f"{_needed_words(found, metric)}"
    )


def _needed_words(found: Comparison, metric: Metric) -> str:
    more = found.needed
    effect = f"an effect of {more.effect:g} {metric.unit}".strip()
    if found.images == 1:
        return "one held-out image cannot show more"
    if not found.difference.standard_error > 0:
        return "nothing can be said about power, as the variance is not known"
    if 0 in (more.seeds, more.images):
        return f"{effect} would have been found with a chance of at least {100 * POWER:g} %"
    images = ""
    if more.images is not None:
        images = f"about {more.images:,} more held-out image{'' if more.images == 1 else 's'}"
    if more.seeds is None:
        if images:
            return f"more seeds alone would not do for {effect}; {images} would"
        many = f"{_CAP:,} more held-out images"
        return f"neither more seeds alone nor {many} alone would do for {effect}"
    if more.seeds <= MOST_SEEDS:
        return f"about {plural(more.seeds, 'more seed')} would be needed for {effect}"
    alternative = f", or {images}," if images else ""
    return f"more than {MOST_SEEDS} more seeds{alternative} would be needed for {effect}"


def _numbers(difference: Estimate, metric: Metric) -> Callable[[float], str]:
    """Writes numbers with as many decimals as the interval calls for, all the same."""
    decimals = 2 if metric.unit else 3
    half = (difference.high - difference.low) / 2
    if half > 0:
        decimals = min(6, max(decimals, 1 - math.floor(math.log10(half))))

    def written(value: float) -> str:
        text = f"{value:.{decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    return written


def _p_words(p: float) -> str:
    if math.isnan(p):
        return "p unknown"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
