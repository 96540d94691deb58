"""A loss function as an `nn.Module` class, with nothing said twice.

The keywords of the function are those of the class, its tensors are the arguments of the call::

    class FocalLoss(LossModule):
        @options_of(focal_loss)
        def __init__(self) -> None: ...

        @call_of(focal_loss)
        def __call__(self) -> None: ...

The decorators take the signatures from the function, for type checkers and at run time. For a
function of your own, ``MyLoss = loss_module(my_loss)`` makes the same class without the types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, cast, overload

import torch
from torch import Tensor, nn

from denseloss.contract import arguments, kinds
from denseloss.contract.check import own_code, positional_options, unknown_keyword
from denseloss.contract.notation import describe

__all__ = ["LossModule", "call_of", "loss_module", "options_of"]

P = ParamSpec("P")

SHOWN = 16  # a tensor of more numbers is printed as its dtype and shape

Written = Callable[[Any], None]
"""A method as it is written below a decorator that replaces it."""


class LossModule(nn.Module):
    """The class behind every loss Module: options at construction, tensors at the call.

    Options that are tensors (or lists of numbers where a tensor is expected) become buffers: they
    move with the Module and are saved with it. A keyword at the call overrides the option for that
    call: ``loss(logits, target, weight=w)``.

    As with the losses of `torch.nn`, `half` rounds such a buffer (``alpha=[0.1, 0.9]``), and a
    checkpoint that was made before ``class_weight`` was given does not load strictly afterwards.
    """

    function: ClassVar[Callable[..., Tensor]]
    tensors: ClassVar[tuple[str, ...]] = ()
    """What the call takes, in the order of the function's signature."""
    options: ClassVar[tuple[str, ...]] = ()
    """The keywords, in the order of the function's signature."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    only_logits: ClassVar[bool] = False
    """Whether a call is that of a function of logits and nothing else: what stands for logits in
    such a function may be handed to the Module."""

    _plain: dict[str, Any]  # the options that differ from the function's defaults, but tensors
    _held: tuple[str, ...]  # the options that are buffers

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]

        def __getattr__(self, name: str) -> Any: ...  # options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        function = getattr(vars(cls).get("__init__"), "options_of", None)
        if function is None:  # a subclass of a loss
            # With a call of its own it may change the logits before the function gets them.
            caller = next(c for c in cls.__mro__ if {"forward", "__call__"} & vars(c).keys())
            cls.only_logits = vars(caller).get("only_logits", False)
            return
        parameters = inspect.signature(function).parameters
        cls.function = staticmethod(function)
        cls.tensors = _tensors(function)
        cls.options = tuple(name for name in parameters if name not in cls.tensors)
        cls.defaults = {name: parameters[name].default for name in cls.options}
        first = next(iter(kinds(function).values()), None)
        cls.only_logits = first is not None and first.name == "Logits"
        cls.forward = own_code(_forward, "forward")
        given = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
        cls.forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_SELF, *(_positional(name) for name in cls.tensors), given]
        )
        called = getattr(vars(cls).get("__call__"), "call_of", None)
        if called is not None:
            assert called is function, f"{cls.__name__}: options and call of two functions"
            del cls.__call__  # it was for type checkers
        own = inspect.cleandoc(cls.__doc__ or f"`{function.__name__}` as a Module.")
        call = f"    {cls.__name__}(...)({', '.join(cls.tensors)})"
        cls.__doc__ = "\n\n".join([own, call, inspect.cleandoc(function.__doc__ or "")]).rstrip()

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__()
        self._plain, self._held = {}, ()
        owner = type(self).__name__
        if args:
            raise TypeError(positional_options(owner, self.options))
        for name in given:
            if name not in self.options:
                raise TypeError(unknown_keyword(owner, name, (), self.options))
        stated = arguments(self.function)
        for name in self.options:
            value = given.get(name, self.defaults[name])
            if value is inspect.Parameter.empty:
                raise TypeError(f"{owner}: {name} is missing")
            kind = stated[name].kind
            if kind is not None and isinstance(value, list | tuple):
                value = torch.tensor(value, dtype=torch.get_default_dtype())
            if kind is None or not isinstance(value, Tensor):
                # Sizes are not known before the call; a tensor's shape is checked then.
                stated[name].check(owner, value, {})
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.options:
            super().__setattr__(name, value)
            return
        # A number may become a tensor, and back.
        self.__dict__.pop(name, None)
        self._buffers.pop(name, None)
        if isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)
        # Said here once, so that a call need not ask for each option.
        self._held = tuple(name for name in self.options if name in self._buffers)
        self._plain = {
            name: self.__dict__[name]
            for name in self.options
            if name in self.__dict__ and self.__dict__[name] != self.defaults[name]
        }

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        shown = []
        for name in self.options:
            if name in self._held:
                shown.append(f"{name}={_numbers(self._buffers[name])}")
            elif name in self._plain:
                shown.append(f"{name}={self._plain[name]!r}")
        return ", ".join(shown)


def _forward(self: LossModule, *tensors: Any, **options: Any) -> Tensor:
    """Call the function with this Module's options, overridden by ``options``."""
    chosen = self._plain
    if self._held or options:
        chosen = chosen.copy()
        for name in self._held:
            chosen[name] = self._buffers[name]
        chosen.update(options)
    return type(self).function(*tensors, **chosen)


