"""Box-filtered maps by running sums: the cost does not grow with the window."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.backend import primitive

__all__ = ["box_mean"]


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
    for axis in range(2, x.ndim):
        x = _mean_along(x, axis, window, border)
    return x


def _mean_along(x: Tensor, axis: int, window: int, border: str) -> Tensor:
    size, half = x.shape[axis], window // 2
    first = torch.arange(size, device=x.device) - half
    low, high = first.clamp(min=0), (first + window).clamp(max=size)
    # sums[i] is the sum of the i first pixels; exact for 0/1 masks, whose sums are integers.
    zero = torch.zeros_like(x.narrow(axis, 0, 1))
    sums = torch.cat([zero, x.cumsum(axis)], dim=axis)
    sums = sums.index_select(axis, high) - sums.index_select(axis, low)
    if border == "zero":
        return sums / window
    shape = [1] * x.ndim
    shape[axis] = size
    return sums / (high - low).to(x.dtype).reshape(shape)
