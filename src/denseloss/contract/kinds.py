"""The kinds of arguments: what a tensor or a number means, and which are accepted.

A kind stands in an annotation, such as ``logits: Logits`` or ``gamma: NonNegative``. A kind of your
own is made the same way::

    Depth = Annotated[Tensor, Kind.of("Depth", "float[n 1 *s]", "metres")]
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from denseloss.contract.notation import Form, Sizes, describe
from denseloss.targets import ClassScores, StandIn

__all__ = [
    "Absent",
    "BinTarget",
    "Bins",
    "BoxWeight",
    "Boxes",
    "ClassLogits",
    "ClassMap",
    "ClassWeight",
    "Count",
    "ElementWeight",
    "Image",
    "Interval",
    "Kind",
    "Labels",
    "Logits",
    "Masks",
    "MasksAlone",
    "NonNegative",
    "Odd",
    "PixelWeight",
    "Pool",
    "PosWeight",
    "Positive",
    "Quality",
    "Reduction",
    "ScoreWeight",
    "Scores",
    "SegmentLogits",
    "Share",
    "TargetBoxes",
    "TrainedBins",
]

Hint = Callable[[Tensor, Sizes], str]


def _no_hint(*_: object) -> str:
    return ""


@dataclass(frozen=True, repr=False)
class Kind:
    """What a tensor means and the forms it may take."""

    name: str
    forms: tuple[Form, ...]
    meaning: str
    hint: Hint = _no_hint
    """How to mend a tensor that does not fit, where its shape tells."""
    least: tuple[str, int, str] | None = None
    """An axis, the size that it must have at least, and what is said where it is smaller."""

    @classmethod
    def of(
        cls,
        name: str,
        notation: str,
        meaning: str,
        hint: Hint = _no_hint,
        least: tuple[str, int, str] | None = None,
    ) -> Kind:
        """A kind from its notation: one form, or several with ``" | "`` between them."""
        forms = tuple(Form.parse(form) for form in notation.split(" | "))
        return cls(name, forms, meaning, hint, least)

    @property
    def notation(self) -> str:
        """Its forms in words."""
        return " or ".join(form.notation for form in self.forms)

    def __repr__(self) -> str:
        return f"{self.name} {self.notation}"

    def check_class_scores(
        self, function: str, argument: str, value: ClassScores, sizes: Sizes
    ) -> Sizes:
        """The same as `check` for `ClassScores`, which stand for this tensor."""
        dense = self.forms[0]
        full = [sizes[axis] for axis, _ in dense.before if axis in sizes]
        full += sizes.get(dense.star[0], ()) if dense.star is not None else ()
        places: Sizes = {"*places": tuple(full[:-1])}  # all its axes but the classes
        _PLACE_LABEL.check(function, f"{argument}.label", value.label, places)
        if value.score is not None:
            _PLACE_SCORE.check(function, f"{argument}.score", value.score, places)
        return sizes

    def check(self, function: str, argument: str, value: Any, sizes: Sizes) -> Sizes:
        """The sizes with this tensor's axes added; raises where it does not fit.

        Raises:
            TypeError: not a tensor, or the right shape with the wrong dtype.
            ValueError: the wrong shape.
        """
        if isinstance(value, Tensor) or (
            isinstance(value, StandIn) and value.stands_for == self.name
        ):
            _check_dense(function, argument, value)
            shape_fits = False
            for form in self.forms:
                found = form.fits_shape(tuple(value.shape), sizes)
                if found is not None:
                    if form.fits_dtype(value.dtype):
                        if self.least is not None and found[self.least[0]] < self.least[1]:
                            raise ValueError(
                                f"{function}: {argument} ({self.meaning}) must have "
                                f"{self.least[0]} >= {self.least[1]}, got {describe(value)}; "
                                f"{self.least[2]}"
                            )
                        return found
                    shape_fits = True
            error = TypeError if shape_fits else ValueError
            hint = self.hint(value, sizes) if isinstance(value, Tensor) else ""
            hint = f"; {hint}" if hint else ""
        else:
            error, hint = TypeError, no_tensor_hint(argument, value)
            if self.name in ("Quality", "Masks") and _label_and_score(value):
                hint = "; pass denseloss.ClassScores(label, score), if taken here"
        known = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise error(
            f"{function}: {argument} ({self.meaning}) must be {self.notation}"
            + (f" with {known}" if known else "")
            + f", got {describe(value)}{hint}"
        )


def _check_dense(function: str, argument: str, value: Tensor | StandIn) -> None:
    if not isinstance(value, Tensor):
        return
    if value.is_nested:
        what, mend = "a nested one", "torch.nested.to_padded_tensor, and weight=0 for the padding"
    elif value.layout is not torch.strided:
        what, mend = f"one with layout {value.layout}", f"{argument}.to_dense()"
    else:
        return
    raise TypeError(f"{function}: {argument} must be an ordinary dense tensor, got {what}: {mend}")


def _label_and_score(value: Any) -> bool:
    """Whether a target is the pair that other detectors hand to their losses."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(x, Tensor) for x in value)
        and not value[0].is_floating_point()
    )


