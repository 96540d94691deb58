"""What a loss accepts, stated once: in the annotations of its signature.

An annotation such as ``logits: Logits`` is read by three readers. A person sees the shape. The
call is checked against it (`checked`): a wrong shape or dtype raises an error that names the
function, the argument, what was expected and what came. And `example` draws valid inputs from it,
for tests, benchmarks and documentation.

Shapes are written as ``dtype[axes]``, in jaxtyping's notation:

- ``float``, ``int`` (any integer or bool) or ``real`` (any of these),
- a letter is an axis that has the same size wherever it stands in one signature:
  ``n`` images, ``c`` classes or channels, ``m`` boxes, ``k`` bins, ``i`` image channels,
- ``*s`` is any number of axes (space), a number is an axis of that size,
- ``#`` before an axis allows size 1 (broadcasting).

Values are never read: a check costs a microsecond, never synchronises and never breaks a graph.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor

from denseloss.targets import ClassScores

__all__ = [
    "Absent",
    "BinTarget",
    "Bins",
    "BoxWeight",
    "Boxes",
    "ClassMap",
    "ClassWeight",
    "ElementWeight",
    "Form",
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
    "Share",
    "Sizes",
    "TargetBoxes",
    "checked",
    "example",
    "kinds",
    "nearest",
]

P = ParamSpec("P")
R = TypeVar("R")

Sizes = dict[str, Any]
"""Sizes of the axes seen so far: an int for a letter, a tuple for ``*s``."""

_DTYPES: dict[str, Callable[[torch.dtype], bool]] = {
    "float": lambda dtype: dtype.is_floating_point,
    "int": lambda dtype: not dtype.is_floating_point and not dtype.is_complex,
    "real": lambda dtype: not dtype.is_complex,
}


@dataclass(frozen=True)
class Form:
    """One accepted dtype and shape, such as ``float[n c *s]``."""

    notation: str
    dtype: str
    before: tuple[tuple[str, bool], ...]  # (axis, may be 1) up to the starred axis
    star: tuple[str, bool] | None
    after: tuple[tuple[str, bool], ...]

    @classmethod
    def parse(cls, notation: str) -> Form:
        """Read ``dtype[axis axis *axes]``."""
        dtype, _, rest = notation.rstrip("]").partition("[")
        axes = [(axis.replace("#", ""), "#" in axis) for axis in rest.split()]
        at = next((i for i, (axis, _) in enumerate(axes) if axis.startswith("*")), None)
        if at is None:
            return cls(notation, dtype, tuple(axes), None, ())
        return cls(notation, dtype, tuple(axes[:at]), axes[at], tuple(axes[at + 1 :]))

    def fits_dtype(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of this dtype is accepted."""
        return _DTYPES[self.dtype](dtype)

    def fits_shape(self, shape: tuple[int, ...], sizes: Sizes) -> Sizes | None:
        """The sizes with this shape's axes added, or None where the shape disagrees with them."""
        head, tail = len(self.before), len(self.after)
        if len(shape) < head + tail or (self.star is None and len(shape) > head + tail):
            return None
        found = dict(sizes)
        end = len(shape) - tail
        for (axis, broadcasts), size in zip(
            self.before + self.after, shape[:head] + shape[end:], strict=True
        ):
            known = int(axis) if axis.isdecimal() else found.setdefault(axis, size)
            if size != known and not (broadcasts and size == 1):
                return None
        if self.star is not None:
            axis, broadcasts = self.star
            space = tuple(shape[head:end])
            known = found.setdefault(axis, space)
            if len(space) != len(known):
                return None
            for size, wanted in zip(space, known, strict=True):
                if size != wanted and not (broadcasts and size == 1):
                    return None
        return found


