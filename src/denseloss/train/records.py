"""What happens during training, told on the screen and in the run folder."""

import math
import time
from collections.abc import Mapping
from typing import Any

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

from denseloss.data import SegmentationData
from denseloss.train.folder import RunFolder
from denseloss.train.segmentation import SegmentationTask

Row = dict[str, float | int]

# A float of metrics.csv has as many digits as a float32 holds.
_DIGITS = 7
_BAR_SECONDS = 0.2


class Records(Callback):
    """Keeps a row per validation; writes it, shows it, and saves it with every checkpoint.

    Args:
        folder: Where `metrics.csv` and `log.jsonl` are.
        console: Where the progress is shown.
        steps: How many steps are planned.
        steps_per_epoch: What makes steps epochs.
        seconds: After how much training time to stop, None for no such limit.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        console: Console,
        steps: int,
        steps_per_epoch: int,
        seconds: float | None,
    ) -> None:
        self.folder = folder
        self.console = console
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch
        self.seconds = seconds
        self.rows: list[Row] = []
        self.saved_step = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._shown = 0.0
        self._bar: Progress | None = None
        self._bar_task = TaskID(0)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs of this one."""
        self.saved_step = int(self.rows[-1]["step"]) if self.rows else 0
        return {"rows": self.rows, "seconds": self._elapsed()}

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
        # Asking for the loss makes a GPU wait, so it is not asked at every step.
        if self._bar is not None and time.monotonic() > self._shown + _BAR_SECONDS:
            assert isinstance(pl_module, SegmentationTask)
            self._shown = time.monotonic()
            text = f"loss {pl_module.last_loss():.3f}"
            if self.rows:
                text += f"  val Dice {self.rows[-1]['mean_dice']:.3f}"
            self._bar.update(self._bar_task, completed=trainer.global_step, description=text)
        over = self.seconds is not None and self._elapsed() > self.seconds
        if over and trainer.global_step < self.steps and not trainer.should_stop:
            trainer.should_stop = True
            self._say(f"the time is over at step {trainer.global_step} of {self.steps}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row of the validation that has just been."""
        assert isinstance(pl_module, SegmentationTask)
        step = trainer.global_step
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
            f"val Dice {row['mean_dice']:.4f}  val IoU {row['mean_iou']:.4f}{best}"
        )

    def on_train_end(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Remove the bar."""
        self._close()

    def best(self) -> Row:
        """Return the row with the highest mean Dice, the first of equals."""
        return max(self.rows, key=lambda row: _or_lowest(row["mean_dice"]))

    def summary(
        self, data: SegmentationData, *, test: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """Return what `summary.json` says."""
        best = self.best()
        return {
            "data": data.name,
            "task": data.task,
            "best": best,
            "last": self.rows[-1],
            "test": None if test is None else {k: _rounded(v) for k, v in test.items()},
            "steps": self.rows[-1]["step"],
            "planned_steps": self.steps,
            "seconds": round(self._elapsed(), 1),
            "class_names": list(data.class_names),
        }

    def _elapsed(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _or_lowest(score: float) -> float:
    return -math.inf if math.isnan(score) else score
