"""Which version of a quantity runs: its definition in plain torch, or a fast one.

One table and one override. Each quantity registers its definition (``"reference"``) with
`primitive`; a fast version registers itself under the name of its backend with `implement`. By
default the fast version of the tensor's device runs where there is one, else the definition. The
definition also runs where the fast version answers `Declined`: for float64, for a weight that needs
a gradient, under `torch.func` and so on.

    with backend.use("reference"):            # force the definition, to test or to debug
        loss = dice_loss(logits, target)

    backend.which(dice_loss, logits, target)  # {"softmax_pass": "cpu", ...}

This module imports nobody: where fast versions come from is handed to it (`offer`).
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

__all__ = [
    "REFERENCE",
    "Declined",
    "Missing",
    "available",
    "caution",
    "implement",
    "missing",
    "offer",
    "primitive",
    "reference",
    "table",
    "use",
    "which",
]

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
_is_compiling = torch.compiler.is_compiling
_SAYS_EXPORTING = hasattr(torch.compiler, "is_exporting")
table: dict[str, dict[str, Callable[..., Any]]] = {}
_loaders: dict[str, Callable[[], Missing | None]] = {}
# The backends that were looked for: None where one is there, else why it is not.
_found: dict[str, str | None] = {}
# What to say at the first call that runs the definition for want of a backend.
_unsaid: dict[str, str] = {}
_loading = threading.Lock()


class Declined(NamedTuple):
    """The answer of a fast version that does not take these inputs: the definition runs instead."""

    why: str


class Missing(NamedTuple):
    """The answer of a loader that has no fast versions to offer here."""

    why: str
    mendable: bool = False
    """whether the user can have them: the first call that runs without them says so then"""


def caution(text: str) -> None:
    """Warn, at the line outside of this package and of torch from which the call came."""
    level, frame = 1, sys._getframe()
    while _ours(frame) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("denseloss", "torch")


class _Own(threading.local):
    """What each thread has of its own: the override, and the notes of `which`."""

    override: str | None = None
    notes: dict[str, str] | None = None


_own = _Own()
# The override of the main thread once more, for compiled code: torch.compile guards a module's
# global and recompiles when it changes, and cannot trace what belongs to a thread.
_compiled_override: str | None = None


def _is_exporting() -> bool:
    """Whether torch.export is at work: it takes down the definition.

    An exported program runs where denseloss is not, and its gradient is that of its operators.
    """
    if not torch.compiler.is_dynamo_compiling():
        return True
    if _SAYS_EXPORTING:
        return torch.compiler.is_exporting()
    return torch._dynamo.config.allow_rnn  # set by a strict export of torch 2.6, which says no more


def _set_override(backend: str | None) -> str | None:
    """Set the override of this thread; returns the one before."""
    global _compiled_override
    before, _own.override = _own.override, backend
    if threading.current_thread() is threading.main_thread():
        _compiled_override = backend
    return before


def offer(name: str, loader: Callable[[], Missing | None]) -> None:
    """Say where the fast versions of a device come from; they are loaded at the first call on it.

    Args:
        name: of the device, such as ``"cuda"``, and of its backend.
        loader: calls `implement` for each of them, or answers why there are none.
    """
    _loaders[name] = loader


def _load(name: str) -> None:
    if name in _found or name not in _loaders:
        return
    if _is_compiling():  # a lock cannot be traced
        _look(name)
        return
    with _loading:  # another thread would find the table empty, and run the definition
        if name not in _found:
            _look(name)


def _look(name: str) -> None:
    lacking = _loaders[name]()
    _found[name] = None if lacking is None else lacking.why
    if lacking is not None and lacking.mendable:
        said = f"denseloss runs in plain torch here, right but much slower: {lacking.why}"
        _unsaid[name] = said


def missing() -> dict[str, str]:
    """The fast backends that are not there, and why."""
    for name in _loaders:
        _load(name)
    return {name: why for name, why in _found.items() if why is not None}


def reference(name: str) -> Callable[..., Any]:
    """The definition of a quantity."""
    return table[name][REFERENCE]


def _device(arguments: Iterable[Any]) -> str:
    """The type of device of the first tensor; keywords may come in any order."""
    for x in arguments:
        if isinstance(x, torch.Tensor):
            return "cpu" if x.is_cpu else x.device.type
    return REFERENCE


def primitive(definition: Callable[P, R]) -> Callable[P, R]:
    """Register the plain-torch definition of a quantity and dispatch its calls."""
    name = definition.__name__
    versions = table.setdefault(name, {})
    versions[REFERENCE] = definition

    @functools.wraps(definition)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _is_compiling():
            override, notes = REFERENCE if _is_exporting() else _compiled_override, None
        else:
            override, notes = _own.override, _own.notes
        if args and type(args[0]) is not torch.Tensor:  # what stands for a tensor has it
            args = (getattr(args[0], "tensor", args[0]), *args[1:])  # type: ignore[assignment]
        backend = override or _device(args or kwargs.values())
        if backend not in _found:
            _load(backend)
        version = versions.get(backend)
        if version is None or backend == REFERENCE:
            if notes is not None:
                notes[name] = f"{REFERENCE}: {_why_none(name, backend)}"
            if not _is_compiling() and backend in _unsaid and (said := _unsaid.pop(backend, "")):
                caution(said)
            return definition(*args, **kwargs)
        result: Any = version(*args, **kwargs)
        if type(result) is Declined:
            if notes is not None:
                notes[name] = f"{REFERENCE}: {result.why}"
            return definition(*args, **kwargs)
        if notes is not None:
            notes[name] = backend
        return result  # type: ignore[no-any-return]

    return run


def _why_none(name: str, backend: str) -> str:
    if backend == REFERENCE:
        return 'backend.use("reference") is in force'
    return _found.get(backend) or f"{name} has no fast version on {backend}"


def implement(name: str, *, backend: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a fast version of the quantity ``name``."""
    if name not in table:
        raise KeyError(f"implement: there is no primitive {name!r}; known: {sorted(table)}")

    def register(version: Callable[P, R]) -> Callable[P, R]:
        table[name][backend] = version
        return version

    return register


