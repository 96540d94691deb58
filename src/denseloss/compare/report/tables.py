"""The tables of a comparison, and how its numbers are written."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
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
    Threshold,
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


def by_loss(
    results: Results,
    caption: str,
    columns: Iterable[tuple[str, Sequence[Cell]]],
    *notes: str,
) -> Table:
    """A table with a row per loss, from its columns: their names and a cell per loss."""
    names, cells = zip(*columns, strict=True)
    rows = [
        Row(head=loss.loss, loss=i, cells=tuple(column[i] for column in cells))
        for i, loss in enumerate(results.losses)
    ]
    return Table(caption=caption, corner="Loss", columns=names, rows=tuple(rows), notes=notes)


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
    return by_loss(results, caption, columns) if columns else None


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
    found = [loss.comparisons.get(key) for loss in results.losses]
    rows = [
        _no_comparison(i) if one is None else _compared(one, decimals)
        for i, one in enumerate(found)
    ]
    effect = next((f" for {one.needed.effect:g}" for one in found if one is not None), "")
    names = (
        "Difference",
        "p",
        "p corrected",
        "Probability of improvement",
        "Effect size",
        "Verdict",
        f"More needed{effect}",
    )
    # Said once in a line: the verdict has a column of its own.
    score = [replace(cell, verdict="") for cell in _score_column(results, metric, pooling)]
    return by_loss(
        results,
        f"{metric.name}, {POOLING_WORDS[pooling]}: every loss against the baseline",
        [(metric_name(metric), score), *zip(names, zip(*rows, strict=True), strict=True)],
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


def learning(results: Results) -> Table:
    """How fast each loss learned."""
    losses = results.losses
    return by_loss(
        results,
        "How fast each loss learned: median over the seeds, with the lowest and highest",
        (
            ("Seeds", [Cell(text=str(len(loss.seeds)), order=len(loss.seeds)) for loss in losses]),
            ("Learning rate", [Cell(text=rate(loss.lr), order=loss.lr) for loss in losses]),
            (
                "Steps to 95 % of the last Dice",
                [_middle(loss.steps_to_95.values(), short) for loss in losses],
            ),
            ("Training time", [_middle(loss.seconds, duration) for loss in losses]),
        ),
        "Steps: the first validated step whose validation Dice reaches 95 % of that at the last "
        "one. Training time is of whole trials, which may have shared a machine.",
    )


def _middle(found: Collection[float], shown: Callable[[float], str]) -> Cell:
    if not found:
        return Cell(text=NOTHING)
    middle = median(found)
    spread = f"{shown(min(found))} to {shown(max(found))}" if len(found) > 1 else ""
    return Cell(text=shown(middle), interval=spread, order=middle)


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
    columns = [(rate(lr), [_tried(loss, lr) for loss in results.losses]) for lr in tried]
    chosen = [
        Cell(
            text=rate(loss.lr),
            interval="at the edge of what was tried" if loss.at_edge else "",
            order=loss.lr,
        )
        for loss in results.losses
    ]
    notes = ["The learning rate with the highest validation Dice was taken, loss by loss."]
    if any(loss.at_edge for loss in results.losses):
        notes.append(
            "Where the best is the lowest or the highest that was tried, a better one may lie "
            "beyond, and the loss may be worth more than is shown here."
        )
    columns.append(("Chosen", chosen))
    return by_loss(results, "Validation Dice by learning rate", columns, *notes)


def _tried(loss: LossResults, lr: float) -> Cell:
    if lr not in loss.searched:
        return Cell(text=NOTHING)
    value = loss.searched[lr]
    text = "failed" if math.isnan(value) else number(value)
    # "Best" is the chosen one here: the row is compared, not the column.
    return Cell(text=text, order=value, interval="chosen" if lr == loss.lr else "")


def per_class(results: Results, metric: Metric, pooling: Pooling) -> Table | None:
    """One metric of every class, None where no loss has it."""
    columns = [
        (
            name,
            _column(
                [loss.per_class.get((metric.key, pooling, name)) for loss in results.losses],
                decimals=digits(results, metric),
                higher=metric.higher_is_better,
            ),
        )
        for name in results.class_names
        if any((metric.key, pooling, name) in loss.per_class for loss in results.losses)
    ]
    caption = f"{metric_name(metric)} per class, {POOLING_WORDS[pooling]}"
    return by_loss(results, caption, columns) if columns else None


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
    several = len({name for name, _ in keys}) > 1
    columns = [
        (
            f"{name}, {size}" if several else size,
            _column(
                [loss.recall.get((name, size)) for loss in results.losses], decimals=2, higher=True
            ),
        )
        for name, size in keys
    ]
    caption = "Object recall: the share of the held-out objects that are found, by size"
    notes = filter(None, [size_words(results)])
    return by_loss(results, caption, columns, *notes) if columns else None


def calibration(results: Results) -> Table | None:
    """Calibration error, and what the best threshold brings."""
    found = [loss.calibration for loss in results.losses]
    if not any(found):
        return None
    names = list(dict.fromkeys(n for c in found if c is not None for n in c.thresholds))
    errors = [None if c is None else c.ece for c in found]
    columns = [("ECE ↓", _column(errors, decimals=3, higher=False))]
    for name in names:
        of = f", {name}" if len(names) > 1 else ""
        taken = [None if c is None else c.thresholds.get(name) for c in found]
        cells = [_threshold(one) for one in taken]
        titles = (f"Best threshold{of}", f"Dice as decided{of}", f"Dice at the best{of}")
        columns += [(title, [c[i] for c in cells]) for i, title in enumerate(titles)]
    usual = "p > 0.5" if results.task == "binary" else "the most probable class"
    return by_loss(
        results,
        "Calibration and the best threshold",
        columns,
        "ECE, the expected calibration error: the mean over the pixels of |confidence − "
        f"frequency|, lower is better. Dice (pooled) as decided by {usual}, and by p > the "
        "threshold that is best on validation; the threshold was chosen there, both scores "
        "are of the held-out images.",
    )


def _threshold(found: Threshold | None) -> tuple[Cell, Cell, Cell]:
    if found is None:
        return (Cell(text=NOTHING), Cell(text=NOTHING), Cell(text=NOTHING))
    gain = f"{number(found.best_dice - found.dice, signed=True)} by it"
    return (
        Cell(text=number(found.best, 2), order=found.best),
        Cell(text=number(found.dice), order=found.dice),
        Cell(text=number(found.best_dice), interval=gain, order=found.best_dice),
    )


def cost(results: Results) -> Table | None:
    """Time and memory of each loss in a training step."""
    found = [loss.cost for loss in results.losses]
    known = [c for c in found if c is not None]
    if not known:
        return None
    where = dict.fromkeys(f"logits {'×'.join(map(str, c.shape))} on {c.device}" for c in known)
    return by_loss(
        results,
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
        Cell(text=NOTHING)
        if value is None
        else Cell(text=f"{short(value)} {unit}", order=value, share=value / highest)
        for value in values
    ]


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
