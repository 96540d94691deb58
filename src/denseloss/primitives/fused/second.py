"""Gradients of gradients: every Function here has them from the plain definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from denseloss.primitives.fused.layout import learns

__all__ = ["gradient", "kept"]

D = TypeVar("D", bound=Callable[..., Any])


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
