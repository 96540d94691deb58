"""Box means, in one pass."""

from __future__ import annotations

from torch import Tensor

from denseloss.backend import Declined
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.ops import operator

__all__ = ["box_mean"]


def box_mean(x: Tensor, window: int, *, border: str) -> Tensor | Declined:
    """`denseloss.primitives.windows.box_mean`."""
    if (why := layout.why_not(x, x)) is not None:
        return Declined(why)
    if x.ndim != 4 or window == 1 or window > 2 * max(x.shape[2:]) + 1:
        return Declined("only images with two axes of space and a window inside them are taken")
    if layout.memory(x) != "first":
        return Declined("the map is not contiguous")
    mean: Tensor = operator("edge", x)(x, None, None, -1.0, window, border == "valid")
    return mean.to(x.dtype)
