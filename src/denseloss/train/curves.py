"""The picture of a run: how it learned."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from denseloss.tasks import Metric
from denseloss.train.records import best_row

# Okabe and Ito's colours, which colour-blind people tell apart as well.
_BLACK, _GREY = "#000000", "#8c8c8c"
_BLUE, _VERMILION, _GREEN = "#0072b2", "#d55e00", "#009e73"
_COLOURS = (_BLUE, _VERMILION, _GREEN, "#e69f00", "#56b4e9", "#cc79a7", "#f0e442")
_LINES = ("-", "--", ":", "-.")


def draw_curves(
    rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric], *, part: str, path: Path
) -> None:
    """Draw the losses and the scores over the steps.

    Args:
        rows: Those of `metrics.csv`.
        metrics: Of the task; the first is what the column `score` is.
        part: What is scored one by one, such as `"class"`.
        path: Where the picture goes.
    """
    metric, names = metrics[0], {metric.key: metric.name for metric in metrics}
    others = [
        key
        for key in rows[-1]
        if key not in ("epoch", "step", "loss", "val_loss", "score", metric.key) and "/" not in key
    ]
    parts = [key for key in rows[-1] if key.startswith(f"{metric.key}/")]
    several = len(parts) > 2
    figure = Figure(figsize=(15 if several else 10.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 3 if several else 2)
    steps = [row["step"] for row in rows]
    marker = "o" if len(rows) < 4 else None

    def line(axis: Axes, key: str, label: str, **style: Any) -> None:
        values = [row.get(key, math.nan) for row in rows]
        axis.plot(steps, values, label=label, marker=marker, **style)

    terms = [key for key in rows[-1] if key.startswith("loss/")]
    line(axes[0], "loss", "training", color=_BLACK, linewidth=2)
    line(axes[0], "val_loss", "validation", color=_VERMILION, linewidth=2, linestyle="--")
    for i, key in enumerate(terms if len(terms) > 1 else ()):
        colour = (_BLUE, *_COLOURS[2:])[i % 6]
        line(axes[0], key, f"training: {key.removeprefix('loss/')}", color=colour, linewidth=1)
    axes[0].set_title("Loss")

    line(axes[1], "score", metric.name, color=_BLUE, linewidth=2)
    for i, key in enumerate(others):
        colour = _COLOURS[1 + i % (len(_COLOURS) - 1)]
        line(
            axes[1],
            key,
            names.get(key, key),
            color=colour,
            linewidth=2,
            linestyle=_LINES[1 + i % 3],
        )
    best = best_row(rows, metric)
    axes[1].plot(
        [best["step"]],
        [best["score"]],
        marker="*",
        markersize=14,
        color=_BLUE,
        linestyle="none",
        label=f"best: {best['score']:.3f} at step {best['step']:g}",
    )
    axes[1].set_title("Validation")
    if several:
        for i, key in enumerate(parts):
            colour = (_GREY, *_COLOURS)[i % 8]
            name = key.partition("/")[2]
            line(axes[2], key, name, color=colour, linestyle=_LINES[i // 8 % 4])
        axes[2].set_title(f"Validation {metric.name} of each {part}")
    for i, axis in enumerate(axes):
        axis.set_xlabel("step")
        axis.grid(visible=True, color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if i > 0 and metric.highest == 1:
            axis.set_ylim(-0.02, 1.02)
        crowded = len(axis.get_legend_handles_labels()[0]) > 8
        axis.legend(frameon=False, fontsize=7 if crowded else 9, ncols=2 if crowded else 1)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    part = path.with_name("part-" + path.name)
    figure.savefig(part, dpi=110)
    part.replace(path)
