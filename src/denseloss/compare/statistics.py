"""How sure a comparison can be: intervals, tests and the verdict, over trained networks and images.

A score has two sources of luck: the seed, that is the start and the order of the training, and the
images that happened to be held out. Every network is scored on the same images, so the two are
*crossed*; two losses share both, so they are *paired*. A score is a functional of weights of the
images (`Scored`): what it is made of is not known here.

Everything random takes a seed and gives the same numbers again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from denseloss.compare.results import Comparison, Needed
from denseloss.report.numbers import Estimate
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
    """The variance of a mean over seeds and images, by where it comes from.

    `by_seed` and `by_image` each hold the interaction once, as the squares of an analysis of
    variance do: they are what is seen when seeds alone, or images alone, are drawn anew.

    Attributes:
        value: The mean over the seeds of the score.
        seeds: How many.
        images: How many.
        by_seed: Variance of the value under new seeds; NaN with one seed.
        by_image: Variance of the value under new images; NaN with one image.
        interaction: What both hold, a network's luck with an image; NaN if there is one of either.
    """

    value: float
    seeds: int
    images: int
    by_seed: float
    by_image: float
    interaction: float

    @property
    def variance(self) -> float:
        """Of the value under new seeds and new images; NaN with one of each.

        The interaction is in both parts and is taken off once, but never so that less is left
        than either part shows by itself. With one seed (or one image) it is that of the other
        factor alone.
        """
        if self.seeds == 1 or self.images == 1:
            return self.by_image if self.seeds == 1 else self.by_seed
        both = self.by_seed + self.by_image - self.interaction
        if math.isnan(both):
            return math.nan
        return max(both, self.by_seed, self.by_image)

    def half_width(self, level: float) -> float:
        """Of the confidence interval of the value; NaN where there is none.

        Each part of the variance is multiplied by the square of its own t quantile (Howe 1974): the
        factor with fewer levels, as a rule the seeds, brings its whole part with its own freedom,
        the other one the rest. Satterthwaite's (1946) one freedom for the sum fails here: when
        three seeds agree by luck, their part of the variance seems small, and the sum seems as well
        known as the many images. A 1 % test then fails in up to 3 % of cases.

        Args:
            level: Of confidence, in (0, 1).
        """
        return self._reach((1 - level) / 2)

    def freedom(self, level: float) -> float:
        """Degrees of freedom at which a t interval would be as wide as that of `half_width`.

        Args:
            level: Of confidence, in (0, 1).
        """
        free = [free for free, part in self._parts() if part > 0]
        if math.isnan(self.variance):
            return math.nan
        if len(set(free)) < 2:
            return free[0] if free else self._parts()[0][0]
        tail = (1 - level) / 2
        ratio = self._reach(tail) / math.sqrt(self.variance)

        def excess(freedom: float) -> float:
            return -float(special.stdtrit(freedom, tail)) - ratio

        # Rounding may put an end a little on the wrong side of 0.
        low, high = 0.999 * min(free), 1.001 * max(free)
        return float(optimize.brentq(excess, low, high))

    def p_value(self) -> float:
        """Two-sided p of "the true value is 0", under new seeds and new images.

        The p at which the interval just reaches 0, so the two always agree; a t test where only
        one factor varies. Sign flips over seeds would need no normality, but with 5 seeds their p
        is never below 2 / 32, which no correction survives. A p below 1e-15 is given as that.

        Returns:
            p; NaN where there is no variance to go by. Where nothing varies, 1 for a value of 0 and
            else 0.
        """
        if math.isnan(self.variance):
            return math.nan
        if self.value == 0:
            return 1.0
        if self.variance == 0:
            return 0.0

        def excess(log_tail: float) -> float:
            return self._reach(math.exp(log_tail)) - abs(self.value)

        lowest, highest = math.log(5e-16), math.log(0.5)
        if excess(lowest) <= 0:
            return 1e-15
        return 2 * math.exp(optimize.brentq(excess, lowest, highest, xtol=1e-9))

    def estimate(self, level: float = 0.95) -> Estimate:
        """The value with its confidence interval.

        Args:
            level: Of confidence, in (0, 1).
        """
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
        """The components to be expected with other numbers of seeds and images.

        Args:
            seeds: At least 2, as there must be now.
            images: At least 2, as there must be now.
        """
        interaction = self.interaction * (self.seeds * self.images) / (seeds * images)
        own_seed = max(0.0, self.by_seed - self.interaction) * self.seeds / seeds
        own_image = max(0.0, self.by_image - self.interaction) * self.images / images
        return Components(
            value=self.value,
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

    A crossed bootstrap. Images are drawn with replacement, the same for all seeds and both losses,
    N - 1 of N, so that the variance of the draws is unbiased (Rao and Wu 1988) and not N - 1 Nths
    of it. The mean over the seeds is linear, so what drawing S - 1 of S seeds would add is known
    without drawing; nothing is left to chance there. Owen's (2007) pigeonhole bootstrap draws both
    at once and counts the interaction three times; here it is told apart.

    A draw in which the score of any seed is undefined (no image with the class was drawn) is left
    out.

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
    each = values[0] - values[1] if minus is not None else values[0]
    if np.isnan(each).any():
        return _unknown(seeds, images)
    tiny = _ROUNDING * max(float(np.abs(value).max()) for value in values)
    by_seed = by_image = interaction = math.nan
    if seeds > 1:
        by_seed = _zeroed(float(each.var(ddof=1)) / seeds, tiny**2)
    if images > 1:
        drawn = _drawn(sides, draws, seed)
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
    is value ± `Components.half_width`. Percentiles of the bootstrap are not used: with three seeds
    they reach no further than the worst of the three, and 95 % of them hold the truth in 81 % of
    cases.

    With one seed the interval is over images alone and says nothing about another training; with
    one image it is over seeds alone and says nothing about another image; with one of each it is
    NaN. Where nothing varies it is a point.

    What simulation shows (tests/test_statistics.py): the 95 % interval of a difference holds the
    truth in 93 to 99.9 % of cases, with 2 to 10 seeds and 3 to 67 images, normal, skewed and pooled
    scores alike. Above 98 % are the cases in which most of the variance is interaction and those
    with 2 or 3 seeds: the price of never counting on the seeds' agreeing by luck. The limit is the
    score of a *single* loss on few images, if it has a long tail, such as some images at 0 among
    most at 0.9: a tail that was not drawn cannot be seen. There the interval holds the truth in
    about 87 to 90 % of cases with 3 or 8 images, and in 93 to 96 % with 30.

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

    All seeds of an image are swapped together, so that what an image does to every network stays
    together; the images are swapped before they are scored, so it serves scores of all images as
    one as well. The null is: *for these trained networks*, what the two losses' networks did on an
    image could as well be the other way round. It speaks about new images and says nothing about
    networks trained anew.

    All 2^N swaps are tried where that is no more than twice `draws` (a swap and its opposite are
    the same two-sided). Else p = (1 + k) / (1 + draws), k being the draws at least as far from zero
    as what was seen (Phipson and Smyth 2010), so p is never 0. p cannot be below 2 / 2^N: five
    images can never show anything at 0.05. A swap with an undefined score counts as far from zero.

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
    seen = abs(float((values[0] - values[1]).mean()))
    if math.isnan(seen):
        return math.nan
    far = seen - _ROUNDING * max(float(np.abs(value).max()) for value in values)
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
    NaN, a test that could not be made, stays NaN; it still counts in m, so that a loss whose trials
    failed does not make the others easier.

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
    per_image: Array,
    baseline: Array,
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
) -> Estimate:
    """Probability that a network trained with the loss beats one trained with the baseline.

    On a held-out image, over all pairs of a seed of the one and a seed of the other; a tie counts
    half. Images on which any network has no score are left out. The variance is that of a
    U-statistic's linear part, a seed having a part in the pairs of both losses, taken over seeds
    and images as in `estimate`, and the interval is cut at 0 and 1. Where every pair agrees there
    is no variance to go by: the open end is then the exact binomial (Clopper and Pearson 1934)
    bound for as many trials as there are seeds or images, the fewer of the two (images with one
    seed). In simulation the 95 % interval holds the truth in 93 to 98 % of cases with 8 images and
    more, in 90 % at the worst with 3.

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
    own, other = _pairable(per_image, baseline)
    keep = ~(np.isnan(own).any(0) | np.isnan(other).any(0))
    own, other = own[:, keep], other[:, keep]
    seeds, images = own.shape
    if seeds == 0 or images == 0:
        return _unknown(seeds, images).estimate(level)
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
    return Estimate(
        value=result.value,
        low=low,
        high=high,
        standard_error=result.standard_error,
        freedom=result.freedom,
    )


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
    own, other = _pairable(per_image, baseline)
    keep = ~(np.isnan(own).any(0) | np.isnan(other).any(0))
    own, other = own[:, keep], other[:, keep]
    if own.shape[0] == 0 or own.shape[1] < 2:
        return math.nan
    difference = own.mean(0) - other.mean(0)
    tiny = _ROUNDING * max(float(np.abs(own).max()), float(np.abs(other).max()))
    mean = _zeroed(float(difference.mean()), tiny)
    spread = _zeroed(float(difference.std(ddof=1)), tiny)
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / spread


