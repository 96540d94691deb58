"""A loss under test: how to draw its inputs, call it and differentiate it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from denseloss.contract import Argument, Kind, arguments
from denseloss.testing.drawing import example

__all__ = ["Case", "Oracle", "Subject", "call", "gradient", "head", "require", "same"]

Oracle = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """The sizes and the seed that inputs are drawn with."""

    sizes: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A loss under test.

    Args:
        function: ``function(*tensors, **options)``.
        like: the function whose annotations describe it; None is itself.
        oracle: a slow, obvious float64 version with the same signature.
        exact_gradient: False where a part is constant in the backward pass by definition (CIoU's
            α): its gradient is then compared to the oracle's, and not to finite differences.
        own_weights: True where the loss weighs its elements itself (balanced cross entropy), so
            that its mean is not the plain one.
        backend: of torch.compile.
    """

    function: Callable[..., Tensor]
    like: Callable[..., Any] | None = None
    oracle: Oracle | None = None
    exact_gradient: bool = True
    own_weights: bool = False
    backend: str = "aot_eager"

    @property
    def name(self) -> str:
        """The name that error messages must begin with."""
        return getattr(self.function, "__name__", repr(self.function))

    @property
    def arguments(self) -> dict[str, Argument]:
        """What the annotations say of each parameter."""
        return arguments(self.like or self.function)

    @property
    def tensors(self) -> dict[str, Kind]:
        """The kinds of the required tensors; the first is differentiated."""
        return {n: a.kind for n, a in self.arguments.items() if a.required and a.kind is not None}

    def has(self, option: str) -> bool:
        """Whether the loss has this keyword."""
        return option in self.arguments

    def draw(
        self, case: Case, *, dtype: torch.dtype = torch.float64, options: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Valid tensors by name."""
        return example(
            self.like or self.function,
            sizes=case.sizes,
            dtype=dtype,
            seed=case.seed,
            options=options,
        )

    def value(self, inputs: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The loss of inputs by name; required tensors are passed by position."""
        return call(self.function, self.tensors, inputs, options)

    def gradient(
        self, inputs: Mapping[str, Tensor], *, upstream: float = 1.0, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The value, and the gradient of its sum with respect to the first tensor."""
        return gradient(self.function, self.tensors, inputs, options, upstream)


def call(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Kind],
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> Tensor:
    """Call a loss with inputs by name; required tensors are passed by position."""
    positional = [inputs[name] for name in tensors]
    named = {name: value for name, value in inputs.items() if name not in tensors}
    return function(*positional, **named, **options)


def gradient(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Kind],
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    upstream: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its sum with respect to the first tensor."""
    first = next(iter(tensors))
    leaf = inputs[first].detach().clone().requires_grad_()
    value = call(function, tensors, {**inputs, first: leaf}, options)
    require(value.requires_grad, "the value has no graph")
    (grad,) = torch.autograd.grad(value.sum() * upstream, leaf)
    return value.detach(), grad


def require(holds: bool | Tensor, message: str) -> None:  # noqa: FBT001 - reads as assert
    """Raise AssertionError unless it holds."""
    if not bool(holds):
        raise AssertionError(message)


def same(a: Tensor, b: Tensor, message: str, *, tolerance: float = 1e-9) -> None:
    """Raise AssertionError unless the tensors are equal up to the tolerance."""
    require(a.shape == b.shape, f"{message}: shapes {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    near = torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    require(near, f"{message}: {head(a)} and {head(b)}")


def head(x: Tensor) -> str:
    """The first values, for messages."""
    return "[" + ", ".join(f"{v:.6g}" for v in x.flatten()[:4].tolist()) + "]"
