"""The sums of the normalised cut, with the gradient from what the forward pass gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.affinity import Association
from denseloss.primitives.fused import double_backward
from denseloss.primitives.fused.layout import plain
from denseloss.primitives.fused.ops import operator

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
        within, total, filtered, degree = operator("association", probability)(
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
        if (
            by_definition := double_backward.gradient(ctx, probability, (within, total))
        ) is not None:
            return (*by_definition, *nothing)
        grad = operator("association_backward", filtered)(filtered, degree, within, total)
        return (grad, *nothing)


def association(
    probability: Tensor, image: Tensor, *, radius: float, sigma_intensity: float, sigma_space: float
) -> Association | Declined:
    """`denseloss.primitives.affinity.association`."""
    if probability.ndim != 4 or probability.dtype != torch.float32 or probability.numel() == 0:
        return Declined("only float32 images with two axes of space are taken")
    if not plain(image):
        return Declined("the image requires grad, or torch.func is active")

    def definition(p: Tensor) -> Association:
        found: Association = reference("association")(
            p, image, radius=radius, sigma_intensity=sigma_intensity, sigma_space=sigma_space
        )
        return found

    within, total = Ties.apply(
        probability.contiguous(),
        double_backward.kept(definition, probability),
        image.float().contiguous(),
        float(radius),
        float(sigma_intensity),
        float(sigma_space),
    )
    return Association(within, total)
