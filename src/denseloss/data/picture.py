"""Pictures of samples with their masks laid over."""

import colorsys
import textwrap
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from denseloss.data.samples import VOID, Sample
from denseloss.data.segmentation import SegmentationData, percent

_TILE = 420
_RARE = 0.03
# Bright colours that differ for colour-blind eyes, too (after Okabe and Ito), then a wheel.
_COLOURS = (
    (255, 99, 71),
    (86, 180, 233),
    (240, 228, 66),
    (0, 200, 140),
    (204, 121, 230),
    (230, 159, 0),
    (0, 114, 220),
    (180, 255, 90),
)

Picture = NDArray[np.uint8]


def class_colours(num_classes: int) -> NDArray[np.uint8]:
    """An RGB colour for each class, `uint8[num_classes, 3]`; class 0 is black."""
    colours = [(0, 0, 0), *_COLOURS]
    while len(colours) < num_classes:
        i = len(colours)
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 1 - 0.25 * (i % 3) / 2)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return np.array(colours[:num_classes], dtype=np.uint8)


def overlay(
    image: Tensor,
    mask: Tensor,
    num_classes: int,
    *,
    tile: int = _TILE,
    strong: Collection[int] = (),
) -> Picture:
    """An image `uint8[3 h w]` with its mask `uint8[h w]` laid over, the longer side `tile`.

    Class 0 stays untinted, the others are tinted and outlined, the `strong` ones more, because what
    is rare is also thin or tiny. Void is hatched.
    """
    picture = _fitted(image, tile)
    labels = _fitted_labels(mask.numpy(), picture.shape[:2], num_classes)
    colours = class_colours(num_classes).astype(np.float32)
    # Grey, so that the colours of the image are not taken for those of the classes.
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[:, :, None]
    blend = 0.3 * picture.astype(np.float32) + 0.7 * grey
    edge = _edges(labels)
    for index in range(1, num_classes):
        here = labels == index
        strength = 0.75 if index in strong else 0.45
        blend[here] = (1 - strength) * blend[here] + strength * colours[index]
        outline = here & edge
        blend[outline] = 0.2 * blend[outline] + 0.8 * colours[index]
    void = labels == VOID
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    stripe = (rows + columns) % 8 < 3
    blend[void] = 0.35 * blend[void]
    blend[void & stripe] = 235
    return np.rint(blend).astype(np.uint8)


def _fitted(image: Tensor, tile: int) -> Picture:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    factor = tile / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    # Pixels of a small image are shown as they are, not smoothed into something else.
    how = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    return np.asarray(picture.resize(size, how))


def _fitted_labels(
    mask: NDArray[np.uint8], shape: tuple[int, ...], num_classes: int
) -> NDArray[np.uint8]:
    size = (shape[1], shape[0])
    nearest = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    labels = np.array(nearest)
    if shape[0] >= mask.shape[0]:
        return labels
    # Made smaller, a thin or tiny object must not vanish: small classes win over large ones.
    pixels = np.bincount(mask.reshape(-1), minlength=256)
    present = [i for i in (*range(1, num_classes), VOID) if pixels[i]]
    for index in sorted(present, key=lambda i: -pixels[i]):
        part = Image.fromarray(((mask == index) * 255).astype(np.uint8))
        labels[np.asarray(part.resize(size, Image.Resampling.BOX)) >= 90] = index
    return labels


def _edges(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edge = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def draw_overlays(data: SegmentationData, samples: Sequence[Sample], path: Path) -> Path:
    """Draw samples, each above itself with its mask laid over, and a legend with the shares."""
    # The figure is made by hand: pyplot would choose a window system and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(4, len(samples))
    bands = -(-len(samples) // columns)
    legend = _legend(data)
    per_line = 4
    legend_height = 0.15 + 0.22 * -(-len(legend) // per_line)
    width, head = max(3.1 * columns, 6.4) + 0.3, 0.85
    tile = (width - 0.3) / columns
    band = 2 * tile + 0.42
    height = head + bands * band + legend_height
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.15 / width,
        1 - 0.32 / height,
        data.name,
        fontsize=15,
        weight="bold",
        va="center",
        parse_math=False,
    )
    counts = f"{len(data.train)} train · {len(data.val)} val · {len(data.test)} test"
    what = "binary" if data.task == "binary" else f"{data.num_classes} classes"
    subtitle = f"{data.source}   |   {counts}   |   {what}"
    figure.text(
        0.15 / width,
        1 - 0.64 / height,
        textwrap.shorten(subtitle, int(13 * width), placeholder="..."),
        fontsize=9,
        parse_math=False,
        color="#555555",
        va="center",
    )
    rare = [i for i, share in enumerate(data.class_share) if share < _RARE]
    splits = {s: n for n in ("train", "val", "test") for s in getattr(data, n)}
    for i, sample in enumerate(samples):
        row, column = divmod(i, columns)
        image, mask = data.read(sample)
        top = height - head - row * band
        pictures = (_fitted(image, _TILE), overlay(image, mask, data.num_classes, strong=rare))
        for part, picture in enumerate(pictures):
            bottom = top - 0.22 - (part + 1) * tile + 0.03 * (1 - part)
            axes = figure.add_axes(
                (
                    (0.15 + column * tile + 0.04) / width,
                    bottom / height,
                    (tile - 0.08) / width,
                    (tile - 0.08) / height,
                )
            )
            axes.imshow(
                picture, interpolation="nearest" if picture.shape[0] < 300 else "antialiased"
            )
            axes.set_axis_off()
            axes.set_anchor("S" if part == 0 else "N")
        label = f"{_middle(sample.name, 28)}  ({splits[sample]}, {mask.shape[1]}x{mask.shape[0]})"
        figure.text(
            (0.15 + (column + 0.5) * tile) / width,
            (top - 0.12) / height,
            label,
            fontsize=7.5,
            parse_math=False,
            color="#333333",
            ha="center",
            va="center",
        )
    legend_style: dict[str, Any] = {
        "handles": [Patch(**style) for style in legend],
        "ncol": min(per_line, len(legend)),
        "frameon": False,
        "fontsize": 9,
        "borderaxespad": 0.4,
    }
    figure.legend(loc="lower center", **legend_style)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A file name in a script that the font lacks is drawn as boxes; that is no error.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path)
    return path


def _legend(data: SegmentationData) -> list[dict[str, Any]]:
    colours = class_colours(data.num_classes)
    entries: list[dict[str, Any]] = []
    shown = sorted(range(data.num_classes), key=lambda i: -data.class_share[i])[:23]
    for i in sorted(shown):
        name = data.class_names[i].replace("$", r"\$")
        label = f"{i}  {name}  {percent(data.class_share[i]).strip()}"
        if i == 0:
            entries.append(
                {"facecolor": "white", "edgecolor": "#999999", "label": f"{label} (not tinted)"}
            )
        else:
            entries.append({"facecolor": tuple(colours[i] / 255), "label": label})
    if data.ignore_value is not None:
        label = f"void  {percent(data.void_share).strip()} of all"
        entries.append(
            {"facecolor": "#444444", "edgecolor": "white", "hatch": "/////", "label": label}
        )
    return entries


def _middle(text: str, most: int) -> str:
    """A long name without its middle: ends tell frames apart."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"
