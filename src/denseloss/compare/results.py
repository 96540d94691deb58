"""What a comparison found, as plain values: all that the report and the tables are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from denseloss.explain.cost import Cost
from denseloss.report.numbers import Estimate
from denseloss.tasks.scores import Metric, Pooling


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
        probability_of_improvement: That the loss scores better than the baseline on an image, with
            a seed of its own; ties count half.
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
    probability_of_improvement: Estimate
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
class Source:
    """Code of the user's own in the losses.

    Attributes:
        names: What of a file the losses use.
        short: The same as it is written in the losses.
        copy: Path of the file's copy, relative to the comparison's folder.
        text: What it held when the losses were trained.
    """

    names: tuple[str, ...]
    short: tuple[str, ...]
    copy: str
    text: str


@dataclass(frozen=True, kw_only=True)
class LossResults:
    """All that is known of one loss.

    Attributes:
        loss: The expression, which is its name in the report; code of the user's own is without
            its path.
        reason: Why `--loss auto` proposed it; empty if the user named it.
        notes: What it is taken as on this task, in plain words.
        lr: The learning rate that was chosen; NaN where every trial failed.
        searched: Validation score by learning rate, NaN where the trial failed.
        at_edge: Whether the best learning rate is the lowest or the highest that was tried.
        seeds: Of the finished trials at the chosen learning rate, ascending.
        curves: Rows of `metrics.csv` by seed: `step`, `loss`, `val_loss`, `score`, ...
        per_seed: Score by (metric, pooling), a value per seed.
        scores: Mean over the seeds by (metric, pooling), with its interval.
        per_part: The same by (metric, pooling, part), such as a class.
        cost: None where it could not be measured.
        steps_to_95: By seed: the first validated step whose score reaches 95 % of the last one's.
        seconds: Training time of each finished trial.
        failures: The trials of this loss that did not finish.
        comparisons: By (metric, pooling); empty for the baseline.
        details: What its task adds for `results.jsonl`: a dataclass, or a dict.
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
    per_part: Mapping[tuple[str, Pooling, str], Estimate]
    cost: Cost | None
    steps_to_95: Mapping[int, int]
    seconds: tuple[float, ...]
    failures: tuple[Failure, ...]
    comparisons: Mapping[tuple[str, Pooling], Comparison]
    details: Any = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole comparison.

    Attributes:
        name: Of the data.
        data_lines: What was found in the data, in plain words.
        part: What the task scores one by one, such as `"class"`, empty where it does not.
        parts: Names of those.
        score_name: Of the score that picks checkpoints and learning rates.
        counts: Images in `train`, `val` and `held out`.
        held_out: What the held-out split is, in words.
        metrics: All that are shown; the first is the one of the verdict.
        pooling: How the verdict's score is taken.
        level: Of the confidence intervals, such as 0.95.
        effect: The smallest difference that matters.
        losses: In the order they were given; the first is the baseline.
        verdict: In words, a sentence per loss, after one that sums up.
        warnings: What weakens the conclusions, in plain words.
        settings: What all trials had in common: name and value, to be shown.
        sources: Code of the user's own in the losses.
        commands: To repeat it, a line each.
        versions: Name and version of what it ran on.
    """

    name: str
    data_lines: tuple[str, ...]
    part: str
    parts: tuple[str, ...]
    score_name: str
    counts: Mapping[str, int]
    held_out: str
    metrics: tuple[Metric, ...]
    pooling: Pooling
    level: float
    effect: float
    losses: tuple[LossResults, ...]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    sources: tuple[Source, ...] = ()
    commands: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The losses, as they are named."""
        return [loss.loss for loss in self.losses]

    @property
    def rates(self) -> list[float]:
        """The learning rates that were tried, ascending."""
        return sorted({lr for loss in self.losses for lr in loss.searched})

    def scored_parts(self, metric: Metric, pooling: Pooling) -> list[tuple[str, Pooling, str]]:
        """The keys of `per_part` that some loss has, in the order of the parts."""
        keys = [(metric.key, pooling, part) for part in self.parts]
        return [key for key in keys if any(key in loss.per_part for loss in self.losses)]
