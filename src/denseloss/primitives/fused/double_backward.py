"""Gradients of gradients: every Function here has them from the plain definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from denseloss.primitives.fused.layout import learns

__all__ = ["by_definition", "gradient", "kept", "wanted"]

D = TypeVar("D", bound=Callable[..., Any])


def wanted() -> bool:
    """Whether the gradient that a backward pass returns must itself have a graph."""
    # Compiled graphs have no gradients of gradients.
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def by_definition(
    outputs: Sequence[Tensor | None], inputs: Tensor, upstream: Sequence[Tensor | None]
) -> Tensor:
    """The gradient of outputs that the definition has made of the inputs, with a graph."""
    pairs = [
        (out, up)
        for out, up in zip(outputs, upstream, strict=True)
        if out is not None and up is not None and out.requires_grad
    ]
    found: tuple[Tensor, ...] = torch.autograd.grad(
        [out for out, _ in pairs], inputs, [up for _, up in pairs], create_graph=True
    )
    return found[0]


def kept(definition: D, inputs: Tensor) -> D | None:
    """The definition for a Function to keep, where a gradient may be asked for.

    Compiled graphs have no gradients of gradients, and cannot hold a function.
    """
    return definition if learns(inputs) and not torch.compiler.is_compiling() else None


def gradient(ctx: Any, inputs: Tensor, upstream: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """With create_graph, the gradient by the definition, which has a graph; else None.

    ``upstream`` begins with the gradients of what the definition returns.
    """
    if not torch.is_grad_enabled() or ctx.definition is None:
        return None
    outputs = ctx.definition(inputs)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    ups = upstream[: len(outputs)]
    found: tuple[Tensor, ...] = torch.autograd.grad(outputs, inputs, ups, create_graph=True)
    return found
