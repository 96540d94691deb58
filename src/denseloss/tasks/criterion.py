"""A weighted sum of losses, each term fed what it takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from denseloss.compose import DeepSupervision, WeightedSum
from denseloss.contract import kinds
from denseloss.data.errors import InputError
from denseloss.module import LossModule

Batch = Mapping[str, Any]
"""What a data loader yields: tensors by name, the image under `"image"`."""

Feed = Callable[[Any, Batch], tuple[Sequence[Tensor], Any, dict[str, Any]]]
"""What a loss is called with, made of a network's outputs and a batch: a list of maps, the largest
first, the target, and options such as `ignore_index`. Terms of equal feeds are one sum."""


class Criterion(nn.Module):
    """The terms of a loss as a task takes them.

    Args:
        weighted_sum: The loss as it was written.

    Raises:
        InputError: A term needs something that the task's data does not have.

    Attributes:
        names: Of the terms.
        notes: What a term is taken as where that is not what was written, in plain words.
    """

    def __init__(self, weighted_sum: WeightedSum) -> None:
        super().__init__()
        self.notes: tuple[str, ...] = ()
        self.names = tuple(name for name, _, _ in weighted_sum.named_terms())
        fed: dict[Feed, dict[str, tuple[float, nn.Module]]] = {}
        for name, weight, loss in weighted_sum.named_terms():
            if not isinstance(loss, LossModule):
                raise InputError(f"--loss: {name} is no loss of the catalogue; see `denseloss ls`")
            if getattr(loss, "reduction", "mean") == "none":
                raise InputError(f"--loss: {name} must give one number; leave out reduction='none'")
            feed, taken = self.fed(name, loss)
            fed.setdefault(feed, {})[name] = (weight, taken)
        self.feeds = tuple(fed)
        # Terms that are fed alike stay one sum, which may take one pass over the logits for all.
        # A network without heads gives one map, whose share is 1.
        self.sums = nn.ModuleList(DeepSupervision(WeightedSum(**terms)) for terms in fed.values())

    def fed(self, name: str, loss: LossModule) -> tuple[Feed, LossModule]:
        """Return what a term is fed, and what it is taken as.

        Raises:
            InputError: The task's data does not have what it needs.
        """
        raise NotImplementedError

    def forward(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the weighted terms; their sum is the loss.

        Args:
            outputs: Of the network.
            batch: What it was made of, with the truth.
        """
        terms: dict[str, Tensor] = {}
        for feed, weighted in zip(self.feeds, self.sums, strict=True):
            assert isinstance(weighted, DeepSupervision)
            maps, target, options = feed(outputs, batch)
            terms |= weighted.terms(maps, target, **options)
        return torch.stack([terms[name] for name in self.names])


class CriterionByKinds(Criterion):
    """Terms that are fed by what their first two arguments are.

    Args:
        weighted_sum: The loss as it was written.
        feeds: By the names of the two kinds, such as `("Logits", "Masks")`.
        task: Its name, for errors.
    """

    def __init__(
        self, weighted_sum: WeightedSum, feeds: Mapping[tuple[str, ...], Feed], *, task: str
    ) -> None:
        self._by_kinds, self._task = feeds, task
        super().__init__(weighted_sum)

    def fed(self, name: str, loss: LossModule) -> tuple[Feed, LossModule]:
        """Return the feed of its kinds."""
        needs = needed(loss)
        if needs not in self._by_kinds:
            raise InputError(not_yielded(name, needs, self._task))
        return self._by_kinds[needs], loss


def needed(loss: LossModule) -> tuple[str, ...]:
    """Return the names of the kinds of a loss's first two arguments."""
    return tuple(kind.name for kind in kinds(type(loss).function).values())[:2]


_WORDS = {
    "Boxes": "pairs of boxes",
    "Bins": "distributions over bins",
    "BinTarget": "distributions over bins",
}


def not_yielded(name: str, needs: Sequence[str], task: str) -> str:
    """Return the message for a loss that a task cannot feed."""
    known = next((_WORDS[need] for need in needs if need in _WORDS), None)
    what = f"is a loss of {known}" if known else f"takes {' and '.join(needs)}"
    return (
        f"--loss: {name} {what}, which {task} data does not yield; see `denseloss ls` for what "
        "each loss takes"
    )
