"""Which losses may be the best, what each is ruled out or equal by, and which one to take.

Scores are y[s, i], of a network by its seed and of a held-out image; higher is better. Two losses
share seeds and images, so their difference x[s, i] is taken in pairs (`difference`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denseloss.compare.results import Standing
from denseloss.compare.statistics import Components, linear_components
from denseloss.tasks.scores import Scored

Array = NDArray[np.float64]

DRAWS = 100_000
_CHUNK = 2_000_000  # Numbers held at a time: 16 MB.


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What the networks of one loss scored.

    Attributes:
        seeds: Of the networks, ascending.
        scores: float64[seeds images], higher is better; each image's own part of the score
            (`pseudo_values`).
    """

    seeds: tuple[int, ...]
    scores: Array


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a loss stands among all.

    Attributes:
        loss: Its name.
        standing: In one word or two.
        worse_by: It is worse than some other by at least this; 0 where that was not shown.
        behind: The loss that it is most surely behind; empty where it is alone.
        upper: It is better than the best of the others by at most this (Hsu).
        lower: It is behind the best of the others by at most this, written as a negative number.
        less: Its score less that of the recommended one.
    """

    loss: str
    standing: Standing
    worse_by: float
    behind: str
    upper: float
    lower: float
    less: Components


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The loss to take, and what may be wrong with it.

    The probabilities are those of a flat prior, given the variances; they are of the losses in
    `losses` alone.

    Attributes:
        loss: The one whose expected loss of score is the smallest.
        losses: Those that were compared at the same seeds.
        best: The probability of each that it is the best; it overstates where losses differ by
            less than the noise.
        within: The probability of each that it is within the smallest difference that matters of
            the best.
        regret: The expected loss of score of each if it is taken, an upper figure with few seeds.
        seeds: How many seeds all have.
    """

    loss: str
    losses: tuple[str, ...]
    best: tuple[float, ...]
    within: tuple[float, ...]
    regret: tuple[float, ...]
    seeds: int

    @property
    def has_risk(self) -> bool:
        """Whether the figures mean anything: two seeds do not tell how much seeds differ."""
        return self.seeds > 2 and not math.isnan(self.best[0])


