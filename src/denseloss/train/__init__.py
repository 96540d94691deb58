"""Training: settings, plans, Lightning modules, run folders. It knows no task."""

import importlib
from typing import TYPE_CHECKING, Any

from denseloss.data.errors import InputError
from denseloss.train.errors import InterruptedRunError

if TYPE_CHECKING:
    from denseloss.train.prediction import load, predict
    from denseloss.train.run import TrainResult, is_first_process, load_run, train
    from denseloss.train.settings import TrainSettings

__all__ = [
    "InputError",
    "InterruptedRunError",
    "TrainResult",
    "TrainSettings",
    "is_first_process",
    "load",
    "load_run",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: Lightning, which takes seconds, is of use in training only."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"TrainSettings": "settings", "load": "prediction", "predict": "prediction"}
    module = importlib.import_module(f"{__name__}.{home.get(name, 'run')}")
    return getattr(module, name)
