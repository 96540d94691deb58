"""Gradient maps: what each loss asks for on one and the same prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denseloss.compose import UserLoss
from denseloss.data.files import load_arrays, save_arrays
from denseloss.data.samples import VOID, Sample
from denseloss.data.transforms import normalise
from denseloss.tasks.segmentation.criterion import SegmentationCriterion
from denseloss.tasks.segmentation.data import SegmentationData
from denseloss.tasks.segmentation.measure import Measured, probabilities, score, whole_logits
from denseloss.tasks.task import Trained

Floats = NDArray[np.float32]

FILE = "gradient_maps.npz"
"""The file in a comparison's folder that the report reads."""
_LARGEST = 256
# Below it, the quotient of two gradients would be one of rounding errors.
_TINY = 1e-6
_VERSION = 1
_ARRAYS = ("image", "truth", "probability")


@dataclass(frozen=True, kw_only=True)
class GradientMaps:
    """What the losses look at: their gradients on one and the same prediction.

    Attributes:
        name: Of the image.
        predicted_by: The loss whose network made the prediction, and the seed, in words.
        image: uint8[h, w, 3].
        truth: Classes uint8[h, w], 255 where void.
        class_name: Whose logit the gradient is of.
        probability: float[h, w] of that class.
        gradients: float[h, w] by loss: dL/dz of each pixel, over the mean |dL/dz| of the image.
        weights: float[h, w] by loss: |dL/dz| over that of cross entropy |p - t|, divided by its
            mean: what the pixel counts for, beyond how wrong it is. NaN where |p - t| is tiny.
    """

    name: str
    predicted_by: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    class_name: str
    probability: Floats
    gradients: Mapping[str, Floats]
    weights: Mapping[str, Floats]


