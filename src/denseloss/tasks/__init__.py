"""Tasks: kinds of problems that denseloss trains and compares on. Each is a folder in here.

A folder has a class `TASK`, a `Task`. One that lies elsewhere is named as `file.py:Name`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from denseloss.contract import nearest
from denseloss.data.errors import InputError
from denseloss.tasks.criterion import Criterion, CriterionByKinds, Feed
from denseloss.tasks.evidence import Evidence, LossEvidence
from denseloss.tasks.predictor import Predictor
from denseloss.tasks.scores import Additive, Metric, Pooling, Scored
from denseloss.tasks.task import (
    Candidate,
    Data,
    DataReport,
    Defaults,
    Finished,
    NoSettings,
    Progress,
    Split,
    SplitSummary,
    Task,
    Trained,
    Turn,
)
from denseloss.user_code import UserCodeError, full_name, module_of

__all__ = [
    "Additive",
    "Candidate",
    "Criterion",
    "CriterionByKinds",
    "Data",
    "DataReport",
    "Defaults",
    "Evidence",
    "Feed",
    "Finished",
    "LossEvidence",
    "Metric",
    "NoSettings",
    "Pooling",
    "Predictor",
    "Progress",
    "Scored",
    "Split",
    "SplitSummary",
    "Task",
    "Trained",
    "Turn",
    "asked",
    "find",
    "full_name",
    "named",
    "names",
]

DEFAULT = "segmentation"
"""The task of data that no other task claims."""


def names() -> list[str]:
    """The tasks that come with denseloss: the folders in here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def named(text: str) -> Task:
    """Return a task by the name of its folder, or by `file.py:Name`.

    Raises:
        InputError: There is no such task, or its file cannot be imported.
    """
    if ":" in text:
        try:
            module = module_of(text)
        except UserCodeError as error:
            raise InputError(f"--task {text}: {error}") from error
        return _made(module, text.rpartition(":")[2], text)
    if text not in names():
        near = nearest(text, names())
        meant = f" (did you mean {near}?)" if near else ""
        raise InputError(
            f"--task {text}: no such task{meant}; there are {', '.join(names())}, and "
            "file.py:Name names one of your own"
        )
    return _made(importlib.import_module(f"{__name__}.{text}"), "TASK", text)


def find(where: str) -> Task:
    """Return the task that data looks like."""
    others = [name for name in names() if name != DEFAULT]
    found = (task for task in map(named, others) if task.claims(where))
    return next(found, None) or named(DEFAULT)


def asked(text: str, where: str) -> tuple[Task, str]:
    """Return the task of `--task`, for `"auto"` the one that data looks like, and its full name.

    Raises:
        InputError: There is no such task.
    """
    task = find(where) if text == "auto" else named(text)
    return task, task.name if text == "auto" else full_name(text)


def _made(module: Any, name: str, text: str) -> Task:
    found = getattr(module, name, None)
    if inspect.isclass(found) and issubclass(found, Task):
        found = found()
    if not isinstance(found, Task):
        known = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Task) and value is not Task
        ]
        there = f"it has {', '.join(known)}" if known else "it has no subclass of it"
        raise InputError(f"--task {text}: {name} is no denseloss.tasks.Task there; {there}")
    if missing := list(_missing(found)):
        raise InputError(
            f"--task {text}: {name} lacks {', '.join(missing)}; see denseloss.tasks.Task"
        )
    return found


def _missing(task: Task) -> Iterator[str]:
    """Yield what a task must have and has not."""

    def own(name: str) -> bool:
        return getattr(type(task), name, None) is not getattr(Task, name, None)

    yield from (name for name in ("name", "metrics", "defaults") if not hasattr(task, name))
    yield from (name for name in ("open", "dataset", "network") if not own(name))
    if not (own("feeds") or own("criterion")):
        yield "feeds (or criterion)"
    if not (own("image_scores") or (own("meter") and own("measure"))):
        yield "image_scores (or meter and measure)"
