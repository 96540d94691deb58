"""A user's own data set in Python, `torch.utils.data.Dataset` or anything like it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from denseloss.data.errors import DataError
from denseloss.data.paths import SPLITS
from denseloss.user_code import UserCodeError, full_name, load

_ITEM = "a pair (image, mask), or a dict with these keys"


@dataclass(frozen=True)
class UserDataset:
    """The samples that a function of the user's makes; it is called once per process.

    Attributes:
        code: The function's name, `file.py:make` or `package.module:make`, as every process finds
            it. It returns a data set, or a dict of them by split.
        places: The split and the index of each sample, by the sample's name.
        classes: The names of the classes by value, if the data set has `classes`, as torchvision's.
    """

    code: str
    places: Mapping[str, tuple[str | None, int]]
    classes: tuple[str, ...] = ()

    @staticmethod
    def open(text: str) -> "UserDataset":
        """Call the function and list its samples.

        A data set may have `ids`, a name for each sample; otherwise the index is its name.

        Raises:
            DataError: The function fails, or gives something else.
        """
        code = full_name(text)
        places: dict[str, tuple[str | None, int]] = {}
        classes: tuple[str, ...] = ()
        for split, data in _made(code).items():
            ids = getattr(data, "ids", None)
            classes = classes or tuple(map(str, getattr(data, "classes", ())))
            names = [f"{i:06d}" for i in range(len(data))] if ids is None else [str(i) for i in ids]
            if len(names) != len(data):
                raise DataError(f"{text}: has {len(data)} samples and {len(names)} ids")
            for i, name in enumerate(names):
                unique = name if name not in places else f"{split}/{name}"
                if unique in places:
                    raise DataError(f"{text}: the id {name} is there twice; ids must be distinct")
                places[unique] = split, i
        return UserDataset(code, places, classes)

    @property
    def splits(self) -> dict[str | None, list[str]]:
        """The names of the samples by split."""
        found: dict[str | None, list[str]] = {}
        for name, (split, _) in self.places.items():
            found.setdefault(split, []).append(name)
        return found

    def draw(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the image, `uint8[3, h, w]`, and the raw mask, `int[h, w]`, of a sample.

        Raises:
            DataError: The data set fails, or gives something else.
        """
        split, index = self.places[name]
        try:
            item = _made(self.code)[split][index]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.code}: sample {name} fails: {type(error).__name__}: {error}"
            ) from error
        if isinstance(item, Mapping) and {"image", "mask"} <= set(item):
            item = item["image"], item["mask"]
        if not isinstance(item, Sequence) or len(item) < 2:
            raise DataError(
                f"{self.code}: sample {name} is a {type(item).__name__}; expected {_ITEM}"
            )
        image, mask = _as_image(item[0]), _as_array(item[1]).squeeze()
        if image is None:
            what = f"{type(item[0]).__name__} of shape {tuple(np.shape(item[0]))}"
            raise DataError(
                f"{self.code}: the image of sample {name} is a {what}; expected a PIL image, "
                "uint8[h, w, 3], or a tensor [3, h, w] of uint8 or of floats from 0 to 1"
            )
        if mask.ndim != 2 or mask.shape != image.shape[1:] or not _is_whole(mask):
            raise DataError(
                f"{self.code}: the mask of sample {name} has the shape {mask.shape} and the type "
                f"{mask.dtype}; expected whole numbers {tuple(image.shape[1:])}, as the image has"
            )
        return image, torch.from_numpy(np.ascontiguousarray(mask.astype(np.int32)))


@cache
def _made(code: str) -> dict[str | None, Any]:
    try:
        made = load(code)()
    except UserCodeError as error:
        raise DataError(f"{code}: {error}") from error
    except Exception as error:
        raise DataError(f"{code}: fails: {type(error).__name__}: {error}") from error
    by_split: dict[str | None, Any] = dict(made) if isinstance(made, Mapping) else {None: made}
    for split, data in by_split.items():
        if split not in (None, *SPLITS):
            raise DataError(f"{code}: {split!r} is no split; expected {', '.join(SPLITS)}")
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise DataError(
                f"{code}: gives a {type(data).__name__}; expected a data set with len() and "
                "[i], or a dict of them by split"
            )
    return by_split


def _as_array(value: Any) -> NDArray[Any]:
    return value.numpy() if isinstance(value, Tensor) else np.asarray(value)


def _as_image(value: Any) -> Tensor | None:
    """The image as uint8[3, h, w], None where it is none."""
    if isinstance(value, Image.Image):
        value = value.convert("RGB")
    pixels = _as_array(value)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    elif pixels.ndim == 3 and isinstance(value, Tensor):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return None
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        return None
    return torch.from_numpy(np.array(np.moveaxis(pixels, -1, 0), order="C"))


def _is_whole(mask: NDArray[Any]) -> bool:
    return mask.dtype.kind in "iub" or bool(np.array_equal(mask, np.rint(mask)))
