"""Signs that masks are not what they look like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from denseloss.data.errors import DataError
from denseloss.data.masks import read_mask
from denseloss.data.samples import evenly

_LOOKED_AT = 8
_ALIKE = 0.96
_GREY = 12  # as lossy formats blur black and white
_ENOUGH = 500  # pixels on a side tell a shape
_MOST_COLOURS = 64


def is_field_of_view(files: Sequence[Path]) -> bool:
    """Whether masks show a camera's field of view: a disc or a frame, the same in every file.

    It fills most of the image and is its own mirror image, both ways. A mask of one value that
    fills everything is taken for one, too.
    """
    alike = seen = 0
    for place in evenly(_LOOKED_AT, of=len(files)):
        try:
            values, _ = read_mask(files[place])
        except DataError:
            continue
        step = max(1, min(values.shape) // _ENOUGH)
        values = values[::step, ::step]
        low, high = int(values.min()), int(values.max())
        inside = values > (low + high) / 2 if low < high else values > 0
        two_values = ((values - low <= _GREY) | (high - values <= _GREY)).mean() > _ALIKE
        mirrored = min((inside == inside[::-1]).mean(), (inside == inside[:, ::-1]).mean())
        seen += 1
        alike += low >= 0 and two_values and inside.mean() > 0.45 and mirrored > _ALIKE
    return seen >= 3 and alike >= 0.9 * seen


def is_for_the_eye(files: Sequence[Path]) -> bool:
    """Whether masks are photographs with colours laid over: one that is looked at has too many."""
    try:
        values, colour = read_mask(files[len(files) // 2])
    except DataError:
        return False
    return colour and len(np.unique(values)) > _MOST_COLOURS