def no_tensor_hint(argument: str, value: Any) -> str:
    """How to mend what is no tensor yet: numbers, or several tensors."""
    if isinstance(value, Mapping):
        return f"; pass one of its entries, such as {argument}[{next(iter(value), None)!r}]"
    if isinstance(value, list | tuple) and any(isinstance(x, Tensor) for x in value):
        return f"; pass one of its entries, such as {argument}[0]"
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        return f"; pass torch.as_tensor({argument})"
    return ""


_PLACE_LABEL = Kind.of("label", "int[*places]", "a label for each place")
_PLACE_SCORE = Kind.of("score", "float[*places]", "a score for each place")


# ---------------------------------------------------------------- hints: how to mend it


def _logits_hint(logits: Tensor, _: Sizes) -> str:
    if logits.ndim == 1:
        return "for one score per sample pass logits.unsqueeze(1), and a target [n 1] likewise"
    if not logits.is_floating_point() and not logits.is_complex():
        return "scores come first, then the target; scores of whole numbers: logits.float()"
    return ""


def _class_map_hint(target: Tensor, sizes: Sizes) -> str:
    shape, wanted = tuple(target.shape), (sizes.get("n"), *sizes.get("*s", ()))
    if target.is_floating_point() and shape in (wanted, (wanted[0], 1, *wanted[1:])):
        return "labels are integers: pass target.long()"
    if not target.is_floating_point() and shape == (wanted[0], sizes.get("c"), *wanted[1:]):
        return "it looks one-hot: pass target.argmax(1), or target.float() as class probabilities"
    if shape == (*wanted, 1):
        return "the labels have an axis too many: target.squeeze(-1)"
    if shape == (wanted[0], sizes.get("c"), *wanted[1:-1]):
        return "channels seem to be last: logits.movedim(-1, 1)"
    if shape == (sizes.get("c"), *wanted[1:]):
        return "add the axis of images: logits.unsqueeze(0), target.unsqueeze(0)"
    if shape[:1] == wanted[:1] and len(shape) == len(wanted) and shape[1:] != wanted[1:]:
        return "logits and labels differ in size: wrap the loss in denseloss.AtTargetSize"
    return ""


def _masks_hint(target: Tensor, sizes: Sizes) -> str:
    if "n" not in sizes:
        return ""
    if tuple(target.shape) == (sizes["n"], *sizes["*s"]):
        if sizes["c"] == 1:
            return "add the channel axis: target.unsqueeze(1)"
        if not sizes["*s"]:
            return "for a label per place pass denseloss.ClassScores(label, score), if taken here"
        return "these are labels: use the loss without binary_, or denseloss.functional.one_hot"
    if tuple(target.shape) == (sizes["n"], *sizes["*s"], sizes["c"]):
        return "channels seem to be last: target.movedim(-1, 1)"
    if tuple(target.shape) == (sizes["c"], *sizes["*s"]):
        return "add the axis of images: logits.unsqueeze(0), target.unsqueeze(0)"
    full = (sizes["n"], sizes["c"], *sizes["*s"])
    if len(full) > 2 and tuple(target.shape) == (*full[:-1], 1):
        return "channels seem to be last: movedim(-1, 1), of the logits, too"
    if target.ndim == len(sizes["*s"]) + 2 and tuple(target.shape[2:]) != sizes["*s"]:
        return "logits and masks differ in size: wrap the loss in denseloss.AtTargetSize"
    return ""


def _quality_hint(quality: Tensor, sizes: Sizes) -> str:
    if tuple(quality.shape) == tuple(sizes.get("*s", ()))[:-1]:
        return "for a class and a score per place pass denseloss.ClassScores(label, score)"
    return ""


def _element_weight_hint(weight: Tensor, sizes: Sizes) -> str:
    if tuple(weight.shape) == (sizes.get("n"), *sizes.get("*s", ())):
        return "a weight per pixel needs the channel axis: weight.unsqueeze(1)"
    return ""


def _pixel_weight_hint(weight: Tensor, sizes: Sizes) -> str:
    if tuple(weight.shape) == (sizes.get("c"),):
        return "weight counts per pixel: a weight per class is class_weight"
    return ""


# ---------------------------------------------------------------- the kinds

