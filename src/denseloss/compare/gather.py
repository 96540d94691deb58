"""From the folders of a comparison to its results; nothing is trained or predicted here."""

import contextlib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from denseloss import compose
from denseloss.compare import statistics
from denseloss.compare.doubts import doubts, seen_in
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.looks import load as load_looks
from denseloss.compare.measure import (
    METRICS,
    Counts,
    Measured,
    best_threshold,
    calibration_counts,
    counts_of,
    dice_at,
    dice_by_threshold,
    load,
    poolings,
    recall_counts,
)
from denseloss.compare.results import (
    SIZES,
    Calibration,
    Case,
    Comparison,
    Cost,
    Estimate,
    Failure,
    Look,
    LossResults,
    Metric,
    Pooling,
    Results,
    Threshold,
)
from denseloss.compare.scores import Additive
from denseloss.compare.settings import CompareSettings
from denseloss.compare.showcase import Shown, known_costs, shown
from denseloss.compare.trials import Plan, Trial, TrialFolder, loss_slug, planned
from denseloss.train import InputError
from denseloss.train.criterion import TaskCriterion

_CASES = 6
_FEW_IMAGES = 20
_FEW_SEEDS = 3
_EFFECT = 0.01
_NEARLY = 0.95
_UNITS = {metric.key: metric.unit for metric in METRICS}
# Curves rise to the end of a cosine schedule; what the last fifth of the steps still brings tells
# whether more of them would.
_LATE = 0.8


@dataclass(frozen=True)
class Evidence:
    """One finished trial: what is in its folder."""

    trial: Trial
    held_out: Measured
    validation: Measured
    rows: tuple[dict[str, float], ...]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Comparand:
    """All that the folders say of one loss."""

    loss: str
    reason: str
    lr: float
    searched: Mapping[float, float]
    evidence: tuple[Evidence, ...]
    failures: tuple[Failure, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the finished trials at the chosen learning rate."""
        return tuple(e.trial.seed for e in self.evidence)


@dataclass(frozen=True)
class Found:
    """All that the folders of a comparison say."""

    folder: ComparisonFolder
    config: Mapping[str, Any]
    settings: CompareSettings
    losses: tuple[Comparand, ...]
    unfinished: int
    shown: Shown

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics, that of the verdict first."""
        return tuple(sorted(METRICS, key=lambda metric: metric.key != self.settings.metric))

    @property
    def pooling(self) -> Pooling:
        """How the score of the verdict is taken."""
        asked: Pooling = "pooled" if self.settings.pooled else "image"
        return asked if asked in poolings(self.settings.metric) else "image"

    @cached_property
    def known(self) -> Any:
        """Which held-out images are not void everywhere, bool[N]: the others are no images."""
        first = self.losses[0].evidence[0].held_out
        return first.confusion.any(axis=(1, 2))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background included."""
        return tuple(self.config["data"]["class_names"])

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that are scored one by one."""
        return (
            (1,) if self.config["data"]["task"] == "binary" else tuple(range(len(self.class_names)))
        )


def find(folder: ComparisonFolder) -> Found:
    """Read all that the folders say.

    Raises:
        InputError: No trial of the baseline is finished, or `compare.toml` cannot be read.
    """
    config = folder.config()
    if config is None:
        raise InputError(f"{folder.path}: holds no comparison")
    try:
        settings = CompareSettings.from_plain({**config["common"], **config["asked"]})
        plan = planned(folder.path, settings)
        reasons = config.get("reasons", {})
        losses = tuple(
            _comparand(folder, plan, loss, reasons.get(loss, "")) for loss in settings.losses
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder.config_file}: is not what denseloss compare writes ({error}); give the same "
            "denseloss compare again to write it anew"
        ) from None
    if not losses[0].evidence:
        why = f": {losses[0].failures[0].error}" if losses[0].failures else ""
        raise InputError(
            f"{folder.path}: no trial of the baseline {losses[0].loss} finished{why}; there is "
            "nothing to compare with; the same command with a --loss first that finished makes "
            "the report of its trials, which are kept"
        )
    return Found(
        folder=folder,
        config=config,
        settings=settings,
        losses=_alike(losses),
        unfinished=plan.total - plan.done,
        shown=shown(folder),
    )


