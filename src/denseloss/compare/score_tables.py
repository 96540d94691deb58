"""The tables of every comparison."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from denseloss.compare.results import STANDINGS, Comparison, LossResults, Results, Standing
from denseloss.report.numbers import Estimate, chance, duration, number, plain, plural, rate, short
from denseloss.report.sections import Cell, Row, Table, Tone, letter
from denseloss.report.tables import EMPTY, by_loss, column, estimated
from denseloss.tasks.scores import Metric, Pooling

POOLINGS: tuple[Pooling, ...] = ("image", "pooled")
POOLING_WORDS: Mapping[Pooling, str] = {"image": "per image", "pooled": "pooled"}
POOLING_MEANING: Mapping[Pooling, str] = {
    "image": "the mean over the held-out images of each image's score",
    "pooled": "one score of all held-out images together",
}
_TONES: Mapping[Standing, Tone] = {
    "recommended": "take",
    "equal": "equal",
    "not better": "open",
    "open": "open",
    "ruled out": "out",
}


def digits(results: Results, metric: Metric) -> int:
    """How many decimals of a metric are shown: such that the smallest effect is seen."""
    if metric.unit:
        return 2
    return 3 if results.effect >= 0.005 else 4


def measured(results: Results) -> tuple[tuple[Metric, Pooling], ...]:
    """Every metric and pooling that some loss has a score of; those of the verdict come first."""
    others = [pooling for pooling in POOLINGS if pooling != results.pooling]
    return tuple(
        (metric, pooling)
        for metric in results.metrics
        for pooling in (results.pooling, *others)
        if any((metric.key, pooling) in loss.scores for loss in results.losses)
    )


def metric_name(metric: Metric) -> str:
    """The name of a metric with its unit."""
    return f"{metric.name} ({metric.unit})" if metric.unit else metric.name


def level(results: Results) -> str:
    """The level of the intervals, such as `95 %`."""
    return f"{100 * results.level:g} %"


def scores(results: Results, pooling: Pooling) -> Table | None:
    """All losses and all metrics with one pooling, None where nothing was measured so."""
    columns = [
        (
            f"{metric_name(metric)} {'↑' if metric.higher_is_better else '↓'}",
            _score_column(results, metric, pooling),
        )
        for metric, how in measured(results)
        if how == pooling
    ]
    caption = f"All metrics, {POOLING_WORDS[pooling]}: {POOLING_MEANING[pooling]}"
    return by_loss(results.names, caption, columns) if columns else None


def scores_note(results: Results) -> str:
    """How the tables of `scores` are read."""
    return (
        f"With each value its {level(results)} confidence interval. ↑ higher is better, ↓ lower is "
        "better. “Best” is the best value of the column, maybe by chance; “better” and “worse” "
        f"(than {letter(results.answer.loss)}) stand only where that is clear for "
        "all losses at once. With many metrics, one such word may come by chance."
    )


def _score_column(results: Results, metric: Metric, pooling: Pooling) -> list[Cell]:
    key, losses = (metric.key, pooling), results.losses
    verdicts = [loss.comparisons[key].verdict if key in loss.comparisons else "" for loss in losses]
    return _column(results, metric, [loss.scores.get(key) for loss in losses], verdicts)


def _column(
    results: Results, metric: Metric, found: Sequence[Estimate | None], verdicts: Sequence[str] = ()
) -> list[Cell]:
    decimals, higher = digits(results, metric), metric.higher_is_better
    return column(found, decimals=decimals, higher=higher, verdicts=verdicts)


def with_unit(results: Results, value: str) -> str:
    """A value of the metric of the answer, such as `0.5 px` or `0.01`."""
    unit = results.metrics[0].unit
    return f"{value} {unit}" if unit else value


def effect(results: Results) -> str:
    """The smallest difference that matters."""
    return with_unit(results, f"{results.effect:g}")


def is_main(results: Results, metric: Metric, pooling: Pooling) -> bool:
    """Whether the answer rests on this score."""
    return metric.key == results.metrics[0].key and pooling == results.pooling


def one_word(loss: LossResults) -> tuple[Tone, str]:
    """Where a loss stands, as short as it can be said, and how good news that is."""
    if not loss.seeds:
        return "open", "no score"
    standing = loss.standing.standing
    return _TONES[standing], STANDINGS[standing]


def chip(results: Results, loss: LossResults) -> tuple[Tone, str]:
    """Where a loss stands in a few words, and how good news that is."""
    found, (tone, words) = loss.standing, one_word(loss)
    by = number(found.worse_by, digits(results, results.metrics[0]))
    if not loss.seeds:
        words = "no finished trial"
    elif found.standing == "equal":
        words = "practically equal"
    elif found.standing == "not better":
        words = f"may be best, not better by more than {effect(results)}"
    elif found.standing == "ruled out" and float(by) > 0:
        words = f"ruled out, worse by at least {with_unit(results, by)}"
    elif found.standing == "open" and found.more_seeds:
        words = f"open: {plural(found.more_seeds, 'more seed')} would tell"
    return tone, words


def comparison(results: Results, metric: Metric, pooling: Pooling) -> Table:
    """All losses in one metric, and how far each is from the recommended one."""
    key, losses = (metric.key, pooling), results.losses
    found = [loss.comparisons.get(key) for loss in losses]
    # Said once in a line: the standing has a column of its own.
    score = [replace(cell, verdict="") for cell in _score_column(results, metric, pooling)]
    columns = [(metric_name(metric), score)]
    if any(found):
        decimals = digits(results, metric)
        columns.append(
            (
                f"Difference from {letter(results.answer.loss)}",
                [
                    EMPTY if one is None else estimated(one.difference, decimals, signed=True)
                    for one in found
                ],
            )
        )
    if is_main(results, metric, pooling):
        columns += _standing_columns(results)
    elif any(one.verdict for one in found if one):
        columns.append(("Verdict", [_verdict(one) for one in found]))
    caption = f"{metric.name}, {POOLING_WORDS[pooling]}"
    return by_loss(results.names, caption, columns)


def _verdict(found: Comparison | None) -> Cell:
    if found is None:
        return EMPTY
    order = ("worse", "", "better").index(found.verdict)
    return Cell(text="" if found.verdict else "not clear", verdict=found.verdict, order=order)


def _standing_columns(results: Results) -> Iterator[tuple[str, list[Cell]]]:
    """Where each loss stands, and what one risks by taking it as far as that is known."""
    losses = results.losses
    standings = [one_word(loss) for loss in losses]
    ranks = [(_TONES[one], word) for one, word in STANDINGS.items()]
    yield (
        "Standing",
        [
            Cell(
                text=word,
                tone=tone,
                order=len(ranks) - ranks.index((tone, word)) if loss.seeds else math.nan,
            )
            for loss, (tone, word) in zip(losses, standings, strict=True)
        ],
    )
    decimals = digits(results, results.metrics[0])
    within = [_known(loss.standing.within, chance) for loss in losses]
    regret = [_known(loss.standing.regret, lambda by: number(by, decimals)) for loss in losses]
    more = [
        EMPTY
        if loss.standing.more_seeds is None
        else Cell(text=str(loss.standing.more_seeds), order=loss.standing.more_seeds)
        for loss in losses
    ]
    for name, cells in (
        (f"Probability to be within {effect(results)} of the best", within),
        ("Expected loss of score", regret),
        ("More seeds to tell", more),
    ):
        if any(cell is not EMPTY for cell in cells):
            yield name, cells


def _known(value: float, told: Callable[[float], str]) -> Cell:
    return EMPTY if math.isnan(value) else Cell(text=told(value), order=value)


def learning(results: Results) -> Table:
    """How fast each loss learned."""
    losses = results.losses
    return by_loss(
        results.names,
        "How fast each loss learned: median over the seeds, with the lowest and highest",
        (
            ("Seeds", [Cell(text=str(len(loss.seeds)), order=len(loss.seeds)) for loss in losses]),
            ("Learning rate", [Cell(text=rate(loss.lr), order=loss.lr) for loss in losses]),
            (
                f"Steps to 95 % of the last {results.score_name}",
                [_middle(loss.steps_to_95.values(), short) for loss in losses],
            ),
            ("Training time", [_middle(loss.seconds, duration) for loss in losses]),
        ),
        f"Steps: the first validated step whose validation {results.score_name} reaches 95 % of "
        "that at the last one. Training time is of whole trials, which may have shared a machine.",
    )


def _middle(found: Collection[float], shown: Callable[[float], str]) -> Cell:
    if not found:
        return EMPTY
    middle = median(found)
    spread = f"{shown(min(found))} to {shown(max(found))}" if len(found) > 1 else ""
    return Cell(text=shown(middle), interval=spread, order=middle)


def rates(results: Results) -> Table | None:
    """What learning rates were tried, and what came of each; None where there was no choice."""
    losses, score = results.losses, results.score_name
    if len(results.rates) < 2:
        return None
    edge = "at the edge of what was tried"
    chosen = [
        Cell(text=rate(loss.lr), interval=edge if loss.at_edge else "", order=loss.lr)
        for loss in losses
    ]
    notes = [f"Each loss got the learning rate with its best validation {score}."]
    if any(loss.at_edge for loss in losses):
        notes.append(
            "Where the best is the lowest or the highest that was tried, a better one may lie "
            "beyond, and the loss may be worth more than is shown here."
        )
    columns = [(rate(lr), [_tried(loss, lr) for loss in losses]) for lr in results.rates]
    columns.append(("Chosen", chosen))
    caption = f"Validation {score} by learning rate{searched_on(results)}"
    return by_loss(results.names, caption, columns, *notes)


def searched_on(results: Results) -> str:
    """The seeds on which learning rates were tried, as they follow on a caption."""
    seeds = results.rate_seeds
    return {0: "", 1: ", seed 0 alone"}.get(seeds, f", mean over seeds 0 to {seeds - 1}")


def _tried(loss: LossResults, lr: float) -> Cell:
    if lr not in loss.searched:
        return EMPTY
    value = loss.searched[lr]
    text = "failed" if math.isnan(value) else number(value)
    # "Best" is the chosen one here: the row is compared, not the column.
    return Cell(text=text, order=value, interval="chosen" if lr == loss.lr else "")


def per_part(results: Results, metric: Metric, pooling: Pooling) -> Table | None:
    """One metric of every part, None where no loss has it."""
    columns = [
        (key[-1], _column(results, metric, [loss.per_part.get(key) for loss in results.losses]))
        for key in results.scored_parts(metric, pooling)
    ]
    caption = f"{metric_name(metric)} per {results.part}, {POOLING_WORDS[pooling]}"
    return by_loss(results.names, caption, columns) if columns else None


def cost(results: Results) -> Table | None:
    """Time and memory of each loss in a training step."""
    found = [loss.cost for loss in results.losses]
    known = [one for one in found if one is not None]
    if not known:
        return None
    where = dict.fromkeys(f"logits {'×'.join(map(str, c.shape))} on {c.device}" for c in known)
    return by_loss(
        results.names,
        "What the loss alone costs in a training step, forward and backward",
        (
            ("Time per step", _bars([None if c is None else c.milliseconds for c in found], "ms")),
            ("Memory", _bars([None if c is None else c.mebibytes for c in found], "MiB")),
            ("Training time", [_middle(loss.seconds, duration) for loss in results.losses]),
        ),
        f"Measured on {'; '.join(where)}. Training time: median of whole trials.",
    )


def _bars(values: Sequence[float | None], unit: str) -> list[Cell]:
    # Where all are 0, there is nothing to be a share of.
    highest = max(value for value in values if value is not None) or 1.0
    return [
        EMPTY
        if value is None
        else Cell(text=f"{short(value)} {unit}", order=value, share=value / highest)
        for value in values
    ]


def failures(results: Results) -> Table | None:
    """The trials that did not finish."""
    rows = tuple(
        Row(
            head=loss.loss,
            loss=i,
            cells=tuple(
                Cell(text=text)
                for text in (str(failure.seed), rate(failure.lr), failure.error, failure.log)
            ),
        )
        for i, loss in enumerate(results.losses)
        for failure in loss.failures
    )
    return _prose("Trials that failed", "Loss", ("Seed", "Learning rate", "Error", "Log"), rows)


def pairs(caption: str, corner: str, name: str, values: Mapping[str, Any]) -> Table | None:
    """Names and what they stand for, None without any."""
    rows = tuple(Row(head=key, cells=(Cell(text=plain(v)),)) for key, v in values.items())
    return _prose(caption, corner, (name,), rows)


def _prose(
    caption: str, corner: str, names: tuple[str, ...], rows: tuple[Row, ...]
) -> Table | None:
    if not rows:
        return None
    return Table(caption=caption, corner=corner, columns=names, rows=rows, prose=True)
