"""What a comparison found, as plain values: all that the report and the tables are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from denseloss.data.samples import Task

Pooling = Literal["image", "pooled"]
"""`"image"`: the mean over the held-out images of each image's score; `"pooled"`: one score of all
their pixels together."""

SIZES = ("small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of the held-out images.

    Attributes:
        key: As in `results.csv`.
        name: As a reader knows it.
        higher_is_better: False for a distance.
        unit: `"px"` for a distance, empty for a share of 1.
        definition: In a sentence, with what an image without the class scores.
    """

    key: str
    name: str
    higher_is_better: bool
    unit: str
    definition: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and images, and how sure it is.

    Attributes:
        value: The estimate.
        low: Lower end of the confidence interval; NaN where there is none.
        high: Upper end.
        standard_error: Of the estimate, over new seeds and new images.
        freedom: Degrees of freedom at which a t interval with this standard error would be as
            wide; inf for the normal.
    """

    value: float
    low: float
    high: float
    standard_error: float
    freedom: float


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What would make a difference of some size detectable, everything else as it is.

    Attributes:
        effect: The difference to be found.
        seeds: How many more seeds would do, 0 if there are enough; None where seeds alone never do.
        images: How many more held-out images would do; None where images alone never do.
    """

    effect: float
    seeds: int | None
    images: int | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A loss against the baseline in one metric, paired by seed and by image.

    Attributes:
        metric: Its key.
        pooling: How the score is taken.
        seeds: How many seeds both have finished.
        images: How many held-out images there are.
        difference: Loss minus baseline, in the unit of the metric.
        p: Two-sided, before correction.
        p_corrected: After Holm's correction over all losses.
        improvement: Probability that the loss scores better than the baseline on an image, with a
            seed of its own; ties count half.
        effect_size: Mean difference over the standard deviation of the images' differences.
            Both are of scores per image, and NaN where scores are pooled.
        needed: For the smallest difference that matters.
        verdict: `"better"`, `"worse"` or `"undecided"`.
        words: The verdict as a sentence.
    """

    metric: str
    pooling: Pooling
    seeds: int
    images: int
    difference: Estimate
    p: float
    p_corrected: float
    improvement: Estimate
    effect_size: float
    needed: Needed
    verdict: Literal["better", "worse", "undecided"]
    words: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial that did not finish.

    Attributes:
        seed: Of the trial.
        lr: Learning rate of the trial.
        error: One line.
        log: Path of its log, relative to the comparison's folder.
    """

    seed: int
    lr: float
    error: str
    log: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the loss alone costs in a training step: forward and backward, on the step's logits.

    Attributes:
        milliseconds: Median.
        mebibytes: Highest memory above that of logits, target and their gradient's start.
        shape: Of the logits.
        device: Where it was measured, with the threads.
    """

    milliseconds: float
    mebibytes: float
    shape: tuple[int, ...]
    device: str


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The threshold of a class's probability that is best on validation, and what it is worth.

    Attributes:
        best: The threshold with the highest validation Dice, mean over the seeds.
        dice: Held-out Dice (pooled) at the usual decision: 0.5, or the most probable class.
        best_dice: Held-out Dice (pooled) when p > best decides.
    """

    best: float
    dice: float
    best_dice: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far probabilities can be believed, on all held-out pixels and seeds.

    Attributes:
        what: `"probability of CLASS"` on a binary task, else `"confidence of the predicted class"`.
        pixels: Pixels per bin of equal width between 0 and 1.
        confidence: Their mean probability, NaN in an empty bin.
        frequency: How often it was right, NaN in an empty bin.
        ece: Expected calibration error: mean |confidence - frequency| over the pixels; per seed,
            then over the seeds.
        thresholds: By class name; the foreground alone on a binary task.
    """

    what: str
    pixels: tuple[float, ...]
    confidence: tuple[float, ...]
    frequency: tuple[float, ...]
    ece: Estimate
    thresholds: Mapping[str, Threshold]


@dataclass(frozen=True, kw_only=True)
class LossResults:
    """All that is known of one loss.

    Attributes:
        loss: The expression, which is its name in the report.
        reason: Why `--loss auto` proposed it; empty if the user named it.
        notes: What it is taken as on this task, in plain words.
        lr: The learning rate that was chosen; NaN where every trial failed.
        searched: Validation Dice by learning rate, NaN where the trial failed.
        at_edge: Whether the best learning rate is the lowest or the highest that was tried.
        seeds: Of the finished trials at the chosen learning rate, ascending.
        curves: Rows of `metrics.csv` by seed: `step`, `loss`, `val_loss`, `mean_dice`, ...
        per_seed: Score by (metric, pooling), a value per seed.
        scores: Mean over the seeds by (metric, pooling), with its interval.
        per_class: The same by (metric, pooling, class name).
        recall: Share of the held-out objects that are found, by (class name, size).
        calibration: None where no trial finished.
        cost: None where it could not be measured.
        steps_to_95: By seed: the first validated step whose Dice reaches 95 % of the last one's.
        seconds: Training time of each finished trial.
        failures: The trials of this loss that did not finish.
        comparisons: By (metric, pooling); empty for the baseline.
    """

    loss: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    lr: float
    searched: Mapping[float, float]
    at_edge: bool
    seeds: tuple[int, ...]
    curves: Mapping[int, tuple[Mapping[str, float], ...]]
    per_seed: Mapping[tuple[str, Pooling], tuple[float, ...]]
    scores: Mapping[tuple[str, Pooling], Estimate]
    per_class: Mapping[tuple[str, Pooling, str], Estimate]
    recall: Mapping[tuple[str, str], Estimate]
    calibration: Calibration | None
    cost: Cost | None
    steps_to_95: Mapping[int, int]
    seconds: tuple[float, ...]
    failures: tuple[Failure, ...]
    comparisons: Mapping[tuple[str, Pooling], Comparison]


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


@dataclass(frozen=True, kw_only=True)
class Look:
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
    probability: NDArray[np.float32]
    gradients: Mapping[str, NDArray[np.float32]]
    weights: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole comparison.

    Attributes:
        name: Of the data.
        data_lines: What was found in the data, in plain words.
        task: What the masks mean.
        class_names: Background included.
        counts: Images in `train`, `val` and `held out`.
        held_out: What the held-out split is, in words.
        metrics: All that are shown; the first is the one of the verdict.
        pooling: How the verdict's score is taken.
        level: Of the confidence intervals, such as 0.95.
        effect: The smallest difference that matters.
        losses: In the order they were given; the first is the baseline.
        size_limits: Object areas in pixels that divide small, medium and large.
        verdict: In words, a sentence per loss, after one that sums up.
        warnings: What weakens the conclusions, in plain words.
        settings: What all trials had in common: name and value, to be shown.
        commands: To repeat it, a line each.
        versions: Name and version of what it ran on.
        unfinished: How many planned trials are neither finished nor failed.
        cases: The images on which the losses differ most, the most first.
        looks: Gradient maps; empty where none could be made.
    """

    name: str
    data_lines: tuple[str, ...]
    task: Task
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    held_out: str
    metrics: tuple[Metric, ...]
    pooling: Pooling
    level: float
    effect: float
    losses: tuple[LossResults, ...]
    size_limits: tuple[float, float] | None
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    unfinished: int = 0
    cases: tuple[Case, ...] = field(default=(), repr=False)
    looks: tuple[Look, ...] = field(default=(), repr=False)

    @property
    def baseline(self) -> LossResults:
        """The loss that the others are compared with."""
        return self.losses[0]
