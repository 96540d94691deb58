"""What the training masks of a data set look like, in numbers that tell losses apart."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from denseloss.data.samples import VOID, evenly
from denseloss.tasks.segmentation.data import SegmentationData, percent
from denseloss.tasks.task import Progress

Mask = NDArray[np.uint8]

NEAR = 2
"""A pixel is at a boundary if another class is at most this many pixels away: the contours of two
careful annotators differ by about as much."""

_QUANTILES = (0.1, 0.5, 0.9)
_EIGHT = np.ones((3, 3), dtype=bool)
# Half a minute of distances on one core; only large images are fewer than `limit` by it.
_MOST_PIXELS = 2**27


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The objects of one foreground class: its parts that hang together, corners included.

    Attributes:
        index: Of the class.
        name: Of the class.
        objects: Mean number of objects in an image that has the class.
        area: Quantiles of the objects' areas in pixels: 10, 50 and 90 %.
        thinness: Half of the class's pixels lie in objects of at least this `shape_factor`:
            1 for a disc, 0.57 length / width for a strip.
        width: Of the strip whose pixels lie as far from its edges as those of the class, pixels.
        boundary_share: Share of the class's pixels at most `NEAR` from another class.
        crowded: Share of the objects with another one, of any foreground class, at most 2 pixels
            away: grown by a pixel, they meet.
    """

    index: int
    name: str
    objects: float
    area: tuple[float, float, float]
    thinness: float
    width: float
    boundary_share: float
    crowded: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The training masks in numbers; class 0 is the background, all others are foreground.

    A share of no pixels or no images is 0.

    Attributes:
        images: How many masks were looked at.
        total: How many training masks there are.
        height: Median height of those looked at, pixels.
        width: Median width.
        square: Side of the squares that training sees, pixels; 0 stands for whole images.
        class_names: Background included.
        class_share: Share of each class in the pixels that are not void.
        class_images: Share of the images in which each class occurs.
        class_squares: Share of the squares in which each class occurs.
        empty_images: Share of the images without a foreground pixel.
        empty_squares: Share of the squares without a foreground pixel.
        void_share: Share of void in all pixels.
        boundary_share: Share of the valid pixels at most `NEAR` from another class.
        shapes: Of the foreground classes that occur.
    """

    images: int
    total: int
    height: int
    width: int
    square: int
    class_names: tuple[str, ...]
    class_share: tuple[float, ...]
    class_images: tuple[float, ...]
    class_squares: tuple[float, ...]
    empty_images: float
    empty_squares: float
    void_share: float
    boundary_share: float
    shapes: tuple[Shapes, ...]

    @property
    def place(self) -> str:
        """What `class_squares` and `empty_squares` are shares of, in words."""
        return f"{self.square} px training squares" if self.square else "images"

    def lines(self) -> list[str]:
        """The fingerprint in plain words, one thing on a line."""
        looked_at = f"{self.images} of {self.total}" if self.images < self.total else self.images
        hidden = "; void between two classes hides theirs" * bool(self.void_share)
        empty = f", {_said(self.empty_squares)} of the {self.place}" * bool(self.square)
        uncounted = " of the pixels, which no loss of labels counts" * bool(self.void_share)
        lines = [
            f"fingerprint: of {looked_at} training masks, usually {self.width}x{self.height}",
            f"boundaries: {_said(self.boundary_share)} of the pixels are at most {NEAR} px from "
            f"another class{hidden}",
            f"empty masks: {_said(self.empty_images)} of the images{empty}",
            f"void: {_said(self.void_share)}{uncounted}",
        ]
        width = max(len(name) for name in self.class_names)
        for i, name in enumerate(self.class_names):
            squares = f" and {_said(self.class_squares[i])} of the {self.place}" * bool(self.square)
            lines.append(
                f"  class {i}  {name:<{width}}  {percent(self.class_share[i]):>8} of the pixels, "
                f"in {_said(self.class_images[i])} of the images{squares}"
            )
        for shape in self.shapes:
            low, middle, high = shape.area
            lines += [
                f"  objects of {shape.name}: {shape.objects:.3g} in an image that has the class; "
                f"half of them below {middle:.0f} px, 10 % below {low:.0f}, 10 % above {high:.0f}; "
                f"{_said(shape.crowded)} at most 2 px from another object",
                f"  shape of {shape.name}: as far from its edges as a strip {shape.width:.1f} px "
                f"wide; shape factor {shape.thinness:.3g} (a disc has 1); "
                f"{_said(shape.boundary_share)} of its pixels are at a boundary",
            ]
        return lines


def fingerprint(
    data: SegmentationData,
    *,
    limit: int = 200,
    square: int | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Measure the training masks of a data set.

    Args:
        data: Only its `train` samples are read.
        limit: At most so many masks are looked at, evenly spaced; fewer of very large images.
        square: Side of the squares that training will cut out, pixels: a class that is in every
            image can be missing from most squares. None stands for whole images.
        progress: Wraps the loop over the masks.

    Raises:
        ValueError: `limit` or `square` is below 1.
        DataError: A file cannot be read.
    """
    for name, value in (("limit", limit), ("square", square)):
        if value is not None and value < 1:
            raise ValueError(f"fingerprint: {name} must be at least 1, got {value}")
    pixels = sum(width * height * n for (width, height), n in data.sizes.items())
    affordable = max(10, _MOST_PIXELS * sum(data.sizes.values()) // max(pixels, 1))
    samples = [data.train[i] for i in evenly(min(limit, affordable), of=len(data.train))]
    sums = _Sums(data.num_classes)
    for sample in progress(samples) if progress else samples:
        sums.add(data.mask(sample).numpy(), square)
    return sums.result(data, square)


def _said(share: float) -> str:
    return "none" if share == 0 else percent(share)


@dataclass
class _Objects:
    """The objects of one class, as far as they are seen."""

    areas: list[NDArray[Any]] = field(default_factory=list)
    factors: list[NDArray[Any]] = field(default_factory=list)
    crowded: int = 0
    distance: float = 0.0
    boundary: int = 0


class _Sums:
    """What is counted over all masks."""

    def __init__(self, num_classes: int) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.pixels, self.in_images, self.in_squares = np.zeros((3, num_classes), dtype=np.int64)
        self.squares = self.empty_images = self.empty_squares = self.void = self.boundary = 0
        self.objects = [_Objects() for _ in range(num_classes)]

    def add(self, mask: Mask, square: int | None) -> None:
        self.sizes.append(mask.shape)
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)
        self.void += int(counts[VOID])
        counts = counts[: len(self.pixels)]
        self.pixels += counts
        self.in_images += counts > 0
        self.empty_images += not counts[1:].any()
        for part in _squares(mask, square):
            present = np.bincount(part.ravel(), minlength=VOID + 1)[: len(self.pixels)] > 0
            self.squares += 1
            self.in_squares += present
            self.empty_squares += not present[1:].any()
        boundary = boundary_pixels(mask)
        self.boundary += int(boundary.sum())
        self._add_objects(mask, boundary, [int(i) for i in np.flatnonzero(counts) if i > 0])

    def _add_objects(self, mask: Mask, boundary: NDArray[np.bool_], present: list[int]) -> None:
        foreground = (mask > 0) & (mask != VOID)
        groups, _ = ndimage.label(ndimage.binary_dilation(foreground, _EIGHT), _EIGHT)
        group_of: dict[int, NDArray[Any]] = {}
        for index in present:
            chosen = mask == index
            labels, count = ndimage.label(chosen, _EIGHT)
            distance = edge_distance(chosen)
            where = labels[chosen]
            area = np.bincount(where, minlength=count + 1)[1:]
            total = np.bincount(where, weights=distance[chosen], minlength=count + 1)[1:]
            objects = self.objects[index]
            objects.areas.append(area)
            objects.factors.append(shape_factor(area, total / area))
            objects.distance += float(total.sum())
            objects.boundary += int(boundary[chosen].sum())
            of_label = np.zeros(count + 1, dtype=np.int64)
            of_label[where] = groups[chosen]
            group_of[index] = of_label[1:]
        if not present:
            return
        in_group = np.bincount(np.concatenate([*group_of.values()]))
        for index, group in group_of.items():
            self.objects[index].crowded += int((in_group[group] > 1).sum())

    def result(self, data: SegmentationData, square: int | None) -> Fingerprint:
        images, valid = len(self.sizes), int(self.pixels.sum())
        height, width = np.median(np.array(self.sizes), axis=0).tolist()
        return Fingerprint(
            images=images,
            total=len(data.train),
            height=round(height),
            width=round(width),
            square=square or 0,
            class_names=data.class_names,
            class_share=tuple((self.pixels / max(valid, 1)).tolist()),
            class_images=tuple((self.in_images / images).tolist()),
            class_squares=tuple((self.in_squares / self.squares).tolist()),
            empty_images=self.empty_images / images,
            empty_squares=self.empty_squares / self.squares,
            void_share=self.void / (valid + self.void),
            boundary_share=self.boundary / max(valid, 1),
            shapes=tuple(
                self._shapes(i, name)
                for i, name in enumerate(data.class_names)
                if i > 0 and self.pixels[i]
            ),
        )

    def _shapes(self, index: int, name: str) -> Shapes:
        objects, pixels = self.objects[index], int(self.pixels[index])
        areas, factors = np.concatenate(objects.areas), np.concatenate(objects.factors)
        low, middle, high = np.quantile(areas, _QUANTILES)
        order = np.argsort(-factors)
        half = np.searchsorted(np.cumsum(areas[order]), pixels / 2)
        return Shapes(
            index=index,
            name=name,
            objects=len(areas) / int(self.in_images[index]),
            area=(float(low), float(middle), float(high)),
            thinness=float(factors[order][half]),
            width=4 * objects.distance / pixels,
            boundary_share=objects.boundary / pixels,
            crowded=objects.crowded / len(areas),
        )


