"""The sums of the normalised cut, with the gradient from what the forward pass gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss.backend import reference
from denseloss.primitives.affinity import Association
from denseloss.primitives.fused import second
from denseloss.primitives.fused.layout import plain

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
        if (by_definition := second.gradient(ctx, probability, (within, total))) is not None:
            return (*by_definition, *nothing)
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

    within, total = Ties.apply(
        probability.contiguous(),
        second.kept(definition, probability),
        image.float().contiguous(),
        float(radius),
        float(sigma_intensity),
        float(sigma_space),
    )
    return Association(within, total)
