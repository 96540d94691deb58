"""A call is checked against the annotations of its function before the function runs."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from denseloss.contract.kinds import Interval, Kind, no_tensor_hint
from denseloss.contract.notation import Sizes, describe
from denseloss.contract.texts import completed
from denseloss.targets import ClassScores, StandIn

__all__ = [
    "Argument",
    "Call",
    "arguments",
    "checked",
    "kinds",
    "nearest",
    "own_code",
    "positional_options",
    "unknown_keyword",
]

P = ParamSpec("P")
R = TypeVar("R")


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
        elif isinstance(value, str) and self.choices is not None:
            if value in self.choices:
                return sizes
        elif self.interval is not None and self.interval.holds(value):
            return sizes
        if self.kind is None and self.choices is None and self.interval is None:
            return sizes
        raise self._error(function, value)

    def shown(self, written: Any) -> Any:
        """The annotation as people are to read it, ``float[n c *s]``; others stay as written."""
        parts: list[str] = []
        if self.kind is not None:
            parts += [form.notation for form in self.kind.forms]
        if self.compact:
            parts.append("ClassScores")
        if self.choices is not None:
            parts += [repr(choice) for choice in self.choices]
        if self.interval is not None:
            parts.append(repr(self.interval))
        if not parts:
            return written
        return _Note(" | ".join([*parts, "None"] if self.optional else parts))

    def _error(self, function: str, value: Any) -> Exception:
        if self.choices is not None:
            words = ", ".join(repr(choice) for choice in self.choices)
            words += "" if self.interval is None else f" or {self.interval}"
            words += " or None" if self.optional else ""
            near = nearest(str(value), self.choices)
            mend = f"; did you mean {near!r}?" if near else ""
            one = "one of " if self.interval is None else ""
            return ValueError(f"{function}: {self.name} must be {one}{words}, got {value!r}{mend}")
        expected = [str(self.interval)]
        if self.kind is not None:
            expected.append(self.kind.notation)
        if self.optional:
            expected.append("None")
        error = ValueError if isinstance(value, int | float) else TypeError
        text = " or ".join(expected)
        hint = "" if self.kind is None else no_tensor_hint(self.name, value)
        return error(f"{function}: {self.name} must be {text}, got {describe(value)}{hint}")


class _Note:
    """An annotation that prints as a few plain words."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


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
        plain = {float: Interval(), int: Interval(whole=True)}
        intervals = [note for note in notes if isinstance(note, Interval)]
        intervals += [interval for number, interval in plain.items() if number in parts]
        found[name] = Argument(
            name=name,
            kind=next((note for note in notes if isinstance(note, Kind)), None),
            choices=typing.get_args(literals[0]) if literals else None,
            interval=next(iter(intervals), None),
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


class Call:
    """What a call of a function must keep to: its signature in the caller's words.

    Args:
        function: annotated with kinds.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters.values()
        closed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        stated = arguments(function)
        self.name = function.__name__
        self.stated = {p.name: stated[p.name] for p in closed}
        self.required = tuple(p.name for p in closed if p.default is p.empty)
        self.positional = tuple(p.name for p in closed if p.kind is not p.KEYWORD_ONLY)
        self.options = tuple(p.name for p in closed if p.default is not p.empty)
        self.any_positional = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise where the arguments do not fit, singly or together."""
        given = self._bound(args, kwargs)
        sizes: Sizes = {}
        place: tuple[str, torch.device] | None = None
        for name, stated in self.stated.items():
            if name not in given:
                continue
            sizes = stated.check(self.name, given[name], sizes)
            for part, tensor in _tensors(name, given[name]):
                if place is None:
                    place = part, tensor.device
                elif tensor.device != place[1]:
                    raise ValueError(
                        f"{self.name}: {part} must be on the device of {place[0]}, {place[1]}, "
                        f"got one on {tensor.device}"
                    )

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name. What Python would say of a wrong one, in the caller's words."""
        count = len(self.positional)
        if len(args) > count and not self.any_positional:
            if len(self.options) > 0:
                raise TypeError(positional_options(self.name, self.options))
            raise TypeError(
                f"{self.name}: takes {', '.join(self.required)}, got {len(args)} values"
            )
        given = dict(zip(self.positional[: len(args)], args[:count], strict=True))
        for name, value in kwargs.items():
            if name in given:
                raise TypeError(f"{self.name}: {name} is given twice")
            if name not in self.stated and not self.any_keyword:
                raise TypeError(unknown_keyword(self.name, name, self.required, self.options))
            given[name] = value
        for name in self.required:
            if name not in given:
                raise TypeError(f"{self.name}: {name} is missing")
        return given


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor | StandIn]]:
    """The tensors of an argument that have a device, with their names."""
    if isinstance(value, (Tensor, StandIn)):
        return [(name, value)]
    if isinstance(value, ClassScores):
        return _tensors(f"{name}.label", value.label) + _tensors(f"{name}.score", value.score)
    return []


