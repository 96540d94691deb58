"""From scores to the answer: which loss to take, where the others stand, what tells more."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from denseloss.compare.best import Networks, Place, Recommendation, recommend, standings
from denseloss.compare.results import Answer, LossStanding, NextStep
from denseloss.compare.statistics import (
    MOST_SEEDS,
    Components,
    first_enough,
    needed,
    smallest_shown,
)
from denseloss.report.numbers import duration, plural
from denseloss.tasks.scores import Metric

FEWEST_IMAGES = 6
"""With fewer held-out images no loss is ruled out: chance alone could do it."""
_SPENT_FIRST = 0.8


def spent(earlier: int) -> float:
    """The share of the error that a look may spend, after so many earlier ones.

    A fifth is kept back for looks that are added when a comparison gets more seeds; each takes half
    of what is left, so that all together never spend more than the whole.
    """
    return _SPENT_FIRST if earlier == 0 else (1 - _SPENT_FIRST) / 2**earlier


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the networks.

    Attributes:
        metric: Of the verdict.
        effect: The smallest difference in it that matters, > 0.
        alpha: The error that this look may spend.
        planned: How many losses were planned.
        seeds: How many seeds were.
        command: That trained the networks; empty where it is not known.
        seconds: Training time of each finished trial.
        jobs: How many trials ran at a time.
    """

    metric: Metric
    effect: float
    alpha: float
    planned: int
    seeds: int
    command: str
    seconds: Sequence[float]
    jobs: int


def answer(
    networks: Mapping[str, Networks], question: Question
) -> tuple[Answer, dict[str, LossStanding]]:
    """Say which loss to take, with its risk, and where each stands.

    Args:
        networks: Of each loss that has some, higher scores being better.
        question: What is asked.

    Returns:
        The answer, whose `loss` is a place in `networks`, and the standing of each loss.
    """
    twins = _twins(networks)
    distinct = {loss: one for loss, one in networks.items() if loss not in twins}
    taken = recommend(_with_most_seeds(distinct), effect=question.effect)
    count = question.planned - len(twins)
    # With fewer images chance alone could rule a loss out, whatever its scores.
    images = next(iter(networks.values())).scores.shape[1]
    alpha = question.alpha if images >= FEWEST_IMAGES else 0.0
    places = standings(
        networks, recommended=taken.loss, effect=question.effect, alpha=alpha, count=count
    )
    found = {
        loss: _standing(place, taken, question, count, twins) for loss, place in places.items()
    }
    others = [place.less for loss, place in places.items() if loss != taken.loss]
    shown = [smallest_shown(less, tail=alpha / max(1, count - 1)) for less in others if alpha]
    known = [size for size in shown if not math.isnan(size)]
    return (
        Answer(
            loss=list(networks).index(taken.loss),
            words=tuple(_words(taken, found, question)),
            next=_next(found, question, images),
            smallest=float(median(known)) if known else math.nan,
        ),
        found,
    )


def _twins(networks: Mapping[str, Networks]) -> dict[str, str]:
    """The losses whose networks are those of an earlier one, to the last digit."""
    found: dict[str, str] = {}
    names = list(networks)
    for i, one in enumerate(names):
        for other in names[:i]:
            a, b = networks[one], networks[other]
            if other not in found and a.seeds == b.seeds and np.array_equal(a.scores, b.scores):
                found[one] = other
                break
    return found


def _with_most_seeds(networks: Mapping[str, Networks]) -> dict[str, Networks]:
    """The losses that can be recommended: enough seeds in common to tell how much seeds differ."""
    usable = {k: v for k, v in networks.items() if v.seeds and not np.isnan(v.scores).any()}
    usable = usable or dict(networks)
    most = max(len(one.seeds) for one in usable.values())
    enough = {k: v for k, v in usable.items() if len(v.seeds) >= min(3, most)}
    common = set.intersection(*(set(one.seeds) for one in enough.values()))
    if len(common) >= min(3, most):
        return enough
    return {k: v for k, v in usable.items() if len(v.seeds) == most}


def _standing(
    place: Place, taken: Recommendation, question: Question, count: int, twins: Mapping[str, str]
) -> LossStanding:
    known = dict(
        zip(taken.losses, zip(taken.best, taken.within, taken.regret, strict=True), strict=True)
    )
    loss = twins.get(place.loss, place.loss)
    best, within, regret = known.get(loss, (math.nan,) * 3) if taken.has_risk else (math.nan,) * 3
    more = _more_seeds(place.less, question, count) if place.standing == "open" else None
    return LossStanding(
        standing=place.standing,
        worse_by=place.worse_by,
        upper=place.upper,
        best=best,
        within=within,
        regret=regret,
        more_seeds=more,
        words=_of_loss(place, taken, question, more, count, twins),
    )


def _more_seeds(less: Components, question: Question, count: int) -> int | None:
    """How many more seeds would probably rule the loss out, or show that it is equal."""
    size = abs(less.value)
    if math.isnan(size):
        return None
    if size > question.effect:
        found = needed(less, effect=size, tail=question.alpha / max(1, count - 1))
    else:
        found = first_enough(less, lambda expected: _is_settled(expected, size, question, count))
    return None if found is None else max(1, found)


