"""A weighted sum of losses, as a segmentation task can take it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss import losses
from denseloss.compose import WeightedSum
from denseloss.data.errors import InputError
from denseloss.data.samples import VOID
from denseloss.data.transforms import denormalise
from denseloss.module import LossModule
from denseloss.tasks.criterion import Batch, Criterion, Feed, needed, not_yielded
from denseloss.tasks.segmentation.labels import Mode


class SegmentationCriterion(Criterion):
    """The terms of a loss, each fed what it takes from class maps with void pixels.

    On a binary task the network has one channel. A loss of exclusive classes is then taken in its
    `binary_` form. Where there is none with the options that are set, it gets the logits of two
    classes, 0 and z, whose softmax is the sigmoid of z. On a multiclass task a loss of independent
    channels gets one mask per class. Void pixels count nothing in any of them.

    It is called with logits [n c h w], the largest first, which are all brought to the labels'
    size, and a batch: `image` as the network got it, normalised, and `mask`, class indices
    int[n h w], `VOID` where void.

    Args:
        weighted_sum: The loss as it was written.
        mode: What the classes mean.
        num_classes: Background included.

    Raises:
        InputError: A term needs something else than labels, or an option cannot be used.

    Attributes:
        names: Of the terms.
        num_outputs: How many channels the network needs.
        notes: What a term is taken as where that is not what was written, in plain words.
    """

    def __init__(self, weighted_sum: WeightedSum, *, mode: Mode, num_classes: int) -> None:
        self.mode: Mode = mode
        self.num_outputs = 1 if mode == "binary" else num_classes
        super().__init__(weighted_sum)

    @property
    def link(self) -> Literal["softmax", "sigmoid"]:
        """What makes the logits the probabilities that the loss trains.

        `"sigmoid"` on a binary task, and on a multiclass task where every term takes independent
        channels; otherwise `"softmax"`.
        """
        independent = all(isinstance(feed, Masks) for feed in self.feeds)
        return "sigmoid" if self.mode == "binary" or independent else "softmax"

    def fed(self, name: str, loss: LossModule) -> tuple[Feed, LossModule]:
        """Return what a term is fed, and what it is taken as."""
        needs = needed(loss)
        if needs == ("Logits", "Image"):
            return Images(), loss
        if needs == ("Logits", "ClassMap"):
            return (_classes(loss), loss) if self.mode == "multiclass" else self._binary(loss)
        if needs not in (("Logits", "Masks"), ("Scores", "Quality")):
            raise InputError(not_yielded(name, needs, "segmentation"))
        if self.mode == "multiclass":
            self.notes += (
                f"{self.num_outputs} exclusive classes: {_written(loss)} gets one mask per class; "
                "the prediction is the class with the highest logit",
            )
        return _masks(loss), loss

    def _binary(self, loss: LossModule) -> tuple[Feed, LossModule]:
        twin = _binary_form(loss)
        note = f"binary task: {_written(loss)} "
        if isinstance(twin, str):
            self.notes += (f"{note}{twin}; it gets two classes, logits 0 and z",)
            return _classes(loss), loss
        self.notes += (f"{note}is taken as {_written(twin)}{_other_defaults(loss, twin)}",)
        return _masks(twin), twin


Fed = tuple[Sequence[Tensor], Tensor, dict[str, Any]]
"""Logits, the truth, and options."""


@dataclass(frozen=True)
class Classes:
    """Class maps, for losses of exclusive classes; one channel becomes two classes."""

    ignored: int | None
    """A class that the user ignores, which is void, too."""

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Fed:
        """Return the class maps; void pixels are ignored."""
        classes = batch["mask"]
        if self.ignored is not None:
            classes = classes.masked_fill(classes == self.ignored, VOID)
        return _as_classes(outputs), classes, {"ignore_index": VOID}


@dataclass(frozen=True)
class Masks:
    """One mask per channel, for losses of independent channels."""

    void_value: bool
    """Whether void is a value of the mask; otherwise its weight is 0."""

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Fed:
        """Return the masks; void pixels do not count."""
        masks = as_masks(batch["mask"], channels=outputs[0].shape[1])
        if self.void_value:
            return outputs, masks, {"ignore_index": VOID}
        weight = (masks != VOID).float()
        return outputs, masks * weight, {"weight": weight}


@dataclass(frozen=True)
class Images:
    """The image, for losses that look at it instead of labels; void pixels count like all."""

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Fed:
        """Return the image, intensities 0 to 255."""
        return _as_classes(outputs), denormalise(batch["image"]).float(), {}


def _classes(loss: LossModule) -> Classes:
    return Classes(ignored=_given(loss).get("ignore_index"))


def _masks(loss: LossModule) -> Masks:
    return Masks(void_value="ignore_index" in inspect.signature(type(loss).function).parameters)


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits [n c *s] at the labels' size, as the losses see them."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def decided(logits: Tensor, mode: Mode) -> Tensor:
    """Return the classes int64[n h w] that logits [n c h w] say."""
    return (logits[:, 0] > 0).long() if mode == "binary" else logits.argmax(1)


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
    if missing := [key for key in given if key not in _options(form)]:
        return f"has no binary form with {', '.join(missing)}"
    try:
        return form(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"--loss: {_written(module)} on a binary task: {error}") from None


def _other_defaults(module: LossModule, twin: LossModule) -> str:
    """Return the options that nobody gave and that the binary form sets otherwise."""
    before, given = _options(type(module)), {*_given(module), "ignore_index"}
    other = [
        f"{name}={default!r}"
        for name, default in _options(type(twin)).items()
        if name in before and name not in given and default != before[name]
    ]
    return f", whose default is {', '.join(other)}" if other else ""


def _options(loss: type[LossModule]) -> dict[str, Any]:
    """Return the options with their defaults."""
    return {name: each.default for name, each in inspect.signature(loss).parameters.items()}


def _given(module: LossModule) -> dict[str, Any]:
    """Return the options that differ from their defaults."""
    given = {}
    for name, default in _options(type(module)).items():
        value = getattr(module, name)
        if isinstance(value, Tensor) or value != default:
            given[name] = value
    return given


def _written(module: LossModule) -> str:
    options = module.extra_repr()
    name = type(module).function.__name__.removesuffix("_loss")
    return f"{name}({options})" if options else name
