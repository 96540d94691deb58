"""Overlap of prediction and truth: the sums that Dice, Jaccard, Tversky and F share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.backend import primitive
from denseloss.primitives.likelihood import TINY

__all__ = [
    "COLUMNS",
    "SQUARES",
    "Overlap",
    "linear_ratio",
    "over_space",
    "overlap_sums",
    "pooled",
    "ratio",
]

# How many sums there are for each class: I, P and T; with squares also of p^2 and t^2.
COLUMNS, SQUARES = 3, 5


# No named tuple, whose properties torch.compile of 2.6 does not find.
@dataclass(slots=True, eq=False)
class Overlap:
    """Weighted sums over the pixels of an image, [n c], or of the batch, [c]."""

    sums: Tensor
    """[.. 3]: I, P and T; [.. 5] with the squares"""
    present: Tensor
    """1 where anything in the sums is not void, else 0; [n c] or [c]"""

    @property
    def both(self) -> Tensor:
        """I = sum w min(p, t), which is sum w p t where t is 0 or 1."""
        return self.sums[..., 0]

    @property
    def predicted(self) -> Tensor:
        """P = sum w p."""
        return self.sums[..., 1]

    @property
    def true(self) -> Tensor:
        """T = sum w t."""
        return self.sums[..., 2]

    @property
    def predicted_squares(self) -> Tensor:
        """Sum w p^2, where asked for."""
        return self.sums[..., 3]

    @property
    def true_squares(self) -> Tensor:
        """Sum w t^2, where asked for."""
        return self.sums[..., 4]

    def without_squares(self) -> Overlap:
        """I, P and T alone."""
        if self.sums.shape[-1] == COLUMNS:
            return self
        return Overlap(self.sums[..., :COLUMNS], self.present)

    def similarity(self, a: float, b: float, c: float, d: float, s: float) -> Tensor:
        """(a I + s)/(b I + c P + d T + s); 1 where the denominator is 0."""
        return self._ratio((a, 0.0, 0.0), s, (b, c, d), s, empty=1.0)

    def dissimilarity(self, a: float, b: float, c: float, d: float, s: float) -> Tensor:
        """1 - (a I + s)/(b I + c P + d T + s); 0 where the denominator is 0.

        As ((b-a) I + c P + d T)/(b I + c P + d T + s), which is exact near 0.
        """
        return self._ratio((b - a, c, d), 0.0, (b, c, d), s, empty=0.0)

    def _ratio(
        self,
        above: tuple[float, ...],
        more_above: float,
        below: tuple[float, ...],
        more_below: float,
        *,
        empty: float,
    ) -> Tensor:
        rest = (0.0,) * (self.sums.shape[-1] - COLUMNS)
        return linear_ratio(
            self.sums, (*above, *rest, more_above), (*below, *rest, more_below), empty
        )


def overlap_sums(prediction: Tensor, truth: Tensor, weight: Tensor | None, columns: int) -> Overlap:
    """The sums of each image for prediction and truth [n c *s], weight [n c *s] or [n 1 *s].

    I is sum w min(p, t) = (P + T - sum w |p - t|)/2, not sum w p t: for soft truths, too, it is
    largest where both are equal.
    """
    w = torch.ones_like(prediction[:, :1]) if weight is None else weight
    parts = []
    if columns:
        parts = [torch.minimum(prediction, truth), prediction, truth]
    if columns == SQUARES:
        parts += [prediction.square(), truth.square()]
    found = [over_space(w * part) for part in parts]
    empty = prediction.new_empty(*prediction.shape[:2], 0)
    sums = torch.stack(found, dim=-1) if found else empty
    present = over_space((w.detach() != 0).to(prediction.dtype)) > 0
    return Overlap(sums, present.to(sums.dtype).expand(sums.shape[:2]))


def over_space(x: Tensor) -> Tensor:
    """The sum over the pixels of x [n c *s], [n c]."""
    # without any axis of space, sum(()) would be the sum over all axes
    return x.sum(tuple(range(2, x.ndim))) if x.ndim > 2 else x


def pooled(sums: Overlap, pool: str) -> Overlap:
    """The sums of each image as they are, or those of the batch (of all ranks, inside `exact`).

    All sums of a loss travel in one collective, whatever version has made them.
    """
    if pool == "image":
        return sums
    found, present = sums.sums.sum(0), sums.present.sum(0)
    if not distributed.alone():
        everywhere = distributed.total(torch.cat([found, present.unsqueeze(-1)], dim=-1))
        found, present = everywhere[..., :-1], everywhere[..., -1].detach()
    return Overlap(found, present.clamp(max=1))


@primitive
def linear_ratio(
    sums: Tensor, above: tuple[float, ...], below: tuple[float, ...], empty: float
) -> Tensor:
    """(above . x)/(below . x) of each row x = (sums, 1); ``empty``, a constant, where it is x/0."""
    return ratio(_form(sums, above), _form(sums, below), empty=empty)


def _form(sums: Tensor, form: tuple[float, ...]) -> Tensor:
    # Column by column: 0 times a column that is not needed must not be NaN.
    value = torch.full_like(sums[..., 0], form[-1])
    for column, factor in enumerate(form[:-1]):
        if factor:
            value = value + factor * sums[..., column]
    return value


def ratio(part: Tensor, whole: Tensor, *, empty: Tensor | float, least: float = TINY) -> Tensor:
    """``part / whole``, and ``empty`` (without gradient) where the whole is 0.

    A whole below ``least`` is taken as 0: the gradient, 1 / whole, would overflow.
    """
    nothing = whole.abs() < least
    return torch.where(nothing, empty, part / torch.where(nothing, 1, whole))
