"""From the folders of a comparison to its results; nothing is trained or predicted here."""

import contextlib
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseloss.compare import statistics
from denseloss.compare.artifacts import known_costs
from denseloss.compare.caveats import of_results
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.plan import ComparePlan, Trial
from denseloss.compare.results import Comparison, Failure, LossResults, Results, Source
from denseloss.compare.trials import Progress, TrialFolder, loss_slug, progress_of, read_measured
from denseloss.compose import references, short_names
from denseloss.data.errors import InputError
from denseloss.explain.cost import Cost
from denseloss.report.numbers import Estimate
from denseloss.report.sections import Section
from denseloss.tasks import Evidence, LossEvidence, Metric, Pooling, Scored, Task
from denseloss.train.own_code import copies

_NEARLY = 0.95


@dataclass(frozen=True)
class TrialResult:
    """One finished trial: what is in its folder."""

    trial: Trial
    held_out: Any
    validation: Any
    rows: tuple[dict[str, float], ...]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class LossTrials:
    """All that the folders say of one loss, at its learning rate.

    Attributes:
        loss: What it is called.
        expression: With the whole paths of code of the user's own.
        trials: The finished ones, by seed.
        failures: Of all learning rates.
    """

    loss: str
    expression: str
    reason: str
    lr: float
    searched: Mapping[float, float]
    trials: tuple[TrialResult, ...]
    failures: tuple[Failure, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the finished trials."""
        return tuple(one.trial.seed for one in self.trials)

    @property
    def held_out(self) -> list[Any]:
        """Their measurements of the held-out images."""
        return [one.held_out for one in self.trials]


@dataclass(frozen=True)
class ComparisonData:
    """All that the folders of a comparison say.

    Attributes:
        known: Which held-out images have a score at all, bool[N]: the others are no images.
    """

    folder: ComparisonFolder
    config: Mapping[str, Any]
    plan: ComparePlan
    losses: tuple[LossTrials, ...]
    unfinished: int
    known: NDArray[np.bool_]

    @property
    def task(self) -> Task:
        """The task of the data."""
        return self.plan.task

    @property
    def first(self) -> TrialResult:
        """A trial of the baseline."""
        return self.losses[0].trials[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """What is scored one by one, such as the classes."""
        return self.task.parts(self.first.held_out)

    @property
    def scores(self) -> Iterator[tuple[Metric, Pooling]]:
        """Every metric with every pooling that it has, that of the verdict first."""
        for metric in self.plan.metrics:
            for pooling in metric.poolings:
                yield metric, pooling

    def scored(
        self, measured: Sequence[Any], metric: Metric, pooling: Pooling, part: str | None = None
    ) -> Scored:
        """Return the score of networks on the images that have one."""
        score = self.task.score(measured or [self.first.held_out], metric, pooling, part=part).on(
            self.known
        )
        return score if measured else score.of(())

    def estimate(self, scored: Scored, *, highest: float = 1.0) -> Estimate:
        """Return the mean over seeds and images, with its interval."""
        found = statistics.estimate(scored.on(self.known), level=self.plan.level)
        # No score lies outside its range; few seeds or images make intervals that would.
        return replace(
            found,
            low=float(np.clip(found.low, 0.0, highest)),
            high=float(np.clip(found.high, 0.0, highest)),
        )


def find(folder: ComparisonFolder) -> ComparisonData:
    """Read all that the folders say.

    Raises:
        InputError: No trial of the baseline is finished, or `compare.toml` cannot be read.
    """
    config = folder.config()
    if config is None:
        raise InputError(f"{folder.path}: holds no comparison")
    plan = folder.plan(config)
    folder.check_told(config)
    progress = progress_of(folder.path, plan)
    losses = tuple(
        _loss_trials(folder, progress, candidate.loss, candidate.reason)
        for candidate in plan.candidates
    )
    baseline = losses[0]
    if not baseline.trials:
        why = f": {baseline.failures[0].error}" if baseline.failures else ""
        raise InputError(
            f"{folder.path}: no trial of the baseline {baseline.loss} finished{why}; there is "
            "nothing to compare with; the same command with a --loss first that finished makes "
            "the report of its trials, which are kept"
        )
    task, first = plan.task, baseline.trials[0].held_out
    return ComparisonData(
        folder=folder,
        config=config,
        plan=plan,
        losses=_alike(losses, task),
        unfinished=progress.total - progress.done,
        known=~np.isnan(task.per_image(first, task.metrics[0])),
    )


def _loss_trials(
    folder: ComparisonFolder, progress: Progress, loss: str, reason: str
) -> LossTrials:
    # While a search is open, what is best so far is shown.
    chosen = progress.best(loss)
    finished, failures = [], []
    for trial in (*progress.search(loss), *progress.rest(loss)):
        files = TrialFolder(folder.path, trial)
        log = str(files.log_file.relative_to(folder.path))
        state = files.state()
        failed = files.failure() if state == "failed" else None
        if failed is not None:
            failures.append(Failure(seed=trial.seed, lr=trial.lr, error=failed.error, log=log))
        elif trial.lr == chosen and state == "finished":
            try:
                finished.append(
                    TrialResult(
                        trial,
                        read_measured(progress.plan.common, files.held_out_file),
                        read_measured(progress.plan.common, files.validation_file),
                        files.rows(),
                        files.summary(),
                    )
                )
            except (OSError, ValueError, KeyError) as error:
                line = f"its files cannot be read: {' '.join(str(error).split())}"
                failures.append(Failure(seed=trial.seed, lr=trial.lr, error=line, log=log))
    return LossTrials(
        loss=progress.plan.names[loss],
        expression=loss,
        reason=reason,
        lr=math.nan if chosen is None else chosen,
        searched=progress.searched(loss),
        trials=tuple(sorted(finished, key=lambda one: one.trial.seed)),
        failures=tuple(failures),
    )


def _alike(losses: Sequence[LossTrials], task: Task) -> tuple[LossTrials, ...]:
    """Leave out trials that were measured on other images than the first: the data changed."""
    names = task.names(losses[0].trials[0].held_out)
    found = []
    for loss in losses:
        other = [one for one in loss.trials if task.names(one.held_out) != names]
        failures = [
            Failure(
                seed=one.trial.seed,
                lr=one.trial.lr,
                error="was measured on other images than the baseline: the data changed meanwhile",
                log="",
            )
            for one in other
        ]
        found.append(
            replace(
                loss,
                trials=tuple(one for one in loss.trials if one not in other),
                failures=(*loss.failures, *failures),
            )
        )
    return tuple(found)


def aggregate(found: ComparisonData) -> tuple[Results, Iterable[Section]]:
    """Turn what the folders say into results, with the statistics, and the task's sections."""
    plan, data = found.plan, found.config["data"]
    metrics = plan.metrics
    evidence = Evidence(
        losses=tuple(
            LossEvidence(
                loss=one.loss,
                seeds=one.seeds,
                held_out=tuple(one.held_out),
                validation=tuple(trial.validation for trial in one.trials),
            )
            for one in found.losses
        ),
        estimate=found.estimate,
        level=f"{100 * plan.level:g} %",
        folder=found.folder.path,
        context=found.config.get("context", {}),
    )
    details = found.task.details(evidence)
    comparisons = {
        (metric.key, pooling): _compared(found, metric, pooling) for metric, pooling in found.scores
    }
    costs = known_costs(found.folder)
    losses = tuple(
        _loss_results(found, one, comparisons, costs.get(one.expression), detail)
        for one, detail in zip(found.losses, details, strict=True)
    )
    main = comparisons[metrics[0].key, _pooling(plan)]
    summary = statistics.summary(main, baseline=losses[0].loss, metric=metrics[0])
    results = Results(
        name=data["name"],
        data_lines=tuple(data["lines"]),
        part=found.task.part,
        parts=found.parts,
        score_name=found.task.metrics[0].name,
        counts={"train": data["train"], "val": data["val"], "held out": data["test"]},
        held_out=f"{data['test']} test images; split: {data['split']}",
        metrics=metrics,
        pooling=_pooling(plan),
        level=plan.level,
        effect=plan.effect,
        losses=losses,
        verdict=(summary, *(_sentence(comparison.words) for comparison in main.values())),
        warnings=tuple(
            of_results(
                plan,
                losses,
                validation=found.task.summary_of(found.first.validation),
                held_out=found.task.summary_of(found.first.held_out),
                split_of_folder=data.get("split") == "as in the folder",
                others=_others(found),
                unfinished=found.unfinished,
            )
        ),
        settings=_shared_settings(plan),
        sources=tuple(_sources(found)),
        commands=(found.config["run"]["command"], f"denseloss report {found.folder.path}"),
        versions={
            k: str(v) for k, v in found.config["run"].items() if k not in ("command", "format")
        },
    )
    return results, found.task.sections(evidence, details)


def _pooling(plan: ComparePlan) -> Pooling:
    poolings = plan.metrics[0].poolings
    return plan.pooling if plan.pooling in poolings else poolings[0]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _compared(found: ComparisonData, metric: Metric, pooling: Pooling) -> dict[str, Comparison]:
    measured = {}
    for one in found.losses:
        # A loss whose every trial failed is compared, too: the correction is for all that were
        # planned.
        scored = found.scored(one.held_out, metric, pooling)
        per_image = [found.task.per_image(m, metric)[found.known] for m in one.held_out]
        measured[one.loss] = statistics.Measured(
            seeds=one.seeds,
            scored=scored,
            per_image=np.reshape(per_image, scored.shape),
        )
    return statistics.compare(
        measured,
        baseline=found.losses[0].loss,
        metric=metric,
        pooling=pooling,
        level=found.plan.level,
        effect=found.plan.effect_of(metric),
    )


def _loss_results(
    found: ComparisonData,
    one: LossTrials,
    comparisons: Mapping[tuple[str, Pooling], Mapping[str, Comparison]],
    cost: Cost | None,
    details: Any,
) -> LossResults:
    per_seed: dict[tuple[str, Pooling], tuple[float, ...]] = {}
    scores: dict[tuple[str, Pooling], Estimate] = {}
    per_part: dict[tuple[str, Pooling, str], Estimate] = {}
    for metric, pooling in found.scores if one.trials else ():

        def estimate(
            part: str | None = None, metric: Metric = metric, pooling: Pooling = pooling
        ) -> Estimate:
            scored = found.task.score(one.held_out, metric, pooling, part=part)
            return found.estimate(scored, highest=metric.highest)

        whole = found.scored(one.held_out, metric, pooling)
        per_seed[metric.key, pooling] = tuple(whole.value().tolist())
        scores[metric.key, pooling] = estimate()
        for part in found.parts:
            per_part[metric.key, pooling, part] = estimate(part)
    tried = sorted(one.searched)
    return LossResults(
        loss=one.loss,
        reason=one.reason,
        notes=_notes(found, one.expression),
        lr=one.lr,
        searched=one.searched,
        at_edge=len(tried) > 1 and one.lr in (tried[0], tried[-1]),
        seeds=one.seeds,
        curves={trial.trial.seed: trial.rows for trial in one.trials},
        per_seed=per_seed,
        scores=scores,
        per_part=per_part,
        cost=cost,
        steps_to_95={
            trial.trial.seed: steps
            for trial in one.trials
            if (steps := _steps_to(trial.rows, found.task.metrics[0])) is not None
        },
        seconds=tuple(float(trial.summary["seconds"]) for trial in one.trials),
        failures=one.failures,
        comparisons={
            key: by_loss[one.loss] for key, by_loss in comparisons.items() if one.loss in by_loss
        },
        details=details,
    )


def _notes(found: ComparisonData, loss: str) -> tuple[str, ...]:
    notes: Mapping[str, list[str]] = found.config.get("notes", {})
    return tuple(notes.get(loss, ()))


def _steps_to(rows: Sequence[Mapping[str, float]], metric: Metric) -> int | None:
    """Return the first validated step whose score is nearly that of the last one.

    None for a network that learned nothing: it is not the fastest.
    """
    last = rows[-1]["score"]
    if not last > 0:
        return None
    if metric.higher_is_better:
        return next(int(row["step"]) for row in rows if row["score"] >= _NEARLY * last)
    return next(int(row["step"]) for row in rows if row["score"] <= last / _NEARLY)


def _others(found: ComparisonData) -> list[str]:
    """Return the losses of finished trials that are not in this comparison."""
    mine = {loss_slug(one.expression) for one in found.losses}
    others = set()
    for file in found.folder.trials.glob("*/*/held_out.npz"):
        if file.parent.parent.name in mine or ".broken" in file.parent.name:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, InputError):
            config = tomllib.loads((file.parent / "config.toml").read_text(encoding="utf-8"))
            others.add(str(config["settings"]["loss"]))
    return sorted(short_names(sorted(others)))


