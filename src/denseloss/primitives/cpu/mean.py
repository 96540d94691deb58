"""The operators of weighted means, and of ratios of linear forms."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_mean = abi.function("weighted_mean", "ppp lii pp", allocates=True)
_mean_backward = abi.function("weighted_mean_backward", "ppp lii p")
_ratio = abi.function("ratio", "pll pp f p")
_ratio_backward = abi.function("ratio_backward", "ppll pp p")


def weighted_mean(
    values: Tensor, weight: Tensor, count: Tensor | None, divide: bool
) -> tuple[Tensor, Tensor]:
    """The mean (or the sum) and the count."""
    result, total = abi.number(), abi.number()
    _mean(
        values.data_ptr(),
        weight.data_ptr(),
        abi.at(count),
        values.numel(),
        divide,
        torch.get_num_threads(),
        result.data_ptr(),
        total.data_ptr(),
    )
    return result, total


def weighted_mean_backward(upstream: Tensor, total: Tensor, weight: Tensor, divide: bool) -> Tensor:
    """The gradient by the values."""
    grad = torch.empty_like(weight)
    _mean_backward(
        upstream.data_ptr(),
        total.data_ptr(),
        weight.data_ptr(),
        weight.numel(),
        divide,
        torch.get_num_threads(),
        grad.data_ptr(),
    )
    return grad


@functools.lru_cache(maxsize=256)
def _numbers(form: tuple[float, ...]) -> Any:
    return (ctypes.c_double * len(form))(*form)


def ratio(sums: Tensor, above: Sequence[float], below: Sequence[float], empty: float) -> Tensor:
    """Ratios of two linear forms of each row of sums."""
    *rows, columns = sums.shape
    result = abi.small(*rows)
    _ratio(
        sums.data_ptr(),
        result.numel(),
        columns,
        _numbers(tuple(above)),
        _numbers(tuple(below)),
        empty,
        result.data_ptr(),
    )
    return result


def ratio_backward(
    upstream: Tensor, sums: Tensor, above: Sequence[float], below: Sequence[float]
) -> Tensor:
    """The gradient by the sums."""
    grad = torch.empty_like(sums)
    _ratio_backward(
        upstream.data_ptr(),
        sums.data_ptr(),
        upstream.numel(),
        sums.shape[-1],
        _numbers(tuple(above)),
        _numbers(tuple(below)),
        grad.data_ptr(),
    )
    return grad
