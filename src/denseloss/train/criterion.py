"""A weighted sum of losses, as a segmentation task can take it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from denseloss import losses
from denseloss.compose import DeepSupervision, WeightedSum
from denseloss.contract import kinds
from denseloss.data import VOID, denormalise
from denseloss.data.samples import Task
from denseloss.module import LossModule
from denseloss.train.errors import InputError

_NEEDS = {
    "Boxes": "pairs of boxes",
    "Bins": "distributions over bins",
    "BinTarget": "distributions over bins",
}


class TaskCriterion(nn.Module):
    """The terms of a loss, each fed what it takes from class maps with void pixels.

    On a binary task the network has one channel. A loss of exclusive classes is then taken in its
    `binary_` form; where it has none, or where that lacks an option that is set, it gets the
    logits of two classes, 0 for the background and z for the foreground, whose softmax is the
    sigmoid of z. On a multiclass task a loss of independent channels gets one mask per class.
    Void pixels count nothing in any of them.

    Args:
        weighted_sum: The loss as it was written.
        task: What the classes mean.
        num_classes: Background included.

    Raises:
        InputError: A term needs something else than labels, or an option cannot be used.

    Attributes:
        names: Of the terms.
        num_outputs: How many channels the network needs.
        notes: What a term is taken as where that is not what was written, in plain words.
    """

    def __init__(self, weighted_sum: WeightedSum, *, task: Task, num_classes: int) -> None:
        super().__init__()
        self.task: Task = task
        self.num_outputs = 1 if task == "binary" else num_classes
        self.notes: tuple[str, ...] = ()
        fed: dict[Feed, dict[str, tuple[float, nn.Module]]] = {}
        for name, weight, loss in weighted_sum.named_terms():
            if not isinstance(loss, LossModule):
                raise InputError(f"--loss: {name} is no loss of the catalogue; see `denseloss ls`")
            feed, taken = self._fed(name, loss)
            fed.setdefault(feed, {})[name] = (weight, taken)
        self.names = tuple(name for name, _, _ in weighted_sum.named_terms())
        self._feeds = tuple(fed)
        # Terms that are fed alike stay one sum, which may take one pass over the logits for all.
        # A network without heads gives one map, whose share is 1.
        self.sums = nn.ModuleList(DeepSupervision(WeightedSum(**terms)) for terms in fed.values())

    @property
    def link(self) -> Literal["softmax", "sigmoid"]:
        """What makes the logits the probabilities that the loss trains.

        `"sigmoid"` on a binary task, and on a multiclass task where every term takes independent
        channels; otherwise `"softmax"`.
        """
        independent = all(isinstance(feed, Masks) for feed in self._feeds)
        return "sigmoid" if self.task == "binary" or independent else "softmax"

    def forward(self, outputs: Sequence[Tensor], classes: Tensor, *, image: Tensor) -> Tensor:
        """Return the weighted terms; their sum is the loss.

        Args:
            outputs: Logits [n c h w], the largest first; all are brought to the labels' size.
            classes: Class indices int[n h w], `VOID` where void.
            image: As the network got it, normalised.
        """
        terms: dict[str, Tensor] = {}
        for feed, weighted in zip(self._feeds, self.sums, strict=True):
            assert isinstance(weighted, DeepSupervision)
            maps, target, options = feed(outputs, classes, image)
            terms |= weighted.terms(maps, target, **options)
        return torch.stack([terms[name] for name in self.names])

    def _fed(self, name: str, loss: LossModule) -> tuple["Feed", LossModule]:
        needs = [kind.name for kind in kinds(type(loss).function).values()][:2]
        for need in needs:
            if need in _NEEDS:
                raise InputError(
                    f"--loss: {name} is a loss of {_NEEDS[need]}, and a segmentation data set "
                    "yields images and class maps; see `denseloss ls` for losses of these"
                )
        if getattr(loss, "reduction", "mean") == "none":
            raise InputError(f"--loss: {name} must give one number; leave out reduction='none'")
        if needs == ["Logits", "Image"]:
            return Images(), loss
        if needs == ["Logits", "ClassMap"]:
            return (_classes(loss), loss) if self.task == "multiclass" else self._binary(loss)
        if needs in (["Logits", "Masks"], ["Scores", "Quality"]):
            if self.task == "multiclass":
                self._note(
                    f"{self.num_outputs} exclusive classes: {_written(loss)} gets one mask "
                    "per class; the prediction is the class with the highest logit"
                )
            return _masks(loss), loss
        raise InputError(
            f"--loss: {name} takes {' and '.join(needs)}, which a segmentation data set does not "
            "yield; see `denseloss ls`"
        )

    def _binary(self, loss: LossModule) -> tuple["Feed", LossModule]:
        twin = _binary_form(loss)
        if isinstance(twin, LossModule):
            self._note(
                f"binary task: {_written(loss)} is taken as {_written(twin)}"
                f"{_other_defaults(loss, twin)}"
            )
            return _masks(twin), twin
        self._note(f"binary task: {_written(loss)} {twin}; it gets two classes, logits 0 and z")
        return _classes(loss), loss

    def _note(self, note: str) -> None:
        self.notes = (*self.notes, note)


@dataclass(frozen=True)
class Classes:
    """Class maps, for losses of exclusive classes; one channel becomes two classes."""

    ignored: int | None
    """A class that the user ignores, which is void, too."""

    def __call__(
        self, outputs: Sequence[Tensor], classes: Tensor, image: Tensor
    ) -> tuple[Sequence[Tensor], Tensor, dict[str, Any]]:
        """Return the class maps; void pixels are ignored."""
        del image
        if self.ignored is not None:
            classes = classes.masked_fill(classes == self.ignored, VOID)
        return _as_classes(outputs), classes, {"ignore_index": VOID}


@dataclass(frozen=True)
class Masks:
    """One mask per channel, for losses of independent channels."""

    void_value: bool
    """Whether void is a value of the mask; otherwise its weight is 0."""

    def __call__(
        self, outputs: Sequence[Tensor], classes: Tensor, image: Tensor
    ) -> tuple[Sequence[Tensor], Tensor, dict[str, Any]]:
        """Return the masks; void pixels do not count."""
        del image
        masks = as_masks(classes, channels=outputs[0].shape[1])
        if self.void_value:
            return outputs, masks, {"ignore_index": VOID}
        weight = (masks != VOID).float()
        return outputs, masks * weight, {"weight": weight}


@dataclass(frozen=True)
class Images:
    """The image, for losses that look at it instead of labels; void pixels count like all."""

    def __call__(
        self, outputs: Sequence[Tensor], classes: Tensor, image: Tensor
    ) -> tuple[Sequence[Tensor], Tensor, dict[str, Any]]:
        """Return the image, intensities 0 to 255."""
        del classes
        return _as_classes(outputs), denormalise(image).float(), {}


Feed = Classes | Masks | Images
"""What losses are called with, besides the logits of each map; terms of equal feeds are one sum."""


def _classes(loss: LossModule) -> Classes:
    return Classes(ignored=_given(loss).get("ignore_index"))


def _masks(loss: LossModule) -> Masks:
    return Masks(void_value="ignore_index" in inspect.signature(type(loss).function).parameters)


def as_masks(classes: Tensor, *, channels: int) -> Tensor:
    """Return one mask per channel, float[n c h w] of 0, 1 and, where void, `VOID`.

    One channel is the mask of class 1, the foreground of a binary task.
    """
    first = 1 if channels == 1 else 0
    index = torch.arange(first, first + channels, device=classes.device).view(1, -1, 1, 1)
    masks = (classes[:, None] == index).float()
    return masks.masked_fill(classes[:, None] == VOID, VOID)


def _as_classes(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the logits; those of a single channel z as of two classes, 0 and z."""
    if outputs[0].shape[1] > 1:
        return outputs
    return [torch.cat([torch.zeros_like(z), z], dim=1) for z in outputs]


