"""Which version of a primitive runs.

One table and one override. Each primitive registers its definition (plain torch, ``"reference"``)
with `primitive`; a fast version registers itself under the name of its backend with `implement`.
By default the fast version of the tensor's device runs where there is one, else the definition.

    with backend.use("reference"):  # force the definition, to test or to debug
        loss = dice_loss(logits, target)

The override is a module global, not a ContextVar: `torch.compile` guards a global and recompiles
when it changes, and cannot trace a ContextVar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor

__all__ = ["available", "implement", "primitive", "table", "use"]

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
table: dict[str, dict[str, Callable[..., Any]]] = {}
_override: str | None = None


def primitive(definition: Callable[P, R]) -> Callable[P, R]:
    """Register the plain-torch definition of a primitive and dispatch its calls."""
    versions = table.setdefault(definition.__name__, {})
    versions[REFERENCE] = definition

    @functools.wraps(definition)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(versions) == 1 or _override == REFERENCE:
            return definition(*args, **kwargs)
        name = _override or cast(Tensor, args[0]).device.type
        return cast(R, versions.get(name, definition)(*args, **kwargs))

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
            raise RuntimeError(
                f"backend {backend!r} is not there; available: {', '.join(available())}"
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