def _comparand(folder: ComparisonFolder, plan: Plan, loss: str, reason: str) -> Comparand:
    # While a search is open, what is best so far is shown.
    chosen = plan.best(loss)
    evidence, failures = [], []
    for trial in (*plan.search(loss), *plan.rest(loss)):
        files = TrialFolder(folder.path, trial)
        log = str(files.log_file.relative_to(folder.path))
        state = files.state()
        failed = files.failure() if state == "failed" else None
        if failed is not None:
            failures.append(Failure(seed=trial.seed, lr=trial.lr, error=failed.error, log=log))
        elif trial.lr == chosen and state == "finished":
            try:
                evidence.append(
                    Evidence(
                        trial,
                        load(files.held_out_file),
                        load(files.validation_file),
                        files.rows(),
                        files.summary(),
                    )
                )
            except (OSError, ValueError, KeyError) as error:
                error_line = f"its files cannot be read: {' '.join(str(error).split())}"
                failures.append(Failure(seed=trial.seed, lr=trial.lr, error=error_line, log=log))
    return Comparand(
        loss=loss,
        reason=reason,
        lr=math.nan if chosen is None else chosen,
        searched=plan.searched(loss),
        evidence=tuple(sorted(evidence, key=lambda e: e.trial.seed)),
        failures=tuple(failures),
    )


def _alike(losses: Sequence[Comparand]) -> tuple[Comparand, ...]:
    """Leave out trials that were measured on other images than the first: the data changed."""
    names = losses[0].evidence[0].held_out.names
    found = []
    for comparand in losses:
        other = [e for e in comparand.evidence if e.held_out.names != names]
        failures = [
            Failure(
                seed=e.trial.seed,
                lr=e.trial.lr,
                error="was measured on other images than the baseline: the data changed meanwhile",
                log="",
            )
            for e in other
        ]
        found.append(
            Comparand(
                comparand.loss,
                comparand.reason,
                comparand.lr,
                comparand.searched,
                tuple(e for e in comparand.evidence if e not in other),
                (*comparand.failures, *failures),
            )
        )
    return tuple(found)


