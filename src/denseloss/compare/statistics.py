"""How sure a score or a difference can be: its variance and intervals, over networks and images.

A score has two sources of luck: the seed (start and order of the training) and the held-out images.
Every network is scored on the same images: the two are *crossed*. Two losses share both: they are
*paired*. What a score is made of is not known here, only how it follows from weights of the images
(`Scored`). The same seed gives the same numbers again.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from denseloss.report.numbers import Estimate
from denseloss.tasks.scores import Scored

Array = NDArray[np.float64]

POWER = 0.8
"""The chance of showing a true difference for which `needed` asks."""

MOST_SEEDS = 100
"""More seeds than these are no advice."""

_CHUNK = 2_000_000  # Numbers held at a time: 16 MB.
_ROUNDING = 1e-12  # Of the scores' size: what is smaller is rounding and counts as zero.


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
        return self.reach((1 - level) / 2)

    def freedom(self, level: float) -> float:
        """Degrees of freedom of a t interval as wide as `half_width(level)`, level in (0, 1)."""
        if math.isnan(self.variance):
            return math.nan
        free = [free for free, part in self._parts() if part > 0]
        if len(set(free)) < 2:
            return free[0] if free else self._parts()[0][0]
        tail = (1 - level) / 2
        ratio = self.reach(tail) / math.sqrt(self.variance)

        def excess(freedom: float) -> float:
            return -float(special.stdtrit(freedom, tail)) - ratio

        # Rounding may put an end a little on the wrong side of 0.
        return float(optimize.brentq(excess, 0.999 * min(free), 1.001 * max(free)))

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

    def reach(self, tail: float) -> float:
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

    def reversed(self) -> "Components":
        """Of the difference the other way round."""
        return replace(self, value=-self.value)

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


def needed(found: Components, *, effect: float, tail: float, power: float = POWER) -> int | None:
    """How many more seeds would show a true difference of some size.

    The chance is that of a one-sided test (noncentral t), as if the variances that were found were
    the true ones: with few seeds they are rough, and so is the advice.

    Args:
        found: The components of the paired difference.
        effect: The true difference to be found, > 0.
        tail: One-sided level of the test.
        power: The chance to reach.

    Returns:
        The number, 0 if there are enough; None where seeds alone never do, where it takes more than
        `MOST_SEEDS`, or where it is unknown: with one seed or one image so far, or where nothing
        varied.

    Raises:
        ValueError: `effect` is not above 0.
    """
    if not effect > 0:
        raise ValueError(f"effect must be above 0, got {effect}")
    return first_enough(found, lambda expected: _power(expected, effect, tail) >= power)


def first_enough(found: Components, enough: Callable[[Components], bool]) -> int | None:
    """The fewest more seeds with which `enough` is expected to hold, None as in `needed`."""
    # Written so that a variance of NaN is unknown as well.
    if found.seeds < 2 or found.images < 2 or not found.variance > 0:
        return None

    def holds(more: int) -> bool:
        return enough(found.projected(found.seeds + more, found.images))

    high = next(
        filter(holds, (0, *(2**k for k in range(MOST_SEEDS.bit_length())), MOST_SEEDS)), None
    )
    return None if high is None else bisect_left(range(high), x=True, lo=high // 2, key=holds)


def smallest_shown(found: Components, *, tail: float, power: float = POWER) -> float:
    """The smallest true difference that is shown with a chance of `power`; NaN if unknown.

    Args:
        found: The components of the paired difference.
        tail: One-sided level of the test.
        power: The chance.
    """
    if found.seeds < 2 or found.images < 2 or not found.variance > 0:
        return math.nan
    error = math.sqrt(found.variance)

    def lacks(log_size: float) -> float:
        return power - _power(found, error * math.exp(log_size), tail)

    low, high = -5.0, 8.0
    return error * math.exp(optimize.brentq(lacks, low, high)) if lacks(high) < 0 else math.nan


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


def linear_components(values: Array, *, scale: float | None = None) -> Components:
    """Of the mean of float64[seeds images], where the bootstrap's variances are known exactly.

    Args:
        values: Of networks and images.
        scale: The size of what they were computed from; beside it rounding is small.
    """
    seeds, images = values.shape
    tiny = _tiny(values) if scale is None else _ROUNDING * scale
    mean = float(values.mean())
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


def _power(expected: Components, effect: float, tail: float) -> float:
    error = math.sqrt(expected.variance)
    if error == 0:
        return 1.0
    bound, shift = expected.reach(tail) / error, effect / error
    if shift > 10 * bound:  # Certain, and beyond what the noncentral t is computed well for.
        return 1.0
    return float(stats.nct.sf(bound, expected.freedom(1 - 2 * tail), shift))
