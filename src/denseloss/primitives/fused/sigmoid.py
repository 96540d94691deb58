"""Independent channels: one pass over the logits for the sums of each, one for the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.edges import EdgeSums
from denseloss.primitives.fused import double_backward, layout
from denseloss.primitives.fused.ops import operator
from denseloss.primitives.overlap import COLUMNS, Overlap
from denseloss.primitives.sigmoid import SigmoidSums

__all__ = ["edge_sums", "sigmoid_sums"]


class Sigmoid(torch.autograd.Function):
    """The sums of each channel, with their gradient in one pass more."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        pos_weight: Tensor | None,
        ignore: float | None,
        columns: int,
        entropy: bool,
    ) -> tuple[Tensor | None, ...]:
        """Sums [n c k], present [n c], sum w BCE [n c], sum w [n c]."""
        ctx.set_materialize_grads(False)
        results: tuple[Tensor, ...] = operator("sigmoid", logits)(
            logits, target, weight, pos_weight, ignore, columns, entropy
        )
        ctx.options = ignore, columns, entropy
        ctx.save_for_backward(logits, target, weight, pos_weight)
        if torch.compiler.is_compiling():
            asked = (columns > 0, True, entropy, entropy)
            return layout.compiled_outputs(ctx, results, asked, constant=(1, 3))
        sums, present, values, counts = results
        if not entropy:
            ctx.mark_non_differentiable(present)
            return sums if columns else None, present, None, None
        ctx.mark_non_differentiable(present, counts)
        return sums if columns else None, present, values, counts

    @staticmethod
    def backward(
        ctx: Any, sums: Tensor | None, _: Any, entropy: Tensor | None, __: Any
    ) -> tuple[Any, ...]:
        """The gradient by the logits."""
        logits, target, weight, pos_weight = ctx.saved_tensors
        ignore, columns, wanted = ctx.options
        rest = (None,) * 6
        # Compiled, there is a gradient of everything, asked for or not.
        sums, entropy = sums if columns else None, entropy if wanted else None
        if sums is None and entropy is None:
            return (None, *rest)
        if double_backward.wanted():
            done: SigmoidSums = reference("sigmoid_sums")(
                logits,
                target,
                weight,
                ignore,
                columns=columns,
                entropy=1.0 if pos_weight is None else pos_weight,
            )
            outputs, ups = (done.overlap.sums, done.entropy), (sums, entropy)
            return (double_backward.by_definition(outputs, logits, ups), *rest)
        grad = operator("sigmoid_backward", logits)(
            logits,
            target,
            weight,
            pos_weight,
            ignore,
            None if sums is None else layout.ready(sums),
            None if entropy is None else layout.ready(entropy),
        )
        return (grad, *rest)


def sigmoid_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    columns: int = 0,
    entropy: Tensor | float | None = None,
) -> SigmoidSums | Declined:
    """`denseloss.primitives.sigmoid.sigmoid_sums`."""
    constant = entropy if isinstance(entropy, Tensor) else None
    number = 1.0 if entropy is None or isinstance(entropy, Tensor) else entropy
    if (why := layout.why_not(logits, target, weight, constant)) is not None:
        return Declined(why)
    if constant is not None:
        constant = constant.float().expand(logits.shape[1]).contiguous()
    elif number != 1.0:
        constant = logits.new_full((logits.shape[1],), number, dtype=torch.float32)
    where = layout.memory(logits) or "first"
    sums, present, values, counts = layout.apply(
        Sigmoid,
        logits,
        layout.masks(target, logits, where),
        None if weight is None else layout.alike(weight.float(), logits, where),
        constant,
        ignore_index,
        columns,
        entropy is not None,
    )
    if not columns:
        sums = present.unsqueeze(-1)[..., :0]
    if entropy is None:
        values = counts = None
    return SigmoidSums(Overlap(sums, present), values, counts)


def edge_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    gamma: float,
    window: int,
    plain: bool,
) -> EdgeSums | Declined:
    """`denseloss.primitives.edges.edge_sums`."""
    if (why := layout.why_not(logits, target, weight)) is not None:
        return Declined(why)
    if logits.ndim != 4:
        return Declined("only images with two axes of space have a fast box mean")
    if window > 2 * max(logits.shape[2:]) + 1:
        return Declined("the window is larger than the image")
    if layout.memory(logits) != "first":
        return Declined("logits are not contiguous")
    given = layout.masks(target, logits, "first")
    counted = None if weight is None else layout.alike(weight.float(), logits, "first")
    edges = operator("edge", given)(given, counted, ignore_index, gamma, window, False)
    sums, present, entropy, total = layout.apply(
        Sigmoid, logits, given, edges, None, ignore_index, COLUMNS, True
    )
    plain_entropy = plain_total = None
    if plain:
        _, _, plain_entropy, plain_total = layout.apply(
            Sigmoid, logits, given, counted, None, ignore_index, 0, True
        )
    return EdgeSums(Overlap(sums, present), entropy, total, plain_entropy, plain_total)
