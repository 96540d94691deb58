"""What the trials of a comparison left behind, as a task gets it to make its part of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denseloss.report.numbers import Estimate
from denseloss.tasks.scores import Scored


@dataclass(frozen=True, kw_only=True)
class LossEvidence:
    """The finished trials of one loss, at its learning rate.

    Attributes:
        loss: The expression, its name in the report.
        seeds: Of the trials, ascending.
        held_out: What the task measured on the held-out images, by trial.
        validation: What it measured on the validation images.
    """

    loss: str
    seeds: tuple[int, ...]
    held_out: tuple[Any, ...]
    validation: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All losses of a comparison.

    Attributes:
        losses: In the order of the report; the first is the baseline and has a trial at least.
        estimate: The mean of a score over seeds and images with its interval.
        level: Of the intervals, as text.
        folder: Where the task's `keep_artifacts` put what it wanted to show.
        context: What the task's `context` said of the data.
    """

    losses: tuple[LossEvidence, ...]
    estimate: Callable[[Scored], Estimate]
    level: str
    folder: Path
    context: Mapping[str, Any]
