"""The battery that checks a loss: ours, and yours.

    from denseloss.testing import check_loss, diagnose
    check_loss(my_dice, like=denseloss.functional.dice_loss)   # raises with what is wrong
    diagnose(focal_loss, logits, target)                       # wrong values in real inputs
    example(focal_loss)                                        # valid tensors, drawn

`check_loss` runs every check of `CHECKS` that the signature allows. It draws inputs from the
annotations of the function (`denseloss.contract`), or from those of ``like``.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from denseloss.module import LossModule
from denseloss.testing.checks import CHECKS
from denseloss.testing.drawing import example
from denseloss.testing.inputs import other_values
from denseloss.testing.subject import Case, Oracle, Subject, require, same
from denseloss.testing.values import diagnose

__all__ = [
    "CHECKS",
    "Case",
    "LossError",
    "Subject",
    "check_loss",
    "check_module",
    "diagnose",
    "example",
]


class LossError(AssertionError):
    """A loss broke its contract; the message lists each failed check."""


def check_loss(
    function: Callable[..., Tensor],
    *,
    like: Callable[..., Any] | None = None,
    oracle: Oracle | None = None,
    exact_gradient: bool = True,
    own_weights: bool = False,
    only: Iterable[str] | None = None,
    case: Case | None = None,
) -> None:
    """Check a loss against the contract that every loss here keeps.

    Args:
        function: ``function(*tensors, **options)``, annotated with kinds of `denseloss.contract`
            or described by ``like``.
        like: a function of denseloss with the same tensors and keywords.
        oracle: a slow, obvious version to compare with, in float64.
        exact_gradient: False where a part is constant in the backward pass by definition.
        own_weights: True where the loss weighs its elements itself, as a balanced one does.
        only: names of checks (`CHECKS`); None is all.
        case: sizes and seed of the inputs.

    Raises:
        LossError: with one line for each check that failed.
        ValueError: an unknown check, or nothing says what the loss takes.
    """
    subject = Subject(function, like, oracle, exact_gradient, own_weights)
    if not subject.tensors:
        raise ValueError(
            f"check_loss: {subject.name} has no annotated tensors; annotate them with the kinds of "
            "denseloss.contract, or pass like= with a function of denseloss"
        )
    chosen = list(CHECKS) if only is None else list(only)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        raise ValueError(f"check_loss: unknown check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    failed = []
    for name in chosen:
        try:
            CHECKS[name](subject, case or Case())
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            kind = "" if type(error) is AssertionError else f"{type(error).__name__}: "
            failed.append(f"{name}: {kind}{first}")
    if failed:
        raise LossError(f"{subject.name}: {len(failed)} checks failed\n  " + "\n  ".join(failed))


def check_module(module: type[LossModule], case: Case | None = None) -> None:
    """Check that a Module class is its function: signature, value, copies, state and repr."""
    function = module.function
    subject = Subject(function)
    options = dict(inspect.signature(function).parameters)
    for name in subject.tensors:
        options.pop(name)
    stated = inspect.signature(module).parameters
    require(list(stated) == list(options), "the keywords differ from the function's")
    for name, parameter in options.items():
        default = stated[name].default
        require(default is parameter.default or default == parameter.default, f"default of {name}")
    inputs = subject.draw(case or Case())
    required = {n: 3 for n, p in options.items() if p.default is inspect.Parameter.empty}
    chosen = {**required, **non_default(subject, inputs)}
    built = module(**chosen)
    value = built(*(inputs[n] for n in subject.tensors))
    same(value, subject.value(inputs, **chosen), "the Module's value")
    for what, other in {
        "pickle": pickle.loads(pickle.dumps(built)),
        "deepcopy": copy.deepcopy(built),
    }.items():
        same(other(*(inputs[n] for n in subject.tensors)), value, f"after {what}")
        require(repr(other) == repr(built), f"repr after {what}")
    held = {n for n, v in chosen.items() if isinstance(v, Tensor)}
    require(set(built.state_dict()) == held, "tensor options must be buffers")
    require(all(f"{n}=" in repr(built) for n in chosen if n not in required), "repr of options")


def non_default(subject: Subject, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    found = {}
    for name, stated in subject.arguments.items():
        if name in subject.tensors or stated.required or name in ("reduction", "weight"):
            continue
        default = inspect.signature(subject.function).parameters[name].default
        for value in other_values(subject, stated, inputs):
            if isinstance(value, Tensor) or value != default:
                found[name] = value
    return found