def _numbers(value: Any) -> str:
    if not isinstance(value, Tensor) or value.numel() > SHOWN or value.is_meta:
        return describe(value)
    return str(_short(value.tolist()))


def _short(value: Any) -> Any:
    """Numbers with the digits that float32 has: 0.2, not 0.20000000298023224."""
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.7g}")


_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _positional(name: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _tensors(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """What a function must be given that is no number and no word."""
    return tuple(
        name
        for name, arg in arguments(function).items()
        if arg.required and (arg.kind is not None or (arg.interval or arg.choices) is None)
    )


@overload
def options_of(
    function: Callable[Concatenate[Tensor, Tensor, P], Tensor],
) -> Callable[[Written], Callable[Concatenate[Any, P], None]]: ...
@overload
def options_of(
    function: Callable[Concatenate[Tensor, P], Tensor],
) -> Callable[[Written], Callable[Concatenate[Any, P], None]]: ...
def options_of(function: Callable[..., Tensor]) -> Callable[[Written], Callable[..., None]]:
    """Make ``__init__`` take the options of a function, and its class the Module of it."""
    tensors = _tensors(function)
    options = [
        p.replace(kind=p.KEYWORD_ONLY)
        for name, p in inspect.signature(function).parameters.items()
        if name not in tensors
    ]

    def decorate(_: Written) -> Callable[..., None]:
        def init(self: LossModule, *args: Any, **given: Any) -> None:
            LossModule.__init__(self, *args, **given)

        init.__name__ = init.__qualname__ = "__init__"
        init.__signature__ = inspect.Signature([_SELF, *options])  # type: ignore[attr-defined]
        init.options_of = function  # type: ignore[attr-defined]
        return init

    return decorate


def call_of(
    function: Callable[P, Tensor],
) -> Callable[[Written], Callable[Concatenate[Any, P], Tensor]]:
    """Make ``__call__`` take what a function takes. For type checkers: nothing changes by it."""

    def decorate(written: Written) -> Callable[Concatenate[Any, P], Tensor]:
        written.call_of = function  # type: ignore[attr-defined]
        return cast(Callable[Concatenate[Any, P], Tensor], written)

    return decorate


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
    name = name or "".join(part.capitalize() for part in function.__name__.split("_"))
    members = {
        "__init__": options_of(function)(lambda _: None),
        "__module__": function.__module__,
        "__qualname__": name,
    }
    return cast(Callable[..., LossModule], type(name, (LossModule,), members))
