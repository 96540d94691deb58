"""What is measured of one trained network on held-out images, and the scores that come of it."""

import math
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from denseloss import compose
from denseloss.compare.results import SIZES, Metric, Pooling
from denseloss.data import VOID, Sample, SegmentationData, SegmentationDataset
from denseloss.data.samples import Task, evenly
from denseloss.train.criterion import TaskCriterion
from denseloss.train.errors import InputError
from denseloss.train.folder import RunFolder, writing_whole
from denseloss.train.models import Segmenter, build_model
from denseloss.train.segmentation import SegmentationTask

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Classes = NDArray[np.uint8]

RELIABILITY_BINS = 15
HISTOGRAM_BINS = 100
THRESHOLDS: Floats = np.arange(HISTOGRAM_BINS) / HISTOGRAM_BINS
"""The thresholds at which a histogram tells the Dice score."""

_TOLERANCE = 0.0075
_VERSION = 1
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_MOST_MASKS = 500
# What reading a file can raise whose bytes were changed.
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_ABSENT = (
    "A class that an image neither holds nor is predicted scores 1 there; one that is missed or "
    "predicted in vain scores 0."
)

METRICS = (
    Metric(
        key="dice",
        name="Dice",
        higher_is_better=True,
        unit="",
        definition="Dice score, also called F1: 2 TP / (2 TP + FP + FN). " + _ABSENT,
    ),
    Metric(
        key="iou",
        name="IoU",
        higher_is_better=True,
        unit="",
        definition="Intersection over union: TP / (TP + FP + FN). " + _ABSENT,
    ),
    Metric(
        key="precision",
        name="Precision",
        higher_is_better=True,
        unit="",
        definition="Share of the predicted pixels that are right: TP / (TP + FP). " + _ABSENT,
    ),
    Metric(
        key="recall",
        name="Recall",
        higher_is_better=True,
        unit="",
        definition="Share of the true pixels that are found: TP / (TP + FN). " + _ABSENT,
    ),
    Metric(
        key="f2",
        name="F2",
        higher_is_better=True,
        unit="",
        definition=(
            "F-score with β = 2, for which recall counts twice as much as precision: "
            "5 TP / (5 TP + 4 FN + FP). " + _ABSENT
        ),
    ),
    Metric(
        key="boundary_f",
        name="Boundary F",
        higher_is_better=True,
        unit="",
        definition=(
            "F1 of the boundary pixels (Csurka et al. 2013): one is right if the other boundary is "
            "within 0.75 % of the image's diagonal, at least 1 pixel. " + _ABSENT
        ),
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
    ),
)
"""All metrics of the held-out images. An image that is void everywhere has no score."""


