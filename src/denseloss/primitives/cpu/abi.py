"""How Python calls the kernels: the codes of dtypes, the types of arguments, pointers and room."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from denseloss.primitives.cpu import library

__all__ = [
    "CODES",
    "NOTHING",
    "at",
    "empty",
    "function",
    "last",
    "mapped",
    "number",
    "results",
    "small",
]

R = TypeVar("R")

# The order of `enum dtype` in elements.h.
CODES = {
    dtype: code
    for code, dtypes in enumerate(
        [
            (torch.float32,),
            (torch.float16,),
            (torch.bfloat16,),
            (torch.uint8, torch.bool),
            (torch.int32,),
            (torch.int64,),
        ]
    )
    for dtype in dtypes
}

CPU = torch.device("cpu")
TYPES = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def function(
    name: str, arguments: str, *, counts: bool = False, allocates: bool = False
) -> Callable[..., Any]:
    """A function of the kernels, its argument types one letter each.

    One that ``allocates`` its workspace answers 1 where there is no memory for it.
    """
    found = getattr(library.load(), f"denseloss_{name}")
    found.argtypes = [TYPES[letter] for letter in arguments.replace(" ", "")]
    found.restype = ctypes.c_int64 if counts else None
    if allocates:
        found.restype, found.errcheck = ctypes.c_int, _check
    return found  # type: ignore[no-any-return]


def _check(failed: int, *_: Any) -> None:
    if failed:
        raise MemoryError("denseloss: no memory for the workspace of a loss")


def at(x: Tensor | None) -> int | None:
    """Where the numbers of a tensor lie, if it has any."""
    return None if x is None else x.data_ptr()


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room, whatever the default device and dtype are."""
    return torch.empty(shape, dtype=dtype, device=CPU)


def _apart(make: Callable[[], R]) -> R:
    """What ``make`` returns when it runs in a thread of its own.

    This module may be imported at a first call under a mode: torch.export's, FakeTensorMode, a
    transform of torch.func. A tensor made there would be fake or wrapped for the whole process.
    Modes belong to threads.
    """
    made: list[R] = []
    thread = threading.Thread(target=lambda: made.append(make()))
    thread.start()
    thread.join()
    return made[0]


# `torch.empty_like` is the fastest way to a small tensor: it has no dtype or device to read.
_NUMBER, _TWO = _apart(lambda: (empty(), empty(2)))


def number() -> Tensor:
    """Room for one number."""
    return torch.empty_like(_NUMBER)


@functools.lru_cache(maxsize=64)
def _like(shape: tuple[int, ...]) -> Tensor:
    return empty(*shape)


def small(*shape: int) -> Tensor:
    """Room for a few numbers, such as one for each class of each image."""
    return torch.empty_like(_like(shape))


def last(logits: Tensor) -> bool:
    """Whether the classes of logits [n c *s] lie innermost."""
    return not logits.is_contiguous()


def mapped(upstream: Tensor | None) -> bool:
    """Whether there is an upstream gradient for each element."""
    return upstream is not None and upstream.ndim > 0


# What an operator returns where it was not asked; the autograd Functions drop it. One for each
# output: torch.compile wants no two of them to be the same tensor.
NOTHING = _apart(lambda: tuple(empty(0) for _ in range(6)))
_NO_SUMS, _NO_VALUES = _apart(lambda: (empty(0), empty(0)))
_NO_GRAD = _apart(
    lambda: {x: empty(0, dtype=x) for x in (torch.float32, torch.float16, torch.bfloat16)}
)


def results(
    rows: Tensor, scores: Tensor, sums: bool, values: bool, grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for (sums, values, grad) of logits ``rows`` with one loss per element of ``scores``."""
    return (
        torch.empty_like(_TWO) if sums else _NO_SUMS,
        torch.empty_like(scores, dtype=torch.float32) if values else _NO_VALUES,
        torch.empty_like(rows) if grad else _NO_GRAD[rows.dtype],
    )
