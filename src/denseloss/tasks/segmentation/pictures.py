"""Images with masks laid over, errors and maps: every picture of a segmentation is painted here."""

import colorsys
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from denseloss.data.files import writing_whole
from denseloss.data.samples import VOID, Sample
from denseloss.tasks.segmentation.data import SegmentationData, percent

Rgb = NDArray[np.uint8]
Classes = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Bright colours that differ for colour-blind eyes, too (after Okabe and Ito), then a wheel.
_COLOURS: tuple[Colour, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (255, 99, 71),
    (204, 121, 230),
    (0, 200, 140),
    (230, 159, 0),
    (0, 114, 220),
    (180, 255, 90),
)
_DIVERGING, _SEQUENTIAL, _GREY = "RdBu_r", "viridis", "gray"
_SIDE = 420
_INCHES = 3.1
_MOST_NAMED = 24


@dataclass(frozen=True)
class Paint:
    """How a region is painted, and what it means.

    Attributes:
        text: For the legend.
        colour: Of the region and its outline.
        fill: How much of the image it hides, from 0 to 1.
        stripes: Their colour, None where there are none.
        down: Whether the stripes go down to the right.
    """

    text: str
    colour: Colour
    fill: float
    stripes: Colour | None = None
    down: bool = False

    @property
    def opacity(self) -> float:
        """Of a small field in a legend: on white it takes more to look alike."""
        return min(1.0, 1.6 * self.fill)

    @property
    def css(self) -> str:
        """The style of such a field."""
        fill, line = _css(self.colour, self.opacity), _css(self.stripes or self.colour)
        if self.stripes is None:
            return f"border-color:{line};background:{fill}"
        angle = 45 if self.down else 135
        stripes = f"repeating-linear-gradient({angle}deg, {line} 0 3px, {fill} 3px 7px)"
        return f"border-color:{_css(self.colour)};background:{stripes}"

    def patch(self) -> Patch:
        """The same for matplotlib."""
        fill, line = (
            "#{:02x}{:02x}{:02x}".format(*c) for c in (self.colour, self.stripes or self.colour)
        )
        hatch = None if self.stripes is None else "\\\\\\\\" if self.down else "////"
        # Matplotlib leaves out labels that begin with an underscore.
        label = f" {self.text}"
        return Patch(facecolor=(fill, self.opacity), edgecolor=line, hatch=hatch, label=label)


def _css(colour: Colour, opacity: float = 1.0) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]} / {opacity:.0%})"


VOID_PAINT = Paint("void, counts nowhere", (0, 0, 0), 0.65, stripes=(235, 235, 235))
# Colour-blind people tell them apart by their colours, and everybody by their textures.
_RIGHT, _MISSED, _FALSE, _CONFUSED = (0, 158, 115), (230, 97, 0), (64, 138, 255), (204, 60, 180)
ERROR_PAINTS = (
    Paint("right", _RIGHT, 0.28),
    Paint("missed", _MISSED, 0.45, stripes=_MISSED, down=True),
    Paint("false", _FALSE, 0.72),
)
"""Of what is right, missed and false. Class 0 is the background, which is not painted."""
CONFUSED_PAINT = Paint("another class", _CONFUSED, 0.45, stripes=_CONFUSED)
"""Of what is one class and is predicted as another, neither of them the background."""


def class_colours(num_classes: int) -> NDArray[np.uint8]:
    """An RGB colour for each class, `uint8[num_classes, 3]`; class 0 is black."""
    colours = [(0, 0, 0), *_COLOURS]
    while len(colours) < num_classes:
        i = len(colours)
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 1 - 0.25 * (i % 3) / 2)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return np.array(colours[:num_classes], dtype=np.uint8)


def class_paints(names: Sequence[str]) -> list[Paint]:
    """How each class but the background is painted.

    Args:
        names: Background included.
    """
    colours = class_colours(len(names)).tolist()
    return [Paint(names[i], tuple(colours[i]), 0.5) for i in range(1, len(names))]


# -------------------------------------------------------------------------------- painting


def plain(image: Rgb, *, side: int) -> Rgb:
    """An image made smaller, or larger by a whole number, until its longer side is near `side`."""
    height, width = image.shape[:2]
    share = side / max(height, width)
    if share >= 1:
        return image.repeat(int(share), axis=0).repeat(int(share), axis=1)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def overlay(image: Rgb, classes: Classes, num_classes: int, *, side: int) -> Rgb:
    """An image `uint8[h w 3]` with its classes `uint8[h w]` laid over in their colours.

    Class 0 stays untinted, the others are tinted and outlined. Void is hatched.
    """
    return _painted(image, classes, class_paints([""] * num_classes), side=side)


