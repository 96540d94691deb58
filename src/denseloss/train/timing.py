"""How long a step and a validation take: what plans are made by."""

import copy
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from denseloss.train.loading import Batches, Loading
from denseloss.train.module import TrainingModule
from denseloss.train.schedule import Schedule


def seconds_of_parts(
    module: TrainingModule, loading: Loading, *, trainer_options: dict[str, Any]
) -> tuple[float, float]:
    """Measure a training step and a whole validation, on a copy.

    Args:
        module: What is trained; a copy of it is, for a moment.
        loading: Where its images come from.
        trainer_options: Of the trainer that will train.
    """
    trial = copy.deepcopy(module)
    clock = _Clock()
    plan = Schedule(steps=_Clock.TOTAL, val_every=_Clock.TOTAL, lr=1e-6, weight_decay=0.0)
    trial.schedule = plan
    trainer = L.Trainer(
        max_epochs=1,
        limit_val_batches=min(4, len(loading.data.val)),
        callbacks=[clock],
        enable_checkpointing=False,
        logger=False,
        **trainer_options,
    )
    trainer.fit(trial, Batches(loading, plan, turns=len(trial.turns)))
    return clock.step, clock.image * len(loading.data.val)


class _Clock(Callback):
    """Times the later half of some steps, and some validation images."""

    TOTAL = 12
    step = 0.0
    image = 0.0

    def __init__(self) -> None:
        self._steps = 0

    def on_train_batch_start(self, *_: Any) -> None:
        if self._steps == self.TOTAL // 2:
            self._start = _now()

    def on_train_batch_end(self, *_: Any) -> None:
        self._steps += 1
        if self._steps == self.TOTAL:
            self.step = (_now() - self._start) / (self.TOTAL - self.TOTAL // 2)

    def on_validation_start(self, *_: Any) -> None:
        self._start = _now()
        self._images = 0

    def on_validation_batch_end(self, *_: Any) -> None:
        self._images += 1
        self.image = (_now() - self._start) / self._images


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
