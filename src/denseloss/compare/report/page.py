"""The page: one HTML file that needs nothing else."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from denseloss.compare.report import figures, pictures, tables, words
from denseloss.compare.report.drawing import COLOURS
from denseloss.compare.report.pictures import Rgb
from denseloss.compare.results import Case, Look, Metric, Pooling, Results
from denseloss.data.picture import class_colours

MOST_BYTES = 3_000_000
"""No page is larger."""

_ROOM = 60_000
_MOST_PER_PICTURE = 26_000
_SIDE = 320


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of the page.

    Attributes:
        pixels: uint8[h, w, 3].
        alt: What it shows, for those who do not see it.
        caption: Below it, beside the loss's name.
        loss: Index of the loss it belongs to, None for none.
    """

    pixels: Rgb
    alt: str
    caption: str
    loss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The colour bar of a map.

    Attributes:
        name: What it tells.
        ramp: Colours from the lowest value to the highest.
        ticks: Texts from the lowest value to the highest, evenly spaced.
    """

    name: str
    ramp: str
    ticks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures that belong together.

    Attributes:
        name: Of the image.
        about: In a sentence.
        rows: Pictures, a name before each row.
        scales: How the colours of maps are read.
    """

    name: str
    about: str
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    scales: tuple[Scale, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What one choice of metric and pooling shows.

    Attributes:
        metric: That is shown.
        pooling: That is shown.
        figures: SVG.
        tables: Below.
        sentences: Below these, in words.
    """

    metric: Metric
    pooling: Pooling
    figures: tuple[Markup, ...]
    tables: tuple[tables.Table, ...]
    sentences: tuple[tuple[int, str], ...] = ()


def html_page(results: Results) -> str:
    """The report as HTML.

    Raises:
        ValueError: It would be larger than 3 MB even without pictures.
    """
    cases, looks = _cases(results), _looks(results)
    context = _context(results)
    every_case, every_look = len(cases), len(looks)
    while True:
        left_out = {
            "cases_left_out": every_case - len(cases),
            "looks_left_out": every_look - len(looks),
        }
        text = _render({**context, **left_out}, cases, looks)
        if len(text.encode()) < MOST_BYTES:
            return text
        if cases:
            cases = cases[:-1]
        elif looks:
            looks = looks[:-1]
        else:
            raise ValueError(
                f"the report would be {len(text.encode()):,} bytes; compare fewer losses at once"
            )


def _render(context: dict[str, Any], cases: Sequence[Gallery], looks: Sequence[Gallery]) -> str:
    def render(uri: Callable[[Picture], str]) -> str:
        template = _environment().get_template("page.html.jinja")
        text = template.render(**context, cases=cases, looks=looks, uri=uri)
        return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"

    everything = [p for gallery in (*cases, *looks) for _, row in gallery.rows for p in row]
    if not everything:
        return render(lambda _: "")
    room = MOST_BYTES - _ROOM - len(render(lambda _: "").encode())
    # Three bytes are four letters of a data URI.
    limit = max(1, min(_MOST_PER_PICTURE, int(0.74 * room / len(everything))))
    return render(lambda picture: pictures.data_uri(picture.pixels, limit=limit))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=False,
    )
    environment.filters["words"] = _marked
    environment.filters["breakable"] = _breakable
    environment.globals["letter"] = tables.letter
    environment.globals["colour"] = lambda i: 0 if i == 0 else 1 + (i - 1) % (COLOURS - 1)
    return environment


def _marked(text: str) -> Markup:
    """A sentence in which what stands between backticks is set as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _breakable(expression: str) -> Markup:
    """An expression that may go on in the next line behind a mark, not within a word."""
    pieces = re.split(r"(?<=[_(,+*/])", expression)
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def _context(results: Results) -> dict[str, Any]:
    losses = range(len(results.losses))
    steps = [figures.losses_over_steps(results, i) for i in losses]
    return {
        "results": results,
        "title": words.title(results),
        "subtitle": words.subtitle(results),
        "warnings": tuple(
            filter(None, (words.unfinished(results), words.failed(results), *results.warnings))
        ),
        "glyphs": [Markup(figures.glyph(i)) for i in losses],
        "panels": _panels(results),
        "class_panels": _class_panels(results),
        "poolings": tables.POOLING_WORDS,
        "pooling_meaning": tables.POOLING_MEANING,
        "scores": [
            table
            for pooling in _poolings(results)
            if (table := tables.scores(results, pooling)) is not None
        ],
        "scores_note": tables.scores_note(results),
        "effect": results.effect,
        "level": tables.level(results),
        "curves": _drawn(figures.curves(results, late=late) for late in (False, True)),
        "curves_words": words.CURVES,
        "loss_curves": [(i, Markup(drawn)) for i, drawn in enumerate(steps) if drawn],
        "learning": tables.learning(results),
        "rates": tables.rates(results),
        "rates_figure": _drawn([figures.learning_rates(results)]),
        "recall": tables.recall(results),
        "recall_figure": _drawn([figures.by_size(results)]),
        "calibration": tables.calibration(results),
        "reliability": [
            (i, Markup(figures.reliability(i, loss.loss, loss.calibration)))
            for i, loss in enumerate(results.losses)
            if loss.calibration is not None
        ],
        "reliability_words": words.reliability(results),
        "cost": tables.cost(results),
        "class_colours": _legend(results),
        "right": _css(pictures.RIGHT),
        "missed": _css(pictures.MISSED),
        "wrong": _css(pictures.FALSE),
        "looks_words": words.HOW_TO_READ_LOOKS,
        "failures": tables.failures(results),
        "statistics": words.statistics(results),
        "settings": tables.pairs(
            "What all trials had in common", "Setting", "Value", results.settings
        ),
        "versions": tables.pairs("Versions", "Name", "Version", results.versions),
    }


def _drawn(texts: Any) -> tuple[Markup, ...]:
    return tuple(Markup(text) for text in texts if text)


def _css(colour: Sequence[int]) -> str:
    return f"rgb({colour[0]}, {colour[1]}, {colour[2]})"


def _poolings(results: Results) -> tuple[Pooling, ...]:
    return (results.pooling, *(p for p in tables.POOLINGS if p != results.pooling))


def _panels(results: Results) -> tuple[Panel, ...]:
    panels = []
    for metric, pooling in tables.measured(results):
        drawn = (
            figures.values(results, metric, pooling),
            figures.differences(results, metric, pooling),
        )
        key = (metric.key, pooling)
        panels.append(
            Panel(
                metric=metric,
                pooling=pooling,
                figures=_drawn(drawn),
                tables=(tables.comparison(results, metric, pooling),),
                sentences=tuple(
                    (i, loss.comparisons[key].words)
                    for i, loss in enumerate(results.losses)
                    if key in loss.comparisons
                ),
            )
        )
    return tuple(panels)


def _class_panels(results: Results) -> tuple[Panel, ...]:
    panels = []
    for metric, pooling in tables.measured(results):
        table = tables.per_class(results, metric, pooling)
        if table is None or len(table.columns) < 2:
            continue
        # A diagram of one metric is enough: with twenty classes they are long.
        main = metric is results.metrics[0]
        drawn = figures.by_class(results, metric, pooling) if main else None
        panels.append(
            Panel(metric=metric, pooling=pooling, figures=_drawn([drawn]), tables=(table,))
        )
    return tuple(panels)


def _legend(results: Results) -> list[tuple[str, str]]:
    if results.task == "binary":
        return []
    colours = class_colours(len(results.class_names))
    return [(name, _css(colours[i])) for i, name in enumerate(results.class_names) if i]


def _cases(results: Results) -> tuple[Gallery, ...]:
    return tuple(_case(results, case) for case in results.cases)


def _case(results: Results, case: Case) -> Gallery:
    binary = results.task == "binary"
    count = len(results.class_names)
    truth = (
        pictures.outlined(case.image, case.truth, side=_SIDE)
        if binary
        else pictures.classes(case.image, case.truth, count, side=_SIDE)
    )
    shown = [
        Picture(
            pixels=pictures.plain(case.image, side=_SIDE),
            alt=f"The image {case.name}",
            caption="image",
        ),
        Picture(pixels=truth, alt=f"The truth of {case.name}", caption="truth"),
    ]
    for i, loss in enumerate(results.losses):
        if loss.loss not in case.predictions:
            continue
        predicted = case.predictions[loss.loss]
        if binary:
            drawn = pictures.right_or_wrong(case.image, case.truth, predicted, side=_SIDE)
        else:
            void = case.truth == 255
            seen = np.where(void, 255, predicted).astype(np.uint8)
            drawn = pictures.classes(case.image, seen, count, side=_SIDE)
        score = tables.number(case.scores.get(loss.loss, math.nan))
        alt = f"Prediction of {loss.loss} on {case.name}: Dice {score}"
        shown.append(Picture(pixels=drawn, alt=alt, caption=f"Dice {score}", loss=i))
    known = [score for score in case.scores.values() if not math.isnan(score)]
    about = f"Dice from {min(known):.3f} to {max(known):.3f}" if known else ""
    return Gallery(name=case.name, about=about, rows=(("", tuple(shown)),))


def _looks(results: Results) -> tuple[Gallery, ...]:
    return tuple(_look(results, look) for look in results.looks)


def _look(results: Results, look: Look) -> Gallery:
    binary = results.task == "binary"
    truth = (
        pictures.outlined(look.image, look.truth, side=_SIDE)
        if binary
        else pictures.classes(look.image, look.truth, len(results.class_names), side=_SIDE)
    )
    first = (
        Picture(
            pixels=pictures.plain(look.image, side=_SIDE),
            alt=f"The image {look.name}",
            caption="image",
        ),
        Picture(pixels=truth, alt=f"The truth of {look.name}", caption="truth"),
        Picture(
            pixels=pictures.probabilities(look.probability, side=_SIDE),
            alt=f"Predicted probability of {look.class_name}",
            caption=f"probability of {look.class_name}",
        ),
    )
    limit = _nice(_percentile([np.abs(g) for g in look.gradients.values()], 99.0, 1.0))
    low = _nice(_percentile(look.weights.values(), 1.0, 0.5), down=True)
    high = _nice(_percentile(look.weights.values(), 99.0, 2.0))
    low, high = min(low, 0.5), max(high, 2.0)
    gradients, weights = [], []
    for i, loss in enumerate(results.losses):
        if loss.loss in look.gradients:
            gradients.append(
                Picture(
                    pixels=pictures.diverging(look.gradients[loss.loss], limit, side=_SIDE),
                    alt=f"Gradient of {loss.loss} in the logits of {look.class_name}",
                    caption="gradient",
                    loss=i,
                )
            )
        if loss.loss in look.weights:
            weights.append(
                Picture(
                    pixels=pictures.logarithmic(look.weights[loss.loss], low, high, side=_SIDE),
                    alt=f"Weight that {loss.loss} gives to each pixel beyond its error",
                    caption="weight",
                    loss=i,
                )
            )
    middle = math.sqrt(low * high)
    scales = (
        Scale(
            name="Gradient, in means of the image",
            ramp=pictures.ramp("diverging"),
            ticks=(f"−{limit:g} raises p", "0", f"+{limit:g} lowers p"),
        ),
        Scale(
            name="Weight, log scale; grey stripes: too near to the truth to tell",
            ramp=pictures.ramp("logarithmic"),
            ticks=(f"{low:g}", f"{middle:.2g}", f"{high:g}"),
        ),
        Scale(
            name=f"Probability of {look.class_name}",
            ramp=pictures.ramp("probabilities"),
            ticks=("0", "0.5", "1"),
        ),
    )
    return Gallery(
        name=look.name,
        about=f"Predicted by {look.predicted_by}; gradient in the logits of {look.class_name}.",
        rows=(("", first), ("Gradient", tuple(gradients)), ("Weight", tuple(weights))),
        scales=scales,
    )


def _percentile(maps: Any, percent: float, otherwise: float) -> float:
    finite = [m[np.isfinite(m) & (m > 0)] for m in maps]
    together = np.concatenate(finite) if finite else np.empty(0)
    return float(np.percentile(together, percent)) if together.size else otherwise


def _nice(value: float, *, down: bool = False) -> float:
    """The next of 1, 2, 5, 10, ... above a value, or below."""
    value = min(max(value, 1e-3), 1e3)
    power = 10.0 ** math.floor(math.log10(value))
    steps = [power * step for step in (1, 2, 5, 10)]
    if down:
        return max(step for step in steps if step <= value * (1 + 1e-9))
    return min(step for step in steps if step >= value * (1 - 1e-9))
