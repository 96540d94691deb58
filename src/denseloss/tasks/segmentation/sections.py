"""What the report of a segmentation shows besides the scores."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from denseloss.data.samples import VOID
from denseloss.report.drawing import (
    MUTED,
    PAPER,
    RULE,
    SMALL_WIDTH,
    Group,
    Line,
    canvas,
    colour,
    forest,
    marker,
    svg,
)
from denseloss.report.numbers import NOTHING, number
from denseloss.report.sections import (
    Cell,
    Figure,
    Gallery,
    Item,
    Picture,
    Scale,
    Section,
    drawn,
)
from denseloss.report.tables import by_loss, column
from denseloss.tasks.evidence import Evidence
from denseloss.tasks.segmentation import gradient_maps, pictures
from denseloss.tasks.segmentation.cases import Case, cases
from denseloss.tasks.segmentation.details import Calibration, SegmentationDetails, Threshold
from denseloss.tasks.segmentation.gradient_maps import GradientMaps
from denseloss.tasks.segmentation.measure import Measured

_SIDE = 320
_MOST_LINES = 130
_HOW_TO_READ_MAPS = (
    "All losses are asked about one and the same prediction. The gradient map shows how a "
    "training step would change each pixel's probability: blue raises it, red lowers it, white "
    "leaves it alone. The scale is the same for all losses, each measured in its own mean. The "
    "weight map is the gradient divided by that of cross entropy: how much a pixel counts beyond "
    "how wrong it is, 1 being the mean of the image. For cross entropy itself it is 1 everywhere."
)


def sections(evidence: Evidence, details: Sequence[SegmentationDetails]) -> Iterator[Section]:
    """Objects by size, calibration, images and gradient maps, as far as they are there.

    Args:
        evidence: What the trials left behind.
        details: Of each loss.
    """
    losses = [one.loss for one in evidence.losses]
    measured: Iterator[Measured] = (one for loss in evidence.losses for one in loss.held_out)
    first = next(measured, None)
    if first is None:
        return
    binary = first.mode == "binary"
    yield from _sizes(losses, details, evidence)
    yield from _calibration(losses, [one.calibration for one in details], binary=binary)
    found = tuple(cases(evidence))
    if found:
        yield _images(losses, found, first.class_names, binary=binary)
    maps = _gradient_maps(evidence)
    if maps:
        yield Section(
            title="What the losses look at",
            anchor="gradients",
            text=(_HOW_TO_READ_MAPS,),
            galleries=tuple(_maps(losses, one, len(first.class_names)) for one in maps),
        )


# --------------------------------------------------------------------------------- numbers


def _sizes(
    losses: Sequence[str], details: Sequence[SegmentationDetails], evidence: Evidence
) -> Iterator[Section]:
    keys = list(dict.fromkeys(key for one in details for key in one.recall))
    if not keys:
        return
    several = len({name for name, _ in keys}) > 1
    titles = [f"{name}, {size}" if several else size for name, size in keys]
    columns = [[one.recall.get(key) for one in details] for key in keys]
    drawing = None
    if len(keys) * len(losses) <= _MOST_LINES:
        label = "recall: share of the objects that are found"
        drawing = forest(
            [
                Group(
                    title=title, lines=[Line(loss=i, estimate=one) for i, one in enumerate(cells)]
                )
                for title, cells in zip(titles, columns, strict=True)
            ],
            label=label,
            name="recall",
            says=f"{label}, by loss, for {', '.join(titles)}",
        )
    cells = [column(one, decimals=2, higher=True) for one in columns]
    yield Section(
        title="Objects, by size",
        name="Objects",
        anchor="sizes",
        figures=drawn(
            drawing,
            "Share of the objects that are found,",
            f"with {evidence.level} confidence intervals.",
        ),
        tables=(
            by_loss(
                losses,
                "Object recall: the share of the held-out objects that are found, by size",
                zip(titles, cells, strict=True),
                *_what_is_small(evidence),
            ),
        ),
        page_only=True,
    )


def _what_is_small(evidence: Evidence) -> Iterator[str]:
    limits = evidence.context.get("size_limits")
    if limits:
        low, high = (f"{limit:,.0f}".replace(",", " ") for limit in limits)
        yield f"Small: under {low} pixels; medium: {low} to {high} pixels; large: above."


def _calibration(
    losses: Sequence[str], found: Sequence[Calibration | None], *, binary: bool
) -> Iterator[Section]:
    known = [one for one in found if one is not None]
    if not known:
        return
    names = list(dict.fromkeys(name for one in known for name in one.thresholds))
    errors = [None if one is None else one.ece for one in found]
    columns = [("ECE ↓", column(errors, decimals=3, higher=False))]
    for name in names:
        of = f", {name}" if len(names) > 1 else ""
        taken = [None if one is None else one.thresholds.get(name) for one in found]
        cells = [_threshold(one) for one in taken]
        titles = (f"Best threshold{of}", f"Dice as decided{of}", f"Dice at the best{of}")
        columns += [(title, [c[i] for c in cells]) for i, title in enumerate(titles)]
    usual = "p > 0.5" if binary else "the most probable class"
    yield Section(
        title="Calibration and threshold",
        name="Calibration",
        anchor="calibration",
        about_figures=how_to_read(known[0], binary=binary),
        figures=tuple(
            Figure(svg=reliability(i, losses[i], one), loss=i)
            for i, one in enumerate(found)
            if one is not None
        ),
        tables=(
            by_loss(
                losses,
                "Calibration and the best threshold",
                columns,
                "ECE, the expected calibration error: the mean over the pixels of |confidence − "
                f"frequency|, lower is better. Dice (pooled) as decided by {usual}, and by p > "
                "the threshold that is best on validation; the threshold was chosen there, both "
                "scores are of the held-out images.",
            ),
        ),
        page_only=True,
    )


def how_to_read(found: Calibration, *, binary: bool) -> str:
    """How the reliability diagrams are read."""
    if binary:
        # Below 0.5, too little of a probability is too much certainty.
        up, reading = (
            "how often the pixel was foreground",
            "Below the dashed diagonal the foreground is rarer than the probability says, above it "
            "more frequent.",
        )
    else:
        up, reading = (
            "how often it was right",
            "Points below the dashed diagonal mean that the network is surer than it should be, "
            "points above that it is less sure.",
        )
    bars = "The bars below show how many pixels there are (square root)."
    return f"Across: {found.what}; up: {up}. {reading} {bars}"


def reliability(index: int, loss: str, found: Calibration) -> str:
    """How often a probability came true, over the probability; the share of pixels below."""
    pixels = np.array(found.pixels)
    edges = np.linspace(0, 1, len(pixels) + 1)
    with canvas(SMALL_WIDTH, 270) as figure:
        axes, bars = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        there = np.isfinite(found.confidence) & np.isfinite(found.frequency)
        axes.plot(
            np.array(found.confidence)[there],
            np.array(found.frequency)[there],
            color=colour(index),
            linewidth=1.8,
            marker=marker(index),
            markersize=5,
            clip_on=False,
        )
        ends = ([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_yticks(*ends)
        bars.bar(
            edges[:-1],
            np.sqrt(pixels / max(1.0, pixels.sum())),
            width=np.diff(edges),
            align="edge",
            color=RULE,
            edgecolor=PAPER,
            linewidth=1,
        )
        bars.set(ylim=(0, 1), yticks=[])
        bars.set_xticks(*ends)
        return svg(
            figure,
            name=f"reliability-{index}",
            label=f"Reliability of {loss}: expected calibration error {number(found.ece.value)}",
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


# -------------------------------------------------------------------------------- pictures


def _images(
    losses: Sequence[str], found: Sequence[Case], class_names: Sequence[str], *, binary: bool
) -> Section:
    paints = pictures.class_paints(class_names)
    if binary:
        paints += pictures.ERROR_PAINTS
    if any((case.truth == VOID).any() for case in found):
        paints.append(pictures.VOID_PAINT)
    return Section(
        title="Images on which the losses differ most",
        name="Images",
        anchor="cases",
        text=(
            "Predictions of the first seed; the Dice scores are the mean over the seeds. They "
            "were picked for their differences, so they do not stand for the data.",
        ),
        hint="Click a picture to enlarge it; the arrow keys go from one to the next.",
        legend=tuple(Item(text=paint.text, swatch=paint.css) for paint in paints),
        galleries=tuple(_case(losses, case, len(class_names), binary=binary) for case in found),
    )


def _dice(case: Case, loss: str) -> str:
    return number(case.scores.get(loss, math.nan))


def _first(shown: Case | GradientMaps, num_classes: int) -> tuple[Picture, Picture]:
    """The image and its truth."""
    image = pictures.plain(shown.image, side=_SIDE)
    truth = pictures.overlay(shown.image, shown.truth, num_classes, side=_SIDE)
    return (
        Picture(pixels=image, alt=f"The image {shown.name}", caption="image"),
        Picture(pixels=truth, alt=f"The truth of {shown.name}", caption="truth"),
    )


def _case(losses: Sequence[str], case: Case, num_classes: int, *, binary: bool) -> Gallery:
    shown = list(_first(case, num_classes))
    for i, loss in enumerate(losses):
        if loss not in case.predictions:
            continue
        prediction, score = case.predictions[loss], _dice(case, loss)
        if binary:
            painted = pictures.errors(case.image, case.truth, prediction, side=_SIDE)
        else:
            seen = np.where(case.truth == VOID, VOID, prediction).astype(np.uint8)
            painted = pictures.overlay(case.image, seen, num_classes, side=_SIDE)
        alt = f"Prediction of {loss} on {case.name}: Dice {score}"
        shown.append(Picture(pixels=painted, alt=alt, caption=f"Dice {score}", loss=i))
    known = [score for score in case.scores.values() if not math.isnan(score)]
    about = f"Dice from {min(known):.3f} to {max(known):.3f}" if known else ""
    return Gallery(name=case.name, about=about, rows=(("", tuple(shown)),))


def _gradient_maps(evidence: Evidence) -> tuple[GradientMaps, ...]:
    try:
        return gradient_maps.load(evidence.folder / gradient_maps.FILE)
    except (OSError, ValueError):
        # The next `compare` makes them anew; a report without them is still a report.
        return ()


def _maps(losses: Sequence[str], maps: GradientMaps, num_classes: int) -> Gallery:
    probability = Picture(
        pixels=pictures.probabilities(maps.probability, side=_SIDE),
        alt=f"Predicted probability of {maps.class_name}",
        caption=f"probability of {maps.class_name}",
    )
    limit = _nice(_percentile([np.abs(g) for g in maps.gradients.values()], 99.0, 1.0))
    low = min(_nice(_percentile(maps.weights.values(), 1.0, 0.5), down=True), 0.5)
    high = max(_nice(_percentile(maps.weights.values(), 99.0, 2.0)), 2.0)
    shown = [(i, loss) for i, loss in enumerate(losses) if loss in maps.gradients]
    gradients = [
        Picture(
            pixels=pictures.diverging(maps.gradients[loss], limit, side=_SIDE),
            alt=f"Gradient of {loss} in the logits of {maps.class_name}",
            caption="gradient",
            loss=i,
        )
        for i, loss in shown
    ]
    weights = [
        Picture(
            pixels=pictures.logarithmic(maps.weights[loss], low, high, side=_SIDE),
            alt=f"Weight that {loss} gives to each pixel beyond its error",
            caption="weight",
            loss=i,
        )
        for i, loss in shown
    ]
    scales = (
        Scale(
            name="Gradient, in means of the image",
            ramp=pictures.ramp("diverging"),
            ticks=(f"−{limit:g} raises p", "0", f"+{limit:g} lowers p"),
        ),
        Scale(
            name="Weight, log scale; grey stripes: too near to the truth to tell",
            ramp=pictures.ramp("logarithmic"),
            ticks=(f"{low:g}", f"{math.sqrt(low * high):.2g}", f"{high:g}"),
        ),
        Scale(
            name=f"Probability of {maps.class_name}",
            ramp=pictures.ramp("probabilities"),
            ticks=("0", "0.5", "1"),
        ),
    )
    return Gallery(
        name=maps.name,
        about=f"Predicted by {maps.predicted_by}; gradient in the logits of {maps.class_name}.",
        rows=(
            ("", (*_first(maps, num_classes), probability)),
            ("Gradient", tuple(gradients)),
            ("Weight", tuple(weights)),
        ),
        scales=scales,
    )


def _percentile(maps: Iterable[gradient_maps.Floats], percent: float, otherwise: float) -> float:
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
