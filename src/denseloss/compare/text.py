"""The sentences of every comparison's report."""

import math
from collections.abc import Iterable, Iterator, Sequence

from denseloss.compare.answer import FEWEST_IMAGES
from denseloss.compare.results import Results
from denseloss.compare.score_tables import POOLING_MEANING, POOLING_WORDS, digits, effect, level
from denseloss.report.numbers import Estimate, number, plural, rate
from denseloss.report.sections import Item
from denseloss.tasks.scores import Metric

CURVES = "Mean over the seeds, and a band from the lowest to the highest: no confidence interval."


def subtitle(results: Results) -> str:
    """How much was compared, and the smallest difference that this would have shown."""
    counts = [len(loss.seeds) for loss in results.losses if loss.seeds] or [0]
    least, most = min(counts), max(counts)
    seeds = plural(most, "seed") if least == most else f"{least} to {most} seeds"
    losses, held_out = len(results.losses), results.counts.get("held out")
    told = [
        f"{losses} {'loss' if losses == 1 else 'losses'}",
        f"{seeds} each" if losses > 1 else seeds,
    ]
    if held_out is not None:
        told.append(plural(held_out, "held-out image"))
    smallest = results.answer.smallest
    if not math.isfinite(smallest):
        return ", ".join(told)
    metric = results.metrics[0]
    unit = metric.unit or metric.name
    least_seen = f"{number(smallest, digits(results, metric))} {unit}"
    return f"{', '.join(told)}: enough to see a difference of {least_seen} (probability 80 %)"


def better(metric: Metric) -> str:
    """Which scores of a metric are good ones."""
    return f"{'Higher' if metric.higher_is_better else 'Lower'} is better."


def marks(results: Results, found: Iterable[tuple[Estimate, Sequence[float]]]) -> str:
    """What stands at the values of a figure: their intervals and seeds, as far as it has them.

    Args:
        results: Of the comparison.
        found: The values with those of the single seeds.
    """
    shown = list(found)
    told = []
    if not all(math.isnan(one.low) for one, _ in shown):
        told.append(f"line: {level(results)} confidence interval")
    if any(len(by_seed) > 1 for _, by_seed in shown):
        told.append("rings: single seeds")
    words = "; ".join(told)
    return f"{words[:1].upper()}{words[1:]}." if told else ""


def method(results: Results) -> tuple[Item, ...]:
    """How it was measured: a few sentences on each step."""
    return tuple(Item(head=head, text=text) for head, text in _steps(results))


def _steps(results: Results) -> Iterator[tuple[str, str]]:
    metric, pooling = results.metrics[0], results.pooling
    yield (
        "Trials",
        "A trial is one training with one loss, one seed and one learning rate. At one seed all "
        "losses start from the same weights and see the same images in the same order, so they "
        f"are compared in pairs. {_rates(results)}",
    )
    yield (
        "Scores",
        "Checkpoints and learning rates are chosen on the validation images. Every score here is "
        f"of the held-out images: {results.held_out}. "
        + " ".join(
            f"“{POOLING_WORDS[p].capitalize()}”: {POOLING_MEANING[p]}." for p in POOLING_WORDS
        )
        + f" The answer rests on {metric.name}, {POOLING_WORDS[pooling]}.",
    )
    yield "Intervals", _intervals(results)
    yield from _standings(results)


def _rates(results: Results) -> str:
    if len(results.rates) < 2:
        return "One learning rate was used for all losses: a loss may do better with its own."
    return (
        f"Every loss chose from the same learning rates ({', '.join(map(rate, results.rates))}): "
        f"the one with the best validation {results.score_name}."
    )


def _intervals(results: Results) -> str:
    """What the confidence intervals speak about: less with one seed or one image."""
    seeds = [len(loss.seeds) for loss in results.losses if loss.seeds]
    one_seed, one_image = max(seeds, default=0) == 1, results.counts.get("held out") == 1
    if one_seed and one_image:
        return (
            "With one seed and one held-out image there are no confidence intervals: nothing here "
            "speaks about another training or about other images."
        )
    if one_seed or one_image:
        one, alone = ("seed", "held-out images") if one_seed else ("held-out image", "seeds")
        same = "the same networks would give on other images of the same kind"
        told = same if one_seed else "another training would give on this very image"
        untold = "another training" if one_seed else "other images"
        return (
            f"With one {one} the {level(results)} intervals are over the {alone} alone. They tell "
            f"what {told}, and say nothing about {untold}."
        )
    single = (
        " Those of a loss with a single finished seed are over the images alone and say nothing "
        "about another training."
    )
    return (
        f"A {level(results)} interval tells what another training, scored on other images of the "
        "same kind, would give. Seeds and images vary each in their own way, and a few seeds tell "
        "little about how much seeds vary: each of the two parts has its own t quantile (Howe "
        f"1974). An interval is of one loss or of one pair alone.{single if 1 in seeds else ''}"
    )


def _standings(results: Results) -> Iterator[tuple[str, str]]:
    seeds = max((len(loss.seeds) for loss in results.losses), default=0)
    if len(results.losses) < 2:
        return
    if seeds < 2 or results.counts.get("held out") == 1:
        one = "seed" if seeds < 2 else "held-out image"
        what = "the luck of its start" if seeds < 2 else "the luck of that image"
        yield (
            "Which loss may be the best",
            f"With one {one} no loss can be ruled out: a loss cannot be told from {what}.",
        )
        return
    small = effect(results)
    yield (
        "Which loss may be the best",
        "A loss is ruled out where another one is ahead of it by more than chance explains. The "
        f"best loss is among the others with {level(results)} confidence, for all losses at once "
        f"(Hsu 1984). “Not better by more than {small}” comes from the same bounds. “Worse by at "
        f"least” holds for all pairs of losses at once. With fewer than {FEWEST_IMAGES} held-out "
        "images no loss is ruled out.",
    )
    yield (
        "Practically equal",
        f"The difference from the recommended loss is smaller than {small}, up or down: two "
        "one-sided tests (TOST), for all pairs at once. A loss is “open” where nothing of all this "
        "could be shown.",
    )
    risk = (
        "From the draws come two figures: the probability that a loss is within "
        f"{small} of the best, and the score that one expects to lose by taking it, which is "
        "rather too high with few seeds. The probability to be the best is too high where losses "
        "differ by less than the noise, since one of them must win each draw."
        if seeds > 2
        else "With 2 seeds no risk can be given: two values do not tell how much seeds vary."
    )
    yield (
        "The recommendation",
        "It is the loss with the smallest expected loss of score. True scores are drawn around "
        "those that were measured, with the variance of seeds and of images and a flat prior. "
        f"{risk}",
    )
    yield (
        "More seeds later",
        "A comparison that gets more seeds is judged again. Each such look spends a part of the "
        f"error that was kept back for it, so that the level of {level(results)} holds.",
    )