def errors(image: Rgb, truth: Classes, prediction: Classes, *, side: int) -> Rgb:
    """An image with what is right, missed, false or another class; void is hatched."""
    there, said = truth > 0, prediction > 0
    kinds = np.select(
        [truth == VOID, there & (truth == prediction), there & ~said, ~there & said, there & said],
        [VOID, 1, 2, 3, 4],
        0,
    )
    paints = (*ERROR_PAINTS, CONFUSED_PAINT)
    return _painted(image, kinds.astype(np.uint8), paints, side=side)


def _painted(image: Rgb, labels: Classes, paints: Sequence[Paint], *, side: int) -> Rgb:
    """An image whose regions 1, 2, ... are painted one by one, and whose void is hatched."""
    picture = plain(image, side=side)
    labels = _fitted(labels, picture.shape)
    # Grey, so that the colours of the image are not taken for those of the classes.
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[:, :, None]
    blend = 0.3 * picture.astype(np.float32) + 0.7 * grey
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    edge = _edges(labels)
    for index, paint in [*enumerate(paints, start=1), (VOID, VOID_PAINT)]:
        here = labels == index
        layers = [(here, paint.colour, paint.fill)]
        if paint.stripes is not None:
            stripe = (rows - columns if paint.down else rows + columns) % 8 < 3
            layers.append((here & stripe, paint.stripes, 0.9))
        if index != VOID:
            layers.append((here & edge, paint.colour, 0.85))
        for part, colour, share in layers:
            blend[part] = (1 - share) * blend[part] + share * np.array(colour, dtype=np.float32)
    return np.rint(blend).astype(np.uint8)


def _fitted(labels: Classes, shape: Sequence[int]) -> Classes:
    """Labels at the size of a picture."""
    if shape[0] >= labels.shape[0]:
        share = shape[0] // labels.shape[0]
        return labels.repeat(share, axis=0).repeat(share, axis=1)
    size = (shape[1], shape[0])
    kept = np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    # Made smaller, a thin or tiny object must not vanish: small regions win over large ones.
    pixels = np.bincount(labels.reshape(-1))
    for index in sorted(np.flatnonzero(pixels), key=lambda i: -pixels[i]):
        if index:
            part = Image.fromarray(((labels == index) * 255).astype(np.uint8))
            kept[np.asarray(part.resize(size, Image.Resampling.BOX)) >= 90] = index
    return kept


def _edges(labels: Classes) -> NDArray[np.bool_]:
    edge = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def diverging(values: NDArray[np.float32], limit: float, *, side: int) -> Rgb:
    """A map from −limit (blue) over 0 (white) to limit (red); NaN is hatched."""
    return _mapped(values, (values + limit) / (2 * limit), _DIVERGING, side=side)


def logarithmic(values: NDArray[np.float32], low: float, high: float, *, side: int) -> Rgb:
    """A map of positive values between `low` and `high` on a log scale; NaN is hatched."""
    safe = np.where(np.isfinite(values), np.maximum(values, low), np.nan)
    return _mapped(values, np.log(safe / low) / np.log(high / low), _SEQUENTIAL, side=side)


def probabilities(values: NDArray[np.float32], *, side: int) -> Rgb:
    """A map from 0 (black) to 1 (white)."""
    return _mapped(values, values, _GREY, side=side)


def _mapped(values: NDArray[Any], shares: NDArray[Any], name: str, *, side: int) -> Rgb:
    there = np.isfinite(values)
    colours = matplotlib.colormaps[name](np.clip(np.where(there, shares, 0.0), 0, 1))[..., :3]
    picture = np.rint(255 * colours).astype(np.uint8)
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    stripes = np.where((rows + columns) % 4 < 2, 225, 200)[..., None]
    return plain(np.where(there[..., None], picture, stripes).astype(np.uint8), side=side)


def ramp(kind: str) -> str:
    """The colours of a kind of map from its lowest value to its highest, for CSS."""
    name = {"diverging": _DIVERGING, "logarithmic": _SEQUENTIAL, "probabilities": _GREY}[kind]
    stops = matplotlib.colormaps[name](np.linspace(0, 1, 9))[:, :3]
    return ", ".join("#" + "".join(f"{round(255 * c):02x}" for c in stop) for stop in stops)


# ------------------------------------------------------------------------------------ files


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """An image with what a network predicted.

    Attributes:
        name: Of the image.
        image: uint8[h, w, 3].
        truth: Classes uint8[h, w], 255 where void.
        prediction: Classes uint8[h, w].
        score: Dice, NaN where there is nothing to find.
    """

    name: str
    image: Rgb
    truth: Classes
    prediction: Classes
    score: float


_Panel = tuple[Rgb, str]
"""A picture and what stands above it."""


