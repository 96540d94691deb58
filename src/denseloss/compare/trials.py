"""The trials of a comparison: what there is to do, what is done, and in which folder."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from denseloss.compare.plan import ComparePlan, Trial
from denseloss.compose import folder_name
from denseloss.data.files import load_arrays, write_whole
from denseloss.tasks import named
from denseloss.train.folder import RunFolder
from denseloss.train.lock import is_of_a_lock
from denseloss.train.plan import TrainPlan, plan_in
from denseloss.train.records import COLUMNS, goodness
from denseloss.train.settings import slug

State = Literal["new", "finished", "failed"]

_SLUG = 40


def trial_name(trial: Trial) -> str:
    """Return the path of its folder below `trials/`."""
    return f"{loss_slug(trial.loss)}/seed{trial.seed}-lr{trial.lr:g}"


def loss_slug(loss: str) -> str:
    """Return a loss as a folder's name; long ones are cut, and none is mistaken for another."""
    digest = hashlib.blake2b(loss.encode(), digest_size=3).hexdigest()
    return f"{slug(folder_name(loss))[:_SLUG].rstrip('-.')}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why a trial did not finish.

    Attributes:
        error: One line.
        own: Whether the trial itself is the reason (a loss that became NaN), so that it would fail
            again; a full disk or a killed process are none.
    """

    error: str
    own: bool


class TrialFolder:
    """The files of one trial: those of its training run, and what was measured of its network."""

    def __init__(self, root: Path, trial: Trial) -> None:
        self.trial = trial
        name = trial_name(trial)
        self.path = root / "trials" / name
        self.run = RunFolder(self.path)
        self.held_out_file = self.path / "held_out.npz"
        self.validation_file = self.path / "validation.npz"
        # Not inside the run's folder, which a run that has not begun must find empty.
        self.log_file = root / "logs" / f"{name.replace('/', '-')}.log"
        self.failed_file = root / "failed" / f"{name.replace('/', '-')}.json"

    def trained(self) -> bool:
        """Whether the training run is finished."""
        return self.run.summary_file.exists()

    def state(self) -> State:
        """Return how far the trial is."""
        if self.trained() and self.held_out_file.exists() and self.validation_file.exists():
            return "finished"
        return "failed" if self.failed_file.exists() else "new"

    def failure(self) -> Failed | None:
        """Return why it failed, None if it did not."""
        try:
            found = json.loads(self.failed_file.read_text(encoding="utf-8"))
            return Failed(error=str(found["error"]), own=bool(found["own"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return Failed(error="failed; its error cannot be read any more", own=False)

    def fail(self, failed: Failed) -> None:
        """Write down why it failed."""
        self.failed_file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"error": failed.error, "own": failed.own}, ensure_ascii=False)
        write_whole(self.failed_file, text + "\n")

    def forget_failure(self) -> None:
        """Let it be tried again."""
        self.failed_file.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """Return `summary.json`.

        Raises:
            ValueError: It cannot be read.
        """
        found: Any = json.loads(self.run.summary_file.read_text(encoding="utf-8"))
        best = found.get("best") if isinstance(found, dict) else None
        if (
            not isinstance(best, dict)
            or not isinstance(best.get("score"), int | float | None)
            or not isinstance(found.get("seconds"), int | float)
        ):
            raise ValueError(f"{self.run.summary_file.name}: is no summary of a run")
        return dict(found)

    def validation_score(self) -> float:
        """Return the best validation score, NaN where it was never defined."""
        score = self.summary()["best"].get("score")
        return math.nan if score is None else float(score)

    def rows(self) -> tuple[dict[str, float], ...]:
        """Return the rows of `metrics.csv`.

        Raises:
            ValueError: They cannot be read.
        """
        name = self.run.metrics_file.name
        try:
            with self.run.metrics_file.open(newline="", encoding="utf-8") as file:
                found = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{name}: cannot be read ({error})") from None
        if not found or not {*COLUMNS} <= {*found[0]}:
            raise ValueError(f"{name}: has no rows of a run")
        return tuple(found)

    def latest(self) -> dict[str, float]:
        """Return the latest row of `metrics.csv`, for the display; empty if that is unclear."""
        try:
            return self.rows()[-1]
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def problem(self) -> str | None:
        """Say what is broken in the files of a begun or finished run, None if they are sound."""
        try:
            if self.run.config_file.exists():
                plan_in(self.run.config(), self.run.config_file)
            if self.trained():
                self.summary()
                self.rows()
            if self.state() != "finished":
                if self.trained() and not self.run.best_file.exists():
                    return f"{self.run.best_file.name}: is missing"
                if not self.run.config_file.exists() and self.run.holds_anything():
                    return f"{self.run.config_file.name}: is missing"
                for file in (self.run.best_file, self.run.last_file):
                    if file.exists():
                        from denseloss.train.checkpoint import load_checkpoint  # takes seconds

                        load_checkpoint(file)
            for file in (self.held_out_file, self.validation_file):
                if file.exists():
                    read_measured(plan_in(self.run.config(), self.run.config_file), file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return None

    def set_aside(self) -> Path:
        """Move what is broken out of the way, and return where it is now."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.broken{number}")).exists():
            number += 1
        aside.mkdir()
        for file in self.path.iterdir():
            # Whoever works here goes on doing so.
            if not is_of_a_lock(file):
                file.rename(aside / file.name)
        return aside


