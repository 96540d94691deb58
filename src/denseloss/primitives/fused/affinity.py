"""The sums of the normalised cut, with the gradient from what the forward pass gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss.backend import reference
from denseloss.primitives.affinity import Association
from denseloss.primitives.fused.layout import learns, plain

__all__ = ["association"]


class Ties(torch.autograd.Function):
    """Σ p (W p) and Σ p (W 1): their gradients are 2 W p and W 1, so nothing is filtered twice."""

    @staticmethod
    def forward(
        ctx: Any,
        probability: Tensor,
        definition: Callable[[Tensor], Association] | None,
        image: Tensor,
        radius: float,
        sigma_intensity: float,
        sigma_space: float,
    ) -> tuple[Tensor, Tensor]:
        """Within and total, [n k]."""
        within, total, filtered, degree = torch.ops.denseloss.association(
            probability, image, radius, sigma_intensity, sigma_space
        )
        ctx.definition = definition
        ctx.save_for_backward(probability, filtered, degree)
        return within, total

    @staticmethod
    def backward(ctx: Any, within: Tensor, total: Tensor) -> tuple[Any, ...]:
        """The gradient by the probability."""
        probability, filtered, degree = ctx.saved_tensors
        nothing = (None,) * 5
        if torch.is_grad_enabled() and ctx.definition is not None:
            outputs = ctx.definition(probability)
            upstream = (within, total)
            grads = torch.autograd.grad(outputs, probability, upstream, create_graph=True)
            return (*grads, *nothing)
        grad = torch.ops.denseloss.association_backward(filtered, degree, within, total)
        return (grad, *nothing)


def association(
    probability: Tensor, image: Tensor, *, radius: float, sigma_intensity: float, sigma_space: float
) -> Association | None:
    """`denseloss.primitives.affinity.association`."""
    if (
        probability.ndim != 4
        or probability.dtype != torch.float32
        or probability.numel() == 0
        or not plain(image)
    ):
        return None

    def definition(p: Tensor) -> Association:
        found: Association = reference("association")(
            p, image, radius=radius, sigma_intensity=sigma_intensity, sigma_space=sigma_space
        )
        return found

    again = definition if learns(probability) and not torch.compiler.is_compiling() else None
    within, total = Ties.apply(
        probability.contiguous(),
        again,
        image.float().contiguous(),
        float(radius),
        float(sigma_intensity),
        float(sigma_space),
    )
    return Association(within, total)
