"""Objects that stand for a tensor in a call: targets in a few numbers, logits that are shared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassScores", "StandIn"]

BACKGROUND = -1


class ClassScores(NamedTuple):
    """One class and its score for each place, in place of a tensor with an axis of classes.

    For logits [*s c], the classes last. It stands for the tensor that has the score at the class
    of the label and 0 at every other class, without ever making it: what detectors assign to their
    anchors, points or queries.

    Args:
        label: uint8, int32 or int64 [*s]: a class, or -1 for background, where every class is 0.
            The label ``ignore_index`` is void, where a loss has that option. Where background is
            the label C, as in mmdet, give ``torch.where(label == C, -1, label)``.
        score: float [*s] in [0, 1], such as the IoU of the place's box; None is 1.

    Example:
        >>> from denseloss.functional import quality_focal_loss
        >>> target = ClassScores(torch.tensor([1, -1]), torch.tensor([0.5, 0.0]))
        >>> quality_focal_loss(torch.zeros(2, 3), target)  # [0, .5, 0], [0, 0, 0]: 5/6 of ln 2 / 4
        tensor(0.1444)
    """

    label: Tensor
    score: Tensor | None = None

    def dense(self, classes: int, ignore_index: int | None, dtype: torch.dtype) -> Tensor:
        """The tensor [*s c]: NaN where the label is neither a class, background nor void."""
        label = self.label.long().unsqueeze(-1)
        score = torch.ones((), dtype=dtype, device=label.device)
        if self.score is not None:
            score = self.score.to(dtype).unsqueeze(-1)
        here = label == torch.arange(classes, device=label.device)
        outside = (label < BACKGROUND) | (label >= classes)
        if ignore_index is not None:
            outside = outside & (label != ignore_index)
        return torch.where(outside, torch.nan, torch.where(here, score, 0))

    def void(self, ignore_index: int | None) -> Tensor | None:
        """The places that do not count, bool [*s 1]; None where all do."""
        return None if ignore_index is None else (self.label == ignore_index).unsqueeze(-1)


class StandIn:
    """Stands for a tensor of this shape, dtype and device in an argument of one kind.

    A call is checked as if the tensor itself had come.
    """

    stands_for = "Logits"
    """The name of the kind, see `denseloss.contract`."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