def read_measured(plan: TrainPlan, file: Path) -> Any:
    """Return what was measured of a trial's network.

    Raises:
        ValueError: The file is damaged, or holds something else.
    """
    try:
        return named(plan.task).from_arrays(load_arrays(file))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{file.name}: {what.removeprefix(f'{file}: ')}") from error


@dataclass
class Progress:
    """How far a comparison is, and what to run next: every loss first tries its learning rates.

    Args:
        plan: The comparison's.
        states: Of the trials that have one; updated by `finish`.
        scores: Validation scores of the finished trials; updated by `finish`.
        running: The trials that run now.
    """

    plan: ComparePlan
    states: dict[Trial, State] = field(default_factory=dict)
    scores: dict[Trial, float] = field(default_factory=dict)
    running: set[Trial] = field(default_factory=set)

    def search(self, loss: str) -> Iterator[Trial]:
        """Yield the trials that choose the learning rate of a loss."""
        for seed in range(self.plan.lr_seeds):
            for lr in self.plan.rates:
                yield Trial(loss=loss, seed=seed, lr=lr)

    def rest(self, loss: str) -> Iterator[Trial]:
        """Yield the other trials of a loss, none before its learning rate is chosen."""
        lr = self.chosen(loss)
        if lr is not None:
            for seed in range(self.plan.lr_seeds, self.plan.seeds):
                yield Trial(loss=loss, seed=seed, lr=lr)

    def searched(self, loss: str) -> dict[float, float]:
        """Return the mean validation score by learning rate, NaN where one failed or is open."""
        found = {}
        for lr in self.plan.rates:
            trials = [Trial(loss=loss, seed=seed, lr=lr) for seed in range(self.plan.lr_seeds)]
            scores = [self.scores.get(trial, math.nan) for trial in trials]
            found[lr] = sum(scores) / len(scores)
        return found

    def chosen(self, loss: str) -> float | None:
        """Return the best learning rate on validation, of equals the one nearest the default.

        None while its search is open, and where no rate got through a trial. Where there is but
        one rate, there is nothing to search.
        """
        if len(self.plan.rates) > 1 and any(
            self.states.get(t, "new") == "new" for t in self.search(loss)
        ):
            return None
        return self.best(loss)

    def best(self, loss: str) -> float | None:
        """Return the learning rate that is best by what is known now, None if nothing is.

        One that got through more of its trials is better, whatever the scores.
        """
        if len(self.plan.rates) == 1:
            return self.plan.rates[0]
        known = {}
        metric = self.plan.task.metrics[0]
        for lr in self.plan.rates:
            trials = (Trial(loss=loss, seed=seed, lr=lr) for seed in range(self.plan.lr_seeds))
            scores = [goodness(self.scores[t], metric) for t in trials if t in self.scores]
            if scores:
                known[lr] = (len(scores), sum(scores) / len(scores))
        return max(known, key=lambda lr: known[lr]) if known else None

    def trials(self) -> list[Trial]:
        """Return all trials that are known by now, in the order to run them in."""
        found = []
        # Round by round over the losses, so that all get ahead alike.
        for kind in (self.search, self.rest):
            rows = [list(kind(loss)) for loss in self.plan.losses]
            found += [row[i] for i in range(max(map(len, rows))) for row in rows if i < len(row)]
        return found

    def next(self) -> Trial | None:
        """Return a trial to start now, and count it as running; None if there is none."""
        for trial in self.trials():
            if self.states.get(trial, "new") == "new" and trial not in self.running:
                self.running.add(trial)
                return trial
        return None

    def finish(self, trial: Trial, state: State, score: float = math.nan) -> None:
        """Take note of how a trial ended."""
        self.running.discard(trial)
        self.states[trial] = state
        if state == "finished":
            self.scores[trial] = score

    @property
    def total(self) -> int:
        """How many trials there are in all; a loss without a usable learning rate needs no more."""
        count = 0
        for loss in self.plan.losses:
            search = list(self.search(loss))
            over = all(self.states.get(t, "new") != "new" for t in search)
            hopeless = over and self.chosen(loss) is None
            count += len(search) + (0 if hopeless else self.plan.seeds - self.plan.lr_seeds)
        return count

    @property
    def done(self) -> int:
        """How many of them have ended."""
        return sum(self.states.get(trial, "new") != "new" for trial in self.trials())


def progress_of(root: Path, plan: ComparePlan) -> Progress:
    """Return how far a plan is, with all that the folder has of it already."""
    progress = Progress(plan)
    _read_states(root, progress, [t for loss in plan.losses for t in progress.search(loss)])
    _read_states(root, progress, [t for loss in plan.losses for t in progress.rest(loss)])
    return progress


def _read_states(root: Path, progress: Progress, trials: Iterable[Trial]) -> None:
    """Take the state of trials from their folders."""
    for trial in trials:
        folder = TrialFolder(root, trial)
        state = folder.state()
        score = math.nan
        if state == "finished":
            try:
                score = folder.validation_score()
            except (OSError, ValueError, AttributeError, TypeError):
                # A report is made without it; the next `compare` sets it aside.
                state = "failed"
        progress.finish(trial, state, score)