def _binary_form(module: LossModule) -> LossModule | str:
    """Return the module's `binary_` form with its options, or why there is none."""
    form: type[LossModule] | None = getattr(losses, f"Binary{type(module).__name__}", None)
    if form is None:
        return "has no binary form"
    given = {key: value for key, value in _given(module).items() if key != "ignore_index"}
    known = inspect.signature(form).parameters
    missing = [key for key in given if key not in known]
    if missing:
        return f"has no binary form with {', '.join(missing)}"
    try:
        return form(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"--loss: {_written(module)} on a binary task: {error}") from None


def _other_defaults(module: LossModule, twin: LossModule) -> str:
    """Return the options that nobody gave and that the binary form sets otherwise."""
    before = inspect.signature(type(module)).parameters
    given = {*_given(module), "ignore_index"}
    other = [
        f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(type(twin)).parameters.items()
        if name in before and name not in given and parameter.default != before[name].default
    ]
    return f", whose default is {', '.join(other)}" if other else ""


def _given(module: LossModule) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    given = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        value = getattr(module, name)
        if isinstance(value, Tensor) or value != parameter.default:
            given[name] = value
    return given


def _written(module: LossModule) -> str:
    options = module.extra_repr()
    name = type(module).function.__name__.removesuffix("_loss")
    return f"{name}({options})" if options else name