def _sources(found: ComparisonData) -> Iterator[Source]:
    """Yield the code of the user's own in the losses, as it was when they were trained."""
    code = found.config.get("code", {})
    places = copies(code, found.folder.code)
    said = [
        name for one in found.losses for _, _, name in references(one.expression) if name in code
    ]
    used: dict[str, list[tuple[str, str]]] = {}
    for name, short in zip(said, short_names(said), strict=True):
        used.setdefault(code[name]["file"], []).append((name.rpartition(":")[2], short))
    for path, names in used.items():
        with contextlib.suppress(OSError):  # the copy was removed
            yield Source(
                names=tuple(dict.fromkeys(name for name, _ in names)),
                short=tuple(dict.fromkeys(short for _, short in names)),
                copy=str(places[path].relative_to(found.folder.path)),
                text=places[path].read_text(encoding="utf-8"),
            )


def _shared_settings(plan: ComparePlan) -> dict[str, Any]:
    common = plan.common
    options = {k: v for k, v in common.options.items() if v != getattr(plan.task.settings(), k)}
    return {
        "steps of a trial": common.steps,
        "images per step": common.batch_size,
        "training squares": f"{common.size} pixels",
        "model": common.model,
        **{key.replace("_", " "): value for key, value in options.items()},
        "optimiser": f"AdamW, weight decay {common.weight_decay:g}, warm-up then cosine to 0",
        "learning rates tried": ", ".join(f"{lr:g}" for lr in sorted(plan.rates)),
        "seeds that tried them": plan.lr_seeds,
        "seeds": plan.seeds,
        "validation every": f"{common.val_every} steps; the best one's weights are measured",
        "precision": f"{common.precision} (losses in float32)",
        "accelerator": common.accelerator,
        "smallest difference that matters": plan.effect,
    }
