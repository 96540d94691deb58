"""How far the trials are: a live table on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from denseloss.compare.plan import Trial
from denseloss.compare.trials import Failed, Progress, TrialFolder
from denseloss.report.numbers import duration
from denseloss.train.lines import say_line

_REDRAW_SECONDS = 1.0
_WIDTH = 30


class Display:
    """Shows the trials while they run.

    Args:
        console: Where to.
        progress: What there is to run.
        root: The comparison's folder.
        slots: How many run at a time.
    """

    def __init__(self, console: Console, progress: Progress, *, root: Path, slots: int) -> None:
        self.console = console
        self.progress = progress
        self.root = root
        self.slots = slots
        self.steps = progress.plan.common.steps
        self.names = progress.plan.names
        self.score_name = progress.plan.task.metrics[0].name
        self.started: dict[Trial, float] = {}
        self.seconds: list[float] = []
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, trial: Trial) -> None:
        """Show that a trial runs now."""
        self.started[trial] = time.monotonic()

    def end(self, trial: Trial, failed: Failed | None) -> None:
        """Tell how a trial ended, with a line that stays."""
        seconds = time.monotonic() - self.started.pop(trial)
        done, total = self.progress.done, self.progress.total
        number = f"[{done:{len(str(total))}}/{total}]"
        line = f"{number} {self.names[trial.loss]}  seed {trial.seed}  lr {trial.lr:g}  "
        if failed is not None:
            line += f"FAILED: {failed.error}"
        else:
            self.seconds.append(seconds)
            left = self.left()
            score = self.progress.scores[trial]
            line += f"val {self.score_name} {score:.4f}  {duration(seconds)}"
            line += f"  about {duration(left)} left" if left and done < total else ""
        say_line(self.console, line)

    def tick(self) -> None:
        """Redraw the table, now and then."""
        if self._live is not None and time.monotonic() > self._drawn + _REDRAW_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def left(self) -> float | None:
        """Return about how many seconds are left, None while nobody can say."""
        passed = {trial: time.monotonic() - begun for trial, begun in self.started.items()}
        # The latest count: a machine may have become slower.
        known = self.seconds[-2 * self.slots :] or [
            passed[trial] / min(1.0, step / self.steps)
            for trial in passed
            if (step := self._latest(trial).get("step", 0)) > 0
        ]
        if not known:
            return None
        each = mean(known)
        waiting = self.progress.total - self.progress.done - len(passed)
        running = sum(max(0.0, each - seconds) for seconds in passed.values())
        return (waiting * each + running) / max(1, self.slots)

    def _latest(self, trial: Trial) -> Mapping[str, float]:
        return TrialFolder(self.root, trial).latest()

    def _table(self) -> RenderableType:
        score = f"val {self.score_name}"
        losses = Table("loss", "learning rates", "seeds", score, box=None, pad_edge=False)
        for loss in self.progress.plan.losses:
            losses.add_row(_shortened(self.names[loss], 44), *self._loss_cells(loss))
        running = Table("running", "", "", "step", "", score, "", box=None, pad_edge=False)
        for trial in sorted(self.started, key=self.started.__getitem__):
            running.add_row(*self._running_cells(trial))
        done, total = self.progress.done, self.progress.total
        left = self.left()
        about = f", about {duration(left)} left" if left is not None else ""
        foot = Text(f"{done} of {total} trials{about}; Ctrl-C stops, the same command goes on")
        return Group(losses, "", running, "", foot)

    def _loss_cells(self, loss: str) -> tuple[str, ...]:
        states = self.progress.states
        search, rest = list(self.progress.search(loss)), list(self.progress.rest(loss))
        tried = sum(states.get(t, "new") != "new" for t in search)
        chosen = self.progress.chosen(loss)
        rate = f"{tried} of {len(search)} tried" if chosen is None else f"{chosen:g}"
        marks = {"finished": "●", "failed": "✗", "new": "○"}
        seeds = "".join(
            "◐" if trial in self.started else marks[states.get(trial, "new")]
            for trial in (*search, *rest)
            if trial.lr == chosen
        )
        scores = [s for t, s in self.progress.scores.items() if t.loss == loss and t.lr == chosen]
        score = f"{mean(scores):.4f}" if scores else ""
        return rate, seeds or "○" * self.progress.plan.seeds, score

    def _running_cells(self, trial: Trial) -> tuple[RenderableType, ...]:
        row = self._latest(trial)
        step, score = int(row.get("step", 0)), row.get("score", math.nan)
        return (
            _shortened(self.names[trial.loss], 34),
            f"seed {trial.seed}",
            f"lr {trial.lr:g}",
            f"{step}/{self.steps}",
            ProgressBar(total=self.steps, completed=step, width=_WIDTH // 2),
            f"{score:.4f}" if score == score else "",
            duration(time.monotonic() - self.started[trial]),
        )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
