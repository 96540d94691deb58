"""A loss of the user's own, named in an expression as `file.py:name` or `package.module:name`."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denseloss import distributed
from denseloss.contract import Kind, kinds
from denseloss.contract.check import shown, unknown_keyword
from denseloss.module import LossModule
from denseloss.primitives.shared import SharedLogits
from denseloss.user_code import full_name, load, source_of

__all__ = ["UserLoss", "folder_name", "references", "replaced", "short_names"]

# What people call the arguments of a loss. A name that is not here tells nothing.
_TRUTH = {"target", "targets", "label", "labels", "y", "y_true", "true", "truth", "mask", "masks"}
_TRUTH |= {"gt", "gts", "ground_truth"}
_SCORES = {"logits", "logit", "scores", "input", "inputs", "output", "outputs", "pred", "preds"}
_SCORES |= {"prediction", "predictions", "y_pred"}
_IMAGE = {"image", "images", "img", "imgs"}
_VOID = ("ignore_index", "weight")
_OPTION = "option_"


class UserLoss(nn.Module):
    """A function, class or Module of the user's, as a term of a sum.

    It is called as ours are, ``loss(logits, target, **options)``. Arguments annotated with kinds
    of `denseloss.contract` say what they are. Of others the first two are the logits and the
    target, in whichever order their names tell; the second may be an image by its name.

    Over the ranks of `denseloss.distributed.exact` and the parts of `accumulate` its value is the
    mean over images: that of each part, weighed by how many images it has.

    Args:
        code: ``file.py:name`` or ``package.module:name``.
        options: keywords of the function, or of the class, which is made with them. A list becomes
            a tensor where the annotation says so.

    Raises:
        UserCodeError: there is no such code, or it cannot be imported.
        TypeError, ValueError: it is no loss, or the keywords do not fit.

    Attributes:
        code: the same, with the file's whole path.
        name: of the function or class.
        file: where it is written.
        source: what that file held when it was imported.
        given: the keywords as they were written.
        made: whether it is a class, which is made with them.
        inner: the Module, where it is one.
        arguments: what it calls the logits and the target.
        kinds: of these two; empty unless both are annotated.
        image: what it calls the image, where it needs one besides the target.
        swapped: whether the target comes first.
    """

    def __init__(self, code: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.code, self.given = full_name(code), dict(options or {})
        self.name = self.code.rpartition(":")[2]
        found = load(self.code)
        self.file, self.source = source_of(self.code)
        made = self._made(found)
        self.inner = made if isinstance(made, nn.Module) else None
        self._plain = None if isinstance(made, nn.Module) else made
        parameters = _parameters(self.function)
        needed = self._needed(parameters)
        first, second = needed[:2]
        known = _kinds(self.function)
        both = first in known and second in known
        self.kinds = {name: known[name] for name in (first, second)} if both else {}
        self.swapped = not both and first in _TRUTH and second in _SCORES
        self.arguments = (second, first) if self.swapped else (first, second)
        self.image = next((name for name in needed[2:] if name in _IMAGE), "")
        self._options = {p.name for p in parameters} - {first, second}
        if not self.made:
            self._keep_tensors()

    # ------------------------------------------------------------------------- what it is

    def _made(self, found: Any) -> Callable[..., Any]:
        """What is called: a function, or a Module."""
        self.made = inspect.isclass(found)
        if inspect.isclass(found):
            parameters = _parameters(found)
            self._makes = {p.name for p in parameters}
            self._refuse_unknown(parameters, found.__name__)
            found = found(**{n: _as_annotated(v, found, n) for n, v in self.given.items()})
        elif isinstance(found, nn.Module):
            if self.given:
                raise TypeError(
                    f"{self.name} is a Module that is made already, and takes no keywords; name "
                    f"its class, {type(found).__name__}, to give some"
                )
            found = copy.deepcopy(found)
        if not callable(found):
            raise TypeError(
                f"{self.name} is no loss but of type {type(found).__name__}; a loss is a function "
                "loss(logits, target), or a Module"
            )
        made: Callable[..., Any] = found
        return made

    @property
    def function(self) -> Callable[..., Any]:
        """Whose signature says what a call takes."""
        if self._plain is not None:
            return self._plain
        inner = self.inner
        assert inner is not None
        return type(inner).function if isinstance(inner, LossModule) else inner.forward

    def _needed(self, parameters: Sequence[inspect.Parameter]) -> list[str]:
        """The arguments that a call must give, the logits and the target first."""
        if not self.made:
            self._refuse_unknown(parameters, self.name)
        options = {} if self.made else self.given
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in options
        ]
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            needed = [*needed, "logits", "target"][: max(2, len(needed))]
        first = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][:2]
        if len(needed) < 2 and len(first) == 2 and first[1] in _TRUTH | _IMAGE:
            needed = first  # the target has a default
        if len(needed) < 2:
            there = f"takes {', '.join(needed)} alone" if needed else "takes no argument"
            raise TypeError(f"{self.name} {there}; a loss is called as loss(logits, target)")
        for name in needed[2:]:
            if name not in (*_IMAGE, *_VOID):
                raise TypeError(
                    f"{self.name} needs {name}, which has no default: give it one, or write "
                    f"{short_names([self.code])[0]}({name}=...)"
                )
        return needed

    def _keep_tensors(self) -> None:
        """Make tensors buffers, so that they move with the Module."""
        for name, value in self.given.items():
            chosen = _as_annotated(value, self.function, name)
            if isinstance(chosen, Tensor):
                self.register_buffer(_OPTION + name, chosen)

    def _refuse_unknown(self, parameters: Iterable[inspect.Parameter], owner: str) -> None:
        known = list(parameters)
        if any(p.kind is p.VAR_KEYWORD for p in known):
            return
        options = [p.name for p in known if p.name not in _TRUTH | _SCORES]
        for name in self.given:
            if name not in {p.name for p in known}:
                raise TypeError(unknown_keyword(owner, name, (), options))

    @property
    def described(self) -> str:
        """The call with its options, and the docstring."""
        owner: Any = self.function if self.inner is None else type(self.inner)
        call = f"{self.name}{_shown(owner) if self.made else ''}{_shown(self.function)}"
        # That of a class above it, such as torch's Module, says nothing about this one.
        own = vars(owner).get("__doc__") if inspect.isclass(owner) else owner.__doc__
        return f"{call}\n\n{inspect.cleandoc(own or 'no docstring')}"

    @property
    def only_logits(self) -> bool:
        """Whether what stands for logits may be handed to it: it is checked as ours are."""
        if self.inner is not None:
            return isinstance(self.inner, LossModule) and self.inner.only_logits
        first = next(iter(self.kinds.values()), None)
        # `checked` gives a function a signature of its own. Without it the function may be
        # anything, such as an autograd Function, which takes tensors alone.
        checked = hasattr(self._plain, "__signature__")
        return checked and first is not None and first.name == "Logits"

    @property
    def of_image(self) -> bool:
        """Whether its second argument is an image, by its name."""
        return not self.kinds and self.arguments[1] in _IMAGE

    def takes(self, option: str) -> bool:
        """Whether a call takes this keyword."""
        return option in self._options

    def kind_of(self, option: str) -> str:
        """The name of the kind that a keyword of a call is annotated with, empty for none."""
        kind = _kinds(self.function).get(option)
        return "" if kind is None else kind.name

    def is_made_with(self, option: str) -> bool:
        """Whether its class takes this keyword."""
        return self.made and option in self._makes

    def with_options(self, **options: Any) -> UserLoss:
        """The same with more keywords."""
        return UserLoss(self.code, {**self.given, **options})

    # ------------------------------------------------------------------------------- call

    def forward(self, logits: Any, target: Any, **options: Any) -> Any:
        """The value, as the user's code gives it."""
        if not self.made:
            held = {n: self._buffers.get(_OPTION + n) for n in self.given}
            options = {
                n: v if held[n] is None else held[n] for n, v in self.given.items()
            } | options
        if distributed.alone():
            return self._value(logits, target, options)
        if isinstance(logits, SharedLogits):
            logits = logits.tensor
        with distributed.apart():
            value = self._value(logits, target, options)
        if not isinstance(value, Tensor) or value.ndim:
            return value
        # What it divides by is not known: each part of the batch counts by its images.
        return distributed.mean(len(logits) * value, len(logits))

    def _value(self, logits: Any, target: Any, options: dict[str, Any]) -> Any:
        call = self._plain if self.inner is None else self.inner
        assert call is not None
        return call(target, logits, **options) if self.swapped else call(logits, target, **options)

    def extra_repr(self) -> str:
        """The options as they were written."""
        return ", ".join(f"{name}={value!r}" for name, value in self.given.items())

    def __str__(self) -> str:
        return _written(self.code) + (f"({self.extra_repr()})" if self.given else "")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        both = ("logits", "target")
        return [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in both]


