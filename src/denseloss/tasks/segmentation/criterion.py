"""A weighted sum of losses, as a segmentation task can take it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denseloss import losses
from denseloss.compose import UserLoss, WeightedSum
from denseloss.contract import arguments
from denseloss.data.errors import InputError
from denseloss.data.samples import VOID
from denseloss.data.transforms import denormalise
from denseloss.module import LossModule
from denseloss.tasks.criterion import Batch, Criterion, Feed, Varied, needed, not_yielded
from denseloss.tasks.segmentation.labels import Mode


class SegmentationCriterion(Criterion):
    """The terms of a loss, each fed what it takes from class maps with void pixels.

    On a binary task the network has one channel, z. A loss of exclusive classes is then taken in
    its `binary_` form, with the defaults of the plain name: the same formula on the foreground
    alone. With p = sigmoid(z), and two classes of logits (0, z):

    * `cross_entropy` and `focal` have the same value, for p of a pixel's true class is the same.
    * `dice`, `jaccard` and `tversky` are the mean over the foreground, and no longer over
      background and foreground: what `class_weight=[0, 1]` gives with two classes.

    With an option that the `binary_` form lacks, or in which it means something else (`alpha`,
    `class_weight`, a class to ignore), a loss gets these two classes, and so does one that has no
    such form. On a multiclass task a loss of independent channels gets one mask per class. Void
    pixels count nothing in any of them.

    A loss of the user's own gets what its annotations say. Without any it gets, after the logits,
    class indices int[n h w] on a multiclass task, and the foreground's mask float[n 1 h w] on a
    binary one.

    It is called with logits [n c h w], the largest first, which are all brought to the labels'
    size, and a batch: `image` as the network got it, normalised, and `mask`, class indices
    int[n h w], `VOID` where void.

    Args:
        weighted_sum: The loss as it was written.
        mode: What the classes mean.
        num_classes: Background included.
        has_void: Whether masks have void pixels, besides what is padded.

    Raises:
        InputError: A term needs something else than labels, or an option cannot be used.

    Attributes:
        names: Of the terms.
        num_outputs: How many channels the network needs.
        notes: What a term is taken as where that is not what was written, in plain words.
    """

    def __init__(
        self,
        weighted_sum: WeightedSum,
        *,
        mode: Mode,
        num_classes: int,
        has_void: bool = False,
    ) -> None:
        self.mode: Mode = mode
        self.has_void = has_void
        self.num_outputs = 1 if mode == "binary" else num_classes
        super().__init__(weighted_sum)

    @property
    def link(self) -> Literal["softmax", "sigmoid"]:
        """What makes the logits the probabilities that the loss trains.

        `"sigmoid"` on a binary task, and on a multiclass task where every term takes independent
        channels; otherwise `"softmax"`.
        """
        independent = all(
            isinstance(feed, Masks) or (isinstance(feed, Own) and feed.truth == "masks")
            for feed in self.feeds
        )
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
            self.notes += (_one_mask_per_class(_written(loss), self.num_outputs),)
        return _masks(loss), loss

    def _binary(self, loss: LossModule) -> tuple[Feed, LossModule]:
        twin = _binary_form(loss)
        note = f"binary task: {_written(loss)} "
        if isinstance(twin, str):
            self.notes += (f"{note}{twin}; it gets two classes, logits 0 and z",)
            return _classes(loss), loss
        self.notes += (f"{note}is taken as {_written(twin)}",)
        return _masks(twin), twin

    def fed_own(self, name: str, loss: UserLoss) -> tuple[Feed, nn.Module]:
        """Return what a loss of the user's own is fed, and what it is taken as."""
        truth = self._truth(name, loss)
        void, value, taken = _void(loss)
        if truth == "image":
            void = "none"
        if void == "none" and truth != "image" and self.has_void:
            raise InputError(
                f"--loss: {name} has neither ignore_index nor weight, and the masks have void "
                "pixels, which it would train on; give it the keyword ignore_index (it gets "
                f"{VOID}, which its target then holds where void) or weight (it gets 0 there and 1 "
                "elsewhere)"
            )
        if not loss.kinds:
            self.notes += (f"{self._called(name, loss, truth, void)}",)
        elif truth == "two":
            self.notes += (f"binary task: {name} gets two classes, logits 0 and z",)
        if void == "none" and truth != "image":
            self.notes += (
                f"{name} has neither ignore_index nor weight: where a training square is larger "
                "than its image, the rest counts as class 0",
            )
        return Own(truth=truth, void=void, value=value, image=loss.image), taken

    def _truth(self, name: str, loss: UserLoss) -> "Truth":
        """Return what a loss of the user's own gets after the logits."""
        binary = self.mode == "binary"
        if not loss.kinds:
            return "image" if loss.of_image else "masks" if binary else "classes"
        needs = needed(loss)
        if needs == ("Logits", "Image"):
            return "image"
        if needs in (("Logits", "ClassMap"), ("Logits", "Labels")):
            return "two" if binary else "classes"
        if needs not in (("Logits", "Masks"), ("Scores", "Quality")):
            raise InputError(not_yielded(name, needs, "segmentation"))
        if not binary:
            self.notes += (_one_mask_per_class(name, self.num_outputs),)
        return "masks"

    def _called(self, name: str, loss: UserLoss, truth: "Truth", void: "VoidWay") -> str:
        """Say what a loss without annotations is called with."""
        # As ours that look at the image, it gets two classes on a binary task.
        channels = 2 if truth == "image" and self.mode == "binary" else self.num_outputs
        scores = f"logits float[n {channels} h w]"
        second = {
            "masks": f"masks float[n {channels} h w]",
            "classes": "class indices int[n h w]",
            "two": "class indices int[n h w]",
            "image": "the image float[n 3 h w], 0 to 255",
        }[truth]
        given = (second, scores) if loss.swapped else (scores, second)
        more = {
            "ignore_index": [f"ignore_index={VOID}"],
            "made": [f"made with ignore_index={VOID}"],
            "weight": [f"a weight float{second.partition('float')[2] or '[n h w]'}, 0 where void"],
            "given": [],
            "none": [],
        }[void] + ([f"{loss.image}=the image float[n 3 h w], 0 to 255"] if loss.image else [])
        return (
            f"{name} is called with {' and '.join(given)}{''.join(f', {each}' for each in more)}; "
            "annotate its arguments to change that"
        )

    def varied(self, batch: Batch, *, void: bool) -> list[Varied]:
        """Return the batch with some void pixels, and some that are all of a kind."""
        classes = batch["mask"]
        first = torch.zeros_like(classes, dtype=torch.bool)
        first[:, : max(1, classes.shape[1] // 4)] = True

        def of(mask: Tensor, words: str = "", where: Tensor | None = None) -> Varied:
            return Varied({**batch, "mask": mask}, words, where)

        last = 1 if self.mode == "binary" else self.num_outputs - 1
        found = [
            of(classes.masked_fill(first, VOID), where=first[:, None]) if void else of(classes),
            of(torch.zeros_like(classes), "where no pixel is foreground"),
            of(torch.full_like(classes, last), "where all pixels are of one class"),
        ]
        if void:
            found.append(of(torch.full_like(classes, VOID), "where all pixels are void"))
        return found


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


Truth = Literal["classes", "two", "masks", "image"]
"""What follows the logits; `"two"` are the classes of a binary task, for logits of two classes."""

VoidWay = Literal["ignore_index", "made", "given", "weight", "none"]
"""How a loss of the user's own leaves out void pixels: by the keyword of a call, by what its class
is made with, by what the user gave for it, or not at all."""


@dataclass(frozen=True)
class Own:
    """What a loss of the user's own is called with."""

    truth: Truth
    void: VoidWay
    value: int
    """What its target holds where void."""
    image: str
    """The keyword that gets the image, too; empty for none."""

    @property
    def leaves_out_void(self) -> bool:
        """Whether void pixels are to have no effect."""
        return self.void != "none"

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Fed:
        """Return the target that the loss takes."""
        image = {self.image: denormalise(batch["image"]).float()} if self.image else {}
        if self.truth == "image":
            maps, target, _ = Images()(outputs, batch)
            return maps, target, image
        classes = batch["mask"]
        maps = _as_classes(outputs) if self.truth == "two" else outputs
        void = classes == VOID
        # A copy in any case: what the user's code does to it must not reach the scores.
        target = classes.masked_fill(void, 0 if self.void in ("none", "weight") else self.value)
        if self.truth == "masks":
            target = as_masks(target.masked_fill(void, 0), channels=outputs[0].shape[1])
            void = void[:, None].expand_as(target)
            if self.void not in ("none", "weight"):
                target = target.masked_fill(void, self.value)
        options: dict[str, Any] = {}
        if self.void == "ignore_index":
            options = {"ignore_index": self.value}
        elif self.void == "weight":
            options = {"weight": (~void).float()}
        return maps, target, options | image


def _void(loss: UserLoss) -> tuple[VoidWay, int, UserLoss]:
    """Return how a loss of the user's own leaves out void, by which value, and what is called."""
    name = "ignore_index"
    given = loss.given.get(name)
    if isinstance(given, int) and (loss.takes(name) or loss.is_made_with(name)):
        return "given", given, loss
    if name not in loss.given:
        if loss.takes(name):
            return "ignore_index", VOID, loss
        if loss.is_made_with(name):
            return "made", VOID, loss.with_options(ignore_index=VOID)
    per_class = loss.kind_of("weight") == "ClassWeight"
    if loss.takes("weight") and "weight" not in loss.given and not per_class:
        return "weight", VOID, loss
    return "none", VOID, loss


def _one_mask_per_class(name: str, classes: int) -> str:
    return (
        f"{classes} exclusive classes: {name} gets one mask per class; the prediction is the class "
        "with the highest logit"
    )


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
    given = _given(module)
    if given.get("ignore_index") == VOID:  # which it is anyway
        del given["ignore_index"]
    if missing := [key for key in given if key not in _options(form)]:
        return f"has no binary form with {', '.join(missing)}"
    if other := [key for key in given if not _same_meaning(key, type(module), form)]:
        return f"would mean something else as {_written(form())}, by {', '.join(other)}"
    # The plain name's defaults, where the other's differ: what is written is what is meant.
    theirs = _options(form)
    kept = {
        name: default
        for name, default in _options(type(module)).items()
        if name in theirs and name != "ignore_index" and default != theirs[name]
    }
    try:
        return form(**{**kept, **given})
    except (TypeError, ValueError) as error:
        raise InputError(f"--loss: {_written(module)} on a binary task: {error}") from None


def _same_meaning(option: str, plain: type[LossModule], form: type[LossModule]) -> bool:
    """Whether an option of a loss of exclusive classes means the same on the foreground alone.

    What speaks of classes does not, nor does a number that is taken from another range.
    """
    if option in ("class_weight", "ignore_index"):
        return False
    one, other = (arguments(loss.function)[option] for loss in (plain, form))
    return (one.choices, one.interval) == (other.choices, other.interval)


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
