"""Exclusive classes: one pass over the logits for all that is asked, one for the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.fused import double_backward, layout
from denseloss.primitives.fused.ops import operator
from denseloss.primitives.overlap import Overlap
from denseloss.primitives.softmax import SoftmaxPass

__all__ = ["softmax_pass"]

NO_LABEL = -(2**63)  # stands for ignore_index=None: no label is this


class Softmax(torch.autograd.Function):
    """The maps and sums of a pass, with their gradient in one more."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        spread: Tensor | None,
        ignore: int,
        entropy: bool,
        columns: int,
        size: tuple[int, ...],
        align_corners: bool,
    ) -> tuple[Tensor | None, ...]:
        """Entropy, miss and weights [n *s], smooth [n *s], sums [n c k] and present [n c]."""
        ctx.set_materialize_grads(False)
        results: tuple[Tensor, ...] = operator("softmax", logits)(
            logits, target, weight, spread, ignore, entropy, columns, size, align_corners
        )
        ctx.options = (ignore, size, align_corners, entropy, columns)
        ctx.save_for_backward(logits, target, weight, spread)
        if torch.compiler.is_compiling():
            asked = (entropy, entropy, entropy, spread is not None, columns > 0, columns > 0)
            return layout.compiled_outputs(ctx, results, asked, constant=(2, 5))
        own, miss, weights, smooth, sums, present = results
        if entropy and columns:
            ctx.mark_non_differentiable(weights, present)
        else:
            ctx.mark_non_differentiable(weights if entropy else present)
        return (
            own if entropy else None,
            miss if entropy else None,
            weights if entropy else None,
            smooth if spread is not None else None,
            sums if columns else None,
            present if columns else None,
        )

    @staticmethod
    def backward(
        ctx: Any,
        entropy: Tensor | None,
        miss: Tensor | None,
        _: Any,
        smooth: Tensor | None,
        sums: Tensor | None,
        __: Any,
    ) -> tuple[Any, ...]:
        """The gradient by the logits."""
        logits, target, weight, spread = ctx.saved_tensors
        ignore, size, align_corners, wanted, columns = ctx.options
        rest = (None,) * 8
        # Compiled, there is a gradient of everything, asked for or not.
        entropy, miss = (entropy, miss) if wanted else (None, None)
        smooth, sums = smooth if spread is not None else None, sums if columns else None
        if entropy is None and miss is None and smooth is None and sums is None:
            return (None, *rest)
        if double_backward.wanted():
            done: SoftmaxPass = reference("softmax_pass")(
                logits,
                target,
                weight,
                ignore,
                size=size or None,
                align_corners=align_corners,
                entropy=wanted,
                spread=spread,
                columns=columns,
            )
            found = None if done.overlap is None else done.overlap.sums
            outputs = done.entropy, done.miss, done.smooth, found
            ups = entropy, miss, smooth, sums
            return (double_backward.by_definition(outputs, logits, ups), *rest)
        grad = operator("softmax_backward", logits)(
            logits,
            target,
            weight,
            spread,
            ignore,
            None if entropy is None else layout.ready(entropy),
            None if miss is None else layout.ready(miss),
            None if smooth is None else layout.ready(smooth),
            None if sums is None else layout.ready(sums),
            size,
            align_corners,
        )
        return (grad, *rest)


def softmax_pass(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    size: tuple[int, ...] | None = None,
    align_corners: bool = False,
    entropy: bool = False,
    spread: Tensor | float | None = None,
    columns: int = 0,
) -> SoftmaxPass | Declined:
    """`denseloss.primitives.softmax.softmax_pass`."""
    constant = spread if isinstance(spread, Tensor) else None
    if (why := layout.why_not(logits, target, weight, constant)) is not None:
        return Declined(why)
    if target.dtype.is_floating_point:
        return Declined("the target is class probabilities")
    axes = logits.ndim - 2
    if size is not None and axes != 2:
        return Declined("only images with two axes of space are resized in the pass")
    shape = target.shape if target.ndim == axes + 1 else (target.shape[0], *target.shape[2:])
    if 0 in shape:
        return Declined("the target is empty")
    label = layout.labels(target, shape)
    counted = layout.weights(weight, shape)
    if isinstance(spread, Tensor):
        spread = spread.float().contiguous()
    elif spread is not None:
        spread = logits.new_full(logits.shape[1:2], spread, dtype=torch.float32)
    given, rows = label, axes == 0 and not columns
    if rows:
        # Rows of scores are the pixels of one image whose classes lie innermost.
        logits, label = logits.t().unsqueeze(0), label.unsqueeze(0)
        counted = None if counted is None else counted.unsqueeze(0)
    own, miss, weights, smooth, sums, present = layout.apply(
        Softmax,
        logits,
        label,
        counted,
        spread,
        NO_LABEL if ignore_index is None else ignore_index,
        entropy,
        columns,
        size or (),
        align_corners,
    )
    if not entropy:
        own = miss = weights = None
    if spread is None:
        smooth = None
    if rows:
        own, miss, weights, smooth = (
            None if x is None else x.reshape(-1) for x in (own, miss, weights, smooth)
        )
    overlap = Overlap(sums, present) if columns else None
    return SoftmaxPass(given, own, miss, weights, smooth, overlap)