Logits = Annotated[Tensor, Kind.of("Logits", "float[n c *s]", "scores", _logits_hint)]
_ONE_CLASS = (
    "the softmax of one channel is 1 whatever it holds: for one foreground class use a loss whose "
    "name begins with binary_, and a mask"
)
ClassLogits = Annotated[
    Tensor, Kind.of("Logits", "float[n c *s]", "scores", _logits_hint, ("c", 2, _ONE_CLASS))
]
_ONE_SEGMENT = "there is nothing to cut in one segment: give a channel for each segment"
SegmentLogits = Annotated[
    Tensor, Kind.of("Logits", "float[n c *s]", "scores", _logits_hint, ("c", 2, _ONE_SEGMENT))
]
Scores = Annotated[Tensor, Kind.of("Scores", "float[*s]", "scores")]
ClassMap = Annotated[
    Tensor,
    Kind.of(
        "ClassMap",
        "int[n *s] | int[n 1 *s] | float[n c *s]",
        "labels or class probabilities",
        _class_map_hint,
    ),
]
Labels = Annotated[Tensor, Kind.of("Labels", "int[n *s]", "labels")]
Masks = Annotated[Tensor, Kind.of("Masks", "real[n c *s]", "a mask per channel", _masks_hint)]
MasksAlone = Annotated[Tensor, Kind.of("Masks", "real[n c *s]", "a mask per channel")]
Quality = Annotated[
    Tensor, Kind.of("Quality", "real[*s]", "a quality in [0, 1] per score", _quality_hint)
]
Boxes = Annotated[Tensor, Kind.of("Boxes", "float[*m 4]", "boxes")]
TargetBoxes = Annotated[Tensor, Kind.of("Boxes", "real[*m 4]", "boxes")]
_ONE_BIN = "a distribution over one bin has nothing to learn"
Bins = Annotated[Tensor, Kind.of("Bins", "float[*s k]", "scores of the bins")]
TrainedBins = Annotated[
    Tensor, Kind.of("Bins", "float[*s k]", "scores of the bins", least=("k", 2, _ONE_BIN))
]
BinTarget = Annotated[Tensor, Kind.of("BinTarget", "real[*s]", "positions in [0, k-1]")]
Image = Annotated[Tensor, Kind.of("Image", "real[n i *s]", "an image, intensities 0 to 255")]
PixelWeight = Annotated[
    Tensor,
    Kind.of(
        "PixelWeight",
        "real[#n *#s] | real[#n 1 *#s]",
        "what each pixel counts for",
        _pixel_weight_hint,
    ),
]
ElementWeight = Annotated[
    Tensor,
    Kind.of(
        "ElementWeight",
        "real[#n #c *#s]",
        "what each element counts for",
        _element_weight_hint,
    ),
]
ScoreWeight = Annotated[
    Tensor,
    Kind.of("ElementWeight", "real[*#s]", "what each element counts for"),
]
BoxWeight = Annotated[Tensor, Kind.of("BoxWeight", "real[*#m]", "what each box counts for")]
# "| Any", for type checkers: a Module takes a list of numbers, too, and makes a tensor of it.
ClassWeight = Annotated[
    Tensor | Any, Kind.of("ClassWeight", "real[c]", "what each class counts for")
]
Count = Annotated[Tensor, Kind.of("Count", "real[]", "what the mean divides by")]
PosWeight = Annotated[
    Tensor | Any,
    Kind.of(
        "PosWeight",
        "real[c] | real[1] | real[] | real[#n #c *#s] | real[#c *#s]",
        "what a positive counts for",
    ),
]

Reduction = Literal["none", "mean", "sum"]
Pool = Literal["image", "batch"]
Absent = Literal["count", "skip"]


@dataclass(frozen=True, repr=False)
class Interval:
    """The closed range that a number must lie in."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is excluded
    whole: bool = False
    odd: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the value is a number in the range."""
        if isinstance(value, numbers.Real) and not isinstance(value, (int, float)):
            # a scalar of numpy
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and not isinstance(value, int):
            return False
        if self.odd and value % 2 == 0:
            return False
        if self.above and not value > self.low:
            return False
        return self.low <= value <= self.high and abs(value) != math.inf

    def __repr__(self) -> str:
        word = "odd" if self.odd else "int" if self.whole else ""
        if self.low == -math.inf:
            return word or "number"
        if self.high == math.inf:
            return f"{word} {'>' if self.above else '>='} {self.low:g}".lstrip()
        return f"{word} in [{self.low:g}, {self.high:g}]".lstrip()

    def __str__(self) -> str:
        kind = "an integer" if self.whole else "a number"
        kind = "an odd integer" if self.odd else kind
        if self.low == -math.inf:
            return kind
        if self.high == math.inf:
            return f"{kind} {'>' if self.above else '>='} {self.low:g}"
        return f"{kind} in [{self.low:g}, {self.high:g}]"


NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(0, above=True)]
Share = Annotated[float, Interval(0, 1)]
Odd = Annotated[int, Interval(1, whole=True, odd=True)]
