"""From the folders of a comparison to its results; nothing is trained or predicted here."""

import contextlib
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseloss.compare import statistics
from denseloss.compare.answer import Question, answer, spent
from denseloss.compare.artifacts import known_costs
from denseloss.compare.best import Networks, difference, pseudo_values, reach
from denseloss.compare.caveats import of_results
from denseloss.compare.folder import ComparisonFolder
from denseloss.compare.plan import ComparePlan, Trial
from denseloss.compare.results import (
    Comparison,
    Failure,
    LossResults,
    LossStanding,
    Results,
    Source,
)
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
        """A finished trial of the first loss that has one."""
        return next(loss.trials[0] for loss in self.losses if loss.trials)

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
        InputError: No trial is finished, or `compare.toml` cannot be read.
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
    first = next((loss for loss in losses if loss.trials), None)
    if first is None:
        failed = [failure for loss in losses for failure in loss.failures]
        why = f": {failed[0].error}" if failed else ""
        raise InputError(f"{folder.path}: no trial finished{why}; there is nothing to report")
    task, measured = plan.task, first.trials[0].held_out
    return ComparisonData(
        folder=folder,
        config=config,
        plan=plan,
        losses=_alike(losses, task.names(measured), task),
        unfinished=progress.total - progress.done,
        known=~np.isnan(task.per_image(measured, task.metrics[0])),
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


def _alike(
    losses: Sequence[LossTrials], names: Sequence[str], task: Task
) -> tuple[LossTrials, ...]:
    """Leave out trials that were measured on other images than the first: the data changed."""
    found = []
    for loss in losses:
        other = [one for one in loss.trials if task.names(one.held_out) != names]
        failures = [
            Failure(
                seed=one.trial.seed,
                lr=one.trial.lr,
                error="was measured on other images than the first trial: the data changed",
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
    main = metrics[0]
    networks = {key: _networks(found, *key) for key in found.scores}
    command = str(found.config["run"]["command"])
    taken, standings = answer(
        networks[main, _pooling(plan)],
        Question(
            metric=main,
            effect=plan.effect,
            alpha=(1 - plan.level) * spent(found.folder.earlier_looks(plan.seeds)),
            planned=len(found.losses),
            seeds=plan.seeds,
            command=command if command.startswith("denseloss compare ") else "",
            seconds=[float(t.summary["seconds"]) for one in found.losses for t in one.trials],
            jobs=found.config.get("where", {}).get("jobs") or (os.cpu_count() or 1),
        ),
    )
    recommended = list(standings)[taken.loss]
    costs = known_costs(found.folder)
    losses = tuple(
        _loss_results(
            found,
            one,
            {
                (metric.key, pooling): _comparison(
                    found, one.loss, recommended, networks[metric, pooling], metric, pooling
                )
                for metric, pooling in found.scores
                if one.loss != recommended and one.trials
            },
            standings.get(one.loss, _NOWHERE),
            costs.get(one.expression),
            detail,
        )
        for one, detail in zip(found.losses, details, strict=True)
    )
    names = [loss.loss for loss in losses]
    taken = replace(
        taken, loss=names.index(recommended), trades=tuple(_trades(losses, recommended, metrics))
    )
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
        rate_seeds=plan.lr_seeds,
        losses=losses,
        answer=taken,
        warnings=tuple(
            of_results(
                plan,
                losses,
                validation=found.task.summary_of(found.first.validation),
                held_out=found.task.summary_of(found.first.held_out),
                split_is_drawn="by seed" in data["split"],
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


# Of a loss without networks.
_NOWHERE = LossStanding(
    standing="open",
    worse_by=0.0,
    upper=math.inf,
    best=math.nan,
    within=math.nan,
    regret=math.nan,
    more_seeds=None,
    words="it has no finished trial",
)


def _networks(found: ComparisonData, metric: Metric, pooling: Pooling) -> dict[str, Networks]:
    """The networks of each loss that has some; a distance or an error is turned round."""
    sign = 1.0 if metric.higher_is_better else -1.0
    return {
        one.loss: Networks(
            seeds=one.seeds,
            scores=sign * pseudo_values(found.scored(one.held_out, metric, pooling)),
        )
        for one in found.losses
        if one.trials
    }


def _comparison(
    found: ComparisonData,
    loss: str,
    recommended: str,
    networks: Mapping[str, Networks],
    metric: Metric,
    pooling: Pooling,
) -> Comparison:
    """A loss with the recommended one in one metric."""
    one, other = networks[loss], networks[recommended]
    less = difference(one, other)
    tail = (1 - found.plan.level) / 2 / max(1, len(found.losses) - 1)
    clear = abs(less.value) > reach(less, tail)
    shown = less.estimate(found.plan.level)
    if not metric.higher_is_better:
        shown = replace(shown, value=-shown.value, low=-shown.high, high=-shown.low)
    if not metric.unit:
        low, high = (float(np.clip(end, -1.0, 1.0)) for end in (shown.low, shown.high))
        shown = replace(shown, low=low, high=high)
    sign = 1.0 if metric.higher_is_better else -1.0
    shared = [seed for seed in one.seeds if seed in other.seeds]
    means = [
        {seed: float(row.mean()) for seed, row in zip(each.seeds, each.scores, strict=True)}
        for each in (one, other)
    ]
    return Comparison(
        metric=metric.key,
        pooling=pooling,
        seeds=less.seeds,
        images=less.images,
        difference=shown,
        by_seed=tuple(sign * (means[0][seed] - means[1][seed]) for seed in shared),
        verdict=("better" if less.value > 0 else "worse") if clear else "",
    )


def _trades(
    losses: Sequence[LossResults], recommended: str, metrics: Sequence[Metric]
) -> Iterator[str]:
    """What each loss buys and pays beside the recommended one, in the metrics where it is clear."""
    for loss in losses:
        gains: list[str] = []
        costs: list[str] = []
        for metric in metrics[1:]:
            one = loss.comparisons.get((metric.key, metric.poolings[0]))
            if one is not None and one.verdict:
                digits = 1 if metric.unit else 3
                size = f"{abs(one.difference.value):.{digits}f} {metric.unit}".strip()
                (gains if one.verdict == "better" else costs).append(f"{metric.name} {size}")
        if gains or costs:
            said = [f"better by {', '.join(gains)}"] * bool(gains)
            said += [f"worse by {', '.join(costs)}"] * bool(costs)
            yield f"`{loss.loss}`, beside `{recommended}`: {'; '.join(said)}."


def _loss_results(
    found: ComparisonData,
    one: LossTrials,
    comparisons: Mapping[tuple[str, Pooling], Comparison],
    standing: LossStanding,
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
        comparisons=comparisons,
        standing=standing,
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
