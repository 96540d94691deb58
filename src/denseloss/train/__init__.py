"""Training: Lightning tasks, models, run folders."""

from denseloss.train.errors import InputError, InterruptedRunError
from denseloss.train.run import TrainResult, is_first_process, opened, step_times, train
from denseloss.train.settings import TrainSettings

__all__ = [
    "InputError",
    "InterruptedRunError",
    "TrainResult",
    "TrainSettings",
    "is_first_process",
    "opened",
    "step_times",
    "train",
]
