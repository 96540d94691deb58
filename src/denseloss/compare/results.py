"""What a comparison found, as plain values: all that the report and the tables are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from denseloss.explain.cost import Cost
from denseloss.report.numbers import Estimate
from denseloss.tasks.scores import Metric, Pooling

Standing = Literal["recommended", "ruled out", "equal", "not better", "open"]
"""`"ruled out"`: another loss is better. `"equal"`: practically equal to the recommended loss.
`"not better"`: it may be the best, but not by more than the smallest difference that matters."""


STANDINGS: Mapping[Standing, str] = {
    "recommended": "take this",
    "equal": "equal",
    "not better": "not better",
    "open": "open",
    "ruled out": "ruled out",
}
"""The standings in words for tables, the best first."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A loss against the recommended one in one metric, paired by seed and by image.

    Attributes:
        metric: Its key.
        pooling: How the score is taken.
        seeds: How many seeds both have finished.
        images: How many held-out images there are.
        difference: This loss minus the recommended one, in the unit of the metric, with the
            interval of this pair alone.
        by_seed: The same at each seed that both have.
        verdict: `"better"` or `"worse"` where the difference is clear, for all losses at once; else
            empty.
    """

    metric: str
    pooling: Pooling
    seeds: int
    images: int
    difference: Estimate
    by_seed: tuple[float, ...]
    verdict: Literal["better", "worse", ""]


@dataclass(frozen=True, kw_only=True)
class LossStanding:
    """Where a loss stands among all, in the metric of the verdict.

    Attributes:
        standing: In one word or two.
        worse_by: It is worse than some other loss by at least this; 0 where that was not shown.
        upper: It is better than the best of the others by at most this.
        best: Probability that it is the best; NaN where no risk can be given.
        within: Probability that it is within the smallest difference that matters of the best.
        regret: Expected loss of score if it is taken and another one is the best.
        more_seeds: How many more seeds would probably settle an open one; None where seeds alone do
            not, or where nothing is open.
        words: A sentence.
    """

    standing: Standing
    worse_by: float
    upper: float
    best: float
    within: float
    regret: float
    more_seeds: int | None
    words: str


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What would tell more.

    Attributes:
        words: What to do and what it costs, in a sentence.
        command: That does it; empty where it is no command.
    """

    words: str
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Which loss to take.

    Attributes:
        loss: Place of the recommended loss.
        words: The recommendation, then its risk, in sentences.
        next: What would tell more; None where nothing is open.
        smallest: The smallest difference between two losses that this comparison would have shown
            with a chance of 80 %; NaN where that is not known.
        trades: What the losses buy and pay compared with the recommended one, a sentence each.
    """

    loss: int
    words: tuple[str, ...]
    next: NextStep | None
    smallest: float
    trades: tuple[str, ...] = ()


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
        comparisons: With the recommended loss, by (metric, pooling); empty for that loss itself.
        standing: Among all losses.
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
    standing: LossStanding
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
        losses: In the order they were given.
        answer: Which one to take.
        warnings: What weakens the conclusions, in plain words.
        settings: What all trials had in common: name and value, to be shown.
        sources: Code of the user's own in the losses.
        rate_seeds: The learning rates were tried on so many of the seeds, from 0 on; 0 where that
            is not known.
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
    answer: Answer
    warnings: tuple[str, ...]
    settings: Mapping[str, Any]
    sources: tuple[Source, ...] = ()
    rate_seeds: int = 0
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