def _squares(mask: Mask, side: int | None) -> Iterator[Mask]:
    """Parts of a mask of about this side, each pixel in one; without a side the mask itself."""
    down, across = (1 if side is None else max(1, round(n / side)) for n in mask.shape)
    for rows in np.array_split(mask, down, axis=0):
        yield from np.array_split(rows, across, axis=1)


def boundary_pixels(mask: Mask) -> NDArray[np.bool_]:
    """Tell which pixels have one of another class at most `NEAR` away.

    Args:
        mask: Classes uint8[h, w], `VOID` where void: such a pixel is at no boundary, and makes
            none. Neither does the border of the image.

    Returns:
        bool[h, w].
    """
    rows, columns = np.ogrid[-NEAR : NEAR + 1, -NEAR : NEAR + 1]
    disc = rows**2 + columns**2 <= NEAR**2
    # VOID is above all classes and so never the lowest; 0 is never above them.
    lowest = ndimage.minimum_filter(mask, footprint=disc, mode="nearest")
    classes = np.where(mask == VOID, 0, mask)
    highest = ndimage.maximum_filter(classes, footprint=disc, mode="nearest")
    found: NDArray[np.bool_] = (mask != VOID) & (lowest != highest)
    return found


def edge_distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How far the area of each pixel lies from the mask's edge, on average over the pixel.

    A pixel's centre is half a pixel nearer to the edge than to the next centre outside. On a ridge
    (both neighbours lower) the mean over the pixel is a quarter below its centre. So strips along
    the axes are exact at every width; slanted edges come out 0.1 to 0.2 pixels too near.

    Args:
        mask: bool[h, w]; outside of the image there is none of it.

    Returns:
        float64[h, w] in pixels, 0 outside of the mask.
    """
    distance = np.zeros(mask.shape)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return distance
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    far = ndimage.distance_transform_edt(np.pad(mask[box], 1))
    inner = far[1:-1, 1:-1]
    ridge = (inner > far[1:-1, :-2]) & (inner > far[1:-1, 2:])
    ridge |= (inner > far[:-2, 1:-1]) & (inner > far[2:, 1:-1])
    distance[box] = np.where(mask[box], inner - 0.5 - 0.25 * ridge, 0)
    return distance


def shape_factor(area: NDArray[Any], mean_distance: NDArray[Any]) -> NDArray[np.float64]:
    """How thin objects are: A / (9 π d²), d the mean distance of their points to the edge.

    A disc of radius r has d = r/3 and the factor 1, the lowest there is; a square has 4/π = 1.27; a
    strip of width w has d = w/4 and 0.57 length / w, however it bends and branches. No perimeter is
    needed, which pixels cannot tell. Objects below ten pixels have no shape: one pixel scores 0.57.

    Args:
        area: A, pixels.
        mean_distance: d, pixels.

    Source:
        Danielsson, *A new shape factor*, Computer Graphics and Image Processing 7, 1978.
    """
    factor: NDArray[np.float64] = area / (9 * math.pi * np.square(mean_distance))
    return factor
