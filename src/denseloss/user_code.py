"""Code of the user's own, named as `file.py:name` or `package.module:name`."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


class UserCodeError(ValueError):
    """There is no such code, or it cannot be imported."""


def is_user_code(text: str) -> bool:
    """Whether a text names code, and not something that comes with denseloss."""
    place, colon, name = text.rpartition(":")
    return bool(colon) and name.isidentifier() and (_is_file(place) or _is_module(place))


def full_name(text: str) -> str:
    """Return the name as every process finds it, in whichever folder it runs.

    The path of a file becomes absolute; other texts stay.
    """
    place, colon, name = text.rpartition(":")
    return f"{_path(place)}:{name}" if colon and _is_file(place) else text


def load(text: str) -> Any:
    """Import what a text names.

    A file is imported under a name of its own, which pickle finds, and never as another module of
    its name. Modules are looked for in the current folder, too.

    Raises:
        UserCodeError: With what was looked for and what went wrong.
    """
    place, _, name = text.rpartition(":")
    module = module_of(text)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if _is_own(value, key, module)]
        there = f"it has {', '.join(known)}" if known else "nothing is defined in it"
        raise UserCodeError(f"{place} has no {name}; {there}")
    return getattr(module, name)


def module_of(text: str) -> ModuleType:
    """Import the file or module in which a text names something.

    Raises:
        UserCodeError: It is not there, or running it failed.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise UserCodeError(f"{text} is no name of code; write file.py:name or package.module:name")
    return _from_file(_path(place)) if _is_file(place) else _from_path(place)


def said_by(error: BaseException) -> str:
    """Return what a call of the user's code raised, with the file and line it came from.

    That is the last line of the traceback that is neither of an installed package nor of denseloss;
    where there is none, the last of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _FOREIGN.intersection(Path(f.filename).parts) and not _ours(f)]
    place = ""
    if frames:
        frame = (own or frames)[-1]
        place = f" ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{_said(error)}{place}"


_FOREIGN = {"site-packages", "dist-packages"}


def _ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(Path(__file__).parent)


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _is_module(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def _path(place: str) -> Path:
    return Path(place).expanduser().absolute()


def _is_own(value: Any, key: str, module: ModuleType) -> bool:
    return not key.startswith("_") and getattr(value, "__module__", None) == module.__name__


def _from_path(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # A command that pip installed does not look where it was started; python -m does.
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserCodeError(f"{name} cannot be imported: {_said(error)}") from error


@cache
def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserCodeError(f"there is no file {file}")
    digest = hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()
    name = f"denseloss_user_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserCodeError(f"{file} cannot be imported: {_said(error)}") from error
    return module


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
