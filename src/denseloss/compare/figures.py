"""The diagrams of every comparison, as SVG for the page."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from denseloss.compare.results import LossResults, Results
from denseloss.compare.score_tables import (
    POOLING_WORDS,
    digits,
    is_main,
    metric_name,
    one_word,
)
from denseloss.data.samples import evenly
from denseloss.report.drawing import (
    FONT,
    INK,
    PAPER,
    SMALL_WIDTH,
    SOFT,
    WIDTH,
    Group,
    Line,
    canvas,
    colour,
    dashes,
    forest,
    marker,
    svg,
)
from denseloss.report.numbers import Estimate, number, rate
from denseloss.report.sections import Tone, letter
from denseloss.tasks.scores import Metric, Pooling

_Band = NDArray[np.float64]
"""Steps, mean, lowest and highest value, [4 k]."""

_MOST_POINTS = 120
_MOST_LINES = 130
_LETTER = 0.055
_WIDEST = 0.6
"""An interval may go beyond the values by so much of what they span."""


def values(results: Results, metric: Metric, pooling: Pooling) -> str:
    """Each loss's score with its interval, and a small dot per seed."""
    key, decimals = (metric.key, pooling), digits(results, metric)
    found = [loss.scores.get(key) for loss in results.losses]
    lines = [
        Line(loss=i, estimate=one, dots=_several(results.losses[i].per_seed.get(key, ())))
        for i, one in enumerate(found)
    ]
    better = "higher" if metric.higher_is_better else "lower"
    return _by_loss(
        results,
        lines,
        ["no finished trial" if one is None else number(one.value, decimals) for one in found],
        [None] * len(found),
        label=f"{metric_name(metric)}, {POOLING_WORDS[pooling]} ({better} is better)",
        name=_named("values", metric, pooling),
        says=f"{metric.name}, {POOLING_WORDS[pooling]}, of every loss with its interval",
        ends=_ends(lines),
    )


def standings(results: Results) -> str | None:
    """How far each loss is from the recommended one, the best first, and where it stands.

    None without a comparison. Losses without a score are left out.
    """
    metric, pooling = results.metrics[0], results.pooling
    sign = 1 if metric.higher_is_better else -1
    found = {
        i: loss.comparisons.get((metric.key, pooling)) for i, loss in enumerate(results.losses)
    }
    ahead = {i: sign * one.difference.value for i, one in found.items() if one is not None}
    shown = [i for i in ahead if not math.isnan(ahead[i])]
    if not shown:
        return None
    order = sorted([*shown, results.answer.loss], key=lambda i: -ahead.get(i, 0.0))
    return _differences(results, metric, pooling, order, name="standings")


def differences(results: Results, metric: Metric, pooling: Pooling) -> str | None:
    """How far each loss is from the recommended one; None without a comparison."""
    if not any((metric.key, pooling) in loss.comparisons for loss in results.losses):
        return None
    name = _named("differences", metric, pooling)
    return _differences(results, metric, pooling, range(len(results.losses)), name=name)


def _differences(
    results: Results, metric: Metric, pooling: Pooling, order: Sequence[int], *, name: str
) -> str:
    """Differences with their intervals and those of the seeds, in the order that is asked for."""
    decimals, take = digits(results, metric), results.answer.loss
    main = is_main(results, metric, pooling)
    banded = metric.key == results.metrics[0].key
    lines: list[Line] = []
    texts: list[str] = []
    tones: list[Tone | None] = []
    for i in order:
        one = results.losses[i].comparisons.get((metric.key, pooling))
        tone: Tone | None = None
        if i == take:
            same = Estimate(value=0, low=0, high=0, standard_error=0, freedom=math.inf)
            line, told, tone = Line(loss=i, estimate=same), "take this", "take"
        elif one is None:
            line, told = Line(loss=i, estimate=None), "no score"
        else:
            tone, word = one_word(results.losses[i]) if main else (None, one.verdict)
            settled = tone in ("equal", "out") if main else bool(one.verdict)
            dots = _several(one.by_seed)
            line = Line(loss=i, estimate=one.difference, dots=dots, hollow=not settled)
            value = number(one.difference.value, decimals, signed=True)
            told = "\u2002".join(filter(None, [value, word]))
        lines.append(line)
        texts.append(told)
        tones.append(tone)

    def behind(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1, zorder=0.9, solid_capstyle="butt")
        if banded:
            axes.axvspan(-results.effect, results.effect, color=SOFT, linewidth=0, zorder=0)

    unit = f" ({metric.unit})" if metric.unit else ""
    left, right = ("worse", "better") if metric.higher_is_better else ("better", "worse")
    return _by_loss(
        results,
        lines,
        texts,
        tones,
        label=f"← {left}\u2003{metric.name}, difference from {letter(take)}{unit}\u2003{right} →",
        name=name,
        says=f"Difference of every loss from {results.names[take]} in {metric.name}, "
        f"{POOLING_WORDS[pooling]}",
        behind=behind,
        title_lines=1 if main else 3,
        ends=_ends(lines, *((-results.effect, results.effect) if banded else (0.0,))),
    )


