"""Objects as annotation files have them, and the masks that they make."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray

from denseloss.data.errors import DataError

VOID = -1
BACKGROUND = -2
MOST_CLASSES = 253
"""In a mask of 8 bits, beside background and void."""
_FARTHEST = 1e6
# What numpy and the run lengths' library raise on outlines that are none.
_UNDRAWABLE = (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError)
"""Labels of what does not count, and of what an annotator painted as background."""

Polygon = Sequence[float]
"""Corners x0, y0, x1, y1, ... in pixels, on the lines between pixels: 2 to 5 are pixels 2, 3, 4."""
Outline = Sequence[Polygon] | Mapping[str, Any]
"""Polygons, or COCO's run lengths."""


@dataclass(frozen=True)
class Object:
    """One object in an image.

    Attributes:
        label: Its class, from 0; `VOID` or `BACKGROUND`.
        outline: Its polygons or run lengths; None where there is only a box.
        box: Left, top, right, bottom in pixels, half open.
    """

    label: int
    outline: Outline | None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Outlined:
    """The mask that the objects of an image make: 0 where there is none, class + 1 elsewhere.

    Attributes:
        file: That holds the objects.
        size: (width, height) of the image.
        objects: Later ones lie on top.
        void: The value of what does not count.
        image: The name of the image's file, where the file is that of many.
    """

    file: Path
    size: tuple[int, int]
    objects: tuple[Object, ...]
    void: int = 255
    image: str = ""

    @property
    def path(self) -> Path:
        """The annotation file."""
        return self.file

    @property
    def files(self) -> tuple[Path, ...]:
        """None: an annotation file may hold the objects of many images."""
        return ()

    def read(self) -> NDArray[np.uint8]:
        """Return the mask.

        Raises:
            DataError: An outline cannot be drawn.
        """
        width, height = self.size
        mask = np.zeros((height, width), dtype=np.uint8)
        for each in self.objects:
            if each.outline is None:
                continue
            value = {VOID: self.void, BACKGROUND: 0}.get(each.label, each.label + 1)
            try:
                _draw(mask, each.outline, value)
            except _UNDRAWABLE as error:
                where = f" in {self.image}" if self.image else ""
                raise DataError(
                    f"{self.file}: an outline{where} cannot be drawn ({error}); repair or remove it"
                ) from None
        return mask


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects.

    Attributes:
        name: Unique within its split.
        image: The file.
        split: `"train"`, `"val"`, `"test"` or None.
        truth: Its objects.
    """

    name: str
    image: Path
    split: str | None
    truth: Outlined


@dataclass(frozen=True)
class Annotated:
    """What annotation files say.

    Attributes:
        kind: What was found, in words.
        names: Of the classes, without background.
        images: All of them.
        named: The file that names the classes, None for the annotation files themselves.
        notes: What else was found.
        warnings: What the user should look at.
    """

    kind: str
    names: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    named: Path | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def labels_of(names: Iterable[str]) -> dict[str, int]:
    """Return the label of each class; what is called background is none."""
    kept = [name for name in dict.fromkeys(names) if name.strip("_").lower() != "background"]
    found = dict.fromkeys(names, BACKGROUND)
    return found | {name: label for label, name in enumerate(kept)}


def outline_of(said: Any) -> Outline | None:
    """Return an outline as annotation files have it, in one of its usual forms.

    Args:
        said: Polygons as lists x0, y0, x1, y1, ... or as lists of pairs, one polygon alone, or
            COCO's run lengths.

    Raises:
        ValueError: It is none of them.
    """
    if not said:
        return None
    if isinstance(said, Mapping):
        return said
    if not isinstance(said, list | tuple):
        raise ValueError(f"{type(said).__name__} is no outline")
    polygons = [said] if np.ndim(said[0]) == 0 else said
    found = []
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1)
        if len(corners) % 2:
            raise ValueError(f"a polygon of {len(corners)} numbers; expected pairs")
        if not (np.abs(corners) <= _FARTHEST).all():
            raise ValueError("a corner lies nowhere near the image")
        if len(corners) >= 6:  # two corners have no area
            found.append(tuple(corners.tolist()))
    return found or None


def check_count(file: Path, classes: Sequence[str]) -> None:
    """Refuse more classes than a mask can hold.

    Raises:
        DataError: With the file.
    """
    if len(classes) > MOST_CLASSES:
        some = ", ".join(classes[:3])
        raise DataError(
            f"{file}: has {len(classes)} classes ({some}, ...), and at most {MOST_CLASSES} can be "
            "read; if every object has a name of its own, give objects of a kind one name"
        )


def classes_of(labels: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels, without background."""
    return tuple(name for name, label in labels.items() if label >= 0)


def _draw(mask: NDArray[np.uint8], outline: Outline, value: int) -> None:
    height, width = mask.shape
    if isinstance(outline, Mapping):
        runs = outline
        if tuple(runs["size"]) != (height, width):
            raise ValueError(f"its size is {runs['size']}, the image's {[height, width]}")
        if isinstance(runs["counts"], list):
            if not all(isinstance(count, int) and count >= 0 for count in runs["counts"]):
                raise ValueError("its run lengths are no whole numbers")
            runs = rle.frPyObjects(runs, height, width)
        mask[rle.decode(runs).astype(bool)] = value
        return
    corners = [np.asarray(polygon, dtype=np.float64) for polygon in outline]
    # Only where the object is: a whole image for each object would take long.
    low = np.min([c.reshape(-1, 2).min(0) for c in corners], axis=0)
    high = np.max([c.reshape(-1, 2).max(0) for c in corners], axis=0)
    left, top = (max(0, int(np.floor(v)) - 1) for v in low)
    right, bottom = min(width, int(np.ceil(high[0])) + 1), min(height, int(np.ceil(high[1])) + 1)
    if right <= left or bottom <= top:
        return
    shifted = [(c.reshape(-1, 2) - (left, top)).reshape(-1).tolist() for c in corners]
    runs = rle.merge(rle.frPyObjects(shifted, bottom - top, right - left))
    mask[top:bottom, left:right][rle.decode(runs).astype(bool)] = value


def largest_first(objects: Sequence[Object]) -> tuple[Object, ...]:
    """Return objects such that small ones lie on top of large ones."""
    return tuple(sorted(objects, key=lambda each: -_extent(each)))


def _extent(each: Object) -> float:
    if each.box is not None:
        return (each.box[2] - each.box[0]) * (each.box[3] - each.box[1])
    if each.outline is None or isinstance(each.outline, Mapping):
        return 0.0
    corners = np.concatenate([np.asarray(p, dtype=np.float64) for p in each.outline]).reshape(-1, 2)
    return float(np.prod(corners.max(0) - corners.min(0)))
