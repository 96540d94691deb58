"""Images with their masks laid over, and maps, as the report shows them."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from denseloss.data.picture import overlay
from denseloss.data.samples import VOID

Rgb = NDArray[np.uint8]

RIGHT, MISSED, FALSE = (0, 158, 115), (230, 97, 0), (64, 138, 255)
"""Colours of right, missed and false pixels, which colour-blind people tell apart as well."""

_DIVERGING, _SEQUENTIAL, _GREY = "RdBu_r", "viridis", "gray"


def plain(image: Rgb, *, side: int) -> Rgb:
    """An image with its longer side near `side`."""
    return _scaled(image, _factor(image.shape, side), smooth=True)


def classes(image: Rgb, labels: NDArray[np.uint8], num_classes: int, *, side: int) -> Rgb:
    """An image with its classes laid over in their colours; void is hatched."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return overlay(tensor, torch.from_numpy(labels.copy()), num_classes, tile=side)


def outlined(image: Rgb, truth: NDArray[np.uint8], *, side: int) -> Rgb:
    """An image with the outline of a binary truth."""
    factor = _factor(image.shape, side)
    picture = _greyed(_scaled(image, factor, smooth=True))
    mask = _scaled_labels(truth, picture.shape)
    inside = mask == 1
    picture[inside] = 0.82 * picture[inside] + 0.18 * 255
    picture[_border(inside)] = (255, 255, 255)
    _hatch(picture, mask == VOID)
    return np.rint(picture).astype(np.uint8)


def right_or_wrong(
    image: Rgb, truth: NDArray[np.uint8], predicted: NDArray[np.uint8], *, side: int
) -> Rgb:
    """An image with what is right, missed and false of a binary prediction.

    Right is tinted and thinly outlined, missed is striped downwards, false is filled: they are
    told apart without their colours, too.
    """
    factor = _factor(image.shape, side)
    picture = _greyed(_scaled(image, factor, smooth=True))
    there = _scaled_labels(truth, picture.shape)
    guess = _scaled_labels(predicted, picture.shape)
    void = there == VOID
    right = (there == 1) & (guess == 1)
    missed = (there == 1) & (guess != 1)
    false = (there == 0) & (guess == 1)
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    stripe = (rows - columns) % 7 < 3
    for part, colour, strength in (
        (right, RIGHT, 0.28),
        (missed, MISSED, 0.45),
        (missed & stripe, MISSED, 0.85),
        (false, FALSE, 0.72),
    ):
        picture[part] = (1 - strength) * picture[part] + strength * np.array(colour)
    for part, colour in ((right, RIGHT), (missed, MISSED), (false, FALSE)):
        picture[_border(part)] = colour
    _hatch(picture, void)
    return np.rint(picture).astype(np.uint8)


def _factor(shape: Sequence[int], side: int) -> float:
    factor = side / max(shape[:2])
    # Whole pixels: a small image is shown as it is.
    return float(max(1, int(factor))) if factor >= 1 else factor


def _scaled(picture: Rgb, factor: float, *, smooth: bool) -> Rgb:
    if factor == 1:
        return picture
    if factor > 1:
        return picture.repeat(int(factor), axis=0).repeat(int(factor), axis=1)
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize(size, how))


def _scaled_labels(labels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    rows = np.arange(shape[0]) * labels.shape[0] // shape[0]
    columns = np.arange(shape[1]) * labels.shape[1] // shape[1]
    if labels.shape[0] <= shape[0]:
        larger: NDArray[np.uint8] = labels[rows][:, columns]
        return larger
    # Made smaller, thin things must not vanish: a pixel of the class anywhere in the block wins.
    kept = np.full(tuple(shape[:2]), VOID, dtype=np.uint8)
    size = (shape[1], shape[0])
    for index in np.unique(labels):
        part = Image.fromarray(((labels == index) * 255).astype(np.uint8))
        share = np.asarray(part.resize(size, Image.Resampling.BOX))
        kept[share >= (128 if index in (0, VOID) else 90)] = index
    return kept


def _greyed(picture: Rgb) -> NDArray[np.float32]:
    # Grey, so that the colours of the image are not taken for those of the overlay.
    grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32)[:, :, None]
    return 0.3 * picture.astype(np.float32) + 0.7 * grey


def _border(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a region that touch another one."""
    padded = np.pad(part, 1, mode="edge")
    inner: NDArray[np.bool_] = (
        padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    border: NDArray[np.bool_] = part & ~inner
    return border


def _hatch(picture: NDArray[np.float32], void: NDArray[np.bool_]) -> None:
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[void] = 0.35 * picture[void]
    picture[void & ((rows + columns) % 8 < 3)] = 235


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
    picture = np.rint(255 * colours).astype(np.float32)
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    picture[~there] = 200
    picture[~there & ((rows + columns) % 4 < 2)] = 225
    return plain(np.rint(picture).astype(np.uint8), side=side)


def ramp(kind: str) -> str:
    """The colours of a kind of map from its lowest value to its highest, for CSS."""
    name = {"diverging": _DIVERGING, "logarithmic": _SEQUENTIAL, "probabilities": _GREY}[kind]
    stops = matplotlib.colormaps[name](np.linspace(0, 1, 9))[:, :3]
    return ", ".join("#" + "".join(f"{round(255 * c):02x}" for c in stop) for stop in stops)
