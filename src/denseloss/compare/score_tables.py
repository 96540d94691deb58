"""The tables of every comparison."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from denseloss.compare.results import Comparison, LossResults, Results
from denseloss.compare.statistics import MOST_SEEDS
from denseloss.report.numbers import (
    NOTHING,
    Estimate,
    duration,
    number,
    plain,
    plural,
    probability,
    rate,
    short,
)
from denseloss.report.sections import Cell, Row, Table
from denseloss.report.tables import EMPTY, by_loss, column, estimated
from denseloss.tasks.scores import Metric, Pooling

POOLINGS: tuple[Pooling, ...] = ("image", "pooled")
POOLING_WORDS: Mapping[Pooling, str] = {"image": "per image", "pooled": "pooled"}
POOLING_MEANING: Mapping[Pooling, str] = {
    "image": "the mean over the held-out images of each image's score",
    "pooled": "one score of all held-out images together",
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
        "(than the baseline) stand only where the corrected test says so."
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


def comparison(results: Results, metric: Metric, pooling: Pooling) -> Table:
    """All losses against the baseline in one metric."""
    found = [loss.comparisons.get((metric.key, pooling)) for loss in results.losses]
    rows = [_compared(i, one, digits(results, metric)) for i, one in enumerate(found)]
    effect = next((f" for {one.needed.effect:g}" for one in found if one is not None), "")
    measures = ("Difference", "p", "p corrected", "Probability of improvement", "Effect size")
    names = (*measures, "Verdict", f"More needed{effect}")
    # Said once in a line: the verdict has a column of its own.
    score = [replace(cell, verdict="") for cell in _score_column(results, metric, pooling)]
    return by_loss(
        results.names,
        f"{metric.name}, {POOLING_WORDS[pooling]}: every loss against the baseline",
        [(metric_name(metric), score), *zip(names, zip(*rows, strict=True), strict=True)],
    )


def _compared(index: int, found: Comparison | None, decimals: int) -> tuple[Cell, ...]:
    if found is None:
        what = "baseline" if index == 0 else "not compared"
        return (*[EMPTY] * 5, Cell(text=what), EMPTY)
    undecided = found.verdict == "undecided"
    seeds = found.needed.seeds
    return (
        estimated(found.difference, decimals, signed=True),
        Cell(text=probability(found.p), order=found.p),
        Cell(text=probability(found.p_corrected), order=found.p_corrected),
        estimated(found.probability_of_improvement, 2),
        Cell(text=number(found.effect_size, 2, signed=True), order=found.effect_size),
        Cell(
            text="undecided" if undecided else "",
            verdict="" if undecided else found.verdict,
            order=("worse", "undecided", "better").index(found.verdict),
        ),
        Cell(text=_needed(found), order=math.inf if seeds is None else seeds),
    )


def _needed(found: Comparison) -> str:
    seeds, images = found.needed.seeds, found.needed.images
    if 0 in (found.seeds, found.images):
        return NOTHING
    if found.seeds == 1:
        return "2 seeds first"
    if found.images == 1:
        return "2 images first"
    if not found.difference.standard_error > 0:
        return NOTHING
    if 0 in (seeds, images):
        return "nothing"
    ways = []
    if seeds is not None:
        ways.append(plural(seeds, "seed") if seeds <= MOST_SEEDS else f"> {MOST_SEEDS} seeds")
    if images is not None:
        ways.append(plural(images, "image"))
    return " or ".join(ways) or "seeds and images"


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
    """What learning rates were tried, and what came of each."""
    losses, score = results.losses, results.score_name
    if not results.rates:
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
    return by_loss(results.names, f"Validation {score} by learning rate", columns, *notes)


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