class TrainedTask(SegmentationTask):
    """The network of a finished run, which predicts under the precision that it was validated with.

    Args:
        model: The network.
        criterion: The loss that trained it.
        task: What the classes mean.
        class_names: Background included.
        seed: Of the run.
        precision: Of the run, as Lightning names it.
    """

    def __init__(
        self,
        model: Segmenter,
        criterion: TaskCriterion,
        *,
        task: Task,
        class_names: tuple[str, ...],
        seed: int,
        precision: str,
    ) -> None:
        super().__init__(model, criterion, task=task, class_names=class_names, seed=seed)
        self.precision = precision

    @torch.no_grad()
    def predict(self, image: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the logits at a given size and the classes they say, without a graph."""
        with self._autocast():
            return super().predict(image, size=size)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()


def restore(
    run_folder: Path, *, data: SegmentationData, device: torch.device | str | None = None
) -> TrainedTask:
    """Load the network of a finished run, with the weights of `best.ckpt`.

    Args:
        run_folder: Of `denseloss train`.
        data: What it was trained on.
        device: Where it predicts; None is the accelerator of the run.

    Returns:
        The network with its criterion, in evaluation mode.

    Raises:
        InputError: A file is missing or cannot be read, the data has other classes, or the
            accelerator of the run is not there.
    """
    folder = RunFolder(run_folder)
    try:
        config = folder.config()
        settings, names = config["settings"], tuple(config["data"]["class_names"])
        task = config["data"]["task"]
        found = (data.task, data.class_names)
        if (task, names) != found:
            raise InputError(
                f"{folder.path}: was trained on the {task} classes {', '.join(names)}, the data "
                f"now has the {found[0]} classes {', '.join(found[1])}"
            )
        device = torch.device(device or _device(settings, folder.path))
        criterion = TaskCriterion(
            compose.parse(settings["loss"], mixed=True),
            task=data.task,
            num_classes=data.num_classes,
        )
        # The weights are overwritten; whoever draws from the generator next must not notice.
        with torch.random.fork_rng(devices=[]):
            model = build_model(
                settings["model"],
                num_outputs=criterion.num_outputs,
                deep_supervision=settings["deep_supervision"],
            )
        trained = TrainedTask(
            model,
            criterion,
            task=data.task,
            class_names=data.class_names,
            seed=settings["seed"],
            precision=settings["precision"],
        )
        best = torch.load(folder.best_file, map_location="cpu", weights_only=True)
        trained.load_state_dict(best["state_dict"])
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: is missing; this run is not finished") from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder.path}: its config.toml or best.ckpt cannot be read ({reason}); remove the "
            "folder and train again"
        ) from error
    return trained.to(device).eval()


def _device(settings: Mapping[str, Any], path: Path) -> str:
    accelerator = settings["accelerator"]
    if accelerator in ("cuda", "gpu") and torch.cuda.is_available():
        devices = settings["devices"]
        return f"cuda:{int(devices.split(',')[0])}" if "," in devices else "cuda"
    if accelerator in ("mps", "gpu") and torch.backends.mps.is_available():
        return "mps"
    if accelerator == "cpu":
        return "cpu"
    raise InputError(f"{path}: was trained on {accelerator}, which torch does not find here")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one network does on N images of C classes, background included; void counts nowhere.

    Attributes:
        task: What the classes mean.
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
            probability, float64[N, 15, 3]: on a binary task of the foreground and whether it is
            there, otherwise of the predicted class and whether it is right. Bin i holds
            i/15 < p <= (i+1)/15, the first also 0.
        histogram: Pixels of all images by class c, whether the truth is c, and bin of c's
            probability, int64[C, 2, 100]. Bin i holds i/100 < p <= (i+1)/100, the first also 0.
        predictions: Classes uint8[h, w] by place of the image, for some images.
    """

    task: Task
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
        for name, shape in _shapes(n, c).items():
            array: NDArray[Any] = getattr(self, name)
            dtype = np.float64 if name in ("hd95", "reliability") else np.int64
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"Measured: {name} must be {np.dtype(dtype).name}{list(shape)}, got "
                    f"{array.dtype.name}{list(array.shape)}"
                )

    def save(self, path: Path) -> None:
        """Write a compressed `.npz`, such that it is seen whole or not at all."""
        save_arrays(
            path,
            {
                "version": np.array(_VERSION),
                "task": np.array(self.task),
                "class_names": np.array(self.class_names),
                "names": np.array(self.names, dtype=np.str_),
                **{name: getattr(self, name) for name in _shapes(0, 0)},
                **{f"prediction_{i}": classes for i, classes in self.predictions.items()},
            },
        )


