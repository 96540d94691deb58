"""Box-filtered maps by running sums: the cost does not grow with the window."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.backend import primitive

__all__ = ["box_mean", "edge_emphasis"]


@primitive
def box_mean(x: Tensor, window: int, *, border: str) -> Tensor:
    """The mean of the ``window`` x ... x ``window`` box around each pixel of x [n c *s].

    Args:
        x: float [n c *s].
        window: side of the box in pixels, odd.
        border: ``"zero"``: pixels outside the image count as 0; ``"valid"``: they do not count.
    """
    if window == 1:
        return x  # exactly, which differences of running sums are not
    space = range(2, x.ndim)
    # Sums of a 0/1 mask are integers, exact below 2^24; float64 keeps those of a soft mask.
    sums = x if x.device.type == "mps" else x.double()
    for axis in space:
        sums = _sum_along(sums, axis, window)
    if border == "zero":
        return (sums / float(window) ** len(space)).to(x.dtype)
    for axis in space:
        sums = sums / _inside(sums, axis, window)
    return sums.to(x.dtype)


def edge_emphasis(target: Tensor, *, gamma: float, window: int, border: str) -> Tensor:
    """1 + gamma |box mean of t - t|: high near the edges of a mask t [n c *s]."""
    return 1 + gamma * (box_mean(target, window, border=border) - target).abs()


def _ends(size: int, window: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first pixel of the box around each pixel, and the one after its last."""
    first = torch.arange(size, device=like.device) - window // 2
    return first.clamp(min=0), (first + window).clamp(max=size)


def _sum_along(x: Tensor, axis: int, window: int) -> Tensor:
    low, high = _ends(x.shape[axis], window, x)
    # sums[i] is the sum of the i first pixels
    shape = list(x.shape)
    shape[axis] = 1
    sums = torch.cat([x.new_zeros(shape), x.cumsum(axis)], dim=axis)
    return sums.index_select(axis, high) - sums.index_select(axis, low)


def _inside(x: Tensor, axis: int, window: int) -> Tensor:
    """How many pixels of each box lie inside the image along an axis."""
    low, high = _ends(x.shape[axis], window, x)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return (high - low).to(x.dtype).reshape(shape)