def gather(found: Found) -> Results:
    """Turn what the folders say into results, with the statistics."""
    data = found.config["data"]
    metrics = found.metrics
    comparisons = {
        (metric.key, pooling): _compared(found, metric, pooling)
        for metric in metrics
        for pooling in poolings(metric.key)
    }
    costs = known_costs(found.folder)
    losses = tuple(
        _loss_results(found, comparand, comparisons, costs.get(comparand.loss))
        for comparand in found.losses
    )
    main = comparisons[metrics[0].key, found.pooling]
    summary = statistics.summary(main, baseline=losses[0].loss, metric=metrics[0])
    return Results(
        name=data["name"],
        data_lines=tuple(data["lines"]),
        task=data["task"],
        class_names=found.class_names,
        counts={"train": data["train"], "val": data["val"], "held out": data["test"]},
        held_out=f"{data['test']} test images; split: {data['split']}",
        metrics=metrics,
        pooling=found.pooling,
        level=found.settings.level,
        effect=_effect(found.settings, metrics[0]),
        losses=losses,
        size_limits=_limits(data),
        verdict=(summary, *(_sentence(comparison.words) for comparison in main.values())),
        warnings=tuple(_warnings(found, losses)),
        settings=_shared_settings(found),
        commands=tuple(_commands(found)),
        versions={k: str(v) for k, v in found.config["run"].items() if k != "command"},
        unfinished=found.unfinished,
        cases=tuple(_cases(found)),
        looks=_looks(found.folder),
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _looks(folder: ComparisonFolder) -> tuple[Look, ...]:
    try:
        return load_looks(folder.looks_file)
    except (OSError, ValueError):
        # The next `compare` makes them anew; a report without them is still a report.
        return ()


def _limits(data: Mapping[str, Any]) -> tuple[float, float] | None:
    limits = data["size_limits"]
    return (float(limits[0]), float(limits[1])) if limits else None


def _scored(found: Found, counts: Sequence[Counts], like: Counts) -> Additive:
    """Return the networks' score of the images that are known; `like` tells it if there is none."""
    shape = (len(counts), *like.counts.shape)
    every = np.array([one.counts for one in counts], dtype=np.float64).reshape(shape)
    return Additive(every[:, found.known], like.score)


def _whole_scores(measured: Measured, metric: str) -> Any:
    """Return each image's score of the whole, NaN for an image that is void everywhere."""
    counts = counts_of(measured, metric, "image").counts
    return np.where(counts[:, 1] > 0, counts[:, 0], math.nan)


def _compared(found: Found, metric: Metric, pooling: Pooling) -> dict[str, Comparison]:
    measured = {}
    first = counts_of(found.losses[0].evidence[0].held_out, metric.key, pooling)
    for comparand in found.losses:
        held_out = [e.held_out for e in comparand.evidence]
        # A loss whose every trial failed is compared, too: the correction is for all that were
        # planned.
        counts = [counts_of(m, metric.key, pooling) for m in held_out]
        per_image = [_whole_scores(m, metric.key)[found.known] for m in held_out]
        scored = _scored(found, counts, first)
        measured[comparand.loss] = statistics.Measured(
            seeds=comparand.seeds,
            scored=scored,
            per_image=np.reshape(per_image, scored.shape),
        )
    return statistics.compare(
        measured,
        baseline=found.losses[0].loss,
        metric=metric,
        pooling=pooling,
        level=found.settings.level,
        effect=_effect(found.settings, metric),
    )


def _effect(settings: CompareSettings, metric: Metric) -> float:
    """Return the smallest difference that matters in a metric."""
    if metric.key == settings.metric and settings.effect is not None:
        return settings.effect
    return 1.0 if metric.unit else _EFFECT


def _loss_results(
    found: Found,
    comparand: Comparand,
    comparisons: Mapping[tuple[str, Pooling], Mapping[str, Comparison]],
    cost: Cost | None,
) -> LossResults:
    evidence = comparand.evidence
    held_out = [e.held_out for e in evidence]
    per_seed: dict[tuple[str, Pooling], tuple[float, ...]] = {}
    scores: dict[tuple[str, Pooling], Estimate] = {}
    per_class: dict[tuple[str, Pooling, str], Estimate] = {}
    for metric, pooling in comparisons if evidence else ():
        whole = [counts_of(m, metric, pooling) for m in held_out]
        per_seed[metric, pooling] = tuple(one.value() for one in whole)
        scores[metric, pooling] = _estimate(found, whole, metric)
        for of in found.classes:
            parts = [counts_of(m, metric, pooling, of=of) for m in held_out]
            per_class[metric, pooling, found.class_names[of]] = _estimate(found, parts, metric)
    notes = TaskCriterion(
        compose.parse(comparand.loss, mixed=True),
        task=found.config["data"]["task"],
        num_classes=len(found.class_names),
    ).notes
    tried = sorted(comparand.searched)
    return LossResults(
        loss=comparand.loss,
        reason=comparand.reason,
        notes=notes,
        lr=comparand.lr,
        searched=comparand.searched,
        at_edge=len(tried) > 1 and comparand.lr in (tried[0], tried[-1]),
        seeds=comparand.seeds,
        curves={e.trial.seed: e.rows for e in evidence},
        per_seed=per_seed,
        scores=scores,
        per_class=per_class,
        recall=_recall(found, held_out),
        calibration=_calibration(found, evidence),
        cost=cost,
        steps_to_95={
            e.trial.seed: steps for e in evidence if (steps := _steps_to(e.rows)) is not None
        },
        seconds=tuple(float(e.summary["seconds"]) for e in evidence),
        failures=comparand.failures,
        comparisons={
            key: by_loss[comparand.loss]
            for key, by_loss in comparisons.items()
            if comparand.loss in by_loss
        },
    )


def _estimate(found: Found, counts: Sequence[Counts], metric: str = "") -> Estimate:
    scored = _scored(found, counts, counts[0])
    estimate = statistics.estimate(scored, level=found.settings.level)
    # No score lies outside its range; few seeds or images make intervals that would.
    highest = math.inf if _UNITS.get(metric) else 1.0
    return replace(
        estimate,
        low=float(np.clip(estimate.low, 0.0, highest)),
        high=float(np.clip(estimate.high, 0.0, highest)),
    )


def _recall(found: Found, held_out: Sequence[Measured]) -> dict[tuple[str, str], Estimate]:
    recall = {}
    for of in range(1, len(found.class_names)) if held_out else ():
        for size in SIZES:
            counts = [recall_counts(m, of=of, size=size) for m in held_out]
            # Without such an object there is nothing to find.
            if counts[0].counts[:, 1].sum() > 0:
                recall[found.class_names[of], size] = _estimate(found, counts)
    return recall


def _calibration(found: Found, evidence: Sequence[Evidence]) -> Calibration | None:
    if not evidence:
        return None
    bins = sum(e.held_out.reliability.sum(0) for e in evidence)
    assert not isinstance(bins, int)
    pixels = bins[:, 0]
    shares = np.divide(
        bins[:, 1:], pixels[:, None], out=np.full_like(bins[:, 1:], math.nan), where=bins[:, :1] > 0
    )
    binary = found.config["data"]["task"] == "binary"
    what = (
        f"probability of {found.class_names[1]}" if binary else "confidence of the predicted class"
    )
    return Calibration(
        what=what,
        pixels=tuple(pixels.tolist()),
        confidence=tuple(shares[:, 0].tolist()),
        frequency=tuple(shares[:, 1].tolist()),
        ece=_estimate(found, [calibration_counts(e.held_out) for e in evidence]),
        thresholds={
            found.class_names[of]: threshold
            for of in found.classes
            if (threshold := _threshold(evidence, of)) is not None
        },
    )


def _threshold(evidence: Sequence[Evidence], of: int) -> Threshold | None:
    best, usual, moved = [], [], []
    for e in evidence:
        threshold = best_threshold(dice_by_threshold(e.validation.histogram, of=of))
        if math.isnan(threshold):
            continue
        best.append(threshold)
        usual.append(counts_of(e.held_out, "dice", "pooled", of=of).value())
        moved.append(dice_at(e.held_out.histogram, of=of, threshold=threshold))
    if not best:
        return None
    return Threshold(
        best=float(np.mean(best)), dice=float(np.mean(usual)), best_dice=float(np.mean(moved))
    )


def _steps_to(rows: Sequence[Mapping[str, float]]) -> int | None:
    """Return the first validated step whose Dice is at least 95 % of the last one's.

    None for a network that learned nothing: it is not the fastest.
    """
    last = rows[-1]["mean_dice"]
    if not last > 0:
        return None
    return next(int(row["step"]) for row in rows if row["mean_dice"] >= _NEARLY * last)


def _warnings(found: Found, losses: Sequence[LossResults]) -> Iterator[str]:
    data, settings = found.config["data"], found.settings
    first = found.losses[0].evidence[0]
    held_out = seen_in(first.held_out.confusion.sum(axis=2))
    if held_out.images < _FEW_IMAGES:
        more = (
            "more held-out images in the folder"
            if data.get("split") == "as in the folder"
            else "more images, or a larger --test-share (and another --out)"
        )
        yield (
            f"Only {held_out.images} held-out image{'s' * (held_out.images != 1)}: what is "
            f"concluded about other images rests on very few; {more} would help."
        )
    yield from doubts(
        validation=seen_in(first.validation.confusion.sum(axis=2)),
        held_out=held_out,
        task=data["task"],
        class_names=found.class_names,
        losses=len(found.losses),
        level=settings.level,
    )
    others = _others(found)
    if others:
        yield (
            f"The folder holds finished trials of {', '.join(f'`{loss}`' for loss in others)}, "
            "which are not in this report, nor in its correction for the number of losses; give "
            "their --loss, too."
        )
    seeds = min((len(loss.seeds) for loss in losses if loss.seeds), default=0)
    if seeds < _FEW_SEEDS:
        yield (
            f"Only {seeds} seed{'s' * (seeds != 1)}: how much a network's score depends on its "
            "start is hardly known; give --seeds 5 or more."
        )
    failed = sum(len(loss.failures) for loss in losses)
    if failed:
        yield f"{failed} trial{'s' * (failed != 1)} failed; see the errors below."
    if found.unfinished:
        yield (
            f"{found.unfinished} trials are not finished; the same denseloss compare goes on with "
            "them."
        )
    for end, extreme in (("lowest", min), ("highest", max)):
        edge = [
            f"`{loss.loss}`"
            for loss in losses
            if loss.at_edge and loss.lr == extreme(loss.searched)
        ]
        if edge:
            yield (
                f"The best learning rate of {', '.join(edge)} is the {end} that was tried; a "
                f"better one may lie beyond (--lr {found.settings.lr + 2} tries two more for "
                "every loss)."
            )
    rising = [f"`{loss.loss}`" for loss in losses if _late_gain(loss) > _EFFECT]
    if rising:
        yield (
            f"Validation Dice of {', '.join(rising)} still rose by more than "
            f"{_EFFECT:g} in the last fifth of the steps: these results are those of "
            f"{found.settings.steps} steps, and more of them may change the order."
        )


def _others(found: Found) -> list[str]:
    """Return the losses of finished trials that are not in this comparison."""
    mine = {loss_slug(comparand.loss) for comparand in found.losses}
    others = set()
    for file in found.folder.trials.glob("*/*/held_out.npz"):
        if file.parent.parent.name in mine or ".broken" in file.parent.name:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, InputError):
            config = tomllib.loads((file.parent / "config.toml").read_text(encoding="utf-8"))
            others.add(str(config["settings"]["loss"]))
    return sorted(others)


