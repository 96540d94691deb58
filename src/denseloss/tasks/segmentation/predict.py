"""Masks out of a trained network, in the encoding of the masks that it was trained on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from denseloss.data.errors import DataError, InputError
from denseloss.data.files import writing_whole
from denseloss.data.images import is_picture, read_image
from denseloss.data.transforms import normalise
from denseloss.tasks.predictor import Predictor
from denseloss.tasks.segmentation import tiles
from denseloss.tasks.segmentation.criterion import at_size, decided
from denseloss.tasks.segmentation.data import SegmentationData
from denseloss.tasks.segmentation.labels import Mode
from denseloss.tasks.segmentation.network import Segmenter

# Larger pictures show no more on a screen, and painting them takes many times their memory.
_LARGEST_OVERLAY = 2048
_MOST = 65535


def facts(data: SegmentationData) -> dict[str, Any]:
    """Return what prediction, and whoever resumes a run, must know of the data."""
    labels = data.labels
    return {
        "mode": labels.mode,
        "classes": list(labels.names),
        "values": list(labels.values),
        "ignore": labels.ignore_value,
        "others_are_void": labels.others_are_void,
        "threshold": labels.threshold,
        "alpha": labels.alpha,
        "colours": labels.colour,
        "palette": _palette(data),
        "window": None if data.window is None else list(data.window),
    }


def _palette(data: SegmentationData) -> list[str] | None:
    """Return the colours that viewers show the classes in, where the masks have a palette."""
    masks = (sample.mask for sample in (*data.train[:1], *data.val[:1]))
    mask = next((m for m in masks if isinstance(m, Path) and is_picture(m)), None)
    if mask is None or data.labels.colour or max(data.labels.values) > 255:
        return None
    try:
        with Image.open(mask) as picture:
            flat = picture.getpalette("RGB") if picture.mode == "P" else None
    except OSError:
        return None  # who reads the mask says what is wrong with it
    if flat is None:
        return None
    entries = [bytes(flat[3 * value : 3 * value + 3]).hex() for value in data.labels.values]
    return [f"#{entry or '000000'}" for entry in entries]


class SegmentationPredictor(Predictor):
    """A trained network: images in, the probability of each class out.

    `model(image)` takes a uint8 image [3 h w], RGB from 0 to 255, or a batch [n 3 h w], and gives
    the probabilities float32 [c h w] or [n c h w] of all classes, the background included.
    `model.predict(image)` gives the classes, uint8 [h w] or [n h w]: places in `names`. Large
    images go through the network in overlapping tiles.

    Args:
        network: As `build_model` gives it.
        facts: Of the data, as `facts` gives them.
        link: What makes logits the probabilities that the loss trained.

    Attributes:
        names: Of the classes.
        values: What each class is in a mask file: `model.values[model.predict(image)]`.
    """

    def __init__(
        self, network: Segmenter, facts: Mapping[str, Any], *, link: Literal["softmax", "sigmoid"]
    ) -> None:
        super().__init__(network)
        self.mode: Mode = facts["mode"]
        self.names: tuple[str, ...] = tuple(facts["classes"])
        self.values: NDArray[np.int64] = np.array(facts["values"], dtype=np.int64)
        self._link = link
        self._colours: bool = facts["colours"]
        self._palette: list[str] | None = facts.get("palette")
        self._window = tuple(facts["window"]) if "window" in facts else None

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities."""
        logits = self._logits(_batch(image))
        return self._probabilities(logits).view(*image.shape[:-3], -1, *image.shape[-2:])

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return the classes."""
        batch = _batch(image)
        classes = batch.new_empty(len(batch), *batch.shape[-2:])
        for rows, logits in self._in_bands(batch):
            classes[:, rows] = decided(logits, self.mode).to(torch.uint8)
        return classes.view(*image.shape[:-3], *image.shape[-2:])

    def files(self, name: Path, *, probabilities: bool, overlays: bool) -> list[Path]:
        """Return the mask, a map of each class's probability, and the overlay."""
        if not self._colours and not 0 <= min(self.values) <= max(self.values) <= _MOST:
            raise InputError(
                f"this run was trained on masks with the values {self.values.tolist()}, and a PNG "
                f"holds 0 to {_MOST}; use denseloss.train.load and save what it predicts"
            )
        found = [_png(name)]
        if probabilities:
            found += self._maps(name)
        return [*found, _overlay(name)] if overlays else found

    @torch.no_grad()
    def write(
        self, image: Path, out: Path, name: Path, *, probabilities: bool, overlays: bool
    ) -> str | None:
        """Predict an image file and write its mask, and what else is wanted."""
        picture = read_image(image, window=cast("tuple[float, float] | None", self._window))
        height, width = picture.shape[:2]
        classes = np.empty((height, width), dtype=np.uint8)
        shown = self._shown() if probabilities else ()
        maps = np.empty((len(shown), height, width), dtype=np.uint16)
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        device = next(self.network.parameters()).device
        for rows, logits in self._in_bands(pixels.to(device)):
            if not bool(logits.isfinite().all()):
                raise DataError(f"{image}: the network's logits are not finite numbers")
            classes[rows] = decided(logits, self.mode)[0].to(torch.uint8).cpu().numpy()
            if probabilities:
                found = self._probabilities(logits)[0].cpu().numpy()
                for of, values in zip(shown, maps, strict=True):
                    values[rows] = np.rint(found[of] * _MOST)
            del logits
        _save(self._encoded(classes), out / _png(name))
        for path, values in zip(self._maps(name) if probabilities else (), maps, strict=True):
            _save(Image.fromarray(values), out / path)
        del maps
        if overlays:
            self._draw(picture, classes, out / _overlay(name))
        return tiles.RULE if tiles.is_large((height, width)) else None

    def _logits(self, batch: Tensor) -> Tensor:
        """Return the logits float32 [n c h w] of a batch, whole or in tiles."""
        return self._of(self.network, batch)

    def _of(self, network: Any, batch: Tensor) -> Tensor:
        image = normalise(batch).contiguous(memory_format=torch.channels_last)
        with self.autocast(image):
            outputs: Sequence[Tensor] = network(image)
        return at_size(outputs[0].float(), batch.shape[-2:])

    def _in_bands(self, batch: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a batch and their logits; of a large image a part at a time."""
        size = batch.shape[-2:]
        if not tiles.is_large(size):
            yield slice(0, size[0]), self._logits(batch)
            return
        segmenter = cast(Segmenter, self.network)

        def tiled(image: Tensor) -> list[Tensor]:
            return [tiles.tiled(segmenter.whole, image)]

        for rows, seen in tiles.bands(size, channels=segmenter.num_outputs):
            kept = slice(rows.start - seen.start, rows.stop - seen.start)
            # Not by a name, which would keep the logits while those of the next band are made.
            yield rows, self._of(tiled, batch[..., seen, :])[..., kept, :]

    def _probabilities(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            # Not 1 - p, which loses the digits of a p near 1.
            return torch.cat([-logits, logits], dim=1).sigmoid()
        return logits.softmax(1) if self._link == "softmax" else logits.sigmoid()

    def _shown(self) -> range:
        # The background of a binary task is the rest.
        return range(1 if self.mode == "binary" else 0, len(self.names))

    def _maps(self, name: Path) -> list[Path]:
        """Return the file of each class's probability; the place in the name makes it unique."""
        folder = Path("probabilities") / name.parent
        slugs = [re.sub(r"[^\w.-]+", "-", self.names[of]).strip("-.")[:40] for of in self._shown()]
        places = zip(self._shown(), slugs, strict=True)
        return [folder / f"{name.name}.{of}-{slug}.png" for of, slug in places]

    def _encoded(self, classes: NDArray[np.uint8]) -> Image.Image:
        """Return a mask as the training masks are: raw values, with their palette, or colours."""
        if self._colours:
            bytes_of = [(value >> 16, value >> 8 & 255, value & 255) for value in self.values]
            return Image.fromarray(np.array(bytes_of, dtype=np.uint8)[classes])
        deep = self.values.max() > 255
        mask = Image.fromarray(self.values.astype(np.uint16 if deep else np.uint8)[classes])
        if self._palette is not None:
            mask.putpalette(_table(self.values, self._palette))
        return mask

    def _draw(self, picture: NDArray[np.uint8], classes: NDArray[np.uint8], path: Path) -> None:
        from denseloss.tasks.segmentation import pictures  # matplotlib takes a second

        side = min(_LARGEST_OVERLAY, max(classes.shape))
        drawn = pictures.overlay(picture, classes, len(self.names), side=side)
        _save(Image.fromarray(drawn), path)


def _batch(image: Tensor) -> Tensor:
    """Return an image as a batch of one.

    Raises:
        TypeError: It is not uint8.
        ValueError: It has another shape.
    """
    if image.dtype != torch.uint8:
        raise TypeError(
            f"image: must be uint8, RGB from 0 to 255 as files hold it, got {image.dtype}"
        )
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"image: must be [3 h w] or [n 3 h w], got {list(image.shape)}")
    return image if image.ndim == 4 else image[None]


def _png(name: Path) -> Path:
    return name.with_name(f"{name.name}.png")


def _overlay(name: Path) -> Path:
    return Path("overlays") / _png(name)


def _table(values: NDArray[np.int64], colours: Sequence[str]) -> bytes:
    table = bytearray(768)
    for value, colour in zip(values.tolist(), colours, strict=True):
        table[3 * value : 3 * value + 3] = bytes.fromhex(colour.removeprefix("#"))
    return bytes(table)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(path) as file:
        picture.save(file, format="PNG")