# What other libraries call the first and the second tensor, and what their switches are here.
_FIRST = ("input", "inputs", "output", "outputs", "pred", "preds", "prediction", "y_pred")
_SECOND = ("label", "labels", "mask", "masks", "gt", "y_true", "ground_truth")
_ELSEWHERE = {
    "from_logits": "losses take logits",
    "include_background": "class_weight=[0, 1, ...] leaves the background out",
    "mode": "plain names take labels, binary_ names take masks",
    "multiclass": "plain names take labels, binary_ names take masks",
    "sigmoid": "losses take logits; binary_ names use the sigmoid",
    "softmax": "losses take logits; plain names use the softmax",
    "to_onehot_y": "labels are taken as they are",
}


def unknown_keyword(owner: str, name: str, tensors: Sequence[str], options: Sequence[str]) -> str:
    """What is said of a keyword that a function or class does not have."""
    known = (*tensors, *options)
    near: str | None = None
    if name in _FIRST and len(tensors) > 0:
        near = tensors[0]
    elif name in _SECOND and len(tensors) > 1:
        near = tensors[1]
    else:
        near = nearest(name, known)
    if name in _ELSEWHERE:
        mend = _ELSEWHERE[name]
    elif near is not None:
        mend = f"did you mean {near!r}?"
    else:
        mend = f"known: {', '.join(options)}" if options else "there are no options"
    return f"{owner}: unknown keyword {name!r}; {mend}"


def positional_options(owner: str, options: Sequence[str]) -> str:
    """What is said of options that are given by position."""
    known = f"options are keywords: {options[0]}=..." if options else "there are no options"
    return f"{owner}: {known}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one most likely stands for."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return close[0] if close else None


_PLAIN = frozenset({int, float, str, bool, type(None)})
_is_compiling = torch.compiler.is_compiling


def call_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the check of a call depends on; None where that is not said in a few words.

    Of a tensor its dtype, shape, device and layout; of a number or word the value and its type (1
    is not True).
    """
    key: list[Any] = [len(args), *kwargs]
    for x in (*args, *kwargs.values()) if kwargs else args:
        kind = type(x)
        if kind in _PLAIN:
            key += (kind, x)
        elif isinstance(x, Tensor):
            key += (x.dtype, x.shape, x.device, x.layout)
        elif isinstance(x, StandIn):
            key += (x.stands_for, x.dtype, x.shape, x.device)
        elif isinstance(x, ClassScores):
            key += (kind, call_key(x, {}))
        else:
            return None
    return tuple(key)


def shown(function: Callable[..., Any]) -> inspect.Signature:
    """The signature as people are to read it: ``logits: float[n c *s], *, smooth: >= 0 = 1.0``."""
    signature, stated = inspect.signature(function), arguments(function)
    return signature.replace(
        parameters=[
            p.replace(annotation=stated[p.name].shown(p.annotation))
            for p in signature.parameters.values()
        ]
    )


def own_code(function: Callable[P, R], name: str) -> Callable[P, R]:
    """A copy of a function with a code object of its own.

    torch.compile counts recompilations per code object: with one shared by all losses, the ninth
    loss compiled in a process would hit the limit.
    """
    made = cast(types.FunctionType, function)
    code = made.__code__.replace(co_name=name, co_qualname=name)
    copy = types.FunctionType(code, made.__globals__, name, made.__defaults__, made.__closure__)
    copy.__kwdefaults__, copy.__doc__ = made.__kwdefaults__, made.__doc__
    return cast(Callable[P, R], copy)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check each call of a function against its annotations before it runs."""
    contract = Call(function)
    # Calls whose arguments were found right: training repeats the same shapes at each step.
    passed: set[Any] = set()

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _is_compiling():  # the check then runs once anyway, and the sizes must stay symbols
            contract.check(args, kwargs)
            return function(*args, **kwargs)
        try:
            key = call_key(args, kwargs)
            known = key in passed
        except (
            TypeError,
            RuntimeError,
        ):  # symbols cannot be looked up, nested tensors have no size
            key, known = None, False
        if known:
            return function(*args, **kwargs)
        contract.check(args, kwargs)
        if key is not None:
            if len(passed) >= 1000:  # sizes that never repeat must not fill the memory
                passed.clear()
            passed.add(key)
        return function(*args, **kwargs)

    made = functools.update_wrapper(own_code(call, function.__name__), function)
    made.__signature__ = shown(function)  # type: ignore[attr-defined]
    if function.__doc__ is not None:
        named = {name: argument.kind for name, argument in arguments(function).items()}
        made.__doc__ = completed(function.__doc__, named)
    return made
