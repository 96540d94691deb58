"""Colours and greys in masks: how they are written, and signs that they are no classes."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseloss.data.errors import DataError
from denseloss.data.masks import MaskFacts

_ENDS = (b"\0\0\0", b"\xff\xff\xff")
# How far a colour may be from the straight line between two others that it is a mixture of.
_NEAR = 8
_EQUAL = 3
_MOST_COLOURS = 64  # more are too many for classes anyway
_MOST_ENDS, _MOST_MIXTURES = 32, 10_000


def spelt(value: int, *, colour: bool) -> str:
    """Return a raw value as people write it."""
    return f"#{value:06x}" if colour else str(value)


def listed(values: Sequence[int], *, colour: bool) -> str:
    """Return raw values in a sentence, not all of them where they are many."""
    words = [spelt(v, colour=colour) for v in values]
    return ", ".join(words if len(words) <= 8 else [*words[:6], "...", words[-1]])


def check_palettes(masks: Sequence[MaskFacts], warnings: list[str], *, sure: bool) -> None:
    """Refuse palettes that have the same colours at other entries: no entry is one class there.

    Args:
        masks: All masks.
        warnings: Where it is told what is doubtful.
        sure: Whether the user says that the entries are classes.

    Raises:
        DataError: With two masks that contradict each other.
    """
    palettes = {m.palette: m for m in masks if m.palette is not None}
    colours: dict[int, bytes] = {}
    entries: dict[bytes, tuple[int, Path]] = {}
    differ, swapped = False, ""
    for mask in masks:
        for value in mask.counts if mask.palette is not None else ():
            colour = (mask.palette or b"")[3 * value : 3 * value + 3]
            differ |= colours.setdefault(value, colour) != colour
            entry, other = entries.setdefault(colour, (value, mask.path))
            if entry != value and other != mask.path and not swapped:
                swapped = (
                    f"{mask.path}: the colour #{colour.hex()} is palette entry {value}, and entry "
                    f"{entry} in {other.name}; labels are the entries: save all masks with one "
                    "palette, or say --classes if the entries are right"
                )
    if differ and swapped and not sure:
        raise DataError(swapped)
    if differ:
        warnings.append(
            f"the masks have {len(palettes)} different palettes; labels are the palette entries, "
            "so make sure that one entry means one class in every file"
        )
    black, white = (next((v for v, c in colours.items() if c == end), None) for end in _ENDS)
    if len(colours) == 2 and black is not None and white is not None and white < black:
        warnings.append(
            f"palette entry {white} is white and {black} is black: {black} is taken as foreground; "
            "if white is what you want to find, save the masks without a palette"
        )


def soft_edges(masks: Sequence[MaskFacts], totals: dict[int, int], *, colour: bool) -> str | None:
    """Return what is wrong if most values are mixtures of a few frequent ones.

    Args:
        masks: All masks.
        totals: How many pixels have each value.
        colour: Whether the values are colours.
    """
    order = sorted(totals, key=lambda value: -totals[value])
    # Labels that count up lie between others by their nature; none of them are just below 255.
    if not colour and (max(order) < 215 or sum(200 <= value < 255 for value in order) < 3):
        return None
    if len(order) > _MOST_MIXTURES:
        return None
    points = _points(order, colour=colour)
    ends = [points[0]]
    mixtures = []
    for value, point in zip(order[1:], points[1:], strict=True):
        if _lies_between(point, np.array(ends)):
            mixtures.append(value)
        else:
            ends.append(point)
        if len(ends) > _MOST_ENDS:
            return None
    share = sum(totals[value] for value in mixtures) / sum(totals.values())
    if len(mixtures) < max(8, 2 * len(ends)) or share > 0.25:
        return None
    often = sorted(set(order) - set(mixtures))
    # Black and white with soft edges is read, by a threshold: a grey between is a class only where
    # it stands out.
    usual = totals[mixtures[len(mixtures) // 2]]
    if not colour and (len(often) < 3 or any(totals[value] < 10 * usual for value in often)):
        return None
    worst = max(masks, key=lambda m: len(m.counts))
    shown = listed(often, colour=colour)
    way_out = f", or say --classes {len(order)} if all are classes" * (len(order) <= _MOST_COLOURS)
    return (
        f"{worst.path}: {len(ends)} {'colours' if colour else 'values'} ({shown}) fill "
        f"{100 * (1 - share):.0f} % of the masks, and {len(mixtures)} more lie between them, as "
        "smooth resizing, soft brushes and JPEG leave them at edges; save the masks again as PNG "
        f"without smoothing{way_out}"
    )


def _lies_between(point: NDArray[np.float64], ends: NDArray[np.float64]) -> bool:
    """Whether a colour is nearly on the straight line between two others."""
    start, end = (ends[i] for i in np.triu_indices(len(ends), 1))
    along = end - start
    share = ((point - start) * along).sum(-1) / (along * along).sum(-1)
    nearest = start + np.clip(share, 0, 1)[:, None] * along
    near_one = np.abs(ends - point).max(-1).min() <= _NEAR / 2
    return bool(near_one or (np.abs(nearest - point).max(-1) <= _NEAR).any())


def nearly_equal(totals: dict[int, int]) -> str | None:
    """Return the warning if rare colours are nearly those of frequent ones."""
    order = sorted(totals, key=lambda value: -totals[value])
    points = _points(order, colour=True)
    for i, rare in enumerate(order):
        near = np.abs(points[:i] - points[i]).max(-1, initial=0) <= _EQUAL
        like = next(
            (v for v in itertools.compress(order, near) if totals[v] > 50 * totals[rare]), None
        )
        if like is not None:
            return (
                f"colour #{rare:06x} is rare and nearly #{like:06x}, and it is taken as a class of "
                "its own; if it is none, repair the masks"
            )
    return None


def _points(values: Sequence[int], *, colour: bool) -> NDArray[np.float64]:
    whole = np.asarray(values)
    if not colour:
        return whole[:, None].astype(np.float64)
    return np.stack([whole >> 16, whole >> 8 & 255, whole & 255], axis=1).astype(np.float64)
