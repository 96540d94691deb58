"""A weighted sum of losses, as a segmentation task can take it."""

import inspect
from collections.abc import Sequence
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
        terms: dict[str, tuple[float, nn.Module]] = {}
        for name, weight, loss in weighted_sum.named_terms():
            if not isinstance(loss, LossModule):
                raise InputError(f"--loss: {name} is no loss of the catalogue; see `denseloss ls`")
            terms[name] = (weight, self._adapted(name, loss))
        self.names = tuple(terms)
        self._independent = all(isinstance(loss, OnMasks) for _, loss in terms.values())
        # A network without heads gives one map, whose share is 1.
        self.criterion = DeepSupervision(WeightedSum(**terms))

    @property
    def link(self) -> Literal["softmax", "sigmoid"]:
        """What makes the logits the probabilities that the loss trains.

        `"sigmoid"` on a binary task, and on a multiclass task where every term takes independent
        channels; otherwise `"softmax"`.
        """
        return "sigmoid" if self.task == "binary" or self._independent else "softmax"

    def forward(self, outputs: Sequence[Tensor], classes: Tensor, *, image: Tensor) -> Tensor:
        """Return the weighted terms; their sum is the loss.

        Args:
            outputs: Logits [n c h w], the largest first; all are brought to the labels' size.
            classes: Class indices int[n h w], `VOID` where void.
            image: As the network got it, normalised.
        """
        return torch.stack([*self.criterion.terms(outputs, classes, image=image).values()])

    def _adapted(self, name: str, loss: LossModule) -> nn.Module:
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
            return OnImage(loss)
        if needs == ["Logits", "ClassMap"]:
            return OnClasses(loss) if self.task == "multiclass" else self._binary(loss)
        if needs in (["Logits", "Masks"], ["Scores", "Quality"]):
            if self.task == "multiclass":
                self._note(
                    f"{self.num_outputs} exclusive classes: {_written(loss)} gets one mask "
                    "per class; the prediction is the class with the highest logit"
                )
            return OnMasks(loss)
        raise InputError(
            f"--loss: {name} takes {' and '.join(needs)}, which a segmentation data set does not "
            "yield; see `denseloss ls`"
        )

    def _binary(self, loss: LossModule) -> nn.Module:
        twin = _binary_form(loss)
        if isinstance(twin, LossModule):
            self._note(
                f"binary task: {_written(loss)} is taken as {_written(twin)}"
                f"{_other_defaults(loss, twin)}"
            )
            return OnMasks(twin)
        self._note(f"binary task: {_written(loss)} {twin}; it gets two classes, logits 0 and z")
        return OnClasses(loss)

    def _note(self, note: str) -> None:
        self.notes = (*self.notes, note)


class OnClasses(nn.Module):
    """A loss of exclusive classes, fed class maps; one channel becomes two classes."""

    def __init__(self, loss: LossModule) -> None:
        super().__init__()
        self.loss = loss
        # A class that the user ignores is void, too.
        self.ignored: int | None = _given(loss).get("ignore_index")

    def forward(self, logits: Tensor, classes: Tensor, *, image: Tensor) -> Tensor:
        """Return the loss; void pixels are ignored."""
        del image
        if self.ignored is not None:
            classes = classes.masked_fill(classes == self.ignored, VOID)
        value: Tensor = self.loss(_as_classes(logits), classes, ignore_index=VOID)
        return value


class OnMasks(nn.Module):
    """A loss of independent channels, fed one mask per channel."""

    def __init__(self, loss: LossModule) -> None:
        super().__init__()
        self.loss = loss
        parameters = inspect.signature(type(loss).function).parameters
        self.takes_void_value = "ignore_index" in parameters

    def forward(self, logits: Tensor, classes: Tensor, *, image: Tensor) -> Tensor:
        """Return the loss; void pixels have weight 0."""
        del image
        masks = as_masks(classes, channels=logits.shape[1])
        if self.takes_void_value:
            value: Tensor = self.loss(logits, masks, ignore_index=VOID)
        else:
            weight = (masks != VOID).to(logits.dtype)
            value = self.loss(logits, masks * weight, weight=weight)
        return value


class OnImage(nn.Module):
    """A loss that looks at the image instead of labels; void pixels count like all others."""

    def __init__(self, loss: LossModule) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, classes: Tensor, *, image: Tensor) -> Tensor:
        """Return the loss of the segments in the image, intensities 0 to 255."""
        del classes
        value: Tensor = self.loss(_as_classes(logits), denormalise(image).float())
        return value


def as_masks(classes: Tensor, *, channels: int) -> Tensor:
    """Return one mask per channel, float[n c h w] of 0, 1 and, where void, `VOID`.

    One channel is the mask of class 1, the foreground of a binary task.
    """
    first = 1 if channels == 1 else 0
    index = torch.arange(first, first + channels, device=classes.device).view(1, -1, 1, 1)
    masks = (classes[:, None] == index).float()
    return masks.masked_fill(classes[:, None] == VOID, VOID)


def _as_classes(logits: Tensor) -> Tensor:
    """Return the logits; those of a single channel z as of two classes, 0 and z."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


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