def load(path: Path) -> Measured:
    """Read what `Measured.save` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or another version wrote it; the message names it.
    """
    arrays = load_arrays(path)
    try:
        if int(arrays["version"]) != _VERSION:
            raise ValueError(f"it has format {arrays['version']}, not {_VERSION}")
        return Measured(
            task=_task(str(arrays["task"])),
            class_names=tuple(arrays["class_names"].tolist()),
            names=tuple(arrays["names"].tolist()),
            **{name: arrays[name] for name in _shapes(0, 0)},
            predictions={
                int(name.removeprefix("prediction_")): array
                for name, array in arrays.items()
                if name.startswith("prediction_")
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no measurements of this version ({error})") from error


def _shapes(n: int, c: int) -> dict[str, tuple[int, ...]]:
    return {
        "confusion": (n, c, c),
        "boundary": (n, c, 4),
        "hd95": (n, c),
        "objects": (n, c, len(SIZES), 2),
        "reliability": (n, RELIABILITY_BINS, 3),
        "histogram": (c, 2, HISTOGRAM_BINS),
    }


def _task(text: str) -> Task:
    if text == "binary":
        return "binary"
    if text == "multiclass":
        return "multiclass"
    raise ValueError(f"unknown task {text!r}")


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed `.npz`, such that it is seen whole or not at all.

    Args:
        path: Of the file; what it held before is replaced.
        arrays: Of plain numbers or text.
    """
    with writing_whole(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote, all of it, with its checksums.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged; the message names it.
    """
    try:
        # numpy need not read up to the checksum of an array.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it to make it again") from error


def size_limits(data: SegmentationData) -> tuple[float, float] | None:
    """Return the object areas, in pixels, that divide small, medium and large.

    Args:
        data: The terciles are those of the objects in its first 500 training masks.

    Returns:
        Up to which area an object is small, and up to which it is medium; None where there is no
        object.
    """
    areas = [
        area
        for sample in data.train[:_MOST_MASKS]
        for area in _object_areas(data.mask(sample).numpy(), classes=data.num_classes)
    ]
    if not areas:
        return None
    low, high = np.quantile(areas, [1 / 3, 2 / 3])
    return float(low), float(high)


def _object_areas(mask: Classes, *, classes: int) -> list[int]:
    areas: list[int] = []
    for index in range(1, classes):
        labels, _ = _components(mask == index)
        areas += np.bincount(labels.ravel())[1:].tolist()
    return areas


def measure(
    task: SegmentationTask,
    data: SegmentationData,
    samples: Sequence[Sample],
    *,
    size_limits: tuple[float, float] | None,
    keep: int,
) -> Measured:
    """Measure a network on images, each at its own size.

    Args:
        task: The network with its criterion, as `restore` gives it.
        data: Whose images.
        samples: Such as `data.test`.
        size_limits: Of the function of that name; None counts no object.
        keep: Of how many images the predictions are kept, evenly spaced over the samples.

    Returns:
        What was measured, in the order of the samples.

    Raises:
        ValueError: A logit is NaN or infinite; the message names the image.
    """
    items = SegmentationDataset(data, samples, size=1, train=False)
    kept = set(evenly(keep, of=len(samples)))
    classes = data.num_classes
    rows: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("confusion", "boundary", "hd95", "objects", "reliability")
    }
    histogram = np.zeros((classes, 2, HISTOGRAM_BINS), dtype=np.int64)
    predictions = {}
    for place, sample in enumerate(samples):
        item = items[place]
        image, mask = item["image"], item["mask"]
        assert isinstance(image, Tensor)
        assert isinstance(mask, Tensor)
        size = (mask.shape[-2], mask.shape[-1])
        with torch.no_grad():
            logits, chosen = task.predict(image[None].to(task.device), size=size)
        if not bool(logits.isfinite().all()):
            raise ValueError(f"{sample.name}: the network's logits are not finite numbers")
        truth = mask.numpy().astype(np.uint8)
        guess = chosen[0].cpu().numpy().astype(np.uint8)
        known = truth != VOID
        seen = np.where(known, guess, VOID).astype(np.uint8)
        probability = probabilities(logits, link=task.criterion.link).numpy()[:, known]
        confusion = _confusion(truth[known], guess[known], classes=classes)
        boundary, hd95 = _boundaries(truth, seen, confusion)
        histogram += _histogram(probability, truth[known])
        rows["confusion"].append(confusion)
        rows["boundary"].append(boundary)
        rows["hd95"].append(hd95)
        rows["objects"].append(_objects(truth, seen, size_limits, classes=classes))
        rows["reliability"].append(
            _reliability(probability, truth[known], guess[known], task=data.task)
        )
        if place in kept:
            predictions[place] = guess
    shapes = _shapes(len(samples), classes)
    return Measured(
        task=data.task,
        class_names=data.class_names,
        names=tuple(sample.name for sample in samples),
        **{
            name: np.array(
                found, dtype=np.float64 if name in ("hd95", "reliability") else np.int64
            ).reshape(shapes[name])
            for name, found in rows.items()
        },  # type: ignore[arg-type]
        histogram=histogram,
        predictions=predictions,
    )


def probabilities(logits: Tensor, *, link: Literal["softmax", "sigmoid"]) -> Tensor:
    """Return the probability of each class from the logits of one image.

    Args:
        logits: float[1, C, h, w], or float[1, 1, h, w] of the foreground of a binary task.
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


def _confusion(truth: Classes, guess: Classes, *, classes: int) -> Ints:
    pairs = truth.astype(np.int64) * classes + guess
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


def _reliability(probability: Floats, truth: Classes, guess: Classes, *, task: Task) -> Floats:
    if task == "binary":
        believed, came_true = probability[1], truth == 1
    else:
        believed = np.take_along_axis(probability, guess[None].astype(np.int64), 0)[0]
        came_true = guess == truth
    place = _bins(believed, count=RELIABILITY_BINS)
    sums = (
        np.bincount(place, weights=weights, minlength=RELIABILITY_BINS)
        for weights in (np.ones(len(place)), believed, came_true.astype(np.float64))
    )
    return np.stack(list(sums), axis=1)


def _boundaries(truth: Classes, guess: Classes, confusion: Ints) -> tuple[Ints, Floats]:
    """Return the boundary pixels [C, 4] and the distance [C] of each class."""
    diagonal = math.hypot(*truth.shape)
    tolerance = max(1.0, _TOLERANCE * diagonal)
    counts = np.zeros((len(confusion), 4), dtype=np.int64)
    hd95 = np.zeros(len(confusion))
    for index in np.flatnonzero(confusion.sum(0) + confusion.sum(1)):
        true, predicted = _boundary(truth == index), _boundary(guess == index)
        counts[index, [0, 2]] = len(true), len(predicted)
        if len(true) == 0 or len(predicted) == 0:
            hd95[index] = diagonal
            continue
        away, back = _distances(true, predicted), _distances(predicted, true)
        counts[index, [1, 3]] = (away <= tolerance).sum(), (back <= tolerance).sum()
        hd95[index] = max(np.percentile(away, 95), np.percentile(back, 95))
    return counts, hd95


def _boundary(mask: NDArray[np.bool_]) -> Ints:
    """Return the places [k, 2] of the pixels of a mask with a 4-neighbour that is not of it."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = (
        mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    )
    return np.argwhere(mask & ~inner)