def _late_gain(loss: LossResults) -> float:
    """Return by how much the mean validation Dice rose in the last fifth of the steps."""
    gains = []
    for rows in loss.curves.values():
        late = [row for row in rows if row["step"] <= _LATE * rows[-1]["step"]]
        if late:
            gains.append(rows[-1]["mean_dice"] - late[-1]["mean_dice"])
    return float(np.mean(gains)) if gains else 0.0


def _shared_settings(found: Found) -> dict[str, Any]:
    s = found.settings
    tried = sorted(s.rates)
    return {
        "steps of a trial": s.steps,
        "images per step": s.batch_size,
        "training squares": f"{s.size} pixels",
        "model": s.model + (" with deep supervision" if s.deep_supervision else ""),
        "optimiser": f"AdamW, weight decay {s.weight_decay:g}, warm-up then cosine to 0",
        "learning rates tried": ", ".join(f"{lr:g}" for lr in tried),
        "seeds that tried them": s.lr_seeds,
        "seeds": s.seeds,
        "validation every": f"{s.val_every} steps; the best one's weights are measured",
        "precision": f"{s.precision} (losses in float32)",
        "accelerator": s.accelerator,
        "smallest difference that matters": _effect(s, found.metrics[0]),
    }


def _commands(found: Found) -> Iterator[str]:
    yield found.config["run"]["command"]
    yield f"denseloss report {found.folder.path}"