def needed(found: Components, *, effect: float, alpha: float, power: float = POWER) -> Needed:
    """How many more seeds, or images, would show a true difference of some size.

    The chance is that of `Components.p_value` (noncentral t), with the variance components that
    were found taken for true. With few seeds they are rough, and so is the advice. The permutation
    test is heeded in so far as it needs enough images to get below `alpha` at all.

    Args:
        found: The components of the paired difference.
        effect: The true difference to be found, > 0.
        alpha: Two-sided level of the test, such as 0.05 over the number of losses (the strictest
            of Holm's).
        power: The chance to reach.

    Returns:
        The numbers; None where that alone never does, needs more than 10 000, or is unknown
        because there is only one seed or only one image so far, or because nothing varied: scores
        that are all 0 do not show how much others would vary.

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

    The p of a comparison is the larger of two. The permutation test over images makes no
    assumption about the scores, but takes the networks as given: two networks always differ by
    something, and enough images show it, though it may be the luck of their starts. The t test
    answers for a new training, but trusts the normal distribution. A verdict must pass both. With
    one seed shared there is no p, as nothing speaks about a new training. With fewer than 6 images
    the permutation test can decide nothing, with five losses fewer than 8. Holm's correction is
    over all losses of this metric.

    A loss is better, or worse, if its corrected p is below 1 - level *and* the interval of the
    difference leaves out 0. The interval is of that loss alone and not corrected; that of a metric
    without a unit, a share of 1, is cut at -1 and 1.

    The probability of improvement and the effect size are made of the images' own scores. They may
    go the other way than a pooled score, so they are NaN where the pooling is `"pooled"`.

    In simulation, five losses that are no different from the baseline, each network with an offset
    of its own, get any such verdict in 0 to 5 % of comparisons, with 2 to 10 seeds and 8 to
    67 images.

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
    pairs = {loss: _shared(measured[loss], measured[baseline]) for loss in others}
    found, p = {}, {}
    for loss, (own, other) in pairs.items():
        shape = own.scored.shape
        p[loss] = math.nan
        if 0 in shape:
            found[loss] = _unknown(*shape)
            continue
        found[loss] = components(own.scored, minus=other.scored, draws=draws, seed=seed)
        if shape[0] > 1:
            swapped = permutation_test(own.scored, other.scored, draws=swaps, seed=seed)
            # Not max(): it drops a NaN that comes second.
            p[loss] = float(np.maximum(swapped, found[loss].p_value()))
    corrected = dict(zip(others, holm([p[loss] for loss in others]), strict=True))
    results = {}
    for loss, (own, other) in pairs.items():
        difference = _possible(found[loss].estimate(level), metric)
        verdict = _verdict(difference, corrected[loss], level, metric)
        more = needed(found[loss], effect=effect, alpha=alpha)
        results[loss] = Comparison(
            metric=metric.key,
            pooling=pooling,
            seeds=len(own.seeds),
            images=own.scored.shape[1],
            difference=difference,
            p=p[loss],
            p_corrected=corrected[loss],
            probability_of_improvement=probability_of_improvement(
                own.per_image,
                other.per_image,
                higher_is_better=metric.higher_is_better,
                level=level,
            )
            if pooling == "image"
            else _unknown(*own.per_image.shape).estimate(level),
            effect_size=effect_size(own.per_image, other.per_image)
            if pooling == "image"
            else math.nan,
            needed=more,
            verdict=verdict,
            words=_words(
                loss,
                baseline,
                found[loss],
                difference,
                p[loss],
                corrected[loss],
                more,
                verdict,
                metric,
                level,
            ),
        )
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
    by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for loss, comparison in comparisons.items():
        by_verdict[comparison.verdict].append(loss)
    better, worse, undecided = by_verdict["better"], by_verdict["worse"], by_verdict["undecided"]
    many = len(comparisons)
    compared = f"the {many} losses" if many > 1 else "the one loss"
    parts = []
    if better:
        parts.append(f"{len(better)} {_verb(better, 'beat')} it ({_listed(better)})")
    if worse:
        parts.append(f"{len(worse)} {_verb(worse, 'lose')} to it ({_listed(worse)})")
    if undecided:
        be = "is" if len(undecided) == 1 else "are"
        parts.append(f"{len(undecided)} {be} undecided ({_listed(undecided)})")
    text = (
        f"Of {compared} compared with `{baseline}` in {metric.name}, "
        f"{', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}."
    )
    sign = 1 if metric.higher_is_better else -1
    if len(better) > 1:
        first = max(better, key=lambda loss: sign * comparisons[loss].difference.value)
        text += f" `{first}` is furthest ahead; whether it beats the other winners was not tested."
    if undecided:
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


def _pairable(per_image: Array, baseline: Array) -> tuple[Array, Array]:
    own, other = np.asarray(per_image, np.float64), np.asarray(baseline, np.float64)
    if own.ndim != 2 or own.shape != other.shape:
        raise ValueError(
            f"scores must be [seeds images] of the same seeds and images, "
            f"got {own.shape} and {other.shape}"
        )
    return own, other


def _drawn(sides: Sequence[Scored], draws: int, seed: int) -> Array:
    """Scores, or differences, of draws of the images: float64[draws seeds], all defined."""
    images = sides[0].shape[1]
    rng = np.random.default_rng(seed)
    drawn = []
    for size in _sizes(draws, images + 2 * sides[0].width):
        times = rng.multinomial(images - 1, np.full(images, 1 / images), size=size)
        weights: Array = times * np.float64(images / (images - 1))
        values = [side.value(weights) for side in sides]
        drawn.append(values[0] - values[1] if len(values) > 1 else values[0])
    result = np.concatenate(drawn)
    return result[~np.isnan(result).any(1)]


def _linear_components(values: Array) -> Components:
    """Of the mean of float64[seeds images], where the bootstrap's variances are known exactly."""
    seeds, images = values.shape
    tiny = _ROUNDING * float(np.abs(values).max())
    mean = float(values.mean())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - rows[:, None] - columns

    def variance(deviations: Array, freedom: int, count: int) -> float:
        if freedom == 0:
            return math.nan
        return _zeroed(float((deviations**2).sum()) / (freedom * count), tiny**2)

    return Components(
        value=mean,
        seeds=seeds,
        images=images,
        by_seed=variance(rows, seeds - 1, seeds),
        by_image=variance(columns, images - 1, images),
        interaction=variance(rest, (seeds - 1) * (images - 1), seeds * images),
    )


