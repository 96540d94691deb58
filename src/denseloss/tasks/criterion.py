"""A weighted sum of losses, each term fed what it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from denseloss.compose import DeepSupervision, UserLoss, WeightedSum
from denseloss.contract import describe, kinds
from denseloss.data.errors import InputError
from denseloss.module import LossModule
from denseloss.testing.first_look import Inputs, first_look
from denseloss.user_code import passes, place_of

Batch = Mapping[str, Any]
"""What a data loader yields: tensors by name, the image under `"image"`."""

Feed = Callable[[Any, Batch], tuple[Sequence[Tensor], Any, dict[str, Any]]]
"""What a loss is called with, made of a network's outputs and a batch: a list of maps, the largest
first, the target, and options such as `ignore_index`. Terms of equal feeds are one sum."""


@dataclass(frozen=True)
class Varied:
    """A batch on which a loss is looked at.

    Attributes:
        batch: What the feeds get.
        words: What it is, to follow "is nan".
        void: Where the logits must have no effect, as their shape; None if nowhere.
    """

    batch: Batch
    words: str = ""
    void: Tensor | None = None


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
            if not isinstance(loss, LossModule | UserLoss):
                raise InputError(f"--loss: {name} is no loss of the catalogue; see `denseloss ls`")
            if not weight > 0:
                # A library user may want one; here it would train nothing, or the wrong way.
                raise InputError(
                    f"--loss: the weight of {name} is {weight:g}; weights are above 0, or the term "
                    f"trains {'nothing' if weight == 0 else 'the wrong way'}"
                )
            if getattr(loss, "reduction", "mean") == "none":
                raise InputError(f"--loss: {name} must give one number; leave out reduction='none'")
            feed, taken = (
                self.fed_own(name, loss) if isinstance(loss, UserLoss) else self.fed(name, loss)
            )
            if isinstance(taken, UserLoss) and (note := _untrained(taken)):
                self.notes += (note,)
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

    def fed_own(self, name: str, loss: UserLoss) -> tuple[Feed, nn.Module]:
        """Return what a loss of the user's own is fed, and what it is taken as.

        Raises:
            InputError: The task cannot tell what it takes, or has no such thing.
        """
        raise InputError(f"--loss: {name} ({loss}): this task takes no losses of your own")

    def look(
        self, outputs: Any, batch: Batch, *, device: torch.device | str | None = None
    ) -> tuple[str, ...]:
        """Look at the losses that are the user's own, before anything is trained with them.

        Args:
            outputs: Of a training step.
            batch: What they were made of.
            device: Where they will be trained; None is where the outputs are.

        Returns:
            What is odd about them, a sentence each.

        Raises:
            InputError: Nothing can be trained with one.
        """
        found: list[str] = []
        for feed, weighted in zip(self.feeds, self.sums, strict=True):
            assert isinstance(weighted, DeepSupervision)
            inner = weighted.at_size.criterion
            assert isinstance(inner, WeightedSum)
            for name, _, loss in inner.named_terms():
                if not isinstance(loss, UserLoss):
                    continue
                usual, *others = self.varied(batch, void=getattr(feed, "leaves_out_void", True))
                given = _inputs(feed, outputs, usual)
                for finding in first_look(
                    loss,
                    given,
                    name=name,
                    file=loss.file,
                    others={one.words: _inputs(feed, outputs, one) for one in others},
                    device=device,
                ):
                    if finding.fatal:
                        said = f"--loss: {finding.text}"
                        if not loss.kinds and finding.text.startswith(f"{name} raises "):
                            said += f"; {_called_with(given)}"
                        raise InputError(said)
                    found.append(finding.text)
        return tuple(dict.fromkeys(found))

    def varied(self, batch: Batch, *, void: bool) -> "list[Varied]":
        """Return the batches on which a loss is looked at, the usual one first.

        Args:
            batch: Of a training step.
            void: Whether void pixels are to have no effect.
        """
        del void
        return [Varied(batch)]

    def _told(self, error: Exception) -> str | None:
        """Return what is said of an exception in the user's own code; None if it is elsewhere."""
        for loss in self.modules():
            if isinstance(loss, UserLoss) and passes(error, loss.file):
                said = " ".join(str(error).split())[:300]
                where = place_of(error, loss.file)
                return f"--loss: {loss.name} raises {type(error).__name__} at {where}: {said}"
        return None

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
            try:
                terms |= weighted.terms(maps, target, **options)
            except Exception as error:
                if (told := self._told(error)) is None:
                    raise
                raise InputError(told) from error
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
        return self._feed(name, needed(loss)), loss

    def fed_own(self, name: str, loss: UserLoss) -> tuple[Feed, nn.Module]:
        """Return the feed of its kinds; without any, the only one that the task has."""
        if loss.kinds:
            return self._feed(name, needed(loss)), loss
        if len(self._by_kinds) != 1:
            known = ", or ".join(" and ".join(needs) for needs in self._by_kinds)
            raise InputError(
                f"--loss: {name}: what its arguments are cannot be told; annotate them with kinds "
                f"of denseloss.contract: {known}"
            )
        (needs, feed), *_ = self._by_kinds.items()
        self.notes += (
            f"{name} is called with {' and '.join(needs)}; annotate its arguments to change that",
        )
        return feed, loss

    def _feed(self, name: str, needs: tuple[str, ...]) -> Feed:
        if needs not in self._by_kinds:
            raise InputError(not_yielded(name, needs, self._task))
        return self._by_kinds[needs]


def needed(loss: LossModule | UserLoss) -> tuple[str, ...]:
    """Return the names of the kinds of a loss's first two arguments."""
    stated = loss.kinds if isinstance(loss, UserLoss) else kinds(type(loss).function)
    return tuple(kind.name for kind in stated.values())[:2]


def _inputs(feed: Feed, outputs: Any, one: Varied) -> Inputs:
    maps, target, options = feed(tree_map_only(Tensor, Tensor.detach, outputs), one.batch)
    return Inputs(maps[0], [target], options, one.void)


def _called_with(inputs: Inputs) -> str:
    given = [describe(each) for each in (inputs.logits, *inputs.rest)]
    given += [f"{name}={describe(each)}" for name, each in inputs.options.items()]
    weight = ""
    if "weight" in inputs.options:
        weight = "; weight is 0 where void and 1 elsewhere: name a weight per class class_weight"
    return (
        f"it was called with {', '.join(given)}; kinds of denseloss.contract as annotations of its "
        f"arguments change that{weight}"
    )


def _untrained(loss: UserLoss) -> str:
    """Say that a Module's own parameters stay as they are."""
    count = sum(each.numel() for each in loss.parameters() if each.requires_grad)
    if not count:
        return ""
    return (
        f"{loss.name} has {count} trainable numbers of its own, which stay as they are: only the "
        "network is trained"
    )


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
