"""Several losses of the same logits, and logits that are smaller than the labels.

`cross_entropy + dice` is two losses of one softmax. `together` is where a fast version can take one
pass over the logits for all of them, and resize the logits on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives.void import full_precision

__all__ = ["Call", "Together", "resized", "together"]

Call = tuple[Callable[..., Tensor], dict[str, Any]]
"""A loss function and its options."""


class Together:
    """Nothing shared: the logits that each loss is to be called with."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __enter__(self) -> Tensor:
        return self.logits

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to undo."""


@primitive
def together(
    logits: Tensor,
    target: Tensor,
    calls: Sequence[Call],  # noqa: ARG001 - for fast versions
    *,
    align_corners: bool = False,
) -> AbstractContextManager[Tensor]:
    """A context whose value stands for the logits at the target's size.

    Args:
        logits: [n c *s]; of another size than the target's, they are resized to it.
        target: labels [n *s] or [n 1 *s], or [n c *s].
        calls: the losses that will be called inside, with the value of the context and the target.
        align_corners: as in `torch.nn.functional.interpolate`.
    """
    return Together(resized(logits, target, align_corners=align_corners))


def resized(logits: Tensor, target: Tensor, *, align_corners: bool) -> Tensor:
    """The logits at the target's size, in full precision where they change."""
    axes = logits.ndim - 2
    size = target.shape[target.ndim - axes :]
    if logits.shape[2:] == size:
        return logits
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    return F.interpolate(full_precision(logits), size=size, mode=mode, align_corners=align_corners)
