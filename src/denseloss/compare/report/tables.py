"""The tables of a comparison, and how its numbers are written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from denseloss.compare.report.sections import Cell, Row, Table
from denseloss.compare.results import (
    SIZES,
    Comparison,
    Estimate,
    LossResults,
    Metric,
    Pooling,
    Results,
)
from denseloss.compare.statistics import MOST_SEEDS

POOLINGS: tuple[Pooling, ...] = ("image", "pooled")
POOLING_WORDS: Mapping[Pooling, str] = {"image": "per image", "pooled": "pooled"}
POOLING_MEANING: Mapping[Pooling, str] = {
    "image": "the mean over the held-out images of each image's score",
    "pooled": "one score of all held-out pixels together",
}
NOTHING = "–"
"""What stands where there is no value."""

_SMALLEST_P = 1e-4


def digits(results: Results, metric: Metric) -> int:
    """How many decimals of a metric are shown: such that the smallest effect is seen."""
    if metric.unit:
        return 2
    return 3 if results.effect >= 0.005 else 4


def number(value: float, decimals: int = 3, *, signed: bool = False) -> str:
    """A number with a fixed count of decimals, a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.replace("+", "").replace("-", "")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int = 3, *, signed: bool = False) -> str:
    """The ends of a confidence interval, empty where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    low = number(estimate.low, decimals, signed=signed)
    high = number(estimate.high, decimals, signed=signed)
    return f"{low} to {high}" if signed or estimate.low < 0 else f"{low}–{high}"


def probability(p: float) -> str:
    """A p value with two significant digits."""
    if math.isnan(p):
        return NOTHING
    if p < _SMALLEST_P:
        return f"< {_SMALLEST_P:.4f}"
    if p > 0.995:
        return "1.00"
    decimals = 2 - math.floor(math.log10(p)) - 1
    return f"{p:.{max(2, decimals)}f}"


def short(value: float) -> str:
    """A number with three significant digits, without an exponent where that is short."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e7 else text.replace("-", "−")