def draw_overlays(data: SegmentationData, samples: Sequence[Sample], path: Path) -> Path:
    """Draw samples, each above itself with its mask laid over, and a legend with the shares."""
    splits = {s: n for n in ("train", "val", "test") for s in getattr(data, n)}
    seen: set[int] = set()
    above: list[_Panel] = []
    below: list[_Panel] = []
    for sample in samples:
        image, mask = (tensor.numpy() for tensor in data.read(sample))
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
        seen.update(np.unique(mask).tolist())
        label = f"{_middle(sample.name, 26)}\n{splits[sample]}, {mask.shape[1]}x{mask.shape[0]}"
        above.append((plain(image, side=_SIDE), label))
        below.append((overlay(image, mask, data.num_classes, side=_SIDE), ""))
    columns = min(4, len(samples))
    rows = [row[i : i + columns] for i in range(0, len(samples), columns) for row in (above, below)]
    names = [
        f"{i}  {name}  {percent(share).strip()}"
        for i, (name, share) in enumerate(zip(data.class_names, data.class_share, strict=True))
    ]
    counts = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    what = "binary" if data.mode == "binary" else f"{data.num_classes} classes"
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(
        rows,
        title=f"{data.name}\n{_middle(data.source, 70)}\n{counts}; {what}",
        paints=_legend(data, names, seen),
        path=path,
    )
    return path


def draw_samples(
    shown: Sequence[Sampled], data: SegmentationData, *, count_of: int, path: Path
) -> None:
    """Draw image, truth, prediction and error of some validation images.

    Args:
        shown: What is drawn.
        data: Whose classes they have.
        count_of: How many validation images there are.
        path: Where the picture goes.
    """
    seen: set[int] = set()
    rows: list[list[_Panel]] = []
    for one in shown:
        seen.update(np.unique(one.truth).tolist(), np.unique(one.prediction).tolist())
        truth, prediction = (
            overlay(one.image, classes, data.num_classes, side=_SIDE)
            for classes in (one.truth, one.prediction)
        )
        found = f"Dice {one.score:.3f}" if not math.isnan(one.score) else "nothing to find"
        rows.append(
            [
                (plain(one.image, side=_SIDE), _middle(one.name, 32)),
                (truth, "truth"),
                (prediction, f"prediction, {found}"),
                (errors(one.image, one.truth, one.prediction, side=_SIDE), "errors"),
            ]
        )
    error_paints = [*ERROR_PAINTS, *([CONFUSED_PAINT] if data.mode == "multiclass" else [])]
    _draw(
        rows,
        title=f"{len(shown)} of {count_of} validation images, chosen by their place and not by the "
        "result; weights of best.ckpt",
        paints=[*_legend(data, data.class_names, seen), *error_paints],
        path=path,
    )


def _legend(data: SegmentationData, names: Sequence[str], seen: set[int]) -> list[Paint]:
    """The classes, of very many those that are seen, and void."""
    names = [_middle(name, 50) for name in names]
    paints = list(enumerate(class_paints(names), start=1))
    few = len(names) <= _MOST_NAMED
    void = [VOID_PAINT] if data.ignore_value is not None or VOID in seen else []
    background = Paint(f"{names[0]} (not tinted)", (153, 153, 153), 0.0)
    return [background, *(paint for i, paint in paints if few or i in seen), *void]


def _draw(
    rows: Sequence[Sequence[_Panel]], *, title: str, paints: Sequence[Paint], path: Path
) -> None:
    """Draw pictures in rows and a legend below."""
    columns = len(rows[0])
    shapes = [picture.shape for row in rows for picture, _ in row]
    tall = min(1.4, max(height / width for height, width, _ in shapes))
    width = max(2.1, columns) * _INCHES
    longest = max(len(paint.text) for paint in paints)
    per_line = max(1, min(len(paints), int(width / (0.08 * longest + 0.6))))
    head_and_legend = 0.7 + 0.2 * title.count("\n") + 0.24 * -(-len(paints) // per_line)
    height = len(rows) * (_INCHES * tall + 0.25) + head_and_legend
    # Names are text, and a letter that the font lacks is drawn as a box: that is no error.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Made by hand: pyplot would choose a window system and keep the figure alive.
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axis in grid.flat:
            axis.set_axis_off()
        for axes, row in zip(grid, rows, strict=True):
            for axis, (picture, above) in zip(axes, row, strict=False):
                axis.imshow(picture, interpolation="antialiased")
                axis.set_title(above, fontsize=8.5)
        figure.suptitle(title, fontsize=10)
        figure.legend(
            handles=[paint.patch() for paint in paints],
            loc="outside lower center",
            ncols=per_line,
            frameon=False,
            fontsize=9,
        )
        with writing_whole(path) as file:
            figure.savefig(file, format="png")


def _middle(text: str, most: int) -> str:
    """A long name without its middle: ends tell frames apart."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"