def usual_image(measured: Measured) -> int:
    """Return the place of the image with the median Dice, of those that hold foreground.

    Args:
        measured: Of one network. In multiclass mode Dice is the mean over the classes.

    Returns:
        The place; of an even number of images the worse of the two in the middle. Where no image
        holds foreground, all count that are not void everywhere.

    Raises:
        ValueError: Every image is void everywhere.
    """
    dice = score([measured], "dice", "image")
    scores = dice.score(dice.counts[0])
    places = np.flatnonzero(measured.confusion[:, 1:].any(axis=(1, 2)))
    if len(places) == 0:
        places = np.flatnonzero(~np.isnan(scores))
    if len(places) == 0:
        raise ValueError("every pixel of every image is void; there is nothing to look at")
    order = places[np.argsort(scores[places], kind="stable")]
    return int(order[(len(order) - 1) // 2])


def gradient_maps(
    criteria: Mapping[str, SegmentationCriterion],
    trained: Trained,
    data: SegmentationData,
    sample: Sample,
    *,
    predicted_by: str,
) -> GradientMaps:
    """Take the gradient of each loss at the logits that a network has for an image.

    Of a large image it is the part, at most 256 x 256, where the network is most wrong. The
    gradient is of the foreground's logit in binary mode, otherwise of the logit of the class
    that is rarest in the part.

    Args:
        criteria: The losses by their expressions.
        trained: The network that predicts, in evaluation mode.
        data: Whose image.
        sample: The image.
        predicted_by: The loss and the seed of the network, in words.

    Returns:
        The maps. Void pixels have gradient 0 (unless a loss looks at the image alone) and no
        weight (NaN); they are left out of the means.
    """
    image, mask = data.read(sample)
    # In float64, for where a network is sure the gradients are tiny differences.
    logits = whole_logits(trained, normalise(image), mask.shape).cpu().double()
    link = trained.criterion.link
    part = _worst_part(probabilities(logits, link=link), mask.long())
    logits, classes, image = logits[..., *part], mask[part].long(), image[:, *part]
    batch = {"image": normalise(image)[None], "mask": classes[None]}
    known = (classes != VOID).numpy()
    index = 1 if data.mode == "binary" else _rarest(classes, count=data.num_classes)
    truth = (classes == index).double().numpy()
    channel = 0 if data.mode == "binary" else index
    gradients, weights = {}, {}
    for loss, criterion in criteria.items():
        gradient = _gradient(criterion, logits, batch)
        slope = gradient[0, channel].numpy()
        wrong = np.abs(probabilities(logits, link=criterion.link)[index].numpy() - truth)
        counts = known & (wrong > _TINY)
        weight = _over_mean(np.abs(slope) / np.where(counts, wrong, 1.0), counts)
        gradients[loss] = _over_mean(slope, known)
        weights[loss] = np.where(counts, weight, np.float32(np.nan))
    return GradientMaps(
        name=sample.name,
        predicted_by=predicted_by,
        image=image.permute(1, 2, 0).contiguous().numpy(),
        truth=mask[part].contiguous().numpy(),
        class_name=data.class_names[index],
        probability=probabilities(logits, link=link)[index].numpy().astype(np.float32),
        gradients=gradients,
        weights=weights,
    )


def _gradient(
    criterion: SegmentationCriterion, logits: Tensor, batch: Mapping[str, Tensor]
) -> Tensor:
    """Return the gradient of a loss at logits float64[1 c h w]."""
    # A loss of the user's own may hold float32, a filter say, which only takes its like.
    own = any(isinstance(part, UserLoss) for part in criterion.modules())
    leaf = (logits.float() if own else logits.clone()).requires_grad_()
    (gradient,) = torch.autograd.grad(criterion([leaf], batch).sum(), leaf)
    found: Tensor = gradient.double()
    return found


def save(found: Sequence[GradientMaps], path: Path) -> None:
    """Write maps to a compressed `.npz`, such that it is seen whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"version": np.array(_VERSION), "count": np.array(len(found))}
    for i, one in enumerate(found):
        arrays |= {f"{i}/{name}": getattr(one, name) for name in _ARRAYS}
        arrays[f"{i}/text"] = np.array([one.name, one.predicted_by, one.class_name])
        arrays[f"{i}/losses"] = np.array([*one.gradients], dtype=np.str_)
        arrays[f"{i}/gradients"] = np.stack([*one.gradients.values()])
        arrays[f"{i}/weights"] = np.stack([one.weights[loss] for loss in one.gradients])
    save_arrays(path, arrays)


def load(path: Path) -> tuple[GradientMaps, ...]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or another version wrote it; the message names it.
    """
    arrays = load_arrays(path)
    try:
        if int(arrays["version"]) != _VERSION:
            raise ValueError(f"it has format {arrays['version']}, not {_VERSION}")
        return tuple(_loaded(arrays, f"{i}/") for i in range(int(arrays["count"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no gradient maps of this version ({error})") from error


def _loaded(arrays: dict[str, NDArray[Any]], at: str) -> GradientMaps:
    name, predicted_by, class_name = arrays[at + "text"].tolist()
    losses = arrays[at + "losses"].tolist()
    return GradientMaps(
        name=name,
        predicted_by=predicted_by,
        class_name=class_name,
        **{array: arrays[at + array] for array in _ARRAYS},
        gradients=dict(zip(losses, arrays[at + "gradients"], strict=True)),
        weights=dict(zip(losses, arrays[at + "weights"], strict=True)),
    )


def _worst_part(probability: Tensor, classes: Tensor) -> tuple[slice, slice]:
    """Return the part, at most 256 x 256, in which the true classes are believed least."""
    known = classes != VOID
    true = probability.gather(0, classes.masked_fill(~known, 0)[None])[0]
    wrong = ((1 - true) * known).numpy()
    height, width = (min(_LARGEST, side) for side in wrong.shape)
    sums = np.pad(wrong, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    bands = sums[height:] - sums[:-height]
    within = bands[:, width:] - bands[:, :-width]
    top, left = np.unravel_index(within.argmax(), within.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def _rarest(classes: Tensor, *, count: int) -> int:
    pixels = torch.bincount(classes[classes != VOID], minlength=count)
    there = pixels.nonzero()[:, 0]
    return int(there[pixels[there].argmin()]) if len(there) else 0


def _over_mean(values: NDArray[np.float64], counts: NDArray[np.bool_]) -> Floats:
    """Return the values over their mean size where they count; 0 where that is 0."""
    mean = np.abs(values[counts]).mean() if counts.any() else 0.0
    return (values / mean if mean > 0 else np.zeros_like(values)).astype(np.float32)