def _ends(lines: Sequence[Line], *points: float) -> tuple[float, float] | None:
    """The ends of the axis where an interval is so wide that nothing else could be seen.

    Args:
        lines: What is drawn.
        points: What else is to be seen.
    """
    found = [line.estimate for line in lines if line.estimate is not None]
    seen = [*points, *(one.value for one in found), *(dot for line in lines for dot in line.dots)]
    seen = [one for one in seen if not math.isnan(one)]
    if not seen or min(seen) == max(seen):
        return None
    room = _WIDEST * (max(seen) - min(seen))
    low, high = min(seen) - room, max(seen) + room
    wide = any(one.low < low or one.high > high for one in found)
    return (low, high) if wide else None


def _several(by_seed: Sequence[float]) -> Sequence[float]:
    """The seeds, where they say more than their mean."""
    return by_seed if len(by_seed) > 1 else ()


def _by_loss(
    results: Results,
    lines: Sequence[Line],
    texts: Sequence[str],
    tones: Sequence[Tone | None],
    *,
    label: str,
    name: str,
    says: str,
    behind: Callable[[Axes], None] | None = None,
    title_lines: int = 3,
    ends: tuple[float, float] | None = None,
) -> str:
    """A line and a text for each loss, below its letter and its name."""
    groups = [
        Group(
            title=f"{letter(line.loss)}\u2002{results.names[line.loss]}",
            lines=[line],
            text=text,
            tone=tone,
        )
        for line, text, tone in zip(lines, texts, tones, strict=True)
    ]
    told = "; ".join(
        f"{results.names[line.loss]} {text}" for line, text in zip(lines, texts, strict=True)
    )
    return forest(
        groups, label=label, name=name, says=f"{says}: {told}", behind=behind,
        title_lines=title_lines,
        ends=ends,
    )  # fmt: skip


def _named(kind: str, metric: Metric, pooling: Pooling) -> str:
    key = "".join(c if c.isalnum() and c.isascii() else "-" for c in metric.key)
    return f"{kind}-{key}-{pooling}"


def by_part(results: Results, metric: Metric, pooling: Pooling) -> str | None:
    """A score of every part and loss, None where there is one part, or too many."""
    keys = results.scored_parts(metric, pooling)
    if len(keys) < 2 or len(keys) * len(results.losses) > _MOST_LINES:
        return None
    groups = [
        Group(
            title=key[-1],
            lines=[
                Line(loss=i, estimate=loss.per_part.get(key))
                for i, loss in enumerate(results.losses)
            ],
        )
        for key in keys
    ]
    label = f"{metric_name(metric)}, {POOLING_WORDS[pooling]}"
    says = f"{label}, by loss, for {', '.join(group.title for group in groups)}"
    return forest(groups, label=label, name=_named("parts", metric, pooling), says=says)


def curves(results: Results, *, late: bool) -> str | None:
    """The validation score over the steps, mean over the seeds and their spread; None without any.

    Args:
        results: Of the comparison.
        late: Whether only the second half of the steps is shown, which magnifies the end.
    """
    bands = [(i, _band(loss, "score")) for i, loss in enumerate(results.losses)]
    found = {i: band for i, band in bands if band is not None}
    if not found:
        return None
    last = max(band[0, -1] for band in found.values())
    first = last / 2 if late else 0.0
    shown = {i: band[:, band[0] >= first] for i, band in found.items() if band[0, -1] >= first}
    with canvas(WIDTH, 320) as figure:
        axes = figure.subplots()
        for i, band in shown.items():
            _draw_band(axes, band, i, dashes(i))
        axes.set_xlim(first, last)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step")
        ends = {i: float(band[1, -1]) for i, band in shown.items()}
        _end_labels(axes, ends)
        when = "in the second half of training" if late else "over the steps"
        told = "; ".join(f"{results.losses[i].loss} ends at {y:.3f}" for i, y in ends.items())
        label = f"Validation {results.score_name} {when}: {told}"
        return svg(figure, name="curves-late" if late else "curves", label=label)


