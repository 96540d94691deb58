"""Which tensors the operators take, and how others are brought to that form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "WIDTHS",
    "alike",
    "apply",
    "compiled_outputs",
    "labels",
    "learns",
    "masks",
    "memory",
    "plain",
    "ready",
    "scores",
    "weights",
    "why_not",
]

_is_compiling = torch.compiler.is_compiling
_transformed = torch._C._are_functorch_transforms_active

WIDTHS = (torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.int32, torch.int64)
NARROW = (torch.bool, torch.int8, torch.int16, torch.uint16)
MASKS = (*WIDTHS, torch.uint8, torch.bool, torch.int32, torch.int64)


def why_not(logits: Tensor, *constants: Tensor | None) -> str | None:
    """Why the operators do not take these logits with these constants; None where they do."""
    if logits.dtype not in WIDTHS:
        return f"logits are {str(logits.dtype).removeprefix('torch.')}"
    if logits.numel() == 0:
        return "logits are empty"
    if memory(logits) is None:
        return "logits are neither contiguous nor channels_last"
    for x in constants:
        if x is not None and x.requires_grad:
            return "a target, weight or other constant requires grad"
    # torch.func's transforms go through the definition, which they can differentiate at will.
    if not _is_compiling() and _transformed():
        return "torch.func is active"
    return None


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply`` without its own look for torch.func: `why_not` has looked."""
    if _is_compiling():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def compiled_outputs(
    ctx: Any, results: tuple[Tensor, ...], asked: tuple[bool, ...], constant: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """What a Function returns to torch.compile, which does not take None for a result."""
    fixed = [x for i, x in enumerate(results) if i in constant or not asked[i]]
    ctx.mark_non_differentiable(*fixed)
    return results


def plain(*constants: Tensor | None) -> bool:
    """Whether an operator may run at all on tensors of which these need no gradient.

    torch.func's transforms go through the definition, which they can differentiate at will.
    """
    for x in constants:
        if x is not None and x.requires_grad:
            return False
    return _is_compiling() or not _transformed()


def learns(logits: Tensor) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and logits.requires_grad


def memory(x: Tensor) -> str | None:
    """Where the classes of [n c *s] lie: ``"first"`` (contiguous), ``"last"``, or None."""
    if x.is_contiguous():
        return "first"
    if x.ndim > 2 and x.movedim(1, -1).is_contiguous():
        return "last"
    return None


def scores(logits: Tensor) -> str | None:
    """The memory layout of logits that the operators take."""
    if logits.dtype not in WIDTHS or logits.numel() == 0:
        return None
    return memory(logits)


def alike(x: Tensor, logits: Tensor, layout: str) -> Tensor:
    """A tensor that broadcasts to the logits, in their shape and layout."""
    if x.shape != logits.shape:
        x = x.expand(logits.shape)
    if layout == "first":
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def masks(target: Tensor, logits: Tensor, layout: str) -> Tensor:
    """Targets of the logits' shape, in their layout and a dtype that the operators read."""
    return alike(target if target.dtype in MASKS else target.float(), logits, layout)


def ready(grad: Tensor) -> Tensor:
    """An upstream gradient as the operators read it."""
    # Without asking is_contiguous: torch.compile does not answer that in a backward pass where
    # another gradient is None.
    return (grad if grad.dtype == torch.float32 else grad.float()).contiguous()


def labels(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Integer labels [n *s] or [n 1 *s] as contiguous [n *s]."""
    if target.dtype not in LABELS:
        target = target.int() if target.dtype in NARROW else target.long()
    if target.shape != shape:
        target = target.reshape(shape)
    return target if target.is_contiguous() else target.contiguous()


def weights(weight: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A weight [#n *#s] or [#n 1 *#s] as contiguous float32 [n *s]."""
    if weight is None:
        return None
    if weight.ndim == len(shape) + 1:
        weight = weight.squeeze(1)
    return weight.float().expand(shape).contiguous()
