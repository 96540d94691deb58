"""Which tensors the operators take, and how others are brought to that form.

`None` from a function here means: not for the operators; the definition runs instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WIDTHS", "alike", "labels", "learns", "memory", "plain", "scores", "weights"]

WIDTHS = (torch.float32, torch.float16, torch.bfloat16)
LABELS = (torch.uint8, torch.int32, torch.int64)
NARROW = (torch.bool, torch.int8, torch.int16, torch.uint16)
MASKS = (*WIDTHS, torch.uint8, torch.bool, torch.int32, torch.int64)


def plain(*constants: Tensor | None) -> bool:
    """Whether an operator may run at all on tensors of which these need no gradient.

    torch.func's transforms go through the definition, which they can differentiate at will.
    """
    for x in constants:
        if x is not None and x.requires_grad:
            return False
    return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()


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


def labels(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Integer labels [n *s] or [n 1 *s] as contiguous [n *s]."""
    if target.dtype not in LABELS:
        target = target.int() if target.dtype in NARROW else target.long()
    return target.reshape(shape).contiguous()


def weights(weight: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A weight [#n *#s] or [#n 1 *#s] as contiguous float32 [n *s]."""
    if weight is None:
        return None
    if weight.ndim == len(shape) + 1:
        weight = weight.squeeze(1)
    return weight.float().expand(shape).contiguous()
