"""The operator of window means and edge weights."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_edge_space = abi.function("edge_space", "ll", counts=True)
_edge = abi.function("edge", "pi p id f l i lll i pp")


def edge(
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    gamma: float,
    window: int,
    inside: bool,
) -> Tensor:
    """Window means, or the edge weights made of them."""
    result = torch.empty_like(target, dtype=torch.float32)
    high, wide = target.shape[-2:]
    threads = torch.get_num_threads()
    space = abi.empty(threads * _edge_space(wide, window))
    _edge(
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        ignore is not None,
        ignore or 0.0,
        gamma,
        window,
        inside,
        target.numel() // max(high * wide, 1),
        high,
        wide,
        threads,
        space.data_ptr(),
        result.data_ptr(),
    )
    return result
