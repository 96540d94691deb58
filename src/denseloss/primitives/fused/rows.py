"""Losses of rows: single logits, pairs of boxes, distributions over bins.

Each row has a loss of its own, so value and gradient come from one pass: where a gradient will be
asked for, the forward pass computes it for an upstream gradient of 1 and the backward pass hands
it out, scaled where need be. It takes the room that the gradient needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import reference
from denseloss.primitives.fused import layout, second
from denseloss.primitives.fused.layout import learns, plain
from denseloss.targets import ClassScores

__all__ = [
    "binary_cross_entropy",
    "binary_focal",
    "box_losses",
    "distribution_focal",
    "quality_focal",
    "varifocal",
]

BCE, FOCAL, QUALITY, VARIFOCAL, VARIFOCAL_FIXED = range(5)
FORMATS = {"xyxy": 0, "xywh": 1, "cxcywh": 2}


class Rows(torch.autograd.Function):
    """The weighted sum of the losses of all rows, or each of them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        definition: Callable[[Tensor], Tensor] | None,
        name: str,
        each: bool,
        scale: float,
        ahead: bool,
        counted: bool,
        *rest: Any,
    ) -> Any:
        """``scale`` times the sum, or each value; where ``counted``, the sum of weights, too."""
        operator = getattr(torch.ops.denseloss, name)
        sums, values, grad = operator(logits, *rest, None, scale, not each, each, ahead)
        ctx.definition, ctx.name, ctx.each, ctx.scale = definition, name, each, scale
        ctx.grad = grad if ahead else None
        ctx.numbers = [None if isinstance(x, Tensor) else (x,) for x in rest]
        ctx.save_for_backward(logits, *[x for x in rest if isinstance(x, Tensor)])
        if each:
            return values
        value = sums[0].clone()  # no view: `loss += other` writes into it
        if not counted:
            return value
        count = sums[1].clone()
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Any, ...]:
        """The gradient by the logits."""
        logits, *tensors = ctx.saved_tensors
        nothing = (None,) * (6 + len(ctx.numbers))
        if (by_definition := second.gradient(ctx, logits, (upstream,))) is not None:
            return (*by_definition, *nothing)
        grad, ctx.grad = ctx.grad, None
        if grad is not None:  # handed out once; a second backward computes it anew
            torch.ops.denseloss.rescale(grad, upstream.float())
            return (grad, *nothing)
        left = iter(tensors)
        rest = [next(left) if x is None else x[0] for x in ctx.numbers]
        operator = getattr(torch.ops.denseloss, ctx.name)
        upstream = upstream.float()
        if upstream.shape == logits.shape:
            upstream = layout.alike(upstream, logits, layout.memory(logits) or "first")
        else:
            upstream = upstream.contiguous()
        _, _, grad = operator(logits, *rest, upstream, ctx.scale, False, False, True)
        return (grad, *nothing)


def _reduced(
    loss: str,
    logits: Tensor,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    name: str,
    *rest: Any,
    rows: int,
    weighted: bool,
    reduction: str,
) -> Tensor:
    """The loss from its operator: ``loss``, ``arguments`` and ``options`` name its definition."""
    each = reduction == "none"
    compiling = torch.compiler.is_compiling()
    # Where nothing is void, the mean needs no count, and the operator divides at once. (Compiled, a
    # number made of the sizes would make a new graph for each size.)
    known = reduction == "mean" and not weighted and not compiling and distributed.alone()
    scale = 1 / rows if known else 1.0
    # float16 gradients must see the upstream scale (GradScaler's 65536) before they are rounded.
    ahead = learns(logits) and not each and not compiling and logits.dtype != torch.float16

    def definition(z: Tensor) -> Tensor:
        kept = "none" if each else "sum"
        value: Tensor = reference(loss)(z, *arguments, **options, reduction=kept)
        return value if each else scale * value

    again = second.kept(definition, logits)
    counted = weighted and reduction == "mean"
    result = Rows.apply(logits, again, name, each, scale, ahead, counted, *rest)
    if counted:
        return distributed.mean(*result)
    if reduction == "mean" and not known:
        return distributed.mean(result, rows)
    return result  # type: ignore[no-any-return]


