"""The notation of shapes: ``dtype[axes]``, as jaxtyping writes them.

- ``float``, ``int`` (any integer or bool) or ``real`` (any of these),
- a letter is an axis that has the same size wherever it stands in one signature:
  ``n`` images, ``c`` classes or channels, ``m`` boxes, ``k`` bins, ``i`` image channels,
- ``*s`` is any number of axes (space), a number is an axis of that size,
- ``#`` before an axis allows size 1 (broadcasting).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denseloss.targets import StandIn

__all__ = ["Form", "Sizes", "describe"]

Sizes = dict[str, Any]
"""Sizes of the axes seen so far: an int for a letter, a tuple for ``*s``."""

_DTYPES: dict[str, Callable[[torch.dtype], bool]] = {
    "float": lambda dtype: dtype.is_floating_point,
    "int": lambda dtype: not dtype.is_floating_point and not dtype.is_complex,
    "real": lambda dtype: not dtype.is_complex,
}


@dataclass(frozen=True)
class Form:
    """One accepted dtype and shape, such as ``float[n c *s]``."""

    notation: str
    dtype: str
    before: tuple[tuple[str, bool], ...]  # (axis, may be 1) up to the starred axis
    star: tuple[str, bool] | None
    after: tuple[tuple[str, bool], ...]

    @classmethod
    def parse(cls, notation: str) -> Form:
        """Read ``dtype[axis axis *axes]``."""
        dtype, _, rest = notation.rstrip("]").partition("[")
        axes = [(axis.replace("#", ""), "#" in axis) for axis in rest.split()]
        at = next((i for i, (axis, _) in enumerate(axes) if axis.startswith("*")), None)
        if at is None:
            return cls(notation, dtype, tuple(axes), None, ())
        return cls(notation, dtype, tuple(axes[:at]), axes[at], tuple(axes[at + 1 :]))

    def fits_dtype(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of this dtype is accepted."""
        return _DTYPES[self.dtype](dtype)

    def fits_shape(self, shape: tuple[int, ...], sizes: Sizes) -> Sizes | None:
        """The sizes with this shape's axes added, or None where the shape disagrees with them."""
        head, tail = len(self.before), len(self.after)
        if len(shape) < head + tail or (self.star is None and len(shape) > head + tail):
            return None
        found = dict(sizes)
        end = len(shape) - tail
        for (axis, broadcasts), size in zip(
            self.before + self.after, shape[:head] + shape[end:], strict=True
        ):
            known = int(axis) if axis.isdecimal() else found.setdefault(axis, size)
            if size != known and not (broadcasts and size == 1):
                return None
        if self.star is not None:
            axis, broadcasts = self.star
            space = tuple(shape[head:end])
            known = found.setdefault(axis, space)
            if len(space) != len(known):
                return None
            for size, wanted in zip(space, known, strict=True):
                if size != wanted and not (broadcasts and size == 1):
                    return None
        return found


def describe(value: Any) -> str:
    """What came, in the same notation: ``float32[2, 3, 8]``; of anything else its type and text."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, StandIn):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{type(value).__name__} {dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple) and any(isinstance(x, Tensor) for x in value):
        return f"{type(value).__name__} of {', '.join(map(describe, value))}"
    if hasattr(value, "__array__") and hasattr(value, "shape"):  # numpy and its like
        return f"{type(value).__name__} {getattr(value, 'dtype', '')}{list(value.shape)}"
    return f"{type(value).__name__} {' '.join(repr(value).split()):.60}"