@dataclass(frozen=True)
class Kind:
    """What a tensor means, the forms it may take, and how to draw one."""

    name: str
    forms: tuple[Form, ...]
    meaning: str
    draw: Callable[[Sizes, Generator], Tensor]
    hint: Callable[[Tensor, Sizes], str] = lambda *_: ""

    def check_class_scores(
        self, function: str, argument: str, value: ClassScores, sizes: Sizes
    ) -> Sizes:
        """The same for `ClassScores`, which stand for this tensor: its axes but the last."""
        dense = self.forms[0]
        full = [sizes[axis] for axis, _ in dense.before if axis in sizes]
        full += sizes.get(dense.star[0], ()) if dense.star is not None else ()
        places: Sizes = {"*places": tuple(full[:-1])}
        parts = [("label", value.label, "int[*places]")]
        if value.score is not None:
            parts.append(("score", value.score, "float[*places]"))
        for name, part, form in parts:
            kind = Kind(name, (Form.parse(form),), f"a {name} for each place", self.draw)
            kind.check(function, f"{argument}.{name}", part, places)
        return sizes

    def check(self, function: str, argument: str, value: Any, sizes: Sizes) -> Sizes:
        """The sizes with this tensor's axes added; raises where it does not fit.

        Raises:
            TypeError: not a tensor, or the right shape with the wrong dtype.
            ValueError: the wrong shape.
        """
        if isinstance(value, Tensor):
            shape_fits = False
            for form in self.forms:
                found = form.fits_shape(tuple(value.shape), sizes)
                if found is not None:
                    if form.fits_dtype(value.dtype):
                        return found
                    shape_fits = True
            error = TypeError if shape_fits else ValueError
            hint = self.hint(value, sizes)
        else:
            error, hint = TypeError, ""
        expected = " or ".join(form.notation for form in self.forms)
        known = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise error(
            f"{function}: {argument} ({self.meaning}) must be {expected}"
            + (f" with {known}" if known else "")
            + f", got {_describe(value)}"
            + (f"; {hint}" if hint else "")
        )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.60}"


def _kind(
    name: str,
    forms: str,
    meaning: str,
    draw: Callable[[Sizes, Generator], Tensor],
    hint: Callable[[Tensor, Sizes], str] = lambda *_: "",
) -> Kind:
    return Kind(name, tuple(Form.parse(form) for form in forms.split(" | ")), meaning, draw, hint)


# ---------------------------------------------------------------- drawing valid examples


def _draw_logits(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(sizes["n"], sizes["c"], *sizes["*s"], generator=g)


def _draw_scores(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(sizes["*s"], generator=g)


def _draw_labels(sizes: Sizes, g: Generator) -> Tensor:
    return torch.randint(0, sizes["c"], (sizes["n"], *sizes["*s"]), generator=g)


def _draw_masks(sizes: Sizes, g: Generator) -> Tensor:
    return torch.randint(0, 2, (sizes["n"], sizes["c"], *sizes["*s"]), generator=g).float()


def _draw_quality(sizes: Sizes, g: Generator) -> Tensor:
    # Most places of a detection head hold no object: their quality is exactly 0.
    quality = torch.rand(sizes["*s"], generator=g)
    return quality * (torch.rand(sizes["*s"], generator=g) < 0.5)


def _draw_boxes(sizes: Sizes, g: Generator) -> Tensor:
    corner = 4 * torch.rand(*sizes["*m"], 2, generator=g)
    return torch.cat([corner, corner + 1 + 4 * torch.rand(*sizes["*m"], 2, generator=g)], dim=-1)


def _draw_bins(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(*sizes["*s"], sizes["k"], generator=g)


def _draw_bin_target(sizes: Sizes, g: Generator) -> Tensor:
    last: int = sizes["k"] - 1
    return last * torch.rand(sizes["*s"], generator=g)


def _draw_image(sizes: Sizes, g: Generator) -> Tensor:
    return 255 * torch.rand(sizes["n"], 3, *sizes["*s"], generator=g)


def _draw_pixel_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["n"], *sizes["*s"], generator=g)


def _draw_element_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(_all_axes(sizes), generator=g)


def _draw_box_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["*m"], generator=g)


def _draw_class_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["c"], generator=g)


