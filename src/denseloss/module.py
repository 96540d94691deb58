"""A loss function as an `nn.Module` class, with nothing said twice.

``FocalLoss = loss_module(focal_loss)``: the keywords of the function are those of the class, its
tensors are the arguments of the call. The types come along: a type checker knows the keywords.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Concatenate, ParamSpec, cast, overload

import torch
from torch import Tensor, nn

from denseloss.contract import arguments, nearest

__all__ = ["LossModule", "loss_module"]

P = ParamSpec("P")


class LossModule(nn.Module):
    """The class behind every loss Module: options at construction, tensors at the call.

    Options that are tensors (or lists of numbers where a tensor is expected) become buffers: they
    move with the Module and are saved with it. A keyword at the call overrides the option for that
    call: ``loss(logits, target, weight=w)``.
    """

    function: ClassVar[Callable[..., Tensor]]
    options: ClassVar[tuple[str, ...]]  # their names, in the order of the signature

    def __init__(self, **given: Any) -> None:
        super().__init__()
        stated = arguments(self.function)
        for name in given:
            if name not in self.options:
                raise TypeError(_unknown(type(self).__name__, name, self.options))
        defaults = inspect.signature(type(self)).parameters
        for name in self.options:
            value = given.get(name, defaults[name].default)
            if value is inspect.Parameter.empty:
                raise TypeError(f"{type(self).__name__}: {name} is required")
            kind = stated[name].kind
            if kind is not None and isinstance(value, Sequence):
                value = torch.tensor(value, dtype=torch.get_default_dtype())
            if kind is None or not isinstance(value, Tensor):
                # Sizes are not known before the call; a tensor's shape is checked then.
                stated[name].check(type(self).__name__, value, {})
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *tensors: Tensor, **options: Any) -> Tensor:
        """Call the function with this Module's options, overridden by ``options``."""
        chosen = {name: getattr(self, name) for name in self.options}
        return type(self).function(*tensors, **{**chosen, **options})

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        defaults = inspect.signature(type(self)).parameters
        shown = []
        for name in self.options:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                shown.append(f"{name}={_short(value.tolist())}")
            elif value != defaults[name].default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


def _short(value: Any) -> Any:
    """Numbers with the digits that float32 has: 0.2, not 0.20000000298023224."""
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.7g}")


def _own_forward() -> Callable[..., Tensor]:
    """A copy of `LossModule.forward` with a code object of its own, see `contract.checked`."""
    shared = LossModule.forward
    code = shared.__code__.replace(co_name="forward")
    forward = types.FunctionType(code, shared.__globals__, "forward", shared.__defaults__)
    forward.__doc__, forward.__annotations__ = shared.__doc__, shared.__annotations__
    return forward


def _unknown(owner: str, name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    mend = f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"
    return f"{owner}: unknown keyword {name!r}; {mend}"


@overload
def loss_module(
    function: Callable[Concatenate[Tensor, Tensor, P], Tensor], *, name: str = ...
) -> Callable[P, LossModule]: ...
@overload
def loss_module(
    function: Callable[Concatenate[Tensor, P], Tensor], *, name: str = ...
) -> Callable[P, LossModule]: ...
def loss_module(function: Callable[..., Tensor], *, name: str = "") -> Callable[..., LossModule]:
    """The Module class of a function.

    Args:
        function: tensors first, then options; see `denseloss.contract`.
        name: of the class; by default the function's name in camel case.
    """
    stated = arguments(function)
    parameters = inspect.signature(function).parameters
    tensors = [n for n, arg in stated.items() if arg.required and arg.kind is not None]
    options = [p.replace(kind=p.KEYWORD_ONLY) for n, p in parameters.items() if n not in tensors]
    name = name or "".join(part.capitalize() for part in function.__name__.split("_"))
    call = ", ".join(tensors)
    members = {
        "function": staticmethod(function),
        "options": tuple(p.name for p in options),
        "__module__": function.__module__,
        "__qualname__": name,
        "__doc__": f"`{function.__name__}` as a Module: ``{name}(...)({call})``.\n\n"
        + inspect.cleandoc(function.__doc__ or ""),
        "__signature__": inspect.Signature(options),
        "forward": _own_forward(),
    }
    return cast(Callable[..., LossModule], type(name, (LossModule,), members))
