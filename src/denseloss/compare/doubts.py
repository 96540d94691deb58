"""What a comparison cannot say, whatever comes of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from denseloss.data import VOID, Sample, SegmentationData, Task


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the masks of a split hold.

    Attributes:
        images: How many images have a pixel that is not void.
        void: How many have none.
        classes: Whether a class has a pixel, bool[C].
    """

    images: int
    void: int
    classes: NDArray[np.bool_]


def seen(data: SegmentationData, samples: Sequence[Sample]) -> Seen:
    """Look at the masks of a split.

    Raises:
        DataError: A file cannot be read.
    """
    pixels = np.zeros((len(samples), VOID + 1), dtype=np.int64)
    for row, sample in zip(pixels, samples, strict=True):
        row += np.bincount(data.mask(sample).numpy().ravel(), minlength=VOID + 1)
    return seen_in(pixels[:, : data.num_classes])


def seen_in(pixels: NDArray[np.int64]) -> Seen:
    """Return what pixels of each image and class, int64[N, C], say."""
    known = pixels.any(axis=1)
    classes = np.asarray(pixels.any(axis=0))
    return Seen(images=int(known.sum()), void=int((~known).sum()), classes=classes)


def doubts(
    *,
    validation: Seen,
    held_out: Seen,
    task: Task,
    class_names: Sequence[str],
    losses: int,
    level: float,
) -> Iterator[str]:
    """Say what the images do not allow to conclude, a sentence or two each.

    Args:
        validation: What its masks hold.
        held_out: What its masks hold.
        task: What the classes mean.
        class_names: Background included.
        losses: How many there are, the baseline included.
        level: Of the verdict; a corrected p below one minus it decides.
    """
    scored = (1,) if task == "binary" else range(len(class_names))
    missing = [f"`{class_names[of]}`" for of in scored if not held_out.classes[of]]
    if missing:
        yield (
            f"No held-out image holds {_either(missing)}: a score of it only says whether it is "
            "predicted where it is not (an image without it counts 1 if not, else 0), and counts "
            "in the mean like any other."
        )
    missing = [f"`{class_names[of]}`" for of in scored if not validation.classes[of]]
    if missing:
        yield (
            f"No validation image holds {_either(missing)}: learning rates and checkpoints are "
            "chosen without it."
        )
    if held_out.void:
        yield (
            f"{held_out.void} held-out image{'s are' if held_out.void > 1 else ' is'} void "
            "everywhere and counted nowhere."
        )
    # Every sign of every image's difference is as likely as the other: so small can p become.
    least = 2.0 ** (1 - held_out.images) * max(1, losses - 1)
    if losses > 1 and least >= 1 - level:
        needed = 2 + math.floor(math.log2((losses - 1) / (1 - level)))
        yield (
            f"With {held_out.images} held-out image{'s' * (held_out.images != 1)} and {losses} "
            f"losses no difference can be shown, however large: corrected p cannot fall below "
            f"{min(1.0, least):.2g}. It takes at least {needed} held-out images."
        )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
