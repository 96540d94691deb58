"""What the losses of single elements, of box pairs and of bins share: their autograd.

Each row (a logit, a pair, a distribution) has a loss of its own, so value and gradient come from
one pass: where a gradient will be asked for, the forward pass computes it for an upstream gradient
of 1 and the backward pass hands it out, scaled where need be. It takes the room that the gradient
needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.primitives.fused import double_backward, layout, ops

__all__ = ["Definition", "reduced", "row_weights"]


class Definition(Protocol):
    """The plain definition of a loss, its other arguments bound."""

    def __call__(self, logits: Tensor, /, *, reduction: str) -> Tensor:
        """The loss."""


# What has no gradient: the options of `Rows`, and up to four tensors after the logits. (Autograd
# does not mind one None too many at the end.)
OPTIONS, CONSTANTS = (None,) * 7, (None,) * 4


class Rows(torch.autograd.Function):
    """The weighted sum of the losses of all rows, or each of them."""

    # Logits are the first of the tensors, of which an operator has three or more: dynamo mistakes
    # a forward that is called with two of its *arguments for one that takes no context.
    @staticmethod
    def forward(
        ctx: Any,
        definition: Callable[[Tensor], Tensor] | None,
        name: str,
        numbers: tuple[Any, ...],
        scale: float,
        each: bool,
        ahead: bool,
        counted: bool,
        *tensors: Tensor,
    ) -> Any:
        """``scale`` times the sum, or each value; where ``counted``, the sum of weights, too."""
        operator = ops.operator(name, tensors[0])
        sums, values, grad = operator(*tensors, *numbers, None, scale, not each, each, ahead)
        ctx.definition, ctx.name, ctx.numbers, ctx.scale = definition, name, numbers, scale
        ctx.grad = grad if ahead else None
        ctx.save_for_backward(*tensors)
        if each:
            return values
        if not counted and not torch.compiler.is_compiling():
            # Cheaper than sums[0].clone(), and no view either: `loss += other` writes into it.
            return sums.as_strided_((), ())
        value, count = sums[0].clone(), sums[1].clone()
        if not counted:
            return value
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
        """The gradient by the logits."""
        if ctx.grad is not None and not torch.is_grad_enabled():
            grad, ctx.grad = ctx.grad, None  # handed out once; a second backward computes it anew
            ops.operator("rescale", grad)(grad, upstream)
            return (*OPTIONS, grad, *CONSTANTS)
        logits, *constants = ctx.saved_tensors
        if (by_definition := double_backward.gradient(ctx, logits, (upstream,))) is not None:
            return (*OPTIONS, *by_definition, *CONSTANTS[: len(constants)])
        if upstream.shape == logits.shape:
            upstream = layout.alike(upstream, logits, layout.memory(logits) or "first")
        else:
            upstream = upstream.contiguous()
        _, _, grad = ops.operator(ctx.name, logits)(
            logits, *constants, *ctx.numbers, upstream, ctx.scale, False, False, True
        )
        return (*OPTIONS, grad, *CONSTANTS[: len(constants)])


def reduced(
    name: str,
    logits: Tensor,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[Any, ...],
    definition: Definition,
    *,
    rows: int,
    weighted: bool,
    reduction: str,
    count: Tensor | float | None,
) -> Tensor:
    """The loss from its operator.

    Args:
        name: of the operator.
        logits: its first argument, the one that is differentiated.
        tensors: its following arguments that are tensors or None, all of them constants.
        numbers: those after them, up to the upstream gradient.
        definition: the plain definition, for gradients of gradients.
        rows: how many losses there are.
        weighted: whether the sum of weights may differ from that.
        reduction: as in `denseloss.primitives.reduce`.
        count: what the mean divides by instead of the sum of weights.
    """
    each = reduction == "none"
    mean = reduction == "mean"
    compiling = torch.compiler.is_compiling()
    scale = 1.0
    # A number that nobody else adds to is known before the pass: the operator divides at once.
    # (Compiled, a number made of the sizes would make a new graph for each size.)
    if mean and not compiling and distributed.alone() and not isinstance(count, Tensor):
        if count is not None:
            scale, mean = 1 / max(count, 1.0), False
        elif not weighted:
            scale, mean = 1 / rows, False
    learns = layout.learns(logits) and not compiling
    again = None
    if learns:

        def again(z: Tensor) -> Tensor:
            value = definition(z, reduction="none" if each else "sum")
            return value if each else scale * value

    # float16 gradients must see the upstream scale (GradScaler's 65536) before they are rounded.
    ahead = learns and not each and logits.dtype != torch.float16
    counted = mean and weighted and count is None
    result: Any = layout.apply(
        Rows, again, name, numbers, scale, each, ahead, counted, logits, *tensors
    )
    if counted:
        return distributed.mean(*result)
    if not mean:
        return result  # type: ignore[no-any-return]
    if count is None:
        return distributed.mean(result, rows)
    return distributed.mean(result, count, least=1.0)


def row_weights(weight: Tensor | None, rows: torch.Size) -> Tensor | None:
    """A weight that broadcasts to the rows, for each of them."""
    return None if weight is None else weight.float().expand(rows).contiguous()
