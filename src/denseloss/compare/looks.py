"""What the losses look at: their gradients on one and the same prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denseloss import compose
from denseloss.compare.measure import Measured, counts_of, load_arrays, probabilities, save_arrays
from denseloss.compare.results import Look
from denseloss.data import VOID, Sample, SegmentationData, SegmentationDataset, denormalise
from denseloss.train.criterion import TaskCriterion
from denseloss.train.segmentation import SegmentationTask

Floats = NDArray[np.float32]

_LARGEST = 256
# Below it, the quotient of two gradients would be one of rounding errors.
_TINY = 1e-6
_VERSION = 1


def usual_image(measured: Measured) -> int:
    """Return the place of the image with the median Dice, of those that hold foreground.

    Args:
        measured: Of one network. On a multiclass task Dice is the mean over the classes.

    Returns:
        The place; of an even number of images the worse of the two in the middle. Where no image
        holds foreground, all count that are not void everywhere.

    Raises:
        ValueError: Every image is void everywhere.
    """
    found = counts_of(measured, "dice", "image")
    scores = found.score(found.counts)
    places = np.flatnonzero(measured.confusion[:, 1:].any(axis=(1, 2)))
    if len(places) == 0:
        places = np.flatnonzero(~np.isnan(scores))
    if len(places) == 0:
        raise ValueError("every pixel of every image is void; there is nothing to look at")
    order = places[np.argsort(scores[places], kind="stable")]
    return int(order[(len(order) - 1) // 2])


def look(
    losses: Sequence[str],
    task: SegmentationTask,
    data: SegmentationData,
    sample: Sample,
    *,
    predicted_by: str,
) -> Look:
    """Take the gradient of each loss at the logits that a network has for an image.

    Of a large image it is the part, at most 256 x 256, where the network is most wrong. The
    gradient is of the foreground's logit on a binary task, otherwise of the logit of the class
    that is rarest in the part.

    Args:
        losses: Expressions.
        task: The network that predicts, in evaluation mode.
        data: Whose image.
        sample: The image.
        predicted_by: The loss and the seed of the network, in words.

    Returns:
        The maps. Void pixels have gradient 0 (unless a loss looks at the image alone) and no
        weight (NaN); they are left out of the means.

    Raises:
        InputError: A loss cannot be taken on this task.
    """
    item = SegmentationDataset(data, [sample], size=1, train=False)[0]
    image, classes = item["image"], item["mask"]
    assert isinstance(image, Tensor)
    assert isinstance(classes, Tensor)
    size = (classes.shape[-2], classes.shape[-1])
    with torch.no_grad():
        logits, _ = task.predict(image[None].to(task.device), size=size)
    # In float64, for where a network is sure the gradients are tiny differences.
    logits = logits.cpu().double()
    part = _worst_part(probabilities(logits, link=task.criterion.link), classes)
    logits, classes, image = logits[..., *part], classes[part], image[..., *part]
    known = (classes != VOID).numpy()
    index = 1 if data.task == "binary" else _rarest(classes, count=data.num_classes)
    truth = (classes == index).double().numpy()
    channel = 0 if data.task == "binary" else index
    gradients, weights = {}, {}
    for loss in losses:
        criterion = TaskCriterion(
            compose.parse(loss, mixed=True), task=data.task, num_classes=data.num_classes
        )
        gradient = _gradient(criterion, logits, classes, image)[channel]
        wrong = np.abs(probabilities(logits, link=criterion.link)[index].numpy() - truth)
        gradients[loss] = _over_mean(gradient, known)
        weights[loss] = _weight(gradient, np.where(known, wrong, 0.0))
    probability = probabilities(logits, link=task.criterion.link)[index]
    return Look(
        name=sample.name,
        predicted_by=predicted_by,
        image=denormalise(image).permute(1, 2, 0).contiguous().numpy(),
        truth=classes.numpy().astype(np.uint8),
        class_name=data.class_names[index],
        probability=probability.numpy().astype(np.float32),
        gradients=gradients,
        weights=weights,
    )


def save(looks: Sequence[Look], path: Path) -> None:
    """Write looks to a compressed `.npz`, such that it is seen whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"version": np.array(_VERSION), "looks": np.array(len(looks))}
    for i, one in enumerate(looks):
        arrays |= {
            f"{i}/text": np.array([one.name, one.predicted_by, one.class_name]),
            f"{i}/losses": np.array([*one.gradients], dtype=np.str_),
            f"{i}/image": one.image,
            f"{i}/truth": one.truth,
            f"{i}/probability": one.probability,
            f"{i}/gradients": np.stack([*one.gradients.values()]),
            f"{i}/weights": np.stack([one.weights[loss] for loss in one.gradients]),
        }
    save_arrays(path, arrays)


