"""One image or mask file to one array, whatever its format, mode and depth."""

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from denseloss.data.errors import DataError
from denseloss.data.files import UNREADABLE

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".pgm", ".ppm", ".pbm"),
)
# What Pillow's readers raise on damaged files, as found by damaging some.
_UNREADABLE = (*UNREADABLE, IndexError, struct.error, Image.DecompressionBombError)
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")

Array = NDArray[Any]
Window = tuple[float, float]


@dataclass(frozen=True)
class MaskFacts:
    """What one look at a mask file gives."""

    path: Path
    size: tuple[int, int]
    counts: dict[int, int]
    colour: bool
    lossy: bool
    palette: bytes | None


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image file gives, and the values of a deep one."""

    path: Path
    size: tuple[int, int]
    mode: str
    deep_range: Window | None


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture, and not what macOS and Windows leave behind."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise DataError(f"{path}: the file is gone; put it back or open the data again") from None
    except _UNREADABLE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        why = "its header is no picture's" if "cannot identify" in why else why
        raise DataError(
            f"{path}: cannot be read, damaged or truncated ({why}); replace or remove it"
        ) from None


def _raw_mode(picture: Image.Image) -> str:
    """How Pillow is about to unpack the bytes of the file, such as `"RGB;16B"`."""
    tile = getattr(picture, "tile", None)  # an ImageFile's own
    how = tile[0][3] if tile else ""
    return str(how[0] if isinstance(how, tuple) and how else how)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in _DEEP or _raw_mode(picture).startswith(("RGB;16", "RGBA;16"))


def _pixels(path: Path, picture: Image.Image) -> Array:
    """The decoded pixels, `[h, w]` deep or `[h, w, 3]` RGB, before any orientation."""
    if picture.mode in _DEEP:
        return np.asarray(picture)
    if _is_deep(picture):
        return _deep_colours(path, picture)
    if picture.mode in ("P", "PA") and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("RGB"))


def _deep_colours(path: Path, picture: Image.Image) -> Array:
    # Pillow keeps only the high byte of a 16-bit colour. Told that the bytes lie the other way
    # round, it keeps the low one.
    mode, order = _raw_mode(picture).split(";16")
    other = f"{mode};16{'L' if order == 'B' else 'B'}"
    high = np.asarray(picture.convert("RGB"))
    with Image.open(path) as again:
        again.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in again.tile
        ]
        low = np.asarray(again.convert("RGB"))
    deep: Array = (high.astype(np.uint16) << 8) | low
    return deep


def _to_8_bit(pixels: Array, window: Window | None) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        low, high = window or (0.0, 65535.0)
        scaled = (pixels.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        pixels = np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def _turn(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # a camera's broken remarks do not make its image unusable
        return 1


def _upright(pixels: Array, turn: int) -> Array:
    """The pixels, turned and mirrored as a camera's orientation mark from 1 to 8 says."""
    rows, columns = (-1 if turn in back else 1 for back in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return (pixels.swapaxes(0, 1) if turn >= 5 else pixels)[::rows, ::columns]


def read_image(
    path: Path, *, window: Window | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """The image as RGB `uint8[h, w, 3]`, upright.

    Args:
        path: The file.
        window: The deep values (16 bit, float) that become 0 and 255.
        size: (width, height) of the mask. A camera's orientation mark is obeyed, except where the
            mask fits only the pixels as they are stored: it was painted on those.
    """
    with _opened(path) as picture:
        pixels = _to_8_bit(_pixels(path, picture), window)
        turn = _turn(picture)
    if 1 < turn <= 8:
        upright = _upright(pixels, turn)
        stored_fits = size is not None and pixels.shape[1::-1] == size
        if upright.shape[1::-1] == size or not stored_fits:
            pixels = upright
    return np.array(pixels, order="C")  # Pillow's own array is read-only, torch wants to write


def read_mask(path: Path) -> tuple[Array, bool]:
    """The raw values of a mask, `int[h, w]`, and whether they are colours `0xRRGGBB`.

    The value of a palette mask is the palette entry, never the colour (Pascal VOC). A colour mask
    whose three channels are equal everywhere is a grey one.
    """
    with _opened(path) as picture:
        picture.load()
        # A rotation of label values: nothing is interpolated.
        picture = ImageOps.exif_transpose(picture)
        values = np.asarray(picture)
        if picture.mode == "1":
            return values.astype(np.uint8), False
        if picture.mode in ("LA", "PA"):
            return values[..., 0], False
        if picture.mode in ("L", "P", *_DEEP):
            whole = values.astype(np.int32) if values.dtype.kind == "f" else values
            if not np.array_equal(whole, values):
                raise DataError(
                    f"{path}: holds fractions, not labels; save the mask as whole numbers"
                )
            return whole, False
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red, False
    return (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue, True


def _counted(values: Array) -> dict[int, int]:
    """How many pixels have each value."""
    # Runs of equal pixels first: sorting every pixel of a label image is needless work.
    flat = values.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size))
    found, inverse = np.unique(flat[starts], return_inverse=True)
    totals = np.bincount(inverse, weights=lengths)
    return {int(v): int(n) for v, n in zip(found, totals, strict=True)}


def look_at_mask(path: Path) -> MaskFacts:
    """Decode a mask once and count its values."""
    with _opened(path) as picture:
        lossy = picture.format in ("JPEG", "MPO")
        palette = bytes(picture.getpalette() or ()) if picture.mode == "P" else None
    values, colour = read_mask(path)
    return MaskFacts(path, values.shape[1::-1], _counted(values), colour, lossy, palette)


def look_at_image(path: Path, *, whole: bool) -> ImageFacts:
    """Read the header of an image, and decode it where `whole`, deep or of doubtful ending."""
    with _opened(path) as picture:
        size, mode, window = picture.size, picture.mode, None
        deep = _is_deep(picture)
        if deep or whole or not _ends_well(path, picture.format):
            pixels = _pixels(path, picture)
            mode = "RGB;16" if deep and pixels.ndim == 3 else mode
            finite = pixels[np.isfinite(pixels)] if deep else pixels[:0]
            if finite.size:
                # All but 0.1 % at each end: else one hot pixel would turn every image black.
                low, high = np.quantile(finite, (0.001, 0.999), method="nearest")
                window = float(low), float(high)
    return ImageFacts(path, size, mode, window)


def oriented_size(path: Path) -> tuple[int, int]:
    """(width, height) after a camera's orientation mark is obeyed."""
    with _opened(path) as picture:
        width, height = picture.size
        return (height, width) if _turn(picture) in (5, 6, 7, 8) else (width, height)


def _ends_well(path: Path, kind: str | None) -> bool:
    # A download that stopped has no end mark. To look for it is a thousand times cheaper than to
    # decode the image.
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 64, 0))
        tail = file.read()
    return (kind == "PNG" and b"IEND" in tail) or (kind in ("JPEG", "MPO") and b"\xff\xd9" in tail)


def deep_window(ranges: list[Window]) -> Window | None:
    """The values of deep images that become 0 and 255: one window, so that images compare."""
    if not ranges:
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def total_counts(facts: list[MaskFacts]) -> Counter[int]:
    """The pixels of each raw value over all masks."""
    total: Counter[int] = Counter()
    for each in facts:
        total.update(each.counts)
    return total