def _draw_pos_weight(sizes: Sizes, g: Generator) -> Tensor:
    return torch.rand(sizes["c"], generator=g) + 0.5


def _all_axes(sizes: Sizes) -> tuple[int, ...]:
    lead = (sizes["n"], sizes["c"]) if "n" in sizes else ()
    return (*lead, *sizes["*s"])


# ---------------------------------------------------------------- hints: how to mend it


def _class_map_hint(target: Tensor, sizes: Sizes) -> str:
    shape, wanted = tuple(target.shape), (sizes.get("n"), *sizes.get("*s", ()))
    if target.is_floating_point() and shape in (wanted, (wanted[0], 1, *wanted[1:])):
        return "labels are integers: pass target.long()"
    if not target.is_floating_point() and shape == (wanted[0], sizes.get("c"), *wanted[1:]):
        return "it looks one-hot: pass target.argmax(1), or target.float() as class probabilities"
    if shape[:1] == wanted[:1] and len(shape) == len(wanted) and shape[1:] != wanted[1:]:
        return "logits and labels differ in size: wrap the loss in denseloss.AtTargetSize"
    return ""


def _masks_hint(target: Tensor, sizes: Sizes) -> str:
    if "n" not in sizes:
        return ""
    if tuple(target.shape) == (sizes["n"], *sizes["*s"]):
        if sizes["c"] == 1:
            return "add the channel axis: target.unsqueeze(1)"
        return "these are labels: use the loss without binary_, or denseloss.functional.one_hot"
    if target.ndim == len(sizes["*s"]) + 2 and tuple(target.shape[2:]) != sizes["*s"]:
        return "logits and masks differ in size: wrap the loss in denseloss.AtTargetSize"
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

Logits = Annotated[Tensor, _kind("Logits", "float[n c *s]", "scores", _draw_logits)]
Scores = Annotated[Tensor, _kind("Scores", "float[*s]", "scores", _draw_scores)]
ClassMap = Annotated[
    Tensor,
    _kind(
        "ClassMap",
        "int[n *s] | int[n 1 *s] | float[n c *s]",
        "labels or class probabilities",
        _draw_labels,
        _class_map_hint,
    ),
]
Labels = Annotated[Tensor, _kind("Labels", "int[n *s]", "labels", _draw_labels)]
Masks = Annotated[
    Tensor, _kind("Masks", "real[n c *s]", "a mask per channel", _draw_masks, _masks_hint)
]
MasksAlone = Annotated[Tensor, _kind("Masks", "real[n c *s]", "a mask per channel", _draw_masks)]
Quality = Annotated[
    Tensor, _kind("Quality", "real[*s]", "a quality in [0, 1] per score", _draw_quality)
]
Boxes = Annotated[Tensor, _kind("Boxes", "float[*m 4]", "boxes", _draw_boxes)]
TargetBoxes = Annotated[Tensor, _kind("Boxes", "real[*m 4]", "boxes", _draw_boxes)]
Bins = Annotated[Tensor, _kind("Bins", "float[*s k]", "scores of the bins", _draw_bins)]
BinTarget = Annotated[
    Tensor, _kind("BinTarget", "real[*s]", "positions in [0, k-1]", _draw_bin_target)
]
Image = Annotated[
    Tensor, _kind("Image", "real[n i *s]", "an image, intensities 0 to 255", _draw_image)
]
PixelWeight = Annotated[
    Tensor,
    _kind(
        "PixelWeight",
        "real[#n *#s] | real[#n 1 *#s]",
        "what each pixel counts for",
        _draw_pixel_weight,
        _pixel_weight_hint,
    ),
]
ElementWeight = Annotated[
    Tensor,
    _kind(
        "ElementWeight",
        "real[#n #c *#s]",
        "what each element counts for",
        _draw_element_weight,
        _element_weight_hint,
    ),
]
ScoreWeight = Annotated[
    Tensor,
    _kind("ElementWeight", "real[*#s]", "what each element counts for", _draw_element_weight),
]
BoxWeight = Annotated[
    Tensor, _kind("BoxWeight", "real[*#m]", "what each box counts for", _draw_box_weight)
]
ClassWeight = Annotated[
    Tensor, _kind("ClassWeight", "real[c]", "what each class counts for", _draw_class_weight)
]
PosWeight = Annotated[
    Tensor,
    _kind(
        "PosWeight",
        "real[c] | real[1] | real[] | real[#n #c *#s] | real[#c *#s]",
        "what a positive counts for",
        _draw_pos_weight,
    ),
]

