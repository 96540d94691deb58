"""Which version of a primitive or of a whole loss runs.

One table and one override. Each primitive, and each loss that is one pass over its inputs,
registers its definition (plain torch, ``"reference"``) with `primitive`; a fast version registers
itself under the name of its backend with `implement`. By default the fast version of the tensor's
device runs where there is one, else the definition. The definition also runs where the fast
version answers None: for float64, for a weight that needs a gradient, under `torch.func` and so on.

    with backend.use("reference"):  # force the definition, to test or to debug
        loss = dice_loss(logits, target)

The override is a module global, not a ContextVar: `torch.compile` guards a global and recompiles
when it changes, and cannot trace a ContextVar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

__all__ = ["available", "implement", "missing", "primitive", "reference", "table", "use"]

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
table: dict[str, dict[str, Callable[..., Any]]] = {}
_override: str | None = None
# The backends that were looked for: None where one is there, else why it is not.
_found: dict[str, str | None] = {}


def _load(name: str) -> None:
    """Bring in the fast versions of a device, at the first call on it; never at import."""
    if name in _found or name not in ("cpu", "cuda"):
        return
    _found[name] = None
    try:
        # Statements, not importlib: torch.compile runs these where it meets them.
        if name == "cpu":
            import denseloss.primitives.cpu.operators
        else:
            import denseloss.primitives.cuda  # noqa: F401
    except (ImportError, RuntimeError) as error:
        _found[name] = str(error)


def missing() -> dict[str, str]:
    """The fast backends that are not there, and why."""
    for name in ("cpu", "cuda"):
        _load(name)
    return {name: why for name, why in _found.items() if why is not None}


def reference(name: str) -> Callable[..., Any]:
    """The definition of a primitive or loss."""
    return table[name][REFERENCE]


def _device(arguments: Iterable[Any]) -> str:
    """The type of device of the first tensor; keywords may come in any order."""
    for x in arguments:
        if isinstance(x, Tensor):
            return x.device.type
    return REFERENCE


def primitive(definition: Callable[P, R]) -> Callable[P, R]:
    """Register the plain-torch definition of a primitive and dispatch its calls."""
    versions = table.setdefault(definition.__name__, {})
    versions[REFERENCE] = definition

    @functools.wraps(definition)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _override == REFERENCE:
            return definition(*args, **kwargs)
        name = _override or _device(args or kwargs.values())
        _load(name)
        version = versions.get(name)
        if version is not None:
            result = version(*args, **kwargs)
            if result is not None:
                return cast(R, result)
        return definition(*args, **kwargs)

    return run


def implement(name: str, *, backend: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a fast version of the primitive ``name``."""
    if name not in table:
        raise KeyError(f"implement: there is no primitive {name!r}; known: {sorted(table)}")

    def register(version: Callable[P, R]) -> Callable[P, R]:
        table[name][backend] = version
        return version

    return register


def available() -> list[str]:
    """The names of the backends that have at least one primitive here."""
    missing()
    return sorted({backend for versions in table.values() for backend in versions})


class use:  # noqa: N801 - reads as a verb: `with backend.use("reference")`
    """Run every primitive on one backend, from here on or inside a ``with`` block.

    Args:
        backend: ``"reference"``, the name of a fast backend, or None to choose by device again.

    A primitive that has no version for that backend runs its definition.

    Raises:
        RuntimeError: no primitive has a version for that backend here.
    """

    def __init__(self, backend: str | None) -> None:
        if backend is not None and backend not in available():
            why = f" ({reason})" if (reason := missing().get(backend)) else ""
            raise RuntimeError(
                f"backend {backend!r} is not there{why}; available: {', '.join(available())}"
            )
        global _override
        self._before, _override = _override, backend

    def __enter__(self) -> None:
        """The override is in force since construction."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _override
        _override = self._before