def _unknown(seeds: int, images: int) -> Components:
    return Components(
        value=math.nan,
        seeds=seeds,
        images=images,
        by_seed=math.nan,
        by_image=math.nan,
        interaction=math.nan,
    )


def _zeroed(value: float, tiny: float) -> float:
    return 0.0 if abs(value) <= tiny else value


def _sizes(total: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // width)
    for start in range(0, total, step):
        yield min(step, total - start)


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
    if enough(0):
        return 0
    low, high = 0, 1
    while not enough(high):
        if high >= _CAP:
            return None
        low, high = high, min(2 * high, _CAP)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


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


def _words(
    loss: str,
    baseline: str,
    found: Components,
    difference: Estimate,
    p: float,
    p_corrected: float,
    more: Needed,
    verdict: str,
    metric: Metric,
    level: float,
) -> str:
    if found.seeds == 0 or found.images == 0:
        return f"`{loss}` and `{baseline}` have no seed that both finished: nothing to compare"
    if math.isnan(difference.value):
        return f"`{loss}` and `{baseline}` cannot be compared in {metric.name}: it is undefined"
    number = _numbers(difference, metric)
    unit = f"{metric.unit} {metric.name}".strip()
    percent = f"{100 * level:g} %"
    if verdict != "undecided":
        ends = sorted((abs(difference.low), abs(difference.high)))
        verb = "beats" if verdict == "better" else "loses to"
        return (
            f"`{loss}` {verb} `{baseline}` by {number(abs(difference.value))} {unit} "
            f"({percent} CI {number(ends[0])} to {number(ends[1])}, "
            f"corrected {_p_words(p_corrected)})"
        )
    span = f"{percent} CI {number(difference.low)} to {number(difference.high)}"
    if math.isnan(difference.low):
        span = "no CI"
    if found.seeds == 1:
        over = span if found.images == 1 else f"{span}, over images alone"
        return (
            f"one seed cannot tell `{loss}` and `{baseline}` apart from the luck of the start "
            f"(difference {number(difference.value)} {unit}, {over})"
        )
    if found.variance == 0 and found.value == 0:
        return (
            f"the {metric.name} of `{loss}` and of `{baseline}` does not differ at all on any "
            "held-out image, so nothing can be said about power"
        )
    if _excludes_zero(difference):
        # It would read as a contradiction to "no difference".
        span += ", interval not corrected" if p < 1 - level else ", the permutation test disagrees"
    return (
        f"no difference between `{loss}` and `{baseline}` detectable at this budget (difference "
        f"{number(difference.value)} {unit}, {span}, corrected {_p_words(p_corrected)}); "
        f"{_needed_words(more, found, metric)}"
    )


def _needed_words(more: Needed, found: Components, metric: Metric) -> str:
    effect = f"an effect of {more.effect:g} {metric.unit}".strip()
    if found.images == 1:
        return "one held-out image cannot show more"
    if not found.variance > 0:
        return "nothing can be said about power, as the variance is not known"
    if more.seeds == 0 or more.images == 0:
        return f"{effect} would have been found with a chance of at least {100 * POWER:g} %"
    images = ""
    if more.images is not None:
        images = f"about {more.images:,} more held-out image{'' if more.images == 1 else 's'}"
    if more.seeds is None:
        if images:
            return f"more seeds alone would not do for {effect}; {images} would"
        return (
            f"neither more seeds alone nor {_CAP:,} more held-out images alone would do for "
            f"{effect}"
        )
    if more.seeds <= MOST_SEEDS:
        seeds = f"{more.seeds} more seed{'' if more.seeds == 1 else 's'}"
        return f"about {seeds} would be needed for {effect}"
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


def _verb(subjects: Sequence[str], verb: str) -> str:
    return f"{verb}s" if len(subjects) == 1 else verb


def _listed(losses: Sequence[str]) -> str:
    return ", ".join(f"`{loss}`" for loss in losses)