def _distances(places: Ints, others: Ints) -> Floats:
    """Return the distance from each place to the nearest of the others, exactly."""
    # As exact as a distance transform and faster, since boundaries are sparse.
    distances, _ = cKDTree(others).query(places)
    return np.asarray(distances, dtype=np.float64)


def _components(mask: NDArray[np.bool_]) -> tuple[Ints, int]:
    labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
    return labels, int(count)


def _objects(
    truth: Classes, guess: Classes, limits: tuple[float, float] | None, *, classes: int
) -> Ints:
    counts = np.zeros((classes, len(SIZES), 2), dtype=np.int64)
    if limits is None:
        return counts
    for index in range(1, classes):
        labels, count = _components(truth == index)
        if count == 0:
            continue
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        hits = np.bincount(labels[guess == index], minlength=count + 1)[1:]
        size = np.searchsorted(limits, areas, side="left")
        counts[index, :, 0] = np.bincount(size, minlength=len(SIZES))
        counts[index, :, 1] = np.bincount(size[2 * hits >= areas], minlength=len(SIZES))
    return counts


# ------------------------------------------------------------------------------------ the scores


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A score as sums over images, so that images can be drawn anew.

    Attributes:
        counts: What each image adds, float64[N, K].
        score: The score of such sums, float64[..., K] to float64[...]; NaN where they have none.
            A mean of several networks' scores is one over their scores, never over their sums.
    """

    counts: Floats
    score: Callable[[Floats], Floats]

    def value(self) -> float:
        """Return the score of all images, each once."""
        return float(self.score(self.counts.sum(0)))


def poolings(metric: str) -> tuple[Pooling, ...]:
    """Return how a metric, named by its key, can be pooled."""
    return ("image",) if metric == "hd95" else ("image", "pooled")


def counts_of(
    measured: Measured, metric: str, pooling: Pooling, *, of: int | None = None
) -> Counts:
    """Return a metric as sums over images.

    Args:
        measured: Of one network.
        metric: Its key.
        pooling: One of `poolings(metric)`.
        of: Index of a class. None is the score of the whole: that of the foreground on a binary
            task, otherwise the mean over all classes, the background included.

    Returns:
        With `"image"` the sum of the images' scores and their number (K = 2), void images left
        out. With `"pooled"` the pixels that the score is made of; a class that neither truth nor
        prediction holds has no score, and the mean is that of the others.

    Raises:
        ValueError: The metric or the class is unknown, or the metric is not pooled so.
    """
    if metric not in {known.key for known in METRICS}:
        raise ValueError(f"unknown metric {metric!r}")
    if pooling not in poolings(metric):
        raise ValueError(f"{metric} has no {pooling!r} score")
    classes = len(measured.class_names)
    if of is not None and not 0 <= of < classes:
        raise ValueError(f"class {of} of {classes}")
    if of is None and measured.task == "binary":
        of = 1

    def whole(scores: Floats) -> Floats:
        return _mean(scores) if of is None else np.asarray(scores[..., of])

    if pooling == "image":
        values = whole(image_scores(measured, metric))
        scored = measured.confusion.any(axis=(1, 2))
        return Counts(
            counts=np.stack([np.where(scored, values, 0.0), scored.astype(np.float64)], axis=1),
            score=_quotient,
        )
    entries, by_class = _entries(measured, metric)
    tail = entries.shape[1:]

    def score(sums: Floats) -> Floats:
        return whole(by_class(sums.reshape(*sums.shape[:-1], *tail)))

    return Counts(counts=entries.reshape(len(entries), -1), score=score)


def image_scores(measured: Measured, metric: str) -> Floats:
    """Return a metric of each image and class, float64[N, C], with the rule for absent classes.

    An image that is void everywhere has no score: NaN.
    """
    void = ~measured.confusion.any(axis=(1, 2))
    if metric == "hd95":
        scores = measured.hd95.copy()
    else:
        entries, by_class = _entries(measured, metric)
        scores = by_class(entries)
        scores[np.isnan(scores)] = 1.0
    scores[void] = np.nan
    return scores


def recall_counts(measured: Measured, *, of: int, size: str) -> Counts:
    """Return the share of a class's objects of a size that are found, as sums over images.

    Args:
        measured: Of one network.
        of: Index of the class, 1 or more.
        size: `"small"`, `"medium"` or `"large"`.
    """
    counts = measured.objects[:, of, SIZES.index(size)].astype(np.float64)
    return Counts(counts=counts[:, ::-1].copy(), score=_quotient)


def calibration_counts(measured: Measured) -> Counts:
    """Return the expected calibration error as sums over images (K = 45)."""

    def score(sums: Floats) -> Floats:
        bins = sums.reshape(*sums.shape[:-1], RELIABILITY_BINS, 3)
        gap = np.abs(bins[..., 1] - bins[..., 2]).sum(-1)
        return _divided(gap, bins[..., 0].sum(-1))

    counts = measured.reliability.reshape(len(measured.names), -1)
    return Counts(counts=counts, score=score)


def dice_by_threshold(histogram: Ints, *, of: int) -> Floats:
    """Return the pooled Dice score of a class when p > threshold decides, for each of `THRESHOLDS`.

    Args:
        histogram: int64[C, 2, 100] as in `Measured`.
        of: Index of the class.

    Returns:
        float64[100]; NaN where neither the truth nor the prediction holds the class.
    """
    without, within = histogram[of].astype(np.float64)
    hit = within[::-1].cumsum()[::-1]
    false = without[::-1].cumsum()[::-1]
    return _divided(2 * hit, hit + false + within.sum())


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


def _entries(measured: Measured, metric: str) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Return what a score is made of, [N, ...], and the scores [..., C] of sums of it."""
    if metric == "boundary_f":
        return measured.boundary.astype(np.float64), _boundary_f
    return measured.confusion.astype(np.float64), _OVERLAPS[metric]


