"""Losses of single logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.elementwise import ElementKind
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.rows import reduced, row_weights
from denseloss.primitives.likelihood import Bernoulli
from denseloss.targets import ClassScores

__all__ = ["element_loss"]


def element_loss(
    logits: Tensor,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    kind: ElementKind,
    formula: Callable[[Bernoulli], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor | Declined:
    """`denseloss.primitives.elementwise.element_loss`."""
    code, a, g = kind
    label, score = target if isinstance(target, ClassScores) else (target, None)
    channels = a if isinstance(a, Tensor) else None
    if why := layout.why_not(logits, label, score, weight, channels):
        return Declined(why)
    if channels is not None:
        if channels.numel() != 1 and (logits.ndim < 2 or channels.shape != logits.shape[1:2]):
            return Declined("pos_weight is neither one number nor one per channel")
        channels = channels.float().reshape(-1).expand(logits.shape[1]).contiguous()
    where = layout.memory(logits) or "first"
    if isinstance(target, ClassScores):
        if where != "first":
            return Declined("logits are channels_last, whose classes are not those of ClassScores")
        if weight is not None and weight.shape[-1] != 1:
            return Declined("weight differs between the classes of a place")
        places = logits.shape[:-1]
        given = layout.labels(label, places)
        score = row_weights(score, places)
        each = None if weight is None else row_weights(weight.squeeze(-1), places)
    else:
        given = layout.masks(label, logits, where)
        each = None if weight is None else layout.alike(weight.float(), logits, where)

    def definition(z: Tensor, *, reduction: str) -> Tensor:
        value: Tensor = reference("element_loss")(
            z, target, weight, ignore_index, kind=kind, formula=formula, reduction=reduction
        )
        return value

    if channels is not None:
        a = 1.0
    elif a is None:  # BCE counts positives once; the others do not weigh them
        a = -1.0 if code else 1.0
    return reduced(
        "elementwise",
        logits,
        (given, score, each, channels),
        (code, a, g, ignore_index),
        definition,
        rows=logits.numel(),
        weighted=each is not None or ignore_index is not None,
        reduction=reduction,
        count=count,
    )
