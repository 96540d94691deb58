"""What is measured of one trained network on held-out images, and the scores that come of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from denseloss.data.samples import VOID, Sample, evenly
from denseloss.data.transforms import normalise
from denseloss.metrics import OverlapKind, overlap_score
from denseloss.tasks.scores import Additive, Metric, Pooling, divided, mean_over_images, quotient
from denseloss.tasks.segmentation.criterion import at_size, decided
from denseloss.tasks.segmentation.data import SegmentationData
from denseloss.tasks.segmentation.labels import Mode
from denseloss.tasks.segmentation.tiles import rows_at_a_time
from denseloss.tasks.task import Trained

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Classes = NDArray[np.uint8]

SIZES = ("small", "medium", "large")
"""Of objects, see `size_limits`."""
RELIABILITY_BINS = 15
HISTOGRAM_BINS = 100
THRESHOLDS: Floats = np.arange(HISTOGRAM_BINS) / HISTOGRAM_BINS
"""The thresholds at which a histogram tells the Dice score."""

_TOLERANCE = 0.0075
_VERSION = 2
_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_MOST_MASKS = 500

_OVERLAPS = {
    "Dice": "Dice score, also called F1: 2 TP / (2 TP + FP + FN).",
    "IoU": "Intersection over union: TP / (TP + FP + FN).",
    "Precision": "Share of the predicted pixels that are right: TP / (TP + FP).",
    "Recall": "Share of the true pixels that are found: TP / (TP + FN).",
    "F2": "F-score with β = 2, for which recall counts twice as much as precision: "
    "5 TP / (5 TP + 4 FN + FP).",
    "Boundary F": "F1 of the boundary pixels (Csurka et al. 2013): one is right if the other "
    "boundary is within 0.75 % of the image's diagonal, at least 1 pixel.",
}
METRICS = (
    *(
        Metric(
            key=name.lower().replace(" ", "_"),
            name=name,
            higher_is_better=True,
            definition=f"{definition} A class that an image neither holds nor is predicted scores "
            "1 there; one that is missed or predicted in vain scores 0.",
            poolings=("image", "pooled"),
        )
        for name, definition in _OVERLAPS.items()
    ),
    Metric(
        key="hd95",
        name="HD95",
        higher_is_better=False,
        unit="px",
        definition=(
            "Hausdorff distance at 95 %: the larger of the two 95th percentiles of the distances "
            "from one boundary to the other. A class that an image neither holds nor is predicted "
            "has distance 0 there; one that is missed or predicted in vain, the image's diagonal."
        ),
        effect=1.0,
        highest=math.inf,
    ),
)
"""All metrics of the held-out images. An image that is void everywhere has no score."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one network does on N images of C classes, background included; void counts nowhere.

    Attributes:
        mode: What the classes mean.
        class_names: Background included.
        names: Of the images.
        confusion: Pixels by truth and prediction, int64[N, C, C].
        boundary: Boundary pixels of the truth, those of them that the predicted boundary is near,
            boundary pixels of the prediction, those of them that the true boundary is near,
            int64[N, C, 4]. A boundary pixel is one of the class with a 4-neighbour that is not:
            of another class, void, or outside the image. Near is within 0.75 % of the image's
            diagonal, at least 1 pixel.
        hd95: In pixels, float64[N, C]: the larger of the 95th percentiles (linearly interpolated)
            of the distances from the true to the predicted boundary pixels and back; 0 where both
            are empty, the image's diagonal where one is.
        objects: Truth's objects and how many of them are found, by size, int64[N, C, 3, 2]. An
            object is an 8-connected component of a class other than the background; it is found
            if at least half of its pixels are predicted as its class.
        reliability: Pixels, sum of the probability, and sum of what came true, by bin of the
            probability, float64[N, 15, 3]: in binary mode of the foreground and whether it is
            there, otherwise of the predicted class and whether it is right. Bin i holds
            i/15 < p <= (i+1)/15, the first also 0.
        histogram: Pixels of all images by class c, whether the truth is c, and bin of c's
            probability, int64[C, 2, 100]. Bin i holds i/100 < p <= (i+1)/100, the first also 0.
        predictions: Classes uint8[h, w] by place of the image, for some images.
    """

    mode: Mode
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    confusion: Ints
    boundary: Ints
    hd95: Floats
    objects: Ints
    reliability: Floats
    histogram: Ints
    predictions: Mapping[int, Classes]

    def __post_init__(self) -> None:
        n, c = len(self.names), len(self.class_names)
        for name, blank in _blank(n, c).items():
            array: NDArray[Any] = getattr(self, name)
            if (array.shape, array.dtype) != (blank.shape, blank.dtype):
                raise ValueError(
                    f"Measured: {name} must be {blank.dtype.name}{list(blank.shape)}, got "
                    f"{array.dtype.name}{list(array.shape)}"
                )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays, to be saved."""
        return {
            "version": np.array(_VERSION),
            "mode": np.array(self.mode),
            "class_names": np.array(self.class_names),
            "names": np.array(self.names, dtype=np.str_),
            **{name: getattr(self, name) for name in _blank(0, 0)},
            **{f"prediction_{i}": classes for i, classes in self.predictions.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return what `to_arrays` made arrays of.

        Raises:
            ValueError: Something is missing or damaged, or another version made it.
        """
        try:
            if int(arrays["version"]) != _VERSION:
                raise ValueError(f"it has format {arrays['version']}, not {_VERSION}")
            mode = next(mode for mode in get_args(Mode) if mode == arrays["mode"])
            return cls(
                mode=mode,
                class_names=tuple(arrays["class_names"].tolist()),
                names=tuple(arrays["names"].tolist()),
                **{name: arrays[name] for name in _blank(0, 0)},
                predictions={
                    int(name.removeprefix("prediction_")): array
                    for name, array in arrays.items()
                    if name.startswith("prediction_")
                },
            )
        except (KeyError, StopIteration, TypeError, ValueError) as error:
            raise ValueError(f"holds no measurements of this version ({error})") from error


def _blank(n: int, c: int) -> dict[str, NDArray[Any]]:
    """All arrays of `Measured`, filled with 0."""
    return {
        "confusion": np.zeros((n, c, c), np.int64),
        "boundary": np.zeros((n, c, 4), np.int64),
        "hd95": np.zeros((n, c), np.float64),
        "objects": np.zeros((n, c, len(SIZES), 2), np.int64),
        "reliability": np.zeros((n, RELIABILITY_BINS, 3), np.float64),
        "histogram": np.zeros((c, 2, HISTOGRAM_BINS), np.int64),
    }


def size_limits(data: SegmentationData) -> tuple[float, float] | None:
    """Return the object areas, in pixels, that divide small, medium and large.

    Args:
        data: The terciles are those of the objects in its first 500 training masks.

    Returns:
        Up to which area an object is small, and up to which it is medium; None where there is no
        object.
    """
    areas: list[int] = []
    for sample in data.train[:_MOST_MASKS]:
        mask = data.mask(sample).numpy()
        for index in range(1, data.num_classes):
            labels, _ = ndimage.label(mask == index, _NEIGHBOURS)
            areas += np.bincount(labels.ravel())[1:].tolist()
    if not areas:
        return None
    low, high = np.quantile(areas, [1 / 3, 2 / 3])
    return float(low), float(high)


def whole_logits(trained: Trained, image: Tensor, size: Sequence[int]) -> Tensor:
    """Return the logits float32[1 c h w] of an image [3 h w] at a given size, without a graph."""
    outputs: Sequence[Tensor] = trained.outputs(image[None].to(trained.device))
    return at_size(outputs[0].float(), size)


def measure(
    trained: Trained,
    data: SegmentationData,
    samples: Sequence[Sample],
    *,
    size_limits: tuple[float, float] | None,
    keep: int,
) -> Measured:
    """Measure a network on images, each at its own size.

    Args:
        trained: The network with its criterion, in evaluation mode.
        data: Whose images.
        samples: Such as `data.test`.
        size_limits: Of the function of that name; None counts no object.
        keep: Of how many images the predictions are kept, evenly spaced over the samples.

    Returns:
        What was measured, in the order of the samples.

    Raises:
        ValueError: A logit is NaN or infinite; the message names the image.
    """
    kept = set(evenly(keep, of=len(samples)))
    classes = data.num_classes
    found = _blank(len(samples), classes)
    predictions = {}
    for place, sample in enumerate(samples):
        image, mask = data.read(sample)
        logits = whole_logits(trained, normalise(image), mask.shape)
        del image
        truth = mask.numpy()
        prediction = np.empty_like(truth)
        # Of a large image a part at a time: float64 probabilities take several times its memory.
        for rows in rows_at_a_time(truth.shape):
            part, known = logits[:, :, rows], truth[rows] != VOID
            if not bool(part.isfinite().all()):
                raise ValueError(f"{sample.name}: the network's logits are not finite numbers")
            prediction[rows] = decided(part, data.mode)[0].cpu().numpy()
            probability = probabilities(part, link=trained.criterion.link).numpy()[:, known]
            seen = truth[rows][known], prediction[rows][known]
            found["reliability"][place] += _reliability(probability, *seen, mode=data.mode)
            found["histogram"] += _histogram(probability, seen[0])
        del logits
        known = truth != VOID
        seen_prediction = np.where(known, prediction, VOID).astype(np.uint8)
        confusion = _confusion(truth[known], prediction[known], classes=classes)
        found["confusion"][place] = confusion
        found["boundary"][place], found["hd95"][place] = _boundaries(
            truth, seen_prediction, confusion
        )
        found["objects"][place] = _objects(truth, seen_prediction, size_limits, classes=classes)
        if place in kept:
            predictions[place] = prediction
    return Measured(
        mode=data.mode,
        class_names=data.class_names,
        names=tuple(sample.name for sample in samples),
        **found,
        predictions=predictions,
    )


def probabilities(logits: Tensor, *, link: Literal["softmax", "sigmoid"]) -> Tensor:
    """Return the probability of each class from the logits of one image.

    Args:
        logits: float[1, C, h, w], or float[1, 1, h, w] of the foreground in binary mode.
        link: Of the criterion.

    Returns:
        float64[C, h, w] on the CPU.
    """
    # In float64 a probability is above 0.5 exactly where its logit is above 0.
    z = logits[0].cpu().double()
    if len(z) == 1:
        # Not 1 - p, which loses the digits of a p near 1.
        return torch.cat([-z, z]).sigmoid()
    return z.softmax(0) if link == "softmax" else z.sigmoid()


def _confusion(truth: Classes, prediction: Classes, *, classes: int) -> Ints:
    pairs = truth.astype(np.int64) * classes + prediction
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def _bins(probability: Floats, *, count: int) -> Ints:
    """Return the place of each probability among bins that hold their upper end."""
    return np.clip(np.ceil(probability * count).astype(np.int64) - 1, 0, count - 1)


def _histogram(probability: Floats, truth: Classes) -> Ints:
    # A class at a time: all at once would take several times the memory of the probabilities.
    counts = [
        np.bincount(
            (truth == index) * HISTOGRAM_BINS + _bins(believed, count=HISTOGRAM_BINS),
            minlength=2 * HISTOGRAM_BINS,
        )
        for index, believed in enumerate(probability)
    ]
    return np.stack(counts).reshape(-1, 2, HISTOGRAM_BINS).astype(np.int64)


def _reliability(probability: Floats, truth: Classes, prediction: Classes, *, mode: Mode) -> Floats:
    if mode == "binary":
        believed, came_true = probability[1], truth == 1
    else:
        believed = np.take_along_axis(probability, prediction[None].astype(np.int64), 0)[0]
        came_true = prediction == truth
    place = _bins(believed, count=RELIABILITY_BINS)
    summed = (None, believed, came_true.astype(np.float64))
    return np.stack([np.bincount(place, each, RELIABILITY_BINS) for each in summed], axis=1)


def _boundaries(truth: Classes, prediction: Classes, confusion: Ints) -> tuple[Ints, Floats]:
    """Return the boundary pixels [C, 4] and the distance [C] of each class."""
    diagonal = math.hypot(*truth.shape)
    tolerance = max(1.0, _TOLERANCE * diagonal)
    counts = np.zeros((len(confusion), 4), dtype=np.int64)
    hd95 = np.zeros(len(confusion))
    for index in np.flatnonzero(confusion.sum(0) + confusion.sum(1)):
        true, predicted = _boundary(truth == index), _boundary(prediction == index)
        counts[index, [0, 2]] = len(true), len(predicted)
        if len(true) == 0 or len(predicted) == 0:
            hd95[index] = diagonal
            continue
        # As exact as a distance transform and faster, since boundaries are sparse.
        (away, _), (back, _) = cKDTree(predicted).query(true), cKDTree(true).query(predicted)
        counts[index, [1, 3]] = (away <= tolerance).sum(), (back <= tolerance).sum()
        hd95[index] = max(np.percentile(away, 95), np.percentile(back, 95))
    return counts, hd95


def _boundary(mask: NDArray[np.bool_]) -> Ints:
    """Return the places [k, 2] of the pixels of a mask with a 4-neighbour that is not of it."""
    around = np.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.argwhere(mask & ~inner)


def _objects(
    truth: Classes, prediction: Classes, limits: tuple[float, float] | None, *, classes: int
) -> Ints:
    counts = np.zeros((classes, len(SIZES), 2), dtype=np.int64)
    if limits is None:
        return counts
    for index in range(1, classes):
        labels, count = ndimage.label(truth == index, _NEIGHBOURS)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        hits = np.bincount(labels[prediction == index], minlength=count + 1)[1:]
        size = np.searchsorted(limits, areas, side="left")
        counts[index, :, 0] = np.bincount(size, minlength=len(SIZES))
        counts[index, :, 1] = np.bincount(size[2 * hits >= areas], minlength=len(SIZES))
    return counts


# ------------------------------------------------------------------------------------ the scores


def scored_classes(measured: Measured) -> Sequence[int]:
    """Return the indices of the classes that have scores: in binary mode only the foreground."""
    return (1,) if measured.mode == "binary" else range(len(measured.class_names))


def score(
    measured: Sequence[Measured], metric: str, pooling: Pooling, *, of: int | None = None
) -> Additive:
    """Return a metric of several networks as sums over images.

    Args:
        measured: One or more networks, on the same images.
        metric: Its key.
        pooling: One of the metric's.
        of: Index of a class. None is the score of the whole: that of the foreground in binary
            mode, otherwise the mean over all classes, the background included.

    Returns:
        With `"image"` the mean of the images' scores, void images left out. With `"pooled"` the
        score of the pixels of all images; a class that neither truth nor prediction holds has no
        score, and the mean is that of the others.

    Raises:
        ValueError: The metric or the class is unknown, or the metric is not pooled so.
    """
    known = {one.key: one for one in METRICS}
    if metric not in known:
        raise ValueError(f"unknown metric {metric!r}")
    if pooling not in known[metric].poolings:
        raise ValueError(f"{metric} has no {pooling!r} score")
    classes = len(measured[0].class_names)
    if of is not None and not 0 <= of < classes:
        raise ValueError(f"class {of} of {classes}")
    if of is None and measured[0].mode == "binary":
        of = 1

    def whole(scores: Floats) -> Floats:
        return _mean(scores) if of is None else np.asarray(scores[..., of])

    if pooling == "image":
        return mean_over_images([whole(image_scores(one, metric)) for one in measured])
    entries = np.stack([_entries(one, metric) for one in measured])
    return _additive(entries, lambda sums: whole(_class_scores(sums, metric)))


def _additive(entries: Floats, formula: Callable[[Floats], Floats]) -> Additive:
    """A score of what each network and image adds, [S, N, ...]; the formula takes sums of it."""
    tail = entries.shape[2:]
    return Additive(
        entries.reshape(*entries.shape[:2], -1),
        lambda sums: formula(sums.reshape(*sums.shape[:-1], *tail)),
    )


def image_scores(measured: Measured, metric: str) -> Floats:
    """Return a metric of each image and class, float64[N, C], with the rule for absent classes.

    An image that is void everywhere has no score: NaN.
    """
    if metric == "hd95":
        scores = measured.hd95.copy()
    else:
        scores = _class_scores(_entries(measured, metric), metric)
        scores[np.isnan(scores)] = 1.0
    scores[~measured.confusion.any(axis=(1, 2))] = np.nan
    return scores


def recall_score(measured: Sequence[Measured], *, of: int, size: str) -> Additive:
    """Return the share of a class's objects of a size that are found.

    Args:
        measured: One or more networks, on the same images.
        of: Index of the class, 1 or more.
        size: One of `SIZES`.
    """
    objects = np.stack([one.objects[:, of, SIZES.index(size), ::-1] for one in measured])
    return Additive(objects.astype(np.float64), quotient)


def calibration_score(measured: Sequence[Measured]) -> Additive:
    """Return the expected calibration error."""

    def error(bins: Floats) -> Floats:
        return divided(np.abs(bins[..., 1] - bins[..., 2]).sum(-1), bins[..., 0].sum(-1))

    return _additive(np.stack([one.reliability for one in measured]), error)


def dice_by_threshold(histogram: Ints, *, of: int) -> Floats:
    """Return the pooled Dice score of a class when p > threshold decides, for each of `THRESHOLDS`.

    Args:
        histogram: int64[C, 2, 100] as in `Measured`.
        of: Index of the class.

    Returns:
        float64[100]; NaN where neither the truth nor the prediction holds the class.
    """
    without, within = histogram[of].astype(np.float64)
    tp, fp = within[::-1].cumsum()[::-1], without[::-1].cumsum()[::-1]
    return np.asarray(overlap_score(tp, fp, within.sum() - tp, kind="f1"))


def best_threshold(dice: Floats) -> float:
    """Return the threshold with the highest score, of several the one nearest to 0.5.

    Args:
        dice: By threshold, as `dice_by_threshold` gives it, or a mean of such.

    Returns:
        The threshold; NaN where no threshold has a score.
    """
    if np.isnan(dice).all():
        return math.nan
    best = np.flatnonzero(dice >= np.nanmax(dice) - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def dice_at(histogram: Ints, *, of: int, threshold: float) -> float:
    """Return the pooled Dice score of a class when p > threshold decides.

    Args:
        histogram: int64[C, 2, 100] as in `Measured`.
        of: Index of the class.
        threshold: A multiple of 0.01 from 0 to 0.99.

    Raises:
        ValueError: The threshold lies between two of `THRESHOLDS`.
    """
    place = round(threshold * HISTOGRAM_BINS) if math.isfinite(threshold) else -1
    if not 0 <= place < HISTOGRAM_BINS or abs(THRESHOLDS[place] - threshold) > 1e-9:
        raise ValueError(f"threshold {threshold} must be a multiple of 0.01 from 0 to 0.99")
    return float(dice_by_threshold(histogram, of=of)[place])


def _entries(measured: Measured, metric: str) -> Floats:
    """Return what each image adds to a score, [N, ...]."""
    counts = measured.boundary if metric == "boundary_f" else measured.confusion
    return counts.astype(np.float64)


def _class_scores(sums: Floats, metric: str) -> Floats:
    """Return the scores [..., C] of sums of `_entries`; NaN where a class is nowhere."""
    if metric == "boundary_f":
        true, found, predicted, right = np.moveaxis(sums, -1, 0)
        recall, precision = divided(found, true), divided(right, predicted)
        value = np.nan_to_num(divided(2 * recall * precision, recall + precision))
        return np.where(true + predicted > 0, value, np.nan)
    tp = np.diagonal(sums, axis1=-2, axis2=-1).copy()
    fn, fp = sums.sum(-1) - tp, sums.sum(-2) - tp
    kind = cast(OverlapKind, "f1" if metric == "dice" else metric)
    return np.asarray(overlap_score(tp, fp, fn, kind=kind))


def overlap_scores(confusion: Tensor, data: SegmentationData) -> dict[str, float]:
    """Return Dice and IoU, pooled over pixels, by their columns in `metrics.csv`.

    On a binary task the score is that of the foreground: the background is easy, and would hide a
    bad foreground.

    Args:
        confusion: Pixels by truth and prediction, int[C C].
        data: Whose classes they are.
    """
    counts = confusion.cpu().double().numpy()
    dice, iou = _class_scores(counts, "dice"), _class_scores(counts, "iou")
    whole = [float(x[1] if data.mode == "binary" else _mean(x)) for x in (dice, iou)]
    each = [f"{key}/{name}" for key in ("dice", "iou") for name in data.class_names]
    scores = [*whole, *dice.tolist(), *iou.tolist()]
    return dict(zip(["score", "iou", *each], scores, strict=True))


def _mean(scores: Floats) -> Floats:
    """Return the mean over the last axis without the NaNs; NaN where there is nothing else."""
    there = ~np.isnan(scores)
    return divided(np.where(there, scores, 0.0).sum(-1), there.sum(-1).astype(np.float64))
