"""One mask to one array of its raw values, whatever its format, mode and depth."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from denseloss.data.errors import DataError
from denseloss.data.images import DEEP, Array, opened, refuse_pages


class DrawnMask(Protocol):
    """A mask that is no single picture: several files, or the outlines in an annotation file."""

    @property
    def path(self) -> Path:
        """The file that messages name."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that belong to this mask alone."""

    def read(self) -> Array:
        """Return its raw values, int[h, w].

        Raises:
            DataError: A file cannot be read.
        """


Mask = Path | DrawnMask

# Lossy formats keep colour apart from brightness, and neither exactly.
_GREY = 12


@dataclass(frozen=True)
class Joined:
    """One mask in several files, one for each object: their union, 0 and 255."""

    files: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    def read(self) -> Array:
        """Return where any of the files has its higher value."""
        union: NDArray[np.bool_] = np.logical_or.reduce(_black_and_white(self.files))
        return union.astype(np.uint8) * 255


@dataclass(frozen=True)
class Layered:
    """One mask in several files, one for each class; where two overlap, the later one counts."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    def read(self) -> Array:
        """Return the label of the class of each pixel, 0 where there is none."""
        parts = _black_and_white(self.files)
        mask = np.zeros(parts[0].shape, dtype=np.uint8)
        for label, part in zip(self.labels, parts, strict=True):
            mask[part] = label
        return mask


def _black_and_white(files: Sequence[Path]) -> list[NDArray[np.bool_]]:
    """Where each of the masks of an image has its higher value."""
    parts: list[NDArray[np.bool_]] = []
    for file in files:
        values, _ = read_mask(file)
        if len(np.unique(values)) > 2:
            raise DataError(
                f"{file}: is one of {len(files)} masks of an image and holds more than two "
                "values; give each image one mask, or black and white files, one for each object "
                "or class"
            )
        if parts and parts[0].shape != values.shape:
            raise DataError(f"{file}: has another size than {files[0]}, a mask of the same image")
        parts.append(values > 0)
    return parts


@dataclass(frozen=True)
class MaskFacts:
    """What one look at a mask gives.

    Attributes:
        path: Of the file.
        size: (width, height).
        counts: How many pixels have each raw value.
        colour: Whether the values are colours.
        lossy: Whether the format keeps values only about.
        palette: The colours of a palette's entries.
        transparency: How many pixels have each value of the alpha channel, if there is one.
        instances: Whether the values number objects, as far as one mask tells.
        digest: Of the values.
    """

    path: Path
    size: tuple[int, int]
    counts: dict[int, int]
    colour: bool
    lossy: bool = False
    palette: bytes | None = None
    transparency: dict[int, int] | None = None
    instances: bool = False
    digest: str = ""


def mask_path(mask: Mask) -> Path:
    """Return the file that messages about a mask name."""
    return mask if isinstance(mask, Path) else mask.path


def mask_files(mask: Mask | None) -> tuple[Path, ...]:
    """Return the files that belong to a mask alone."""
    if mask is None:
        return ()
    return (mask,) if isinstance(mask, Path) else mask.files


def read_mask(mask: Mask, *, alpha: bool = False) -> tuple[Array, bool]:
    """The raw values of a mask, `int[h, w]`, and whether they are colours `0xRRGGBB`.

    The value of a palette mask is the palette entry, never the colour (Pascal VOC). A colour mask
    whose three channels are equal everywhere is a grey one.

    Args:
        mask: A file, or what is drawn from several.
        alpha: Whether the mask is in the alpha channel.

    Raises:
        DataError: It cannot be read.
    """
    if not isinstance(mask, Path):
        return mask.read(), False
    with opened(mask) as picture:
        picture.load()
        # A rotation of label values: nothing is interpolated.
        return _values(mask, ImageOps.exif_transpose(picture), alpha=alpha)


def _values(path: Path, picture: Image.Image, *, alpha: bool) -> tuple[Array, bool]:
    values = np.asarray(picture)
    if alpha:
        return np.asarray(picture.convert("RGBA"))[..., 3], False
    if picture.mode == "1":
        return values.astype(np.uint8), False
    if picture.mode in ("LA", "PA"):
        return values[..., 0], False
    if picture.mode in ("L", "P", *DEEP):
        return _whole(path, values), False
    red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    if _is_lossy(path, picture) and np.ptp(np.stack((red, green, blue)), axis=0).max() <= _GREY:
        return green, False
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red, False
    return (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue, True


def _whole(path: Path, values: Array) -> Array:
    """Labels that are stored as floats, as whole numbers."""
    if values.dtype.kind != "f":
        return values
    if not (np.abs(values) < 1 << 31).all():  # also where it is no number
        odd = float(values[~(np.abs(values) < 1 << 31)][0])
        raise DataError(
            f"{path}: holds {odd:g}, as maps do where there is no data; save the mask as whole "
            "numbers, with 255 where nothing is known"
        )
    whole = values.astype(np.int32)
    if not np.array_equal(whole, values):
        low, high = values.min(), values.max()
        raise DataError(
            f"{path}: holds fractions ({low:g} to {high:g}), not labels; save the mask as whole "
            "numbers, such as 0 and 1 for what lies below 0.5 and above"
        )
    return whole


def look_at_mask(mask: Mask) -> MaskFacts:
    """Decode a mask once and count its values.

    Raises:
        DataError: It cannot be read, or is several pictures.
    """
    path, lossy, palette, transparency = mask_path(mask), False, None, None
    if isinstance(mask, Path):
        with opened(mask) as picture:
            refuse_pages(mask, picture)
            lossy = _is_lossy(mask, picture)
            palette = bytes(picture.getpalette() or ()) if picture.mode == "P" else None
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            values, colour = _values(mask, upright, alpha=False)
            if picture.mode in ("RGBA", "LA"):
                transparency = _counted(np.asarray(upright)[..., -1])
    else:
        values, colour = read_mask(mask)
    facts = facts_of(path, values, colour=colour)
    return replace(facts, lossy=lossy, palette=palette, transparency=transparency)


def facts_of(path: Path, values: Array, *, colour: bool) -> MaskFacts:
    """Return what the values of a mask say."""
    return MaskFacts(
        path=path,
        size=values.shape[1::-1],
        counts=_counted(values),
        colour=colour,
        instances=not colour and holds_instances(values),
        digest=hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest(),
    )


def _is_lossy(path: Path, picture: Image.Image) -> bool:
    suffix = path.suffix.lower()  # a picture that was turned upright has lost its format
    if suffix != ".webp":
        return suffix in (".jpg", ".jpeg", ".jpe", ".jfif") or picture.format in ("JPEG", "MPO")
    with path.open("rb") as file:
        head = file.read(4096)
    return b"VP8L" not in head


def _counted(values: Array) -> dict[int, int]:
    """How many pixels have each value."""
    # Runs of equal pixels first: sorting every pixel of a label image is needless work.
    flat = values.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size))
    found, inverse = np.unique(flat[starts], return_inverse=True)
    totals = np.bincount(inverse, weights=lengths)
    return {int(v): int(n) for v, n in zip(found, totals, strict=True)}


def total_counts(facts: Sequence[MaskFacts]) -> Counter[int]:
    """The pixels of each raw value over all masks."""
    total: Counter[int] = Counter()
    for each in facts:
        total.update(each.counts)
    return total


def holds_instances(values: Array) -> bool:
    """Whether the values of a mask number its objects: 1, 2, 3, ..., each in one small spot."""
    top = int(values.max(initial=0))
    if top < 5 or top > 65534 or int(values.min(initial=0)) < 0:
        return False
    from scipy import ndimage

    if top > 255:  # more than classes have: ids with gaps
        values = np.unique(values, return_inverse=True)[1].reshape(values.shape)
    boxes = ndimage.find_objects(values.astype(np.int32))
    there = [box for box in boxes if box is not None]
    # Class maps lack some classes in the middle, and have the same class at several places.
    if len(there) < 5 or len(there) < 0.9 * len(boxes):
        return False
    sides = np.array([[side.stop - side.start for side in box] for box in there])
    areas, short = sides.prod(axis=1), (sides < np.array(values.shape) / 2).all(axis=1)
    counts = np.bincount(values.reshape(-1))[1:]
    small = short & (areas < 0.1 * values.size) & (counts[counts > 0] > 0.3 * areas)
    return bool(small.mean() > 0.9)
