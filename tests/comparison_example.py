"""Comparisons that never were: what the tests of the report show."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from denseloss.compare.results import (
    Answer,
    Comparison,
    Failure,
    LossResults,
    LossStanding,
    NextStep,
    Results,
    Standing,
)
from denseloss.explain.cost import Cost
from denseloss.report.numbers import Estimate
from denseloss.report.sections import Section
from denseloss.tasks import Evidence, LossEvidence, Metric, Pooling
from denseloss.tasks.segmentation import gradient_maps
from denseloss.tasks.segmentation.cases import keep_images
from denseloss.tasks.segmentation.details import Calibration, SegmentationDetails, Threshold
from denseloss.tasks.segmentation.gradient_maps import GradientMaps
from denseloss.tasks.segmentation.measure import METRICS, SIZES, Measured
from denseloss.tasks.segmentation.sections import sections

BINARY_LOSSES = (
    "binary_cross_entropy",
    "binary_cross_entropy + binary_dice",
    "binary_dice(beta=2, smooth=1) + 0.5*binary_focal(gamma=2)",
    "binary_focal(gamma=2)",
    "binary_tversky(alpha=0.3, beta=0.7)",
    "structure",
)
BINARY_NAMES = ("background", "nucleus")
BINARY_EFFECTS = (0.0, 0.021, 0.014, -0.018, 0.013, 0.020)
BINARY_HALVES = (0.008, 0.0, 0.012, 0.008, 0.011, 0.003)
"""Of the intervals of the differences from the second loss."""
NOTHING = Estimate(
    value=math.nan, low=math.nan, high=math.nan, standard_error=math.nan, freedom=math.nan
)


def estimate(value: float, half: float) -> Estimate:
    return Estimate(
        value=value, low=value - half, high=value + half, standard_error=half / 2, freedom=9.3
    )


def shapes(rng: np.random.Generator, size: int, classes: int) -> NDArray[np.uint8]:
    rows, columns = np.ogrid[:size, :size]
    truth = np.zeros((size, size), dtype=np.uint8)
    for _ in range(9):
        y, x, a, b = (*rng.uniform(0, size, 2), *rng.uniform(0.04, 0.14, 2) * size)
        inside = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        truth[inside] = rng.integers(1, classes)
    return truth


def photograph(rng: np.random.Generator, truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = truth.shape[0]
    light = 60 + 40 * np.sin(np.linspace(0, 3, size))[:, None] * np.cos(np.linspace(0, 2, size))
    grey = light + 25.0 * (truth % 6) * (truth != 255) + rng.normal(0, 6, truth.shape)
    tint = np.array([1.0, 0.85, 1.1])
    return np.clip(grey[:, :, None] * tint, 0, 255).astype(np.uint8)


def moved(truth: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    known = np.where(truth == 255, 0, truth)
    return np.roll(known, (by, by // 2), axis=(0, 1)).astype(np.uint8)


def measured(
    names: Sequence[str], truths: Sequence[NDArray[np.uint8]], *, by: int, classes: Sequence[str]
) -> Measured:
    """Of a network whose predictions are the truth, moved by some pixels."""
    predictions = {i: moved(truth, by) for i, truth in enumerate(truths)}
    n, c = len(truths), len(classes)
    confusion = np.zeros((n, c, c), np.int64)
    for i, truth in enumerate(truths):
        known = truth != 255
        np.add.at(confusion[i], (truth[known], predictions[i][known]), 1)
    return Measured(
        mode="binary" if c == 2 else "multiclass",
        class_names=tuple(classes),
        names=tuple(names),
        confusion=confusion,
        boundary=np.zeros((n, c, 4), np.int64),
        hd95=np.zeros((n, c)),
        objects=np.zeros((n, c, 3, 2), np.int64),
        reliability=np.zeros((n, 15, 3)),
        histogram=np.zeros((c, 2, 100), np.int64),
        predictions=predictions,
    )


def evidence(
    results: Results,
    folder: Path,
    classes: Sequence[str],
    *,
    count: int,
    size: int = 160,
    context: Mapping[str, Any] | None = None,
) -> Evidence:
    """What the trials left behind: images in the folder, and predictions of them."""
    rng = np.random.default_rng(3)
    truths = [shapes(rng, size, len(classes)) for _ in range(count)]
    for truth in truths if len(classes) > 2 else ():
        truth[: size // 20] = 255
    names = [
        f"held_out/stage1_{i:03d}_a1f0c3d2e4b59687_hematoxylin_eosin.png" for i in range(count)
    ]
    images = {
        name: (
            torch.from_numpy(photograph(rng, truth)).permute(2, 0, 1),
            torch.from_numpy(truth),
        )
        for name, truth in zip(names, truths, strict=True)
    }
    data: Any = SimpleNamespace(
        test=[SimpleNamespace(name=name) for name in names],
        read=lambda sample: images[sample.name],
    )
    keep_images(folder, data, keep=count)
    return Evidence(
        losses=tuple(
            LossEvidence(
                loss=loss.loss,
                seeds=loss.seeds,
                held_out=(measured(names, truths, by=1 + 2 * i, classes=classes),)
                * len(loss.seeds),
                validation=(),
            )
            for i, loss in enumerate(results.losses)
        ),
        estimate=lambda _: NOTHING,
        level="95 %",
        folder=folder,
        context=context or {},
    )


def shown(results: Results, found: Evidence) -> tuple[Section, ...]:
    return tuple(sections(found, [loss.details for loss in results.losses]))


def looks(losses: Sequence[str], *, count: int, size: int = 128) -> tuple[GradientMaps, ...]:
    rng = np.random.default_rng(4)
    made = []
    for number in range(count):
        truth = shapes(rng, size, 2)
        rows, columns = np.mgrid[:size, :size] / size
        doubt = 0.5 + 0.3 * np.sin(9 * rows) * np.cos(7 * columns)
        probability = np.where(truth == 1, 0.4 + 0.55 * doubt, 0.5 * doubt).astype(np.float32)
        wrong = probability - (truth == 1)
        gradients, weights = {}, {}
        for i, loss in enumerate(losses):
            weight = 0.2 + np.abs(wrong) ** (0.5 * i) + 0.4 * i * (truth == 1)
            weight /= weight.mean()
            gradient = wrong * weight
            gradients[loss] = (gradient / np.abs(gradient).mean()).astype(np.float32)
            weights[loss] = np.where(np.abs(wrong) < 0.02, np.nan, weight).astype(np.float32)
        made.append(
            GradientMaps(
                name=f"stage1_{number:03d}.png",
                predicted_by=f"the network trained with {losses[0]}, seed 0",
                image=photograph(rng, truth),
                truth=truth,
                class_name="nucleus",
                probability=probability,
                gradients=gradients,
                weights=weights,
            )
        )
    return tuple(made)


def compared(metric: Metric, pooling: Pooling, by: float, half: float) -> Comparison:
    sign = 1 if metric.higher_is_better else -1
    return Comparison(
        metric=metric.key,
        pooling=pooling,
        seeds=5,
        images=67,
        difference=estimate(by, half),
        by_seed=tuple(by + half * far for far in (-0.7, 0.9, 0.1, -0.5, 0.2)),
        verdict="" if abs(by) <= half else "better" if sign * by > 0 else "worse",
    )


def standing(
    place: Standing,
    words: str,
    *,
    worse_by: float = 0.0,
    upper: float = 0.0,
    risk: tuple[float, float, float] = (math.nan, math.nan, math.nan),
    more_seeds: int | None = None,
) -> LossStanding:
    best, within, regret = risk
    return LossStanding(
        standing=place,
        worse_by=worse_by,
        upper=upper,
        best=best,
        within=within,
        regret=regret,
        more_seeds=more_seeds,
        words=words,
    )


BINARY_STANDINGS = (
    standing(
        "ruled out", "Ruled out: worse by at least 0.010 Dice.", worse_by=0.010,
        risk=(0.0, 0.002, 0.0214),
    ),
    standing(
        "recommended", "`binary_cross_entropy + binary_dice` is the one to take.", upper=0.004,
        risk=(0.58, 0.94, 0.0014),
    ),
    standing(
        "open", "It may be the best or worse by 0.019 Dice: not enough seeds to tell.", upper=0.009,
        risk=(0.09, 0.31, 0.0083), more_seeds=6,
    ),
    standing(
        "ruled out", "Ruled out: worse by at least 0.028 Dice.", worse_by=0.028,
        risk=(0.0, 0.0, 0.0391),
    ),
    standing(
        "not better", "It may be the best, but not by more than 0.005 Dice.", upper=0.003,
        risk=(0.02, 0.22, 0.0093),
    ),
    standing(
        "equal", "Practically equal to `binary_cross_entropy + binary_dice`.", upper=0.002,
        risk=(0.31, 0.90, 0.0022),
    ),
)  # fmt: skip


def rows(rng: np.random.Generator, top: float, speed: float) -> tuple[Mapping[str, float], ...]:
    made = []
    for step in range(40, 1240, 40):
        dice = top * (1 - math.exp(-step / speed)) + rng.normal(0, 0.006)
        loss = 0.06 + 0.6 * math.exp(-step / speed)
        made.append(
            {
                "epoch": step / 40,
                "step": step,
                "loss": loss + rng.normal(0, 0.004),
                "val_loss": loss + 0.03 + rng.normal(0, 0.008),
                "score": dice,
                "iou": dice / (2 - dice),
            }
        )
    return tuple(made)


def calibration(index: int, names: Sequence[str], *, binary: bool) -> Calibration:
    centre = np.arange(15) / 15 + 1 / 30
    right = np.clip(centre + (0.03 * index) * np.sin(2 * np.pi * centre), 0, 1)
    pixels = 1e5 * (np.exp(-14 * centre) + 0.6 * np.exp(-14 * (1 - centre))) + 400
    empty = (index == 1) & (np.arange(15) == 7)
    return Calibration(
        what=f"probability of {names[-1]}" if binary else "confidence of the predicted class",
        pixels=tuple(np.where(empty, 0, pixels)),
        confidence=tuple(np.where(empty, np.nan, centre)),
        frequency=tuple(np.where(empty, np.nan, right)),
        ece=estimate(0.012 + 0.009 * index, 0.004),
        thresholds={
            name: Threshold(best=0.5 - 0.03 * index, dice=0.87, best_dice=0.872 + 0.002 * index)
            for name in names
        },
    )


def one_loss(
    index: int,
    loss: str,
    by: float,
    names: Sequence[str],
    sizes: bool,
    *,
    taken: float = 0.0,
    half: float = 0.008,
    stands: LossStanding | None = None,
) -> LossResults:
    """A loss whose score is `by` above a usual one's.

    Args:
        taken: The same of the recommended loss.
        half: Of the interval of the difference from that one; 0 for that loss itself.
        stands: Where it stands.
    """
    rng = np.random.default_rng(index)
    first = 1 if len(names) == 2 else 0
    keys = [(metric, pooling) for metric in METRICS for pooling in metric.poolings]
    level = {metric.key: 0.86 - 0.045 * i for i, metric in enumerate(METRICS)} | {"hd95": 14.2}
    per_seed, scores, per_part, comparisons = {}, {}, {}, {}
    for metric, pooling in keys:
        far = 1 if metric.key != "hd95" else -120
        value = level[metric.key] + far * by + (0.02 if pooling == "pooled" else 0)
        wide = 0.008 if metric.key != "hd95" else 1.4
        key = (metric.key, pooling)
        per_seed[key] = tuple(value + wide * rng.normal(0, 0.6, 5))
        scores[key] = estimate(value, wide)
        for i, name in enumerate(names[first:]):
            per_part[(*key, name)] = estimate(value - 0.011 * i * abs(far), wide * 1.3)
        if half:
            comparisons[key] = compared(metric, pooling, far * (by - taken), wide * half / 0.008)
    return LossResults(
        loss=loss,
        lr=1e-2 if index == 3 else 1e-3,
        searched={1e-4: 0.79 + by, 1e-3: 0.85 + by, 1e-2: 0.83 + by + 0.05 * (index == 3)},
        at_edge=index == 3,
        seeds=(0, 1, 2, 3, 4),
        curves={
            seed: rows(np.random.default_rng(10 * index + seed), 0.86 + by, 150 + 40 * index)
            for seed in range(5)
        },
        per_seed=per_seed,
        scores=scores,
        per_part=per_part,
        details=SegmentationDetails(
            recall={
                (name, size): estimate(0.55 + 0.17 * i + by, 0.04)
                for name in names[1:]
                for i, size in enumerate(SIZES)
            }
            if sizes
            else {},
            calibration=calibration(index, names[first:], binary=len(names) == 2),
        ),
        cost=Cost(
            milliseconds=1.8 + 2.3 * index,
            mebibytes=8.0 + 4 * (index % 4),
            shape=(8, len(names) if len(names) > 2 else 1, 256, 256),
            device="CPU (AMD EPYC), 1 thread",
        ),
        steps_to_95={seed: 320 + 40 * ((seed + index) % 4) for seed in range(5)},
        seconds=tuple(190.0 + 7 * index + seed for seed in range(5)),
        failures=(),
        comparisons=comparisons,
        standing=stands or standing("open", "Not enough seeds to tell.", upper=0.01, more_seeds=4),
    )


def binary_results() -> Results:
    """Six losses, five seeds, everything there; the second is recommended."""
    losses = [
        one_loss(i, loss, by, BINARY_NAMES, True, taken=BINARY_EFFECTS[1], half=half, stands=stands)
        for i, (loss, by, half, stands) in enumerate(
            zip(BINARY_LOSSES, BINARY_EFFECTS, BINARY_HALVES, BINARY_STANDINGS, strict=True)
        )
    ]
    reason = "Objects are small (median 180 pixels): overlap losses weigh them like large ones."
    losses[1] = dataclasses.replace(losses[1], reason=reason)
    losses[5] = dataclasses.replace(
        losses[5],
        notes=("taken as the corrected variant with a window of 31 pixels",),
        failures=(
            Failure(
                seed=3,
                lr=1e-2,
                error="the loss became NaN at step 118; try a lower --lr",
                log="trials/structure/lr_0.01/seed_3/log.txt",
            ),
        ),
    )
    return Results(
        name="dsb2018_nuclei",
        data_lines=(
            "image/mask folders: 670 images, all with a mask",
            "sizes 256x256 to 1040x1388; foreground 13.4 % of the pixels",
        ),
        part="class",
        parts=BINARY_NAMES[1:],
        score_name="Dice",
        counts={"train": 536, "val": 67, "held out": 67},
        held_out="the test split of the folder",
        metrics=METRICS,
        pooling="image",
        level=0.95,
        effect=0.005,
        losses=tuple(losses),
        answer=Answer(
            loss=1,
            words=(
                "Take `binary_cross_entropy + binary_dice`: with a probability of 94 % it is "
                "within 0.005 Dice of the best.",
                "It is the best one with a probability of 58 %; the expected loss is 0.0014 Dice.",
                "With 95 % confidence the best is among B, C, E and F.",
            ),
            next=NextStep(
                words="6 more seeds of B and C, about 41 min.",
                command="denseloss compare shared/data/dsb2018_nuclei "
                + " ".join(f'--loss "{loss}"' for loss in BINARY_LOSSES)
                + " --seeds 11 --lr 3 --steps 1200 --out runs/nuclei",
            ),
            smallest=0.011,
            trades=(
                "Compared with B, A finds less: recall falls by 0.031, precision rises by 0.012.",
                "F costs 2 times the training step of B and buys nothing that is clear.",
            ),
        ),
        warnings=(
            "1 planned trial is not finished yet; what follows is about the others.",
            "`binary_focal(gamma=2)`: the best learning rate is the highest that was tried.",
            "Validation Dice was still rising at the last step for 2 of 6 losses; a longer "
            "training may change the order.",
        ),
        settings={
            "model": "unet",
            "steps": 1200,
            "batch": 8,
            "size": 256,
            "lr": [1e-4, 1e-3, 1e-2],
            "optimizer": "AdamW",
            "weight_decay": 0.01,
            "seeds": [0, 1, 2, 3, 4],
            "augment": True,
            "precision": "32-true",
        },
        commands=(
            "denseloss compare shared/data/dsb2018_nuclei "
            + " ".join(f'--loss "{loss}"' for loss in BINARY_LOSSES)
            + " --seeds 5 --lr 3 --steps 1200 --out runs/nuclei",
            "denseloss report runs/nuclei",
        ),
        rate_seeds=1,
        versions={
            "denseloss": "0.1.0",
            "torch": "2.15.0",
            "numpy": "2.4.1",
            "scipy": "1.17.0",
            "python": "3.11.9",
        },
    )


def binary_sections(folder: Path) -> tuple[Section, ...]:
    results = binary_results()
    limits = {"size_limits": [210.0, 1040.0]}
    found = evidence(results, folder, BINARY_NAMES, count=6, context=limits)
    gradient_maps.save(looks(BINARY_LOSSES, count=2), folder / gradient_maps.FILE)
    return shown(results, found)


MULTICLASS_LOSSES = (
    "cross_entropy",
    "dice(absent='skip') + 0.5*focal(gamma=2)",
    "my_loss(<b>&\"quoted\", 'naïve — δ|x|')",
)
MULTICLASS_NAMES = ("background", "crack <wide> & deep", 'the "other" |one|', "naïve δ")


def multiclass_results() -> Results:
    """One seed, a loss that failed throughout, and much that is missing; names full of marks."""

    def single(index: int) -> LossResults:
        full = one_loss(
            index, MULTICLASS_LOSSES[index], -0.02 * index, MULTICLASS_NAMES, False,
            half=0.008 * index,
        )  # fmt: skip

        def alone(found: Estimate) -> Estimate:
            return dataclasses.replace(NOTHING, value=found.value)

        def unsure(found: Comparison) -> Comparison:
            return dataclasses.replace(
                found,
                seeds=1,
                difference=alone(found.difference),
                by_seed=(found.difference.value,),
                verdict="",
            )

        return dataclasses.replace(
            full,
            seeds=(0,),
            searched={1e-3: 0.7},
            lr=1e-3,
            at_edge=False,
            curves={0: full.curves[0][:2]},
            per_seed={key: values[:1] for key, values in full.per_seed.items()},
            scores={key: alone(found) for key, found in full.scores.items()},
            per_part={
                key: alone(found)
                for key, found in full.per_part.items()
                if key[2] != "naïve δ" or index == 0
            },
            details=SegmentationDetails(recall={}, calibration=None),
            cost=full.cost if index == 0 else None,
            steps_to_95={0: 80},
            seconds=(41.5,),
            comparisons={key: unsure(found) for key, found in full.comparisons.items()},
            standing=standing(
                "recommended" if index == 0 else "open", "One seed cannot tell.", upper=math.inf
            ),
        )

    failed = LossResults(
        loss=MULTICLASS_LOSSES[2],
        lr=math.nan,
        searched={1e-3: math.nan},
        at_edge=False,
        seeds=(),
        curves={},
        per_seed={},
        scores={},
        per_part={},
        details=SegmentationDetails(recall={}, calibration=None),
        cost=None,
        steps_to_95={},
        seconds=(),
        failures=(
            Failure(
                seed=0,
                lr=1e-3,
                error="RuntimeError: <shape> [2, 4] & [2, 3] do not match",
                log="trials/c/log.txt",
            ),
        ),
        comparisons={},
        standing=standing("open", "It has no score.", upper=math.inf),
    )
    return Results(
        name="super <alloy> & “more”",
        data_lines=("indexed masks",),
        part="class",
        parts=MULTICLASS_NAMES,
        score_name="Dice",
        counts={"train": 10, "val": 4, "held out": 4},
        held_out="a fifth of the images",
        metrics=METRICS,
        pooling="pooled",
        level=0.95,
        effect=0.01,
        losses=(single(0), single(1), failed),
        answer=Answer(
            loss=0,
            words=(
                "Take `cross_entropy` for now: it has the best score, but one seed cannot tell it "
                "from the luck of its start.",
            ),
            next=NextStep(words="Mend what made C fail, then 3 seeds of all, about 4 min."),
            smallest=math.nan,
        ),
        warnings=("Every loss has one seed only.", "4 held-out images are few."),
        settings={"model": "unet", "note": None},
        commands=("denseloss compare 'data/super <alloy>' --seeds 1 --out runs/super",),
        versions={"denseloss": "0.1.0"},
    )


def multiclass_sections(folder: Path) -> tuple[Section, ...]:
    results = multiclass_results()
    return shown(results, evidence(results, folder, MULTICLASS_NAMES, count=1, size=40))


LARGE_NAMES = ("background", *(f"class {i} of the many" for i in range(1, 20)))
LARGE_LOSSES = [f"0.{i + 1}*cross_entropy + dice(beta={i}, smooth=1)" for i in range(12)]


def large_results() -> Results:
    """Twelve losses and twenty classes; the last loss is recommended."""
    taken = 0.002 * (len(LARGE_LOSSES) - 6)
    losses = tuple(
        one_loss(
            i, loss, by, LARGE_NAMES, True, taken=taken, half=0.0 if last else 0.008,
            stands=standing(
                "recommended", "Take this.", risk=(0.4, 0.8, 0.003)
            ) if last else standing("ruled out", "Ruled out.") if by - taken < -0.008 else None,
        )
        for i, loss in enumerate(LARGE_LOSSES)
        for by, last in [(0.002 * (i - 5), i == len(LARGE_LOSSES) - 1)]
    )  # fmt: skip
    answer = Answer(
        loss=len(losses) - 1,
        words=(
            f"Take `{LARGE_LOSSES[-1]}`: with a probability of 80 % it is within 0.01 Dice of the "
            "best.",
        ),
        next=NextStep(words="4 more seeds of H to L, about 2 h 10 min."),
        smallest=0.02,
    )
    return dataclasses.replace(
        multiclass_results(), name="many", parts=LARGE_NAMES, losses=losses, answer=answer
    )


def two_seeds() -> Results:
    """No risk can be given."""
    full = binary_results()
    return dataclasses.replace(
        full,
        losses=tuple(
            dataclasses.replace(
                loss,
                seeds=(0, 1),
                per_seed={key: values[:2] for key, values in loss.per_seed.items()},
                comparisons={
                    key: dataclasses.replace(one, seeds=2, by_seed=one.by_seed[:2])
                    for key, one in loss.comparisons.items()
                },
                standing=standing(
                    "recommended" if i == 1 else "open", "Not enough seeds to tell.", upper=0.1,
                    more_seeds=None if i == 1 else 2,
                ),
            )
            for i, loss in enumerate(full.losses)
        ),
        answer=Answer(
            loss=1,
            words=(
                "Take `binary_cross_entropy + binary_dice` for now: it has the best score.",
                "With 2 seeds no risk can be given.",
            ),
            next=NextStep(words="2 more seeds of all, about 20 min.", command="denseloss x"),
            smallest=math.nan,
        ),
    )  # fmt: skip


def lone_loss() -> Results:
    """There is nothing to compare with."""
    full = binary_results()
    loss = dataclasses.replace(
        full.losses[1], standing=standing("recommended", "It is the only one.")
    )
    answer = Answer(
        loss=0,
        words=("Only `binary_cross_entropy + binary_dice` was trained.",),
        next=None,
        smallest=math.nan,
    )
    return dataclasses.replace(full, losses=(loss,), answer=answer)


def one_left() -> Results:
    """Every other loss is ruled out; nothing is open, and only one learning rate was tried."""
    full = binary_results()
    losses = tuple(
        dataclasses.replace(
            loss,
            searched={1e-3: loss.searched[1e-3]},
            lr=1e-3,
            standing=standing("recommended", "Take this.", risk=(1.0, 1.0, 0.0))
            if i == 1
            else standing("ruled out", "Ruled out.", worse_by=0.0, risk=(0.0, 0.0, 0.02)),
        )
        for i, loss in enumerate(full.losses)
    )
    answer = Answer(
        loss=1,
        words=("Take `binary_cross_entropy + binary_dice`: all others are ruled out.",),
        next=None,
        smallest=0.011,
    )
    return dataclasses.replace(full, losses=losses, answer=answer)


def nothing_finished() -> Results:
    """Every trial failed."""
    full = multiclass_results()
    failed = dataclasses.replace(full.losses[2], searched={})
    answer = Answer(
        loss=0, words=("No trial has finished: there is no answer.",), next=None, smallest=math.nan
    )
    return dataclasses.replace(full, losses=(failed,), answer=answer, warnings=())


def large_sections(folder: Path) -> tuple[Section, ...]:
    results = large_results()
    limits = {"size_limits": [100.0, 1000.0]}
    found = evidence(results, folder, LARGE_NAMES, count=4, size=300, context=limits)
    gradient_maps.save(looks(LARGE_LOSSES, count=2, size=192), folder / gradient_maps.FILE)
    return shown(results, found)
