"""Code of the user's own, named as `file.py:name` or `package.module:name`."""

import ast
import hashlib
import importlib
import inspect
import linecache
import sys
import tokenize
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_SOURCE = "__denseloss_source__"


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
    place = text.rpartition(":")[0]
    if not is_user_code(text):
        raise UserCodeError(f"{text} is no name of code; write file.py:name or package.module:name")
    return _from_file(_path(place)) if _is_file(place) else _from_path(place)


def said_by(error: BaseException) -> str:
    """Return what a call of the user's code raised, with the file and line it came from."""
    where = f" ({place_of(error)})" if error.__traceback__ is not None else ""
    return f"{_said(error)}{where}"


def source_of(text: str) -> tuple[Path | None, str]:
    """Return the file in which what a text names is written, and what the file holds.

    Of a file that was named, what it held when it was imported. There is none of what is written
    in C.

    Raises:
        UserCodeError: It is not there, or running it failed.
    """
    module, found = module_of(text), load(text)
    if _SOURCE in vars(module):
        return Path(str(module.__file__)), vars(module)[_SOURCE]
    if inspect.isfunction(found) or inspect.isclass(found):
        module = sys.modules.get(found.__module__, module)
    try:
        file = Path(inspect.getsourcefile(module) or "")
        with tokenize.open(file) as opened:  # in the encoding that the file declares
            return file.absolute(), opened.read()
    except (OSError, TypeError, SyntaxError, UnicodeError):
        return None, ""


def definition(source: str, name: str) -> str:
    """Return the lines of a file that define a name, all of them where that cannot be told."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        elif isinstance(node, ast.Assign):
            names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            first = node.lineno
        else:
            continue
        if name in names:
            return "\n".join(lines[first - 1 : node.end_lineno])
    return source


def place_of(error: BaseException, file: Path | None = None) -> str:
    """Return where an exception was raised, `losses.py, line 12`.

    Args:
        error: That was caught.
        file: Whose last line is wanted. Without it, or where none is in it, it is the last line
            that is neither of an installed package nor of denseloss, or else the last of all.
    """
    lines = _lines(error)
    inside = [line for line in lines if line[0] == file]
    own = [line for line in lines if not _is_foreign(line[0])]
    where, number = (inside or own or lines or [(Path(), 0)])[-1]
    return f"{where.name}, line {number}"


def passes(error: BaseException, file: Path | None) -> bool:
    """Whether an exception was raised in a file, or in what the file called."""
    return any(where == file for where, _ in _lines(error))


def _lines(error: BaseException) -> list[tuple[Path, int]]:
    """The files and lines that an exception passed, the one that raised it last."""
    frames = traceback.walk_tb(error.__traceback__)
    return [(Path(frame.f_code.co_filename), number) for frame, number in frames]


def _is_foreign(file: Path) -> bool:
    packages = {"site-packages", "dist-packages"}
    return bool(packages.intersection(file.parts)) or file.is_relative_to(Path(__file__).parent)


def look_in(folder: str) -> None:
    """Find modules in a folder, too, after all other places."""
    if folder not in sys.path:
        sys.path.append(folder)


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _is_module(place: str) -> bool:
    return all(part.isidentifier() for part in place.split("."))


def _path(place: str) -> Path:
    path = Path(place).expanduser().absolute()
    return path.resolve() if ".." in path.parts else path


def _is_own(value: Any, key: str, module: ModuleType) -> bool:
    return not key.startswith("_") and getattr(value, "__module__", None) == module.__name__


def _from_path(name: str) -> ModuleType:
    if "" not in sys.path:
        # A command that pip installed does not look where it was started; python -m does.
        look_in(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{name} cannot be imported: {_said(error)}") from error


_loaded: dict[Path, ModuleType] = {}


def _from_file(file: Path) -> ModuleType:
    """Import a file, anew where it was edited since."""
    if not file.is_file():
        raise UserCodeError(f"there is no file {file}")
    try:
        # Read here, and not by Python's loader, which would take a compiled file that is as old and
        # as long; what ran is then known for certain.
        with tokenize.open(file) as opened:  # in the encoding that the file declares
            source = opened.read()
        module = _loaded.get(file)
        if module is None or vars(module)[_SOURCE] != source:
            module = _run(file, source)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{file} cannot be imported: {_said(error)}") from error
    _loaded[file] = module
    return module


def _run(file: Path, source: str) -> ModuleType:
    digest = hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()
    module = ModuleType(f"denseloss_user_{file.stem}_{digest}")
    vars(module).update({"__file__": str(file), _SOURCE: source})
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    linecache.checkcache(str(file))
    look_in(str(file.parent))  # for what it imports from beside it
    try:
        exec(compile(source, str(file), "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        if before is not None:
            sys.modules[module.__name__] = before
        raise
    return module


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
