"""Losses that are code of the user's own: looked at before training, and kept with what they train.

Of each file in which one is written, a run keeps a copy and the digest. When it goes on, the file
must be the same. What the file imports is not looked at.
"""

import hashlib
import tokenize
from collections.abc import Iterable
from pathlib import Path

import torch

from denseloss import compose
from denseloss.data.errors import InputError
from denseloss.data.files import write_whole
from denseloss.tasks import Criterion, Data, Task
from denseloss.train.plan import default_size, options_of
from denseloss.train.settings import TrialSettings

_LARGEST = 256

Record = dict[str, dict[str, str]]
"""What a configuration says of code: by its name (`file.py:name`) the `file`, and its `digest`."""


def look_at(loss: str, task: Task, data: Data, settings: TrialSettings) -> tuple[str, ...]:
    """Look at the terms of a loss that are the user's own, on a small batch.

    Args:
        loss: The expression.
        task: Of the data.
        data: That was opened.
        settings: Of the run.

    Returns:
        What is odd about them, a sentence each.

    Raises:
        InputError: Nothing can be trained with one.
    """
    weighted_sum = compose.parse(loss, mixed=True)
    if not compose.user_losses(weighted_sum):
        return ()
    criterion = task.criterion(weighted_sum, data)
    if not isinstance(criterion, Criterion):
        return ()  # a task that takes losses in a way of its own
    outputs, batch = task.example(
        data,
        criterion,
        batch_size=2,
        # The training squares: what sees its surroundings may need as much.
        size=min(_LARGEST, settings.size or default_size(task, data)),
        model=settings.model or task.defaults.model,
        options=options_of(task, settings),
    )
    return criterion.look(outputs, batch, device=_device(settings.accelerator))


def _device(accelerator: str) -> str | None:
    """Return the device of an accelerator that is here, None for the CPU."""
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator in ("auto", "mps") and torch.backends.mps.is_available() else None


def own_terms(losses: Iterable[str]) -> list[compose.UserLoss]:
    """Return the terms of losses that are the user's own and have a file."""
    sums = [compose.parse(loss, mixed=True) for loss in losses]
    return [one for each in sums for one in compose.user_losses(each) if one.file is not None]


def record(losses: Iterable[str]) -> Record:
    """Return what a configuration says of the code in losses, as it was when it was imported."""
    return {
        term.code: {
            "file": str(term.file),
            "digest": _of_source(term.source),
        }
        for term in own_terms(losses)
    }


def changed(before: Record, now: Record) -> str | None:
    """Return which file differs from what it was, in words; None if none does."""
    for code, entry in now.items():
        if before.get(code, entry)["digest"] != entry["digest"]:
            return f"{entry['file']} was edited since it began"
    return None


def copies(code: Record, folder: Path) -> dict[str, Path]:
    """Return where the copies of files are, by their paths: under their names, each used once."""
    found: dict[str, Path] = {}
    for entry in code.values():
        if entry["file"] in found:
            continue
        file, number = Path(entry["file"]), 2
        copy = folder / file.name
        while copy in found.values():
            copy, number = folder / f"{file.stem}_{number}{file.suffix}", number + 1
        found[entry["file"]] = copy
    return found


def as_trained(loss: str, code: Record, folder: Path) -> str:
    """Return a loss with the copy of each file that was edited or removed since it was trained.

    Args:
        loss: The expression.
        code: What the configuration says.
        folder: Where the copies are.
    """
    places = copies(code, folder)
    moved = {}
    for name, entry in code.items():
        file, place = Path(entry["file"]), places[entry["file"]]
        if name.startswith(f"{file}:") and place.exists() and _digest(file) != entry["digest"]:
            moved[name] = f"{place.absolute()}:{name.rpartition(':')[2]}"
    return compose.replaced(loss, moved)


def _digest(file: Path) -> str | None:
    """Return what changes with a file, None where it cannot be read."""
    try:
        with tokenize.open(file) as opened:
            return _of_source(opened.read())
    except (OSError, SyntaxError, UnicodeError):
        return None


def _of_source(source: str) -> str:
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def keep(losses: Iterable[str], code: Record, folder: Path) -> None:
    """Write copies of the files in which losses are the user's own, where they are not yet.

    Args:
        losses: The expressions.
        code: What the configuration says.
        folder: Where to; it is made.

    Raises:
        InputError: The folder cannot be written.
    """
    places = copies(code, folder)
    try:
        for term in own_terms(losses):
            place = places[str(term.file)]
            if not place.exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(place, term.source)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another --out"
        ) from None
