"""What the report of a segmentation shows besides the scores."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseloss.compare import pictures
from denseloss.compare.report import figures, tables, words
from denseloss.compare.report.contents import choice, drawn
from denseloss.compare.report.sections import (
    Cell,
    Figure,
    Gallery,
    Item,
    Picture,
    Row,
    Scale,
    Section,
    Table,
    letter,
)
from denseloss.compare.results import Case, Look, Results
from denseloss.data.picture import class_colours
from denseloss.data.samples import VOID

_SIDE = 320


def segmentation_sections(results: Results) -> Iterator[Section]:
    """Classes and sizes, calibration, images and gradient maps, as far as they are there."""
    parts = (*_classes(results), *_sizes(results))
    if parts:
        yield Section(title="Classes and sizes", anchor="parts", parts=parts)
    if (table := tables.calibration(results)) is not None:
        yield Section(
            title="Calibration and threshold",
            name="Calibration",
            anchor="calibration",
            about_figures=words.reliability(results),
            figures=tuple(
                Figure(svg=figures.reliability(i, loss.loss, loss.calibration), loss=i)
                for i, loss in enumerate(results.losses)
                if loss.calibration is not None
            ),
            tables=(table,),
        )
    if results.cases:
        yield Section(
            title="Images on which the losses differ most",
            name="Images",
            anchor="cases",
            text=(
                "Predictions of the first seed; the Dice scores are the mean over the seeds. They "
                "were picked for their differences, so they do not stand for the data.",
            ),
            hint="Click a picture to enlarge it; the arrow keys go from one to the next.",
            legend=tuple(_legend(results)),
            instead=(_dice(results),),
            galleries=tuple(_case(results, case) for case in results.cases),
        )
    if results.looks:
        yield Section(
            title="What the losses look at",
            anchor="looks",
            text=(words.HOW_TO_READ_LOOKS,),
            galleries=tuple(_look(results, look) for look in results.looks),
        )


def _classes(results: Results) -> Iterator[Section]:
    for metric, pooling in tables.measured(results):
        table = tables.per_class(results, metric, pooling)
        if table is None or len(table.columns) < 2:
            continue
        # A diagram of one metric is enough: with twenty classes they are long.
        main = metric is results.metrics[0]
        caption = f"Each class with every loss; lines are {tables.level(results)} confidence "
        yield Section(
            title=f"{metric.name} of each class, {tables.POOLING_WORDS[pooling]}",
            choice=choice(metric, pooling),
            figures=drawn(
                figures.by_class(results, metric, pooling) if main else None,
                caption=f"{caption}intervals.",
            ),
            tables=(table,),
        )


def _sizes(results: Results) -> Iterator[Section]:
    if (table := tables.recall(results)) is not None:
        yield Section(
            title="Objects, by size",
            figures=drawn(
                figures.by_size(results),
                "Share of the objects that are found,",
                f"with {tables.level(results)} confidence intervals.",
            ),
            tables=(table,),
        )


def _legend(results: Results) -> Iterator[Item]:
    if results.task == "binary":
        right, missed, wrong = map(_css, (pictures.RIGHT, pictures.MISSED, pictures.FALSE))
        stripes = f"repeating-linear-gradient(45deg, {missed} 0 3px, transparent 3px 7px)"
        yield Item(text="right: tinted, thin outline", swatch=f"border-color:{right}")
        yield Item(text="missed: striped", swatch=f"border-color:{missed};background:{stripes}")
        yield Item(text="false: filled", swatch=f"border-color:{wrong};background:{wrong}")
        yield Item(text="truth: white outline", swatch="border-color:#888;background:#fff")
        return
    colours = class_colours(len(results.class_names))
    for name, colour in list(zip(results.class_names, map(_css, colours), strict=True))[1:]:
        yield Item(text=name, swatch=f"border-color:{colour};background:{colour}")
    stripes = "repeating-linear-gradient(135deg, #444 0 4px, #eee 4px 7px)"
    yield Item(text="void", swatch=f"border-color:#444;background:{stripes}")


def _css(colour: Sequence[int]) -> str:
    return f"rgb({colour[0]}, {colour[1]}, {colour[2]})"


def _dice(results: Results) -> Table:
    return Table(
        caption="Dice of each image, mean over the seeds",
        corner="Image",
        columns=tuple(letter(i) for i in range(len(results.losses))),
        rows=tuple(
            Row(
                head=case.name,
                cells=tuple(
                    Cell(text=tables.number(case.scores.get(loss.loss, math.nan)))
                    for loss in results.losses
                ),
            )
            for case in results.cases
        ),
    )


def _first(results: Results, shown: Case | Look) -> tuple[Picture, Picture]:
    """The image and its truth."""
    if results.task == "binary":
        truth = pictures.outlined(shown.image, shown.truth, side=_SIDE)
    else:
        count = len(results.class_names)
        truth = pictures.classes(shown.image, shown.truth, count, side=_SIDE)
    image = pictures.plain(shown.image, side=_SIDE)
    return (
        Picture(pixels=image, alt=f"The image {shown.name}", caption="image"),
        Picture(pixels=truth, alt=f"The truth of {shown.name}", caption="truth"),
    )


def _case(results: Results, case: Case) -> Gallery:
    def painted(predicted: NDArray[np.uint8]) -> pictures.Rgb:
        if results.task == "binary":
            return pictures.right_or_wrong(case.image, case.truth, predicted, side=_SIDE)
        seen = np.where(case.truth == VOID, VOID, predicted).astype(np.uint8)
        return pictures.classes(case.image, seen, len(results.class_names), side=_SIDE)

    shown = list(_first(results, case))
    for i, loss in enumerate(results.losses):
        if loss.loss in case.predictions:
            score = tables.number(case.scores.get(loss.loss, math.nan))
            shown.append(
                Picture(
                    pixels=painted(case.predictions[loss.loss]),
                    alt=f"Prediction of {loss.loss} on {case.name}: Dice {score}",
                    caption=f"Dice {score}",
                    loss=i,
                )
            )
    known = [score for score in case.scores.values() if not math.isnan(score)]
    about = f"Dice from {min(known):.3f} to {max(known):.3f}" if known else ""
    return Gallery(name=case.name, about=about, rows=(("", tuple(shown)),))


def _look(results: Results, look: Look) -> Gallery:
    probability = Picture(
        pixels=pictures.probabilities(look.probability, side=_SIDE),
        alt=f"Predicted probability of {look.class_name}",
        caption=f"probability of {look.class_name}",
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
        rows=(
            ("", (*_first(results, look), probability)),
            ("Gradient", tuple(gradients)),
            ("Weight", tuple(weights)),
        ),
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