def rate(lr: float) -> str:
    """A learning rate, such as `0.001` or `3e-05`."""
    return NOTHING if math.isnan(lr) else f"{lr:.3g}"


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: Any) -> str:
    """The value of a setting as a reader expects it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    return str(value)


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


def scores(results: Results, pooling: Pooling) -> Table | None:
    """All losses and all metrics with one pooling, None where nothing was measured so."""
    metrics = [metric for metric, how in measured(results) if how == pooling]
    if not metrics:
        return None
    columns = [_score_column(results, metric, pooling) for metric in metrics]
    return Table(
        caption=f"All metrics, {POOLING_WORDS[pooling]}: {POOLING_MEANING[pooling]}",
        corner="Loss",
        columns=tuple(
            f"{metric_name(metric)} {'↑' if metric.higher_is_better else '↓'}" for metric in metrics
        ),
        rows=_loss_rows(results, columns),
    )


def scores_note(results: Results) -> str:
    """How the tables of `scores` are read."""
    return (
        f"With each value its {level(results)} confidence interval. ↑ higher is better, ↓ lower "
        "is better. “Best” is the best value of the column, which may be so by chance; “better” "
        "and “worse” (than the baseline) stand only where the corrected test says so."
    )


def level(results: Results) -> str:
    """The level of the intervals, such as `95 %`."""
    return f"{100 * results.level:g} %"


def comparison(results: Results, metric: Metric, pooling: Pooling) -> Table:
    """All losses against the baseline in one metric."""
    key, decimals = (metric.key, pooling), digits(results, metric)
    # Said once in a line: the verdict has a column of its own.
    score = [replace(c, verdict="") for c in _score_column(results, metric, pooling)]
    rows = []
    for i, loss in enumerate(results.losses):
        found = loss.comparisons.get(key)
        cells = _no_comparison(i) if found is None else _compared(found, decimals)
        rows.append(Row(head=loss.loss, loss=i, cells=(score[i], *cells)))
    return Table(
        caption=f"{metric.name}, {POOLING_WORDS[pooling]}: every loss against the baseline",
        corner="Loss",
        columns=(
            metric_name(metric),
            "Difference",
            "p",
            "p corrected",
            "Probability of improvement",
            "Effect size",
            "Verdict",
            _needed_name(results, key),
        ),
        rows=tuple(rows),
    )


def _no_comparison(index: int) -> tuple[Cell, ...]:
    what = "baseline" if index == 0 else "not compared"
    return (*(Cell(text=NOTHING) for _ in range(5)), Cell(text=what), Cell(text=NOTHING))


def _compared(found: Comparison, decimals: int) -> tuple[Cell, ...]:
    decided = found.verdict if found.verdict != "undecided" else ""
    return (
        Cell(
            text=number(found.difference.value, decimals, signed=True),
            interval=interval(found.difference, decimals, signed=True),
            order=found.difference.value,
        ),
        Cell(text=probability(found.p), order=found.p),
        Cell(text=probability(found.p_corrected), order=found.p_corrected),
        Cell(
            text=number(found.improvement.value, 2),
            interval=interval(found.improvement, 2),
            order=found.improvement.value,
        ),
        Cell(text=number(found.effect_size, 2, signed=True), order=found.effect_size),
        Cell(
            text="" if decided else "undecided",
            verdict=decided,
            order=("worse", "undecided", "better").index(found.verdict),
        ),
        Cell(text=_needed(found), order=_order(found.needed.seeds)),
    )


def _order(count: int | None) -> float:
    return math.inf if count is None else count


def _needed(found: Comparison) -> str:
    needed = found.needed
    if 0 in (found.seeds, found.images):
        return NOTHING
    if found.seeds == 1:
        return "2 seeds first"
    if found.images == 1:
        return "2 images first"
    if not found.difference.standard_error > 0:
        return NOTHING
    if 0 in (needed.seeds, needed.images):
        return "nothing"
    ways = []
    if needed.seeds is not None:
        few = needed.seeds <= MOST_SEEDS
        ways.append(plural(needed.seeds, "seed") if few else f"> {MOST_SEEDS} seeds")
    if needed.images is not None:
        ways.append(plural(needed.images, "image"))
    return " or ".join(ways) if ways else "seeds and images"


def _needed_name(results: Results, key: tuple[str, Pooling]) -> str:
    effects = [c.comparisons[key].needed.effect for c in results.losses if key in c.comparisons]
    return f"More needed for {effects[0]:g}" if effects else "More needed"


def _score_column(results: Results, metric: Metric, pooling: Pooling) -> list[Cell]:
    key = (metric.key, pooling)
    return _column(
        [loss.scores.get(key) for loss in results.losses],
        decimals=digits(results, metric),
        higher=metric.higher_is_better,
        verdicts=[
            loss.comparisons[key].verdict if key in loss.comparisons else ""
            for loss in results.losses
        ],
    )


def _column(
    estimates: Sequence[Estimate | None],
    *,
    decimals: int,
    higher: bool,
    verdicts: Sequence[str] | None = None,
) -> list[Cell]:
    values = [e.value for e in estimates if e is not None and not math.isnan(e.value)]
    best = (max(values) if higher else min(values)) if len(values) > 1 else math.nan
    cells = []
    for i, estimate in enumerate(estimates):
        verdict = verdicts[i] if verdicts else ""
        if estimate is None:
            cells.append(Cell(text=NOTHING))
            continue
        cells.append(
            Cell(
                text=number(estimate.value, decimals),
                interval=interval(estimate, decimals),
                order=estimate.value,
                best=estimate.value == best,
                verdict=verdict if verdict in ("better", "worse") else "",
            )
        )
    return cells


def _loss_rows(results: Results, columns: Sequence[Sequence[Cell]]) -> tuple[Row, ...]:
    return tuple(
        Row(head=loss.loss, loss=i, cells=tuple(column[i] for column in columns))
        for i, loss in enumerate(results.losses)
    )


def learning(results: Results) -> Table:
    """How fast each loss learned."""
    rows = []
    for i, loss in enumerate(results.losses):
        steps = sorted(loss.steps_to_95.values())
        seconds = sorted(loss.seconds)
        cells = (
            Cell(text=str(len(loss.seeds)), order=len(loss.seeds)),
            Cell(text=rate(loss.lr), order=loss.lr),
            _middle(steps, "steps"),
            _middle(seconds, "time"),
        )
        rows.append(Row(head=loss.loss, loss=i, cells=cells))
    return Table(
        caption="How fast each loss learned: median over the seeds, with the lowest and highest",
        corner="Loss",
        columns=("Seeds", "Learning rate", "Steps to 95 % of the last Dice", "Training time"),
        rows=tuple(rows),
        notes=(
            "Steps: the first validated step whose validation Dice reaches 95 % of that at the "
            "last one. Training time is of whole trials, which may have shared a machine.",
        ),
    )


def _middle(values: Sequence[float], what: str) -> Cell:
    if not values:
        return Cell(text=NOTHING)
    half = len(values) // 2
    median = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
    shown = duration if what == "time" else short
    spread = f"{shown(values[0])} to {shown(values[-1])}" if len(values) > 1 else ""
    return Cell(text=shown(median), interval=spread, order=median)


def duration(seconds: float) -> str:
    """A time as `42 s`, `3 min 20 s` or `2 h 05 min`."""
    if math.isnan(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rates(results: Results) -> Table | None:
    """What learning rates were tried, and what came of each."""
    tried = sorted({lr for loss in results.losses for lr in loss.searched})
    if not tried:
        return None
    rows = []
    for i, loss in enumerate(results.losses):
        cells = [_tried(loss, lr) for lr in tried]
        edge = "at the edge of what was tried" if loss.at_edge else ""
        chosen = Cell(text=rate(loss.lr), interval=edge, order=loss.lr)
        rows.append(Row(head=loss.loss, loss=i, cells=(*cells, chosen)))
    notes = ["The learning rate with the highest validation Dice was taken, loss by loss."]
    if any(loss.at_edge for loss in results.losses):
        notes.append(
            "Where the best is the lowest or the highest that was tried, a better one may lie "
            "beyond, and the loss may be worth more than is shown here."
        )
    return Table(
        caption="Validation Dice by learning rate",
        corner="Loss",
        columns=(*map(rate, tried), "Chosen"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _tried(loss: LossResults, lr: float) -> Cell:
    if lr not in loss.searched:
        return Cell(text=NOTHING)
    value = loss.searched[lr]
    text = "failed" if math.isnan(value) else number(value)
    # "Best" is the chosen one here: the row is compared, not the column.
    return Cell(text=text, order=value, interval="chosen" if lr == loss.lr else "")


def per_class(results: Results, metric: Metric, pooling: Pooling) -> Table | None:
    """One metric of every class, None where no loss has it."""
    keys = [(metric.key, pooling, name) for name in results.class_names]
    keys = [key for key in keys if any(key in loss.per_class for loss in results.losses)]
    if not keys:
        return None
    columns = [
        _column(
            [loss.per_class.get(key) for loss in results.losses],
            decimals=digits(results, metric),
            higher=metric.higher_is_better,
        )
        for key in keys
    ]
    return Table(
        caption=f"{metric_name(metric)} per class, {POOLING_WORDS[pooling]}",
        corner="Loss",
        columns=tuple(key[2] for key in keys),
        rows=_loss_rows(results, columns),
    )


def recall_keys(results: Results) -> tuple[tuple[str, str], ...]:
    """The (class name, size) of which some loss has a recall, small before large."""
    return tuple(
        (name, size)
        for name in results.class_names
        for size in SIZES
        if any((name, size) in loss.recall for loss in results.losses)
    )


def size_words(results: Results) -> str:
    """What small, medium and large are."""
    if results.size_limits is None:
        return ""
    low, high = (f"{limit:,.0f}".replace(",", " ") for limit in results.size_limits)
    return f"Small: under {low} pixels; medium: {low} to {high} pixels; large: above."


def recall(results: Results) -> Table | None:
    """The share of the objects that are found, by their size."""
    keys = recall_keys(results)
    if not keys:
        return None
    several = len({name for name, _ in keys}) > 1
    columns = [
        _column([loss.recall.get(key) for loss in results.losses], decimals=2, higher=True)
        for key in keys
    ]
    return Table(
        caption="Object recall: the share of the held-out objects that are found, by size",
        corner="Loss",
        columns=tuple(f"{name}, {size}" if several else size for name, size in keys),
        rows=_loss_rows(results, columns),
        notes=tuple(filter(None, [size_words(results)])),
    )


def calibration(results: Results) -> Table | None:
    """Calibration error, and what the best threshold brings."""
    found = [loss.calibration for loss in results.losses]
    if not any(found):
        return None
    names = list(dict.fromkeys(n for c in found if c is not None for n in c.thresholds))
    several = len(names) > 1
    columns = [_column([None if c is None else c.ece for c in found], decimals=3, higher=False)]
    titles = ["ECE ↓"]
    for name in names:
        of = f", {name}" if several else ""
        taken = [None if c is None else c.thresholds.get(name) for c in found]
        columns += [
            [_cell(None if t is None else t.best, 2) for t in taken],
            [_cell(None if t is None else t.dice, 3) for t in taken],
            [
                Cell(text=NOTHING)
                if t is None
                else Cell(
                    text=number(t.best_dice),
                    interval=f"{number(t.best_dice - t.dice, signed=True)} by it",
                    order=t.best_dice,
                )
                for t in taken
            ],
        ]
        titles += [f"Best threshold{of}", f"Dice as decided{of}", f"Dice at the best{of}"]
    usual = "p > 0.5" if results.task == "binary" else "the most probable class"
    return Table(
        caption="Calibration and the best threshold",
        corner="Loss",
        columns=tuple(titles),
        rows=_loss_rows(results, columns),
        notes=(
            "ECE, the expected calibration error: the mean over the pixels of |confidence − "
            f"frequency|, lower is better. Dice (pooled) as decided by {usual}, and by p > the "
            "threshold that is best on validation; the threshold was chosen there, both scores "
            "are of the held-out images.",
        ),
    )


def _cell(value: float | None, decimals: int) -> Cell:
    if value is None:
        return Cell(text=NOTHING)
    return Cell(text=number(value, decimals), order=value)


def cost(results: Results) -> Table | None:
    """Time and memory of each loss in a training step."""
    found = [loss.cost for loss in results.losses]
    known = [c for c in found if c is not None]
    if not known:
        return None
    slowest = max(c.milliseconds for c in known)
    most = max(c.mebibytes for c in known)
    rows = []
    for i, loss in enumerate(results.losses):
        c = loss.cost
        cells = (
            (Cell(text=NOTHING), Cell(text=NOTHING))
            if c is None
            else (
                _bar(c.milliseconds, slowest, "ms"),
                _bar(c.mebibytes, most, "MiB"),
            )
        )
        time = _middle(sorted(loss.seconds), "time")
        rows.append(Row(head=loss.loss, loss=i, cells=(*cells, time)))
    where = _several(f"logits {'×'.join(map(str, c.shape))} on {c.device}" for c in known)
    return Table(
        caption="What the loss alone costs in a training step, forward and backward",
        corner="Loss",
        columns=("Time per step", "Memory", "Training time"),
        rows=tuple(rows),
        notes=(f"Measured on {where}. Training time: median of whole trials.",),
    )


def _bar(value: float, highest: float, unit: str) -> Cell:
    share = value / highest if highest > 0 else 0.0
    return Cell(text=f"{short(value)} {unit}", order=value, share=share)


def _several(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def failures(results: Results) -> Table | None:
    """The trials that did not finish."""
    rows = [
        Row(
            head=loss.loss,
            loss=i,
            cells=(
                Cell(text=str(failure.seed), order=failure.seed),
                Cell(text=rate(failure.lr), order=failure.lr),
                Cell(text=failure.error),
                Cell(text=failure.log),
            ),
        )
        for i, loss in enumerate(results.losses)
        for failure in loss.failures
    ]
    if not rows:
        return None
    return Table(
        caption="Trials that failed",
        corner="Loss",
        columns=("Seed", "Learning rate", "Error", "Log"),
        rows=tuple(rows),
        prose=True,
    )


def pairs(caption: str, corner: str, column: str, values: Mapping[str, Any]) -> Table:
    """Names and what they stand for."""
    rows = tuple(Row(head=key, cells=(Cell(text=plain(v)),)) for key, v in values.items())
    return Table(caption=caption, corner=corner, columns=(column,), rows=rows, prose=True)
