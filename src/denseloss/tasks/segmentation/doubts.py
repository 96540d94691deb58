"""Signs that masks are not what they look like."""

from collections.abc import Sequence
from pathlib import Path

from denseloss.data.errors import DataError
from denseloss.data.masks import read_mask
from denseloss.data.samples import evenly

_LOOKED_AT = 8
_ALIKE = 0.96


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
        low = min(int(values.min()), 0) if values.min() == values.max() else values.min()
        inside = values > low
        mirrored = min((inside == inside[::-1]).mean(), (inside == inside[:, ::-1]).mean())
        seen += 1
        alike += inside.mean() > 0.45 and mirrored > _ALIKE
    return seen >= 3 and alike >= 0.9 * seen