def available() -> list[str]:
    """The names of the backends that have at least one quantity here."""
    missing()
    return sorted({backend for versions in table.values() for backend in versions})


def which(loss: Callable[..., Any], *inputs: Any, **options: Any) -> dict[str, str]:
    """Which version of each quantity a call runs, and where it is the definition, why.

    Args:
        loss: any function or Module made of our quantities; it is called once.
        inputs: its tensors.
        options: its keywords.

    Returns:
        For each quantity the name of a backend, or ``"reference: ..."`` and the reason.

    Example:
        >>> from denseloss.functional import dice_loss
        >>> logits = torch.zeros(1, 2, 3, dtype=torch.float64)
        >>> which(dice_loss, logits, torch.tensor([[0, 1, 1]]))["softmax_pass"]
        'reference: logits are float64'
    """
    before, _own.notes = _own.notes, {}
    try:
        loss(*inputs, **options)
        return _own.notes
    finally:
        _own.notes = before


class use:  # noqa: N801 - reads as a verb: `with backend.use("reference")`
    """Run every quantity on one backend, from here on or inside a ``with`` block.

    The override belongs to the thread that sets it. Compiled code follows that of the main thread.

    Args:
        backend: ``"reference"``, the name of a fast backend, or None to choose by device again.

    A quantity that has no version for that backend runs its definition.

    Raises:
        RuntimeError: no quantity has a version for that backend here.
    """

    def __init__(self, backend: str | None) -> None:
        if backend not in (None, REFERENCE) and backend not in available():
            why = f" ({reason})" if (reason := missing().get(backend)) else ""
            raise RuntimeError(
                f"backend {backend!r} is not there{why}; available: {', '.join(available())}"
            )
        self._before = _set_override(backend)

    def __enter__(self) -> None:
        """The override is in force since construction."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _set_override(self._before)