def _cases(found: Found) -> Iterator[Case]:
    """Yield the shown images on which the losses differ most."""
    alive = [comparand for comparand in found.losses if comparand.evidence]
    scores = {
        comparand.loss: np.mean(
            [_whole_scores(e.held_out, "dice") for e in comparand.evidence], axis=0
        )
        for comparand in alive
    }
    names = alive[0].evidence[0].held_out.names
    every = np.stack([scores[comparand.loss] for comparand in alive])
    spread = np.where(np.isnan(every).any(0), -1.0, every.max(0) - every.min(0))
    kept = [
        place
        for place in np.argsort(-spread, kind="stable").tolist()
        if names[place] in found.shown.names
        and spread[place] >= 0
        and all(place in _first(comparand).predictions for comparand in alive)
    ]
    for place in kept[:_CASES]:
        image, truth = found.shown.read(names[place])
        yield Case(
            name=names[place],
            image=image,
            truth=truth,
            predictions={
                comparand.loss: _resized(_first(comparand).predictions[place], truth.shape)
                for comparand in alive
            },
            scores={loss: float(values[place]) for loss, values in scores.items()},
        )


def _first(comparand: Comparand) -> Measured:
    return comparand.evidence[0].held_out


def _resized(classes: Any, shape: tuple[int, ...]) -> Any:
    """Return a class map at the size of the shown image, by the nearest pixel."""
    rows = (np.arange(shape[0]) + 0.5) * classes.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * classes.shape[1] / shape[1]
    return classes[rows.astype(int)[:, None], columns.astype(int)[None]]
