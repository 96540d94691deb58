"""Losses of distributions over bins."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from denseloss.backend import Declined, reference
from denseloss.primitives.bins import Bracket
from denseloss.primitives.fused import layout
from denseloss.primitives.fused.rows import reduced, row_weights

__all__ = ["bin_loss"]


def bin_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    formula: Callable[[Bracket], Tensor],
    reduction: str,
    count: Tensor | float | None = None,
) -> Tensor | Declined:
    """`denseloss.primitives.bins.bin_loss`."""
    if why := layout.why_not(logits, target, weight):
        return Declined(why)
    if not logits.is_contiguous():
        return Declined("logits are not contiguous")
    rows = logits.shape[:-1]
    # Each with a name: torch.compile of 2.6 takes two saved tensors that it names alike for one.
    position, each = target.float().contiguous(), row_weights(weight, rows)

    def definition(z: Tensor, *, reduction: str) -> Tensor:
        value: Tensor = reference("bin_loss")(
            z, target, weight, formula=formula, reduction=reduction
        )
        return value

    return reduced(
        "bins",
        logits,
        (position, each),
        (),
        definition,
        rows=target.numel(),
        weighted=weight is not None,
        reduction=reduction,
        count=count,
    )
