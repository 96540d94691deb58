"""Held-out images that the report shows: small copies of them, and what each loss made of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from denseloss.data.errors import InputError
from denseloss.data.files import write_whole
from denseloss.data.samples import evenly
from denseloss.tasks.evidence import Evidence
from denseloss.tasks.segmentation.data import SegmentationData
from denseloss.tasks.segmentation.measure import score

_FOLDER = "images"
_SIDE = 512
_QUALITY = 90
_MOST = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A held-out image with what each loss made of it (first seed), for a picture.

    Attributes:
        name: Of the image.
        image: uint8[h, w, 3].
        truth: Classes uint8[h, w], 255 where void.
        predictions: Classes uint8[h, w] by loss.
        scores: Dice of the image by loss, mean over the seeds.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predictions: Mapping[str, NDArray[np.uint8]]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class KeptImages:
    """The held-out images that are kept for the report.

    Attributes:
        folder: Where they are.
        files: Their files without the ending, by the names of the images.
    """

    folder: Path
    files: Mapping[str, str]

    def read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image uint8[h, w, 3] and its classes uint8[h, w].

        Raises:
            InputError: A file is missing or broken.
        """
        stem = self.folder / self.files[name]
        try:
            with Image.open(f"{stem}.jpg") as image, Image.open(f"{stem}.png") as truth:
                return np.asarray(image.convert("RGB")), np.asarray(truth.convert("L"))
        except OSError as error:
            raise InputError(
                f"{stem}: cannot be read ({error}); remove {self.folder} and give the same "
                "denseloss compare again to make it anew"
            ) from None


def kept_images(folder: Path) -> KeptImages:
    """Return the images that are kept in a comparison's folder; none where there are none yet."""
    folder = folder / _FOLDER
    try:
        index = (folder / "index.json").read_text(encoding="utf-8")
        return KeptImages(folder, {str(k): str(v) for k, v in json.loads(index).items()})
    except (OSError, ValueError, AttributeError):
        return KeptImages(folder, {})


def keep_images(folder: Path, data: SegmentationData, *, keep: int) -> None:
    """Keep small copies of held-out images and their masks, evenly spaced over the names.

    Args:
        folder: Of the comparison.
        data: Whose images.
        keep: How many at most.
    """
    places = evenly(keep, of=len(data.test))
    files = {data.test[place].name: f"{place:06d}" for place in places}
    if kept_images(folder).files == files:
        return
    folder = folder / _FOLDER
    folder.mkdir(exist_ok=True)
    for place in places:
        image, truth = data.read(data.test[place])
        stem = folder / f"{place:06d}"
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        _small(picture, Image.Resampling.LANCZOS).save(f"{stem}.jpg", quality=_QUALITY)
        _small(Image.fromarray(truth.numpy()), Image.Resampling.NEAREST).save(f"{stem}.png")
    write_whole(folder / "index.json", json.dumps(files, ensure_ascii=False) + "\n")


def _small(image: Image.Image, how: Image.Resampling) -> Image.Image:
    image.thumbnail((_SIDE, _SIDE), how)
    return image


def cases(evidence: Evidence) -> Iterator[Case]:
    """Yield the kept images on which the losses differ most, the largest difference first."""
    alive = [one for one in evidence.losses if one.seeds]
    kept = kept_images(evidence.folder)
    if not alive:
        return
    names = alive[0].held_out[0].names
    scores = [score(one.held_out, "dice", "image") for one in alive]
    every = np.stack([one.score(one.counts).mean(0) for one in scores])
    spread = np.where(np.isnan(every).any(0), -1.0, every.max(0) - every.min(0))
    places = [
        place
        for place in np.argsort(-spread, kind="stable").tolist()
        if names[place] in kept.files
        and spread[place] >= 0
        and all(place in one.held_out[0].predictions for one in alive)
    ]
    for place in places[:_MOST]:
        image, truth = kept.read(names[place])
        yield Case(
            name=names[place],
            image=image,
            truth=truth,
            predictions={
                one.loss: _resized(one.held_out[0].predictions[place], truth.shape) for one in alive
            },
            scores={one.loss: float(dice[place]) for one, dice in zip(alive, every, strict=True)},
        )


def _resized(classes: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a class map at the size of the shown image, by the nearest pixel."""
    rows, columns = (
        ((np.arange(n) + 0.5) * classes.shape[axis] / n).astype(int) for axis, n in enumerate(shape)
    )
    return classes[np.ix_(rows, columns)]