Reduction = Literal["none", "mean", "sum"]
Pool = Literal["image", "batch"]
Absent = Literal["count", "skip"]


@dataclass(frozen=True)
class Interval:
    """The closed range that a number must lie in."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is excluded
    whole: bool = False
    odd: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the value is a number in the range."""
        if isinstance(value, numbers.Real) and not isinstance(value, int | float):
            # a scalar of numpy
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole and not isinstance(value, int):
            return False
        if self.odd and value % 2 == 0:
            return False
        if self.above and not value > self.low:
            return False
        return self.low <= value <= self.high and abs(value) != math.inf

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


# ---------------------------------------------------------------- reading a signature


@dataclass(frozen=True)
class Argument:
    """What an annotation says of one parameter."""

    name: str
    kind: Kind | None
    choices: tuple[str, ...] | None
    interval: Interval | None
    optional: bool
    required: bool
    compact: bool
    """whether `ClassScores` may stand for the tensor"""

    def check(self, function: str, value: Any, sizes: Sizes) -> Sizes:
        """The sizes with this argument's axes added; raises where the value does not fit.

        Raises:
            TypeError: the wrong type or dtype.
            ValueError: the wrong shape, a number out of range, or an unknown word.
        """
        if value is None and self.optional:
            return sizes
        if self.kind is not None and self.compact and isinstance(value, ClassScores):
            return self.kind.check_class_scores(function, self.name, value, sizes)
        if isinstance(value, Tensor) or (self.interval is None and self.choices is None):
            if self.kind is not None:
                return self.kind.check(function, self.name, value, sizes)
        elif self.choices is not None:
            if value in self.choices:
                return sizes
        elif self.interval is not None and self.interval.holds(value):
            return sizes
        if self.kind is None and self.choices is None and self.interval is None:
            return sizes
        raise self._error(function, value)

    def _error(self, function: str, value: Any) -> Exception:
        if self.choices is not None:
            words = ", ".join(repr(choice) for choice in self.choices)
            near = nearest(str(value), self.choices)
            mend = f"; did you mean {near!r}?" if near else ""
            return ValueError(
                f"{function}: {self.name} must be one of {words}, got {value!r}{mend}"
            )
        expected = [str(self.interval)]
        if self.kind is not None:
            expected.append(" or ".join(form.notation for form in self.kind.forms))
        if self.optional:
            expected.append("None")
        error = ValueError if isinstance(value, int | float) else TypeError
        text = " or ".join(expected)
        return error(f"{function}: {self.name} must be {text}, got {_describe(value)}")


def arguments(function: Callable[..., Any]) -> dict[str, Argument]:
    """What the annotations of a function say of each of its parameters."""
    return _arguments(inspect.unwrap(function))


