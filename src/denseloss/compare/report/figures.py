"""The diagrams of the report, as SVG for the page.

Two widths only: what stands in a column of its own on a phone, and small multiples.
"""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from denseloss.compare.report.drawing import (
    FONT,
    INK,
    MUTED,
    PAPER,
    RULE,
    SMALL,
    SOFT,
    canvas,
    colour,
    frame,
    svg,
)
from denseloss.compare.report.sections import letter
from denseloss.compare.report.tables import (
    POOLING_WORDS,
    digits,
    metric_name,
    number,
    rate,
    recall_keys,
)
from denseloss.compare.results import Calibration, Estimate, LossResults, Metric, Pooling, Results

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "d")
"""One per loss, so that colour is never alone."""

_Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_WIDTH = 420.0
_SMALL_WIDTH = 240.0
_LINE = 16.0
_DIGIT = 0.62 * SMALL
_LETTERS_PER_LINE = 50
_MOST_LINES = 3
_MOST_POINTS = 120
_MOST_DOTS = 130


def marker(index: int) -> str:
    """The marker of the loss with an index."""
    return MARKERS[index % len(MARKERS)]


def dashes(index: int) -> str:
    """The line style of the loss with an index: another one for each round of colours."""
    return ("-", "--", ":", "-.")[max(0, index - 1) // 6 % 4]


def values(results: Results, metric: Metric, pooling: Pooling) -> str:
    """Each loss's score with its interval, and a small dot per seed."""
    key, decimals = (metric.key, pooling), digits(results, metric)
    texts = [
        number(loss.scores[key].value, decimals) if key in loss.scores else "no finished trial"
        for loss in results.losses
    ]

    def row(axes: Axes, index: int, y: float) -> None:
        loss = results.losses[index]
        seeds = loss.per_seed.get(key, ())
        axes.plot(
            seeds,
            [y + 5.5] * len(seeds),
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="none",
            markeredgecolor=colour(index),
            clip_on=False,
        )
        if key in loss.scores:
            _interval(axes, loss.scores[key], index, y - 3)

    better = "higher" if metric.higher_is_better else "lower"
    return _rows(
        results,
        row,
        texts,
        label=f"{metric_name(metric)}, {POOLING_WORDS[pooling]} ({better} is better)",
        name=f"values-{_safe(metric.key)}-{pooling}",
        says=f"{metric.name}, {POOLING_WORDS[pooling]}, of every loss with its interval: ",
    )


def differences(results: Results, metric: Metric, pooling: Pooling) -> str | None:
    """Each loss's difference to the baseline with its interval, None without a comparison."""
    key, decimals = (metric.key, pooling), digits(results, metric)
    if not any(key in loss.comparisons for loss in results.losses):
        return None
    texts = []
    for i, loss in enumerate(results.losses):
        found = loss.comparisons.get(key)
        if found is None:
            texts.append("baseline" if i == 0 else "not compared")
            continue
        difference = number(found.difference.value, decimals, signed=True)
        texts.append(f"{difference}\u2002{found.verdict}")

    def row(axes: Axes, index: int, y: float) -> None:
        found = results.losses[index].comparisons.get(key)
        if found is None:
            if index == 0:
                axes.plot([0], [y], marker="|", markersize=12, color=INK, markeredgewidth=1.6)
            return
        _interval(axes, found.difference, index, y, hollow=found.verdict == "undecided")

    def behind(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        if metric.key == results.metrics[0].key:
            axes.axvspan(-results.effect, results.effect, color=SOFT, linewidth=0, zorder=0)

    unit = f" ({metric.unit})" if metric.unit else ""
    sides = ("worse", "better") if metric.higher_is_better else ("better", "worse")
    return _rows(
        results,
        row,
        texts,
        label=f"← {sides[0]}\u2003difference to {letter(0)}{unit}\u2003{sides[1]} →",
        name=f"differences-{_safe(metric.key)}-{pooling}",
        says=f"Difference of every loss to the baseline in {metric.name}, "
        f"{POOLING_WORDS[pooling]}: ",
        behind=behind,
    )


def _safe(key: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in key)


def _interval(
    axes: Axes, estimate: Estimate, index: int, y: float, *, hollow: bool = False
) -> None:
    paint = colour(index)
    axes.plot([estimate.low, estimate.high], [y, y], color=paint, linewidth=2.2)
    axes.plot(
        [estimate.value],
        [y],
        marker=marker(index),
        markersize=8.5,
        markerfacecolor=PAPER if hollow else paint,
        markeredgecolor=paint,
        markeredgewidth=1.8,
    )


def _rows(
    results: Results,
    row: Callable[[Axes, int, float], None],
    texts: Sequence[str],
    *,
    label: str,
    name: str,
    says: str,
    behind: Callable[[Axes], None] | None = None,
) -> str:
    """A row per loss: its name and a text above, what `row` draws below."""
    names = [
        _wrapped(f"{letter(i)}\u2002{loss.loss}", _LETTERS_PER_LINE - len(texts[i]) - 2)
        for i, loss in enumerate(results.losses)
    ]
    heights = [30 + _LINE * len(lines) for lines in names]
    bottom = 46.0
    total = sum(heights)
    with canvas(_WIDTH, total + bottom + 4) as figure:
        axes = frame(figure, left=6, right=6, top=4, bottom=bottom, grid="x")
        axes.set_ylim(total, 0)
        axes.yaxis.set_major_locator(NullLocator())
        if behind is not None:
            behind(axes)
        top = 0.0
        tops = []
        for i, height in enumerate(heights):
            tops.append(top)
            row(axes, i, top + _LINE * len(names[i]) + 13)
            top += height
        _room(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _keep_inside(axes)
        across = axes.get_yaxis_transform()
        for i, lines in enumerate(names):
            for j, line in enumerate(lines):
                y = tops[i] + 12 + _LINE * j
                axes.text(0, y, line, transform=across, fontsize=FONT)
            axes.text(
                1, tops[i] + 12, texts[i], transform=across, fontsize=FONT, ha="right", color=INK
            )
        axes.set_xlabel(label, labelpad=6)
        told = "; ".join(f"{loss.loss} {texts[i]}" for i, loss in enumerate(results.losses))
        return svg(figure, name=name, label=says + told)


def _wrapped(text: str, width: int) -> list[str]:
    """A loss on a few lines, broken behind marks; a longer one is cut, the tables name it whole."""
    width = max(20, width)
    lines = [""]
    for piece in re.split(r"(?<=[\s_(,+*/])", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    lines = [textwrap.shorten(line, width, placeholder="…") or line[:width] for line in lines]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][: width - 1] + "…"]
    return lines


def _room(axes: Axes) -> None:
    """Limits with room for the markers at the ends, also around a single value."""
    low, high = axes.dataLim.intervalx
    if not (math.isfinite(low) and math.isfinite(high)):
        axes.set_xlim(0, 1)
        return
    room = 0.06 * (high - low) or max(0.01, abs(high) * 0.05)
    axes.set_xlim(low - room, high + room)


def _keep_inside(axes: Axes) -> None:
    """Set a label under the axis beside its tick where the figure would cut it off.

    The width is that of the browser's font, which is not known here, so it is taken as large.
    """
    for label in axes.get_xticklabels():
        place = axes.transData.transform((label.get_position()[0], 0))[0]
        half = 0.5 * _DIGIT * len(label.get_text())
        if place + half > axes.figure.bbox.width:
            label.set_horizontalalignment("right")
        elif place - half < 0:
            label.set_horizontalalignment("left")


def curves(results: Results, *, late: bool) -> str | None:
    """Validation Dice over the steps, mean over the seeds and their spread; None without any.

    Args:
        results: Of the comparison.
        late: Whether only the second half of the steps is shown, which magnifies the end.
    """
    found = {
        i: band
        for i, loss in enumerate(results.losses)
        if (band := _band(loss, "mean_dice")) is not None
    }
    if not found:
        return None
    last = max(float(steps[-1]) for steps, *_ in found.values())
    first = last / 2 if late else 0.0
    ends = {
        i: (float(steps[-1]), float(mean[-1]))
        for i, (steps, mean, *_) in found.items()
        if steps[-1] >= first
    }
    with canvas(_WIDTH, 320) as figure:
        axes = frame(figure, left=42, right=30, top=10, bottom=44)
        seen: list[float] = []
        for i in ends:
            seen += _draw_band(axes, found[i], i, dashes(i), first=first)
        _limits(axes, seen)
        axes.set_xlim(first, last)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step", labelpad=6)
        _end_labels(axes, ends)
        when = "in the second half of training" if late else "over the steps"
        told = "; ".join(f"{results.losses[i].loss} ends at {y:.3f}" for i, (_, y) in ends.items())
        name = "curves-late" if late else "curves"
        return svg(figure, name=name, label=f"Validation Dice {when}: {told}")


def _draw_band(
    axes: Axes, band: _Band, index: int, style: str, *, first: float = 0.0
) -> list[float]:
    """A mean with its spread; returns the heights that are seen from a first step on."""
    steps, mean, low, high = band
    part = steps >= first
    axes.fill_between(steps, low, high, color=colour(index), alpha=0.13, linewidth=0)
    # Of a few points only, a line may be too short to be seen.
    shown = marker(index) if part.sum() < 4 else ""
    axes.plot(
        steps, mean, color=colour(index), linewidth=2, linestyle=style, marker=shown, markersize=5
    )
    return [*low[part], *high[part]]


def _limits(axes: Axes, seen: Sequence[float]) -> None:
    finite = [float(y) for y in seen if math.isfinite(y)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    room = 0.05 * (high - low) or max(0.01, 0.05 * abs(high))
    axes.set_ylim(low - room, high + room)


def _band(loss: LossResults, column: str) -> _Band | None:
    """Steps, mean, lowest and highest over the seeds, at the steps that all seeds have."""
    by_seed = []
    for rows in loss.curves.values():
        pairs = {
            float(row["step"]): float(row[column])
            for row in rows
            if column in row and math.isfinite(row[column])
        }
        if pairs:
            by_seed.append(pairs)
    if not by_seed:
        return None
    common = set.intersection(*map(set, by_seed)) or set.union(*map(set, by_seed))
    steps = sorted(common)
    if len(steps) > _MOST_POINTS:
        chosen = np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)
        steps = [steps[i] for i in chosen]
    at = [[pairs[step] for pairs in by_seed if step in pairs] for step in steps]
    return (
        np.array(steps),
        np.array([float(np.mean(y)) for y in at]),
        np.array([min(y) for y in at]),
        np.array([max(y) for y in at]),
    )


def _end_labels(axes: Axes, ends: Mapping[int, tuple[float, float]]) -> None:
    """A letter behind the end of each line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = axes.bbox.height
    order = sorted(ends, key=lambda i: ends[i][1])
    wanted = [(ends[i][1] - low) / (high - low) * height for i in order]
    placed = spread(wanted, gap=14.0, low=0.0, high=height)
    for i, y, y_wanted in zip(order, placed, wanted, strict=True):
        axes.annotate(
            "",
            xy=(1.0, y_wanted / height),
            xytext=(1.0 + 9 / axes.bbox.width, y / height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": colour(i), "linewidth": 1, "shrinkA": 0,
                        "shrinkB": 0},
            annotation_clip=False,
        )  # fmt: skip
        axes.text(
            1.0 + 12 / axes.bbox.width,
            (y - 4) / height,
            letter(i),
            transform=axes.transAxes,
            fontsize=FONT,
            fontweight="bold",
            color=INK,
        )


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places as near as may be to the wanted ones, ascending, at least `gap` apart.

    Between `low` and `high`, unless they do not fit: then they are evenly spaced.
    """
    if len(wanted) > 1 and gap * (len(wanted) - 1) > high - low:
        return [float(y) for y in np.linspace(low, high, len(wanted))]
    places = [min(max(y, low), high) for y in wanted]
    for _ in range(200):
        moved = False
        for i, (below, above) in enumerate(pairwise(places)):
            lack = gap - (above - below)
            if lack > 1e-6:
                places[i], places[i + 1] = below - lack / 2, above + lack / 2
                moved = True
        places = [min(max(y, low + gap * i), high - gap * (len(places) - 1 - i))
                  for i, y in enumerate(places)]  # fmt: skip
        if not moved:
            break
    return places


def losses_over_steps(results: Results, index: int) -> str | None:
    """Training and validation loss of one loss, in its own unit."""
    loss = results.losses[index]
    bands = [(_band(loss, "loss"), "-"), (_band(loss, "val_loss"), "--")]
    if all(band is None for band, _ in bands):
        return None
    with canvas(_SMALL_WIDTH, 150) as figure:
        axes = frame(figure, left=40, right=8, top=8, bottom=26)
        seen: list[float] = []
        for band, style in bands:
            if band is not None:
                seen += _draw_band(axes, band, index, style)
        _limits(axes, seen)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _keep_inside(axes)
        return svg(
            figure,
            name=f"loss-{index}",
            label=f"Training (solid) and validation (dashed) loss of {loss.loss} over the steps",
        )


def learning_rates(results: Results) -> str | None:
    """Validation Dice over the learning rates that were tried; None where none finished."""
    rates = sorted({lr for loss in results.losses for lr in loss.searched})
    points = {
        i: found
        for i, loss in enumerate(results.losses)
        if (found := [one for one in sorted(loss.searched.items()) if not math.isnan(one[1])])
    }
    if len(rates) < 2 or not points:
        return None
    with canvas(_WIDTH, 290) as figure:
        axes = frame(figure, left=42, right=30, top=10, bottom=44)
        for i, pairs in points.items():
            loss = results.losses[i]
            style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "clip_on": False}
            axes.plot(
                *zip(*pairs, strict=True),
                linewidth=1.6,
                linestyle=dashes(i),
                markersize=6,
                markerfacecolor=PAPER,
                markeredgewidth=1.5,
                **style,
            )
            if loss.lr in loss.searched:
                axes.plot([loss.lr], [loss.searched[loss.lr]], markersize=9, **style)
        axes.set_xscale("log")
        axes.set_xlim(rates[0] / 1.12, rates[-1] * 1.12)
        _limits(axes, [y for pairs in points.values() for _, y in pairs])
        few = len(rates) <= 5
        axes.xaxis.set_major_locator(FixedLocator(rates) if few else LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: rate(lr)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("learning rate", labelpad=6)
        _end_labels(axes, {i: pairs[-1] for i, pairs in points.items()})
        told = "; ".join(
            f"{loss.loss} chose {rate(loss.lr)}"
            for loss in results.losses
            if not math.isnan(loss.lr)
        )
        return svg(figure, name="rates", label=f"Validation Dice by learning rate: {told}")


def by_class(results: Results, metric: Metric, pooling: Pooling) -> str | None:
    """A score of every class and loss, None where there is one class, or too many."""
    keys = [
        (metric.key, pooling, name)
        for name in results.class_names
        if any((metric.key, pooling, name) in loss.per_class for loss in results.losses)
    ]
    if len(keys) < 2 or len(keys) * len(results.losses) > _MOST_DOTS:
        return None
    return _dots(
        results,
        [key[2] for key in keys],
        [[loss.per_class.get(key) for key in keys] for loss in results.losses],
        label=f"{metric_name(metric)}, {POOLING_WORDS[pooling]}",
        name=f"classes-{_safe(metric.key)}-{pooling}",
    )


def by_size(results: Results) -> str | None:
    """Object recall by class and size, None without objects or with too many classes."""
    keys = recall_keys(results)
    if not keys or len(keys) * len(results.losses) > _MOST_DOTS:
        return None
    several = len({name for name, _ in keys}) > 1
    return _dots(
        results,
        [f"{name}, {size}" if several else size for name, size in keys],
        [[loss.recall.get(key) for key in keys] for loss in results.losses],
        label="recall: share of the objects that are found",
        name="recall",
    )


def _dots(
    results: Results,
    rows: Sequence[str],
    estimates: Sequence[Sequence[Estimate | None]],
    *,
    label: str,
    name: str,
) -> str:
    """A block per row, in it a line per loss: value and interval."""
    step = 13.0
    block = 24 + step * len(results.losses) + 8
    total = block * len(rows)
    with canvas(_WIDTH, total + 50) as figure:
        axes = frame(figure, left=26, right=8, top=4, bottom=46, grid="x")
        axes.set_ylim(total, 0)
        axes.yaxis.set_major_locator(NullLocator())
        for j, row in enumerate(rows):
            axes.text(
                -20 / axes.bbox.width,
                block * j + 14,
                textwrap.shorten(row, 52, placeholder="…") or "…",
                transform=axes.get_yaxis_transform(),
                fontsize=FONT,
                fontweight="bold",
            )
            for i, of_loss in enumerate(estimates):
                estimate, y = of_loss[j], block * j + 26 + step * i
                axes.text(
                    -20 / axes.bbox.width,
                    y + 4,
                    letter(i),
                    transform=axes.get_yaxis_transform(),
                    fontsize=10.5,
                    color=MUTED,
                )
                if estimate is None:
                    continue
                axes.plot([estimate.low, estimate.high], [y, y], color=colour(i), linewidth=1.8)
                axes.plot([estimate.value], [y], color=colour(i), marker=marker(i), markersize=6)
        _room(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _keep_inside(axes)
        axes.set_xlabel(label, labelpad=6)
        return svg(figure, name=name, label=f"{label}, by loss, for {', '.join(rows)}")


def reliability(index: int, loss: str, found: Calibration) -> str:
    """How often a probability came true, over the probability; the share of pixels below."""
    confidence, frequency = np.array(found.confidence), np.array(found.frequency)
    pixels = np.array(found.pixels)
    share = pixels / max(1.0, float(pixels.sum()))
    with canvas(_SMALL_WIDTH, 280) as figure:
        axes = frame(figure, left=34, right=10, top=8, bottom=76, grid="y")
        axes.set_aspect("equal")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        there = np.isfinite(confidence) & np.isfinite(frequency)
        axes.plot(
            confidence[there],
            frequency[there],
            color=colour(index),
            linewidth=1.8,
            marker=marker(index),
            markersize=5,
            clip_on=False,
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xticks([])
        axes.set_yticks([0, 0.5, 1])
        bars = frame(figure, left=34, right=10, top=212, bottom=26, grid="")
        edges = np.linspace(0, 1, len(pixels) + 1)
        bars.bar(
            edges[:-1],
            np.sqrt(share),
            width=np.diff(edges),
            align="edge",
            color=RULE,
            edgecolor=PAPER,
            linewidth=1,
        )
        bars.set_xlim(0, 1)
        bars.set_ylim(0, 1)
        bars.set_yticks([])
        bars.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        return svg(
            figure,
            name=f"reliability-{index}",
            label=f"Reliability of {loss}: expected calibration error {number(found.ece.value)}",
        )


def glyph(index: int) -> str:
    """The marker of a loss alone, as a `<symbol>` that is used wherever the loss is named."""
    with canvas(14, 14) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-1, 1)
        axes.set_ylim(-1, 1)
        axes.plot(
            [0], [0], marker=marker(index), markersize=8.5, color=colour(index), clip_on=False
        )
        drawn = svg(figure, name=f"marker-{index}", label="")
    inside = drawn[drawn.index(">") + 1 : drawn.rindex("<")]
    return f'<symbol id="glyph-{index}" viewBox="0 0 14 14">{inside}</symbol>'