def _shown(function: Callable[..., Any]) -> str:
    """The signature, kinds in a word."""
    for read in (shown, inspect.signature):
        try:
            return str(read(function))
        except (TypeError, NameError, AttributeError, ValueError):
            continue
    return "(...)"  # written in C


def _kinds(function: Callable[..., Any]) -> dict[str, Kind]:
    try:
        return kinds(function)
    except (TypeError, NameError, AttributeError, ValueError):
        return {}  # annotations that mean nothing here, or none at all


def _as_annotated(value: Any, owner: Any, name: str) -> Any:
    """A list as a tensor where the annotation of an argument says that it is one."""
    if not isinstance(value, list | tuple):
        return value
    try:
        annotation = inspect.signature(owner).parameters[name].annotation
    except (TypeError, ValueError, KeyError):
        return value
    tensor = "Tensor" in str(annotation) or name in _kinds(owner)
    return torch.tensor(value, dtype=torch.get_default_dtype()) if tensor else value


# ------------------------------------------------------------------- how it is written

_LETTERS = r"\w.~/\\@%"
_PLAIN = re.compile(
    # A word that begins here, and not within another.
    rf"(?<![{_LETTERS}-])(?:[A-Za-z]:[\\/])?[{_LETTERS}][{_LETTERS}-]*:(?!\d)\w+"
)
_QUOTED = re.compile(r"""'[^'\n]*:(?!\d)\w+'|"[^"\n]*:(?!\d)\w+\"""")
_ANY = re.compile(rf"""'[^'\n]*'|"[^"\n]*"|{_PLAIN.pattern}""")