@functools.cache
def _arguments(function: Callable[..., Any]) -> dict[str, Argument]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        parts = list(_flatten(hints.get(name, Any)))
        notes = [note for part in parts for note in getattr(part, "__metadata__", ())]
        literals = [part for part in parts if typing.get_origin(part) is Literal]
        plain_number = any(part in (int, float) for part in parts)
        interval = next((note for note in notes if isinstance(note, Interval)), None)
        found[name] = Argument(
            name=name,
            kind=next((note for note in notes if isinstance(note, Kind)), None),
            choices=typing.get_args(literals[0]) if literals else None,
            interval=interval or (Interval() if plain_number else None),
            optional=type(None) in parts,
            required=parameter.default is inspect.Parameter.empty,
            compact=ClassScores in parts,
        )
    return found


def _flatten(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _flatten(part)
    else:
        yield hint


def kinds(function: Callable[..., Any]) -> dict[str, Kind]:
    """The kind of every tensor parameter of a function, by name."""
    return {name: arg.kind for name, arg in arguments(function).items() if arg.kind is not None}


_PLAIN = frozenset({int, float, str, bool, type(None)})


def _call_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the check of a call depends on; None where that is not said in a few words.

    Of a tensor its dtype and shape; of a number or word the value and its type (1 is not True).
    """
    key: list[Any] = []
    for x in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(x, Tensor):
            key += (x.dtype, x.shape)
        elif type(x) in _PLAIN:
            key += (type(x), x)
        else:
            return None
    return (len(args), *kwargs, *key)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check each call of a function against its annotations before it runs."""
    stated = arguments(function)
    names = tuple(inspect.signature(function).parameters)
    label = function.__name__

    # Calls whose arguments were found right: training repeats the same shapes at each step.
    passed: set[Any] = set()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Compiled, the check runs once anyway, and the sizes must stay symbols.
        key = None if torch.compiler.is_compiling() else _call_key(args, kwargs)
        if key is not None and key in passed:
            return function(*args, **kwargs)
        sizes: Sizes = {}
        # Too many or unknown arguments are left to Python, whose message is the familiar one.
        for name, value in zip(names, args, strict=False):
            sizes = stated[name].check(label, value, sizes)
        for name in names:
            if name in kwargs:
                sizes = stated[name].check(label, kwargs[name], sizes)
        if key is not None:
            if len(passed) >= 1000:  # sizes that never repeat must not fill the memory
                passed.clear()
            passed.add(key)
        return function(*args, **kwargs)

    # torch.compile counts recompilations per code object: with one shared by all losses, the
    # ninth loss compiled in a process would hit the limit.
    call.__code__ = call.__code__.replace(co_name=label)  # type: ignore[attr-defined]
    return call


def example(
    function: Callable[..., Any],
    *,
    sizes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    options: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Valid tensors for a function, drawn from its annotations.

    Args:
        function: a public loss, metric or weight map (or a user's, annotated alike).
        sizes: sizes of the axes, such as ``{"n": 2, "c": 3, "*s": (8, 8)}``; others are small.
        dtype: of the floating-point tensors.
        seed: the same seed draws the same values.
        options: names of optional tensor arguments to draw as well.

    Returns:
        The tensors by argument name, in the order of the signature.
    """
    full: Sizes = {"n": 2, "c": 3, "*s": (6, 5), "*m": (7,), "k": 5, **(sizes or {})}
    stated = kinds(function)
    # A signature without n and c (scores, bins) must not see them: its weight has no such axes.
    used = {axis for kind in stated.values() for form in kind.forms for axis in _axes(form)}
    full = {axis: size for axis, size in full.items() if axis in used or axis == "c"}
    if "n" not in used:
        full.pop("n", None)
    generator = torch.Generator().manual_seed(seed)
    wanted = [n for n, arg in arguments(function).items() if arg.required or n in set(options)]
    drawn = {name: stated[name].draw(full, generator) for name in wanted if name in stated}
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in drawn.items()}


def _axes(form: Form) -> Iterable[str]:
    yield from (axis for axis, _ in form.before + form.after)
    if form.star is not None:
        yield form.star[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one most likely stands for."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return close[0] if close else None
