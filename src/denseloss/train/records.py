"""What happens during training, told on the screen and in the run folder."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from denseloss.tasks import Data, Metric
from denseloss.train.folder import RunFolder
from denseloss.train.lines import say_line
from denseloss.train.module import TrainingModule

Row = dict[str, float | int]
R = TypeVar("R", bound=Mapping[str, float])

# A float of metrics.csv has as many digits as a float32 holds.
_DIGITS = 7
COLUMNS = ("epoch", "step", "loss", "val_loss", "score")
"""Of `metrics.csv`, whatever the task; those of the task follow."""
_BAR_SECONDS = 0.2


class Records(Callback):
    """Keeps a row per validation; writes it, shows it, and saves it with every checkpoint.

    Args:
        folder: Where `metrics.csv` and `log.jsonl` are.
        console: Where the progress is shown.
        steps: How many steps are planned.
        steps_per_epoch: What makes steps epochs.
        metrics: Of the task; the first is what the column `score` is.
        seconds: After how much training time to stop, None for no such limit.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        console: Console,
        steps: int,
        steps_per_epoch: int,
        metrics: Sequence[Metric],
        seconds: float | None,
    ) -> None:
        self.folder = folder
        self.console = console
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.metric = metrics[0]
        self.names = {metric.key: metric.name for metric in metrics}
        self.seconds = seconds
        self.run = ""
        self.rows: list[Row] = []
        self.saved_step = 0
        self._saving = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._shown = 0.0
        self._bar: Progress | None = None
        self._bar_task = TaskID(0)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this one."""
        self._saving = int(self.rows[-1]["step"]) if self.rows else 0
        return {"run": self.run, "rows": self.rows, "seconds": self._elapsed()}

    def saved(self, name: str) -> None:
        """Take note that a checkpoint is complete."""
        if name == self.folder.last_file.name:
            self.saved_step = self._saving

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the run that is resumed."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.saved_step = int(self.rows[-1]["step"])
        self._seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the bar."""
        self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        if self.rows:
            self._say(f"resuming after step {self.rows[-1]['step']} of {self.steps}")
            self.folder.write_metrics(self.rows)
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar_task = self._bar.add_task("", total=self.steps)
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar, and stop when the time is over."""
        assert isinstance(pl_module, TrainingModule)
        # Asking for the loss makes a GPU wait, so it is not asked at every step.
        if self._bar is not None and time.monotonic() > self._shown + _BAR_SECONDS:
            self._shown = time.monotonic()
            text = f"loss {pl_module.last_loss():.3f}"
            if self.rows:
                text += f"  val {self.metric.name} {self.rows[-1]['score']:.3f}"
            self._bar.update(self._bar_task, completed=pl_module.step_count, description=text)
        over = self.seconds is not None and self._elapsed() > self.seconds
        if over and pl_module.step_count < self.steps and not trainer.should_stop:
            trainer.should_stop = True
            self._say(f"the time is over at step {pl_module.step_count} of {self.steps}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row of the validation that has just been."""
        assert isinstance(pl_module, TrainingModule)
        step = pl_module.step_count
        epoch = round(step / self.steps_per_epoch, 2)
        self.rows.append(
            {
                "epoch": int(epoch) if epoch == int(epoch) else epoch,
                "step": step,
                **{key: _rounded(value) for key, value in pl_module.row.items()},
            }
        )
        if not trainer.is_global_zero:
            return
        row = self.rows[-1]
        self.folder.write_metrics(self.rows)
        self.folder.log(
            "validated", seconds=round(self._elapsed(), 1), step=step, epoch=row["epoch"]
        )
        best = "  best so far" if self.best() is row else ""
        width = len(str(self.steps))
        self._say(
            f"step {step:{width}}/{self.steps}  epoch {row['epoch']:<6}  "
            f"loss {row['loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"{'  '.join(self._scores(row))}{best}"
        )

    def on_train_end(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def best(self) -> Row:
        """Return the row with the best score, the first of equals."""
        return best_row(self.rows, self.metric)

    def _scores(self, row: Row) -> Iterator[str]:
        yield f"val {self.metric.name} {row['score']:.4f}"
        for key, value in row.items():
            if key not in COLUMNS and "/" not in key and key != self.metric.key:
                yield f"val {self.names.get(key, key)} {value:.4f}"

    def summary(self, data: Data, *, test: Mapping[str, float] | None) -> dict[str, Any]:
        """Return what `summary.json` says."""
        best = self.best()
        return {
            "data": data.name,
            "score": {"name": self.metric.name, "higher_is_better": self.metric.higher_is_better},
            "metrics": self.names,
            "best": best,
            "last": self.rows[-1],
            "test": None if test is None else {k: _rounded(v) for k, v in test.items()},
            "steps": self.rows[-1]["step"],
            "planned_steps": self.steps,
            "seconds": round(self._elapsed(), 1),
        }

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _say(self, line: str) -> None:
        say_line(self.console, line)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def best_row(rows: Sequence[R], metric: Metric) -> R:
    """Return the row with the best score, the first of equals; one without a score is the worst."""
    return max(rows, key=lambda row: goodness(row["score"], metric))


def goodness(score: float, metric: Metric) -> float:
    """Return a score such that higher is better; NaN is the worst."""
    if math.isnan(score):
        return -math.inf
    return score if metric.higher_is_better else -score