def _draw_band(axes: Axes, band: _Band, index: int, style: str) -> None:
    steps, mean, low, high = band
    axes.fill_between(steps, low, high, color=colour(index), alpha=0.13, linewidth=0)
    # Of a few points only, a line may be too short to be seen.
    dot = marker(index) if len(steps) < 4 else ""
    axes.plot(
        steps, mean, color=colour(index), linewidth=2, linestyle=style, marker=dot, markersize=5
    )


def _band(loss: LossResults, column: str) -> _Band | None:
    """What the seeds have in common, at the steps that all of them have."""
    by_seed = [
        {row["step"]: row[column] for row in rows if math.isfinite(row.get(column, math.nan))}
        for rows in loss.curves.values()
    ]
    by_seed = [pairs for pairs in by_seed if pairs]
    if not by_seed:
        return None
    steps = sorted(set.intersection(*map(set, by_seed)) or set.union(*map(set, by_seed)))
    band = []
    for place in evenly(_MOST_POINTS, of=len(steps)):
        found = [pairs[steps[place]] for pairs in by_seed if steps[place] in pairs]
        band.append((steps[place], sum(found) / len(found), min(found), max(found)))
    return np.array(band, dtype=np.float64).T


def _end_labels(axes: Axes, ends: Mapping[int, float]) -> None:
    """A letter behind the end of each line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda i: ends[i])
    wanted = [(ends[i] - low) / (high - low) for i in order]
    for i, y, place in zip(order, wanted, spread(wanted, gap=_LETTER, low=0, high=1), strict=True):
        axes.annotate(
            letter(i), xy=(1.0, y), xytext=(1.04, place), xycoords="axes fraction", color=INK,
            va="center", fontsize=FONT, fontweight="bold", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(i), "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, ascending, at least `gap` apart and between `low` and `high`.

    Where they do not fit, they are evenly spaced.
    """
    gaps = gap * np.arange(len(wanted))
    if gaps[-1] > high - low:
        return [float(y) for y in np.linspace(low, high, len(wanted))]
    # Without the gaps, places need only ascend: halfway between moving all up and all down.
    free = np.asarray(wanted) - gaps
    up, down = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    return [float(y) for y in np.clip((up + down) / 2, low, high - gaps[-1]) + gaps]


def losses_over_steps(results: Results, index: int) -> str | None:
    """Training and validation loss of one loss, in its own unit."""
    loss = results.losses[index]
    drawn = [(_band(loss, "loss"), "-"), (_band(loss, "val_loss"), "--")]
    bands = [(band, style) for band, style in drawn if band is not None]
    if not bands:
        return None
    with canvas(SMALL_WIDTH, 150) as figure:
        axes = figure.subplots()
        for band, style in bands:
            _draw_band(axes, band, index, style)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        label = f"Training (solid) and validation (dashed) loss of {loss.loss} over the steps"
        return svg(figure, name=f"loss-{index}", label=label)


def learning_rates(results: Results) -> str | None:
    """The validation score by the learning rates that were tried; None where none finished."""
    rates = results.rates
    found = {
        i: [(lr, score) for lr, score in sorted(loss.searched.items()) if not math.isnan(score)]
        for i, loss in enumerate(results.losses)
    }
    points = {i: pairs for i, pairs in found.items() if pairs}
    if len(rates) < 2 or not points:
        return None
    with canvas(WIDTH, 290) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for i, pairs in points.items():
            loss = results.losses[i]
            style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "clip_on": False}
            axes.plot(
                *zip(*pairs, strict=True), linewidth=1.6, linestyle=dashes(i), markersize=6,
                markerfacecolor=PAPER, markeredgewidth=1.5, **style,
            )  # fmt: skip
            if loss.lr in loss.searched:
                axes.plot([loss.lr], [loss.searched[loss.lr]], markersize=9, **style)
        axes.set_xlim(rates[0] / 1.12, rates[-1] * 1.12)
        few = len(rates) <= 5
        axes.xaxis.set_major_locator(FixedLocator(rates) if few else LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: rate(lr)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("learning rate")
        _end_labels(axes, {i: pairs[-1][1] for i, pairs in points.items()})
        chosen = [loss for loss in results.losses if not math.isnan(loss.lr)]
        told = "; ".join(f"{loss.loss} chose {rate(loss.lr)}" for loss in chosen)
        label = f"Validation {results.score_name} by learning rate: {told}"
        return svg(figure, name="rates", label=label)