def references(text: str) -> list[tuple[int, int, str]]:
    """The names of user code in an expression: where each begins and ends, and the name itself.

    A path stands as it is where it consists of letters, digits and ``. _ - ~ / @ %``; any other is
    put in quotes together with the name.
    """
    found = []
    for match in _ANY.finditer(text):
        said = match.group()
        if said[0] in "'\"":
            # A word in quotes is the value of an option, but where a term is to be.
            before = text[: match.start()].rstrip()[-1:]
            if before not in ("", "+", "-", "*", "(") or not _QUOTED.fullmatch(said):
                continue
            said = said[1:-1]
        found.append((*match.span(), said))
    return found


def _written(code: str) -> str:
    if _PLAIN.fullmatch(code):
        return code
    quote = "'" if "'" not in code else '"'
    if quote in code or "\n" in code:
        raise ValueError(f"{code!r}: a path with both kinds of quotes cannot be written here")
    return f"{quote}{code}{quote}"


def short_names(expressions: Sequence[str]) -> list[str]:
    """Expressions as people read them: of a file's path the last part, more where two are alike.

    Example:
        >>> short_names(["dice + /home/me/losses.py:edge", "/a/one.py:f", "/b/one.py:f"])
        ['dice + losses.py:edge', 'a/one.py:f', 'b/one.py:f']
    """
    named = [references(text) for text in expressions]
    places = {said.rpartition(":")[0] for each in named for _, _, said in each}
    shown = {place: _short_place(place, places) for place in places}
    found = []
    for text, each in zip(expressions, named, strict=True):
        parts = {said: said.rpartition(":") for _, _, said in each}
        short = {said: f"{shown[place]}:{name}" for said, (place, _, name) in parts.items()}
        found.append(replaced(text, short))
    return found


def replaced(expression: str, codes: Mapping[str, str]) -> str:
    """An expression with other names for user code, by those that stand in it."""
    for start, end, said in reversed(references(expression)):
        written = _written(codes.get(said, said))
        expression = f"{expression[:start]}{written}{expression[end:]}"
    return expression


def _short_place(place: str, places: Iterable[str]) -> str:
    parts = re.split(r"[\\/]", place)
    others = [re.split(r"[\\/]", other) for other in places if other != place]
    for count in range(1, len(parts)):
        if not any(other[-count:] == parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return place


def folder_name(expression: str) -> str:
    """An expression for a folder's name: of user code the file without its ending, and the name."""
    for start, end, said in reversed(references(expression)):
        place, _, name = said.rpartition(":")
        stem = Path(place).stem if place.endswith(".py") else place
        expression = f"{expression[:start]}{stem}-{name}{expression[end:]}"
    return expression
