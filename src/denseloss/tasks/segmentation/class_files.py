"""Masks in several files for each image, one for each class."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denseloss.data.errors import DataError
from denseloss.data.masks import read_mask
from denseloss.data.paths import meaning
from denseloss.data.samples import evenly

_LOOKED_AT = 8
EDGES = 0.05
"""How much neighbours overlap at most; the masks of several annotators share nearly everything."""
_BETWEEN = re.compile(r"[/*_\-. ]+|(?<=[a-z])(?=[A-Z])")


def names_of_classes(kinds: Sequence[str]) -> list[str] | None:
    """Return what tells kinds of masks apart, such as car and road of masks/car/ and masks/road/.

    Args:
        kinds: How the masks are called.

    Returns:
        None where that is no name of a class.
    """
    words = [[w for w in _BETWEEN.split(kind) if w and not w.isdigit()] for kind in kinds]
    shared = set.intersection(*(set(each) for each in words))
    names = [" ".join(w for w in each if w not in shared) for each in words]
    said = [meaning(name) for name in names]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        return None
    return None if any(each.role or each.split for each in said) else names


def overlap(masks: Sequence[Sequence[Path]]) -> float | None:
    """Return the share of what an image's masks cover together that two of them cover.

    Args:
        masks: The files of each image, of which some images are looked at.

    Returns:
        None where they are not black and white, or cover nothing.
    """
    covered = twice = 0
    for place in evenly(_LOOKED_AT, of=len(masks)):
        total: NDArray[np.int32] | None = None
        for file in masks[place]:
            try:
                values, colour = read_mask(file)
            except DataError:
                return None
            inside = (values > 0).astype(np.int32)
            if colour or len(np.unique(values)) > 2:
                return None
            if total is not None and total.shape != inside.shape:
                return None
            total = inside if total is None else total + inside
        if total is not None:
            covered += int((total > 0).sum())
            twice += int((total > 1).sum())
    return twice / covered if covered else None
