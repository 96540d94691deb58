"""Weighted means and ratios of sums: one operator each way, with closed-form gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.fused import double_backward, layout
from denseloss.primitives.fused.ops import operator

__all__ = ["linear_ratio", "weighted_mean"]

_is_compiling = torch.compiler.is_compiling
_transformed = torch._C._are_functorch_transforms_active


class WeightedMean(torch.autograd.Function):
    """Sum w v / sum count (or sum w v), and sum count."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, count: Tensor | None, divide: bool
    ) -> tuple[Tensor, Tensor]:
        """The mean and the count."""
        ctx.set_materialize_grads(False)  # else a tensor of zeros for the count
        mean, total = operator("weighted_mean", values)(values, weight, count, divide)
        ctx.divide = divide
        ctx.save_for_backward(weight, total)
        ctx.mark_non_differentiable(total)
        return mean, total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Any, ...]:
        """The gradient by the values."""
        if upstream is None:
            return None, None, None, None
        weight, total = ctx.saved_tensors
        if double_backward.wanted():
            part = upstream / torch.where(total == 0, 1, total) if ctx.divide else upstream
            grad = torch.where(weight == 0, 0, part * weight)
        else:
            grad = operator("weighted_mean_backward", weight)(upstream, total, weight, ctx.divide)
        return grad, None, None, None


def weighted_mean(
    values: Tensor, weight: Tensor, count: Tensor | None, *, divide: bool
) -> tuple[Tensor, Tensor] | Declined:
    """`denseloss.primitives.reduce.weighted_mean`."""
    if (why := _small(values, weight, count)) is not None:
        return Declined(why)
    if weight.shape != values.shape or (count is not None and count.shape != values.shape):
        return Declined("the weight broadcasts")
    found: tuple[Tensor, Tensor] = layout.apply(
        WeightedMean,
        values.contiguous(),
        weight.contiguous(),
        None if count is None else count.contiguous(),
        divide,
    )
    return found


class Ratio(torch.autograd.Function):
    """(above . x)/(below . x) of each row x = (sums, 1)."""

    @staticmethod
    def forward(
        ctx: Any,
        sums: Tensor,
        above: tuple[float, ...],
        below: tuple[float, ...],
        empty: float,
    ) -> Tensor:
        """The ratios, [*m]."""
        ctx.forms = above, below
        ctx.empty = empty
        ctx.save_for_backward(sums)
        return operator("ratio", sums)(sums, above, below, empty)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        """The gradient by the sums."""
        (sums,) = ctx.saved_tensors
        if double_backward.wanted():
            value = reference("linear_ratio")(sums, *ctx.forms, ctx.empty)
            grad = double_backward.by_definition((value,), sums, (upstream,))
        else:
            grad = operator("ratio_backward", sums)(layout.ready(upstream), sums, *ctx.forms)
        return grad, None, None, None


def linear_ratio(
    sums: Tensor, above: tuple[float, ...], below: tuple[float, ...], empty: float
) -> Tensor | Declined:
    """`denseloss.primitives.overlap.linear_ratio`."""
    if (why := _small(sums)) is not None:
        return Declined(why)
    found: Tensor = layout.apply(Ratio, sums.contiguous(), above, below, empty)
    return found


def _small(values: Tensor, *constants: Tensor | None) -> str | None:
    """Why small operators do not take these; None where they do."""
    if _is_compiling():
        return "compiled code fuses small operations itself"
    if values.dtype != torch.float32:
        return f"values are {str(values.dtype).removeprefix('torch.')}"
    for x in constants:
        if x is not None and (x.requires_grad or x.dtype != torch.float32):
            return "a weight or count requires grad, or is not float32"
    if _transformed():
        return "torch.func is active"
    return "there are no values" if values.numel() == 0 else None
