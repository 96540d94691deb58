"""One image or mask file to one array, whatever its format, mode and depth."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from denseloss.data.errors import DataError
from denseloss.data.files import UNREADABLE

# Pillow explains some broken files in its log, which nobody asked for.
logging.getLogger("PIL").addHandler(logging.NullHandler())

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".pgm", ".ppm", ".pbm"),
)
# What Pillow's readers raise on damaged files, as found by damaging some.
_UNREADABLE = (*UNREADABLE, Image.DecompressionBombError)
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")

Array = NDArray[Any]
Window = tuple[float, float]


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image file gives, and the values of a deep one.

    Attributes:
        path: The file.
        size: (width, height) as the pixels are stored.
        mode: Pillow's name for the pixels.
        deep_range: The darkest and brightest values, but for a few, of more than 8 bits.
        turn: A camera's orientation mark, 1 for none.
        more_bands: How many bands a TIFF has beyond colour and transparency, which are not read.
    """

    path: Path
    size: tuple[int, int]
    mode: str
    deep_range: Window | None
    turn: int = 1
    more_bands: int = 0


def is_picture(path: Path | str) -> bool:
    """Whether the name is that of a picture, and not what macOS and Windows leave behind."""
    name = path if isinstance(path, str) else path.name
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture, and say of one that cannot be read what is wrong with it.

    Raises:
        DataError: With the file, what it is and what to do.
    """
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise DataError(f"{path}: the file is gone; put it back or open the data again") from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: {_why_unread(path, error)}") from None


def _why_unread(path: Path, error: Exception) -> str:
    """Return why a file is not read, as its first bytes tell, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"has more than {most} million pixels; cut it, and its mask, into smaller ones"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as denied:
        return f"cannot be read ({denied.strerror}); let this user read it, or remove it"
    if not head:
        return "is empty; replace or remove it"
    if head.startswith(b"version https://git-lfs"):
        return "is only a pointer of Git LFS; fetch the files with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a page of the web, not a picture; download it again"
    if head.startswith((b"II*\0", b"MM\0*")) and (what := _tiff(path)):
        return f"is a TIFF of {what}; save images with 1 or 3 bands of 8 or 16 bits"
    why = " ".join(str(error).split()) or type(error).__name__
    why = "its header is no picture's" if "cannot identify" in why else why
    return f"cannot be read, damaged or truncated ({why}); replace or remove it"


_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "float"}


def _tiff(path: Path) -> str:
    """Return the kind of pixels of a sound TIFF, `""` where it is damaged."""
    try:
        with path.open("rb") as file:
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
        bands = int(tags.get(277, len(bits)))
        kind = _SAMPLE_FORMATS.get(int(kinds[0]), "complex")
        complete = {256, 257, 273} <= set(tags) or 324 in tags
    except Exception:
        return ""
    return f"{bands} band{'s' * (bands != 1)} of {bits[0]}-bit {kind} numbers" if complete else ""


def refuse_pages(path: Path, picture: Image.Image) -> None:
    """Refuse a file of several pictures, such as the slices of a volume.

    Raises:
        DataError: With how many there are.
    """
    if picture.format not in ("TIFF", "GIF", "WEBP", "PNG"):
        return  # a camera's JPEG may hold a preview
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format == "TIFF":
        # The smaller ones are overviews of the same picture.
        size, alike = picture.size, 0
        for page in range(pages):
            picture.seek(page)
            alike += picture.size == size
        picture.seek(0)
        pages = alike
    if pages > 1:
        raise DataError(
            f"{path}: has {pages} pages, and only single images are read; save each page of the "
            "images and of the masks as a file of its own"
        )


def _raw_mode(picture: Image.Image) -> str:
    """How Pillow is about to unpack the bytes of the file, such as `"RGB;16B"`."""
    tile = getattr(picture, "tile", None)  # an ImageFile's own
    how = tile[0][3] if tile else ""
    return str(how[0] if isinstance(how, tuple) and how else how)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode in DEEP or _raw_mode(picture).startswith(("RGB;16", "RGBA;16"))


def _pixels(path: Path, picture: Image.Image) -> Array:
    """The decoded pixels, `[h, w]` deep or `[h, w, 3]` RGB, before any orientation."""
    if picture.mode in DEEP:
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
    with opened(path) as picture:
        pixels = _to_8_bit(_pixels(path, picture), window)
        turn = _turn(picture)
    if 1 < turn <= 8:
        upright = _upright(pixels, turn)
        stored_fits = size is not None and pixels.shape[1::-1] == size
        if upright.shape[1::-1] == size or not stored_fits:
            pixels = upright
    return np.array(pixels, order="C")  # Pillow's own array is read-only, torch wants to write


def look_at_image(path: Path, *, whole: bool) -> ImageFacts:
    """Read the header of an image, and decode it where `whole`, deep or of doubtful ending."""
    with opened(path) as picture:
        refuse_pages(path, picture)
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
        turn, more = _turn(picture), _more_bands(picture)
    return ImageFacts(path, size, mode, window, turn, more)


def _more_bands(picture: Image.Image) -> int:
    tags = getattr(picture, "tag_v2", {})
    extra = tags.get(338, ())
    # 1 and 2 stand for transparency, 0 for anything.
    return sum(kind == 0 for kind in (extra if isinstance(extra, tuple) else (extra,)))


def oriented_size(path: Path) -> tuple[int, int]:
    """(width, height) after a camera's orientation mark is obeyed."""
    return _sizes(path)[0]


def size_as_said(path: Path, said: tuple[int, int] | None, where: Path) -> tuple[int, int]:
    """Return the size that an annotation file says that an image has, if that is true.

    Args:
        path: The image.
        said: (width, height), None where the file does not say.
        where: The annotation file.

    Raises:
        DataError: The image has another size, turned or not, or cannot be read.
    """
    (width, height), stored = _sizes(path)
    if said is None:
        return width, height
    if said not in ((width, height), stored):
        raise DataError(
            f"{path}: is {width}x{height}, but {where} says {said[0]}x{said[1]}; annotate this "
            "image, not a resized or turned one, or remove it"
        )
    return said


def _sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size after a camera's orientation mark is obeyed, and as the pixels are stored."""
    with opened(path) as picture:
        width, height = picture.size
        turned = _turn(picture) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height), (width, height)


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