def _is_settled(expected: Components, size: float, question: Question, count: int) -> bool:
    if size > question.effect:
        return size > expected.reach(question.alpha / max(1, count - 1))
    tail = 2 * question.alpha / max(2, count * (count - 1))
    return size + expected.reach(tail) < question.effect


def _words(
    taken: Recommendation, found: Mapping[str, LossStanding], question: Question
) -> Iterator[str]:
    name, loss = question.metric.name, f"`{taken.loss}`"
    own = found[taken.loss]
    if len(found) == 1 and question.planned == 1:
        yield f"{loss} is the only loss, so there is nothing to compare it with."
        return
    if len(taken.losses) == 1:
        yield f"Take {loss}: no other loss has networks to compare it with."
        return
    if not taken.has_risk:
        known = plural(max(taken.seeds, 1), "seed")
        yield (
            f"Take {loss}: it scored best in {name}. With {known} no risk can be given: how much a "
            "score depends on the start of the training is hardly known."
        )
        return
    yield (
        f"Take {loss}: with a probability of {_percent(own.within)} it is within "
        f"{_matters(question)} of the best."
    )
    yield (
        f"It is the best one with a probability of {_percent(own.best)}, and the expected loss of "
        f"score is {_size(own.regret, question.metric)}."
    )


def _of_loss(
    place: Place,
    taken: Recommendation,
    question: Question,
    more: int | None,
    count: int,
    twins: Mapping[str, str],
) -> str:
    metric, loss, best = question.metric, f"`{place.loss}`", f"`{taken.loss}`"
    effect = _matters(question)
    if place.loss in twins:
        return f"{loss} trained the same networks as `{twins[place.loss]}`, to the last digit"
    if place.standing == "recommended":
        return f"{loss} is the one to take"
    if place.standing == "equal":
        return f"{loss} is practically equal to {best}: they differ by less than {effect}"
    gap = abs(place.less.value)
    told = f"{_size(gap, metric)} {'behind' if place.less.value < 0 else 'ahead of'} {best}"
    if math.isnan(gap):
        return f"{loss} cannot be compared in {metric.name}: it is undefined"
    if place.standing == "ruled out":
        least = f", worse by at least {_size(place.worse_by, metric)}" if place.worse_by > 0 else ""
        # Its interval with the recommended one may well hold 0.
        by = f"; `{place.behind}` is clearly better" if place.behind != taken.loss else ""
        return f"{loss} is ruled out: {told}{least}{by}"
    if place.standing == "not better":
        return f"{loss} may be the best, but not by more than {effect} ({told})"
    if place.less.seeds == 1:
        return f"{loss} is open: {told}, and one seed cannot tell losses apart"
    if more is not None:
        way = f"about {plural(more, 'more seed')} would tell"
    elif _is_settled(place.less.projected(10**6, place.less.images), gap, question, count):
        way = f"more than {MOST_SEEDS} more seeds would be needed"
    else:
        way = "more held-out images are needed"
    return f"{loss} is open: {told}; {way}"


def _next(found: Mapping[str, LossStanding], question: Question, images: int) -> NextStep | None:
    open_ones = [one for one in found.values() if one.standing == "open"]
    if not open_ones:
        return None
    if images < FEWEST_IMAGES:
        return NextStep(
            words=f"With {plural(images, 'held-out image')} nothing can be told apart: it takes at "
            f"least {FEWEST_IMAGES}."
        )
    seeds = [one.more_seeds for one in open_ones if one.more_seeds is not None]
    if question.seeds == 1:
        seeds = [1]  # what more would take is known only then
    if not seeds:
        return NextStep(
            words=f"{MOST_SEEDS} more seeds would not tell the open losses apart: the differences "
            "are too small for them, or the held-out images too few."
        )
    more = min(seeds)
    settled = sum(n <= more for n in seeds)
    trials = more * len(found)
    cost = ""
    if question.seconds:
        total = trials * median(question.seconds) / max(1, question.jobs)
        cost = f", about {duration(total)}"
    what = "the open loss" if len(open_ones) == 1 else f"{settled} of {len(open_ones)} open losses"
    what = "all open losses" if settled == len(open_ones) > 1 else what
    return NextStep(
        words=f"{plural(more, 'more seed')} would probably settle {what} "
        f"({plural(trials, 'training')}{cost}).",
        command=_with_seeds(question.command, question.seeds + more),
    )


def _with_seeds(command: str, seeds: int) -> str:
    words, skip, kept = shlex.split(command), False, []
    for word in words:
        if skip or word.startswith("--seeds="):
            skip = False
        elif word == "--seeds":
            skip = True
        else:
            kept.append(word)
    return shlex.join([*kept, "--seeds", str(seeds)]) if kept else ""


def _size(value: float, metric: Metric) -> str:
    """A difference with its unit, in two digits that count."""
    decimals = 1 - math.floor(math.log10(value)) if 0 < value < math.inf else 2
    text = f"{value:.{min(6, max(0, decimals))}f}"
    return f"{text} {metric.unit or metric.name}"


def _matters(question: Question) -> str:
    """The smallest difference that matters, as it was given."""
    return f"{question.effect:g} {question.metric.unit or question.metric.name}"


def _percent(probability: float) -> str:
    if probability > 0.995:
        return "over 99 %"
    return "under 1 %" if probability < 0.005 else f"{100 * probability:.0f} %"