def load(path: Path) -> tuple[Look, ...]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or another version wrote it; the message names it.
    """
    arrays = load_arrays(path)
    try:
        if int(arrays["version"]) != _VERSION:
            raise ValueError(f"it has format {arrays['version']}, not {_VERSION}")
        return tuple(_loaded(arrays, i) for i in range(int(arrays["looks"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no looks of this version ({error})") from error


def _loaded(arrays: dict[str, NDArray[Any]], i: int) -> Look:
    name, predicted_by, class_name = arrays[f"{i}/text"].tolist()
    losses = arrays[f"{i}/losses"].tolist()
    return Look(
        name=name,
        predicted_by=predicted_by,
        image=arrays[f"{i}/image"],
        truth=arrays[f"{i}/truth"],
        class_name=class_name,
        probability=arrays[f"{i}/probability"],
        gradients=dict(zip(losses, arrays[f"{i}/gradients"], strict=True)),
        weights=dict(zip(losses, arrays[f"{i}/weights"], strict=True)),
    )


def _worst_part(probability: Tensor, classes: Tensor) -> tuple[slice, slice]:
    """Return the part, at most 256 x 256, in which the true classes are believed least."""
    known = classes != VOID
    true = probability.gather(0, classes.masked_fill(~known, 0)[None])[0]
    wrong = ((1 - true) * known).numpy()
    height, width = (min(_LARGEST, side) for side in wrong.shape)
    sums = np.pad(wrong, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    within = (sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]) + sums[
        :-height, :-width
    ]
    top, left = np.unravel_index(within.argmax(), within.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def _rarest(classes: Tensor, *, count: int) -> int:
    pixels = torch.bincount(classes[classes != VOID], minlength=count)
    there = pixels.nonzero()[:, 0]
    return int(there[pixels[there].argmin()]) if len(there) else 0


def _gradient(
    criterion: TaskCriterion, logits: Tensor, classes: Tensor, image: Tensor
) -> NDArray[np.float64]:
    """Return dL/dz of each logit, [c, h, w]."""
    leaf = logits.clone().requires_grad_()
    value = criterion([leaf], classes[None], image=image[None]).sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return np.asarray(gradient[0].numpy(), dtype=np.float64)


def _over_mean(gradient: NDArray[np.float64], known: NDArray[np.bool_]) -> Floats:
    mean = np.abs(gradient[known]).mean() if known.any() else 0.0
    return (gradient / mean if mean > 0 else np.zeros_like(gradient)).astype(np.float32)


def _weight(gradient: NDArray[np.float64], wrong: NDArray[np.float64]) -> Floats:
    """Return |dL/dz| over |p - t|, divided by its mean; NaN where |p - t| is tiny."""
    counts = wrong > _TINY
    weight = np.abs(gradient) / np.where(counts, wrong, 1.0)
    mean = weight[counts].mean() if counts.any() else 0.0
    if mean > 0:
        weight = weight / mean
    return np.where(counts, weight, np.nan).astype(np.float32)