def _overlap(
    formula: Callable[[Floats, Floats, Floats], tuple[Floats, Floats]],
) -> Callable[[Floats], Floats]:
    """Return the score of each class [..., C] of a confusion matrix [..., C, C]."""

    def score(confusion: Floats) -> Floats:
        hit = np.diagonal(confusion, axis1=-2, axis2=-1)
        missed = confusion.sum(-1) - hit
        false = confusion.sum(-2) - hit
        value = _or_zero(*formula(hit, missed, false))
        return np.where(hit + missed + false > 0, value, np.nan)

    return score


def _boundary_f(entries: Floats) -> Floats:
    true, found, predicted, right = np.moveaxis(entries, -1, 0)
    recall, precision = _or_zero(found, true), _or_zero(right, predicted)
    value = _or_zero(2 * recall * precision, recall + precision)
    return np.where(true + predicted > 0, value, np.nan)


_OVERLAPS = {
    "dice": _overlap(lambda hit, missed, false: (2 * hit, 2 * hit + missed + false)),
    "iou": _overlap(lambda hit, missed, false: (hit, hit + missed + false)),
    "precision": _overlap(lambda hit, _, false: (hit, hit + false)),
    "recall": _overlap(lambda hit, missed, _: (hit, hit + missed)),
    "f2": _overlap(lambda hit, missed, false: (5 * hit, 5 * hit + 4 * missed + false)),
}


def _quotient(sums: Floats) -> Floats:
    """Return the first of two sums over the second; NaN where that is 0."""
    return _divided(sums[..., 0], sums[..., 1])


def _divided(a: Floats, b: Floats) -> Floats:
    """Return a / b; NaN where b is 0."""
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.nan)


def _or_zero(a: Floats, b: Floats) -> Floats:
    """Return a / b; 0 where b is 0."""
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), 0.0)


def _mean(scores: Floats) -> Floats:
    """Return the mean over the last axis without the NaNs; NaN where there is nothing else."""
    there = ~np.isnan(scores)
    return _divided(np.where(there, scores, 0.0).sum(-1), there.sum(-1).astype(np.float64))