def _pointwise(
    loss: str,
    logits: Tensor,
    target: Tensor | ClassScores,
    *,
    kind: int,
    a: float,
    g: float,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None = None,
    channels: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """A loss of single logits; None where it is not one for the operator."""
    where = layout.scores(logits)
    if where is None:
        return None
    score = None
    full = weight
    if isinstance(target, ClassScores):
        label, score = target
        if (
            where != "first"
            or not plain(score, weight, channels)
            or (weight is not None and weight.shape[-1] != 1)
        ):
            return None
        rows = logits.shape[:-1]
        given = layout.labels(label, rows)
        score = _row_weights(score, rows)
        if weight is not None:
            full = _row_weights(weight.squeeze(-1), rows)
    else:
        if not plain(target, weight, channels):
            return None
        given = layout.masks(target, logits, where)
        if weight is not None:
            full = layout.alike(weight.float(), logits, where)
    if weight is not None:
        options["weight"] = weight
    if ignore_index is not None:
        options["ignore_index"] = ignore_index
    return _reduced(
        loss,
        logits,
        (target,),
        options,
        "pointwise",
        given,
        score,
        full,
        None if channels is None else channels.float(),
        kind,
        a,
        g,
        ignore_index,
        rows=logits.numel(),
        weighted=full is not None or ignore_index is not None,
        reduction=reduction,
    )


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | float | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """`binary_cross_entropy_loss`."""
    channels = None
    if isinstance(pos_weight, Tensor):
        if pos_weight.numel() != 1 and pos_weight.shape != logits.shape[1:2]:
            return None
        channels = pos_weight.reshape(-1).expand(logits.shape[1]).contiguous()
    return _pointwise(
        "binary_cross_entropy_loss",
        logits,
        target,
        kind=BCE,
        a=1.0 if pos_weight is None or isinstance(pos_weight, Tensor) else pos_weight,
        g=0.0,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        channels=channels,
        pos_weight=pos_weight,
    )


def binary_focal(
    logits: Tensor,
    target: Tensor | ClassScores,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """`binary_focal_loss`."""
    return _pointwise(
        "binary_focal_loss",
        logits,
        target,
        kind=FOCAL,
        a=-1.0 if alpha is None else alpha,
        g=gamma,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        gamma=gamma,
        alpha=alpha,
    )


def quality_focal(
    logits: Tensor,
    quality: Tensor | ClassScores,
    *,
    beta: float = 2.0,
    alpha: float | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """`quality_focal_loss`."""
    return _pointwise(
        "quality_focal_loss",
        logits,
        quality,
        kind=QUALITY,
        a=-1.0 if alpha is None else alpha,
        g=beta,
        weight=weight,
        reduction=reduction,
        beta=beta,
        alpha=alpha,
    )


def varifocal(
    logits: Tensor,
    quality: Tensor | ClassScores,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    detach_weight: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """`varifocal_loss`."""
    return _pointwise(
        "varifocal_loss",
        logits,
        quality,
        kind=VARIFOCAL_FIXED if detach_weight else VARIFOCAL,
        a=alpha,
        g=gamma,
        weight=weight,
        reduction=reduction,
        alpha=alpha,
        gamma=gamma,
        detach_weight=detach_weight,
    )


def _row_weights(weight: Tensor | None, rows: torch.Size) -> Tensor | None:
    return None if weight is None else weight.float().expand(rows).contiguous()


def box_losses(kind: str) -> Callable[..., Tensor | None]:
    """`iou_loss`, `giou_loss`, `diou_loss` or `ciou_loss`."""
    number = ["iou", "giou", "diou", "ciou"].index(kind)

    def box(
        boxes: Tensor,
        target_boxes: Tensor,
        *,
        fmt: str = "xyxy",
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor | None:
        if layout.scores(boxes) != "first" or not plain(target_boxes, weight):
            return None
        target = target_boxes if target_boxes.dtype in layout.WIDTHS else target_boxes.float()
        rows = boxes.shape[:-1]
        return _reduced(
            f"{kind}_loss",
            boxes,
            (target_boxes,),
            {"fmt": fmt, "weight": weight},
            "boxes",
            target.contiguous(),
            _row_weights(weight, rows),
            number,
            FORMATS[fmt],
            rows=rows.numel(),
            weighted=weight is not None,
            reduction=reduction,
        )

    return box


def distribution_focal(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    """`distribution_focal_loss`."""
    if layout.scores(logits) != "first" or not plain(target, weight):
        return None
    rows = logits.shape[:-1]
    return _reduced(
        "distribution_focal_loss",
        logits,
        (target,),
        {"weight": weight},
        "bins",
        target.float().contiguous(),
        _row_weights(weight, rows),
        rows=rows.numel(),
        weighted=weight is not None,
        reduction=reduction,
    )