def pseudo_values(scored: Scored) -> Array:
    """Each image's own part of a score, float64[seeds images], whose mean is nearly the score.

    Of a mean over images it is the image's score. Of any other functional of the images it is the
    jackknife's N θ - (N - 1) θ₋ᵢ: what the score gains by the image.

    Args:
        scored: Of the networks of a loss.

    Returns:
        The values; NaN where the score without the image is undefined.

    Source:
        Efron and Stein, The jackknife estimate of variance, Annals of Statistics 9(3), 1981.
    """
    seeds, images = scored.shape
    whole = scored.value()[:, None]
    if images < 2 or seeds == 0:
        return whole
    parts = []
    for places in np.array_split(np.arange(images), max(1, images * scored.width // _CHUNK)):
        without = np.ones((len(places), images))
        without[np.arange(len(places)), places] = 0.0
        parts.append(scored.value(without).T)
    return images * whole - (images - 1) * np.concatenate(parts, axis=1)


def difference(one: Networks, other: Networks) -> Components:
    """The score of one loss less that of another, at the seeds that both have."""
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    rows = [[each.seeds.index(seed) for seed in seeds] for each in (one, other)]
    x = one.scores[rows[0]] - other.scores[rows[1]]
    if 0 in x.shape or np.isnan(x).any():
        return Components(seeds=x.shape[0], images=x.shape[1])
    return linear_components(x, scale=max(np.abs(one.scores).max(), np.abs(other.scores).max()))


def reach(found: Components, tail: float) -> float:
    """How far a difference may be off, at one end, with a chance of `tail`; infinite if unknown."""
    if found.seeds < 2 or found.images < 2 or math.isnan(found.variance) or tail <= 0:
        return math.inf
    return found.reach(tail)


def may_be_best(
    differences: Mapping[tuple[str, str], Components],
    losses: Sequence[str],
    *,
    alpha: float,
    count: int,
) -> list[str]:
    """The losses that no other one beats: with confidence 1 - alpha the best is among them.

    A loss is out if another is ahead of it at the level alpha / (L - 1), L being all losses. The
    best one can only be thrown out by one of L - 1 events, each of that chance.

    Args:
        differences: Of each ordered pair (l, b), the score of l less that of b.
        losses: Those that have networks.
        alpha: 1 less the level.
        count: How many losses were planned: those that failed are counted, too.

    Source:
        Hsu, Constrained simultaneous confidence intervals for multiple comparisons with the best,
        Annals of Statistics 12(3), 1984.
    """
    tail = alpha / max(1, count - 1)
    return [
        one
        for one in losses
        if not any(_ahead(differences[other, one], tail) for other in losses if other != one)
    ]


def _ahead(found: Components, tail: float) -> bool:
    return found.value - reach(found, tail) > 0


def standings(
    networks: Mapping[str, Networks],
    *,
    recommended: str,
    effect: float,
    alpha: float,
    count: int,
) -> dict[str, Place]:
    """Where each loss stands, the first that fits: see `Standing`.

    The three kinds of statement (who may be the best; worse by at least; practically equal) hold
    at the level each, over all losses, and not all three together.

    Args:
        networks: Of each loss.
        recommended: The loss to take.
        effect: The smallest difference that matters, > 0.
        alpha: 1 less the level.
        count: How many losses were planned, those that failed included.
    """
    losses = list(networks)
    between = all_differences(networks)
    pairs = max(2, count * (count - 1))
    best = may_be_best(between, losses, alpha=alpha, count=count)
    tail = alpha / max(1, count - 1)
    found = {}
    for one in losses:
        others = [other for other in losses if other != one]
        upper = min((_upper(between[one, other], tail) for other in others), default=math.inf)
        behind = [_lower(between[one, other], tail) for other in best if other != one]
        worse = max((_lower(between[other, one], alpha / pairs) for other in others), default=0.0)
        less = between[one, recommended] if one != recommended else Components(seeds=0, images=0)
        apart = abs(less.value) + reach(less, 2 * alpha / pairs) if one != recommended else 0.0
        standing: Standing = "open"
        if one == recommended:
            standing = "recommended"
        elif one not in best:
            standing = "ruled out"
        elif apart < effect:
            standing = "equal"
        elif max(0.0, upper) <= effect:
            standing = "not better"
        found[one] = Place(
            loss=one,
            standing=standing,
            worse_by=max(0.0, worse),
            behind=max(others, key=lambda other: _lower(between[other, one], tail), default=""),
            upper=max(0.0, upper),
            lower=min(0.0, min(behind, default=0.0)),
            less=less,
        )
    return found


def _upper(found: Components, tail: float) -> float:
    return math.inf if math.isnan(found.value) else found.value + reach(found, tail)


def _lower(found: Components, tail: float) -> float:
    return -math.inf if math.isnan(found.value) else found.value - reach(found, tail)


def all_differences(networks: Mapping[str, Networks]) -> dict[tuple[str, str], Components]:
    """The difference of each ordered pair of losses."""
    found = {}
    names = list(networks)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            found[one, other] = difference(networks[one], networks[other])
            found[other, one] = found[one, other].reversed()
    return found


def recommend(
    networks: Mapping[str, Networks], *, effect: float, draws: int = DRAWS, seed: int = 0
) -> Recommendation:
    """The loss to take: that with the smallest expected loss of score.

    With a flat prior the true means are drawn around those that were found, with the covariance of
    seeds and of images; each variance is drawn, too, by its χ².

    Args:
        networks: Of each loss that is left, in an order in which a simpler or cheaper one comes
            first; only seeds that all have are used.
        effect: The smallest difference that matters, > 0.
        draws: How many.
        seed: Of the draws.
    """
    names = tuple(networks)
    seeds = sorted(set.intersection(*(set(each.seeds) for each in networks.values())))
    y = np.stack([n.scores[[n.seeds.index(s) for s in seeds]] for n in networks.values()])
    if not seeds or np.isnan(y).any():
        every = [n.scores[~np.isnan(n.scores)] for n in networks.values()]
        found = [float(scores.mean()) if scores.size else -math.inf for scores in every]
        return _without_risk(names, found, len(seeds))
    means = y.mean((1, 2))
    if len(names) == 1 or len(seeds) < 2 or y.shape[2] < 2:
        return _without_risk(names, means.tolist(), len(seeds))
    mu = _drawn_means(y, draws=draws, seed=seed)
    behind = mu.max(axis=1, keepdims=True) - mu
    best = np.bincount(mu.argmax(axis=1), minlength=len(names)) / draws
    regret = behind.mean(axis=0)
    return Recommendation(
        loss=names[int(regret.argmin())],
        losses=names,
        best=tuple(best.tolist()),
        within=tuple((behind <= effect).mean(axis=0).tolist()),
        regret=tuple(regret.tolist()),
        seeds=len(seeds),
    )


def _without_risk(names: tuple[str, ...], means: Sequence[float], seeds: int) -> Recommendation:
    nan = (math.nan,) * len(names)
    return Recommendation(
        loss=names[int(np.argmax(means))],
        losses=names,
        best=nan,
        within=nan,
        regret=nan,
        seeds=seeds,
    )


def _drawn_means(y: Array, *, draws: int, seed: int) -> Array:
    """Means that the losses could truly have, [draws losses], from scores [losses seeds images]."""
    losses, seeds, images = y.shape
    x = y - y.mean(axis=0)  # what a seed or an image does to all losses is gone
    m = x.mean((1, 2))
    rows = x.mean(2) - m[:, None]
    columns = x.mean(1) - m[:, None]
    rest = x - m[:, None, None] - rows[:, :, None] - columns[:, None, :]
    flat = rest.reshape(losses, -1)
    by_seed = rows @ rows.T / (seeds * (seeds - 1))
    by_image = columns @ columns.T / (images * (images - 1))
    interaction = flat @ flat.T / (seeds * images * (seeds - 1) * (images - 1))
    rng = np.random.default_rng(seed)
    mu = np.broadcast_to(y.mean((1, 2)), (draws, losses)).copy()
    for covariance, freedom in ((by_seed, seeds - 1), (by_image - interaction, images - 1)):
        values, vectors = np.linalg.eigh(covariance)
        factor = vectors * np.sqrt(np.clip(values, 0.0, None))
        scale = np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
        mu += scale * (rng.standard_normal((draws, losses)) @ factor.T)
    return mu
