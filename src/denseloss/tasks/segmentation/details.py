"""What a comparison of segmentations adds to its results: objects by size, and calibration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from denseloss.report.numbers import Estimate
from denseloss.tasks.evidence import Evidence, LossEvidence
from denseloss.tasks.segmentation.measure import (
    SIZES,
    Measured,
    best_threshold,
    calibration_score,
    dice_at,
    dice_by_threshold,
    recall_score,
    score,
    scored_classes,
)


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
        what: `"probability of CLASS"` in binary mode, else `"confidence of the predicted class"`.
        pixels: Pixels per bin of equal width between 0 and 1.
        confidence: Their mean probability, NaN in an empty bin.
        frequency: How often it was right, NaN in an empty bin.
        ece: Expected calibration error: mean |confidence - frequency| over the pixels; per seed,
            then over the seeds.
        thresholds: By class name; the foreground alone in binary mode.
    """

    what: str
    pixels: tuple[float, ...]
    confidence: tuple[float, ...]
    frequency: tuple[float, ...]
    ece: Estimate
    thresholds: Mapping[str, Threshold]


@dataclass(frozen=True, kw_only=True)
class SegmentationDetails:
    """What is known of one loss besides its scores.

    Attributes:
        recall: Share of the objects that are found, by (class name, size).
        calibration: None where no trial finished.
    """

    recall: Mapping[tuple[str, str], Estimate]
    calibration: Calibration | None


def details(evidence: Evidence) -> tuple[SegmentationDetails, ...]:
    """Return the details of each loss."""
    return tuple(
        SegmentationDetails(recall=_recall(evidence, one), calibration=_calibration(evidence, one))
        if one.seeds
        else SegmentationDetails(recall={}, calibration=None)
        for one in evidence.losses
    )


def _recall(evidence: Evidence, loss: LossEvidence) -> dict[tuple[str, str], Estimate]:
    first: Measured = loss.held_out[0]
    # Without such an object there is nothing to find.
    return {
        (name, size): evidence.estimate(recall_score(loss.held_out, of=of, size=size))
        for of, name in list(enumerate(first.class_names))[1:]
        for i, size in enumerate(SIZES)
        if first.objects[:, of, i, 0].any()
    }


def _calibration(evidence: Evidence, loss: LossEvidence) -> Calibration:
    first: Measured = loss.held_out[0]
    bins = np.sum([one.reliability.sum(0) for one in loss.held_out], axis=0)
    with np.errstate(invalid="ignore"):
        shares = bins[:, 1:] / bins[:, :1]
    thresholds = {first.class_names[of]: _threshold(loss, of) for of in scored_classes(first)}
    return Calibration(
        what=f"probability of {first.class_names[1]}"
        if first.mode == "binary"
        else "confidence of the predicted class",
        pixels=tuple(bins[:, 0].tolist()),
        confidence=tuple(shares[:, 0].tolist()),
        frequency=tuple(shares[:, 1].tolist()),
        ece=evidence.estimate(calibration_score(loss.held_out)),
        thresholds={name: one for name, one in thresholds.items() if one is not None},
    )


def _threshold(loss: LossEvidence, of: int) -> Threshold | None:
    """Return what the thresholds of the seeds are worth, None where no seed has one."""
    usual = score(loss.held_out, "dice", "pooled", of=of).value()
    found = []
    for held_out, validation, dice in zip(loss.held_out, loss.validation, usual, strict=True):
        best = best_threshold(dice_by_threshold(validation.histogram, of=of))
        if not math.isnan(best):
            found.append((best, dice, dice_at(held_out.histogram, of=of, threshold=best)))
    if not found:
        return None
    best, dice, best_dice = np.mean(found, axis=0).tolist()
    return Threshold(best=best, dice=dice, best_dice=best_dice)
