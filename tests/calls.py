"""Calls of every public loss, drawn from its signature, for what traces them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from denseloss import compose, functional
from denseloss.contract import arguments, kinds
from denseloss.module import LossModule
from denseloss.testing import example

LOSSES = [name for name in functional.__all__ if name.endswith("_loss")]
SUMS = {
    "cross_entropy + dice": "dice_loss",
    "cross_entropy(label_smoothing=0.1) + 0.5*focal + jaccard(pool='batch')": "dice_loss",
    "balanced_cross_entropy + tversky(absent='skip')": "dice_loss",
    "binary_cross_entropy + binary_dice": "binary_dice_loss",
    "binary_focal + structure": "binary_dice_loss",
}
"""Sums of losses of logits, and a loss that takes the same tensors."""


def module(name: str) -> type[LossModule]:
    return compose.names()[name.removesuffix("_loss")]


def worded(names: Iterable[str] = LOSSES) -> list[tuple[str, dict[str, Any]]]:
    """Each loss at its defaults, and with each word that is not the default of its option."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for name in names:
        function = getattr(functional, name)
        parameters = inspect.signature(function).parameters
        calls.append((name, {}))
        for option, stated in arguments(function).items():
            for word in stated.choices or ():
                if word != parameters[option].default:
                    calls.append((name, {option: word}))
    return calls


def said(call: Any) -> str | None:
    """The id of a call's parameters."""
    if isinstance(call, dict):
        return ",".join(f"{name}={value}" for name, value in call.items()) or "default"
    return None


def optional_tensors(name: str) -> list[str]:
    function = getattr(functional, name)
    return [option for option in kinds(function) if not arguments(function)[option].required]


def drawn(
    name: str, batch: int, *, seed: int = 0, options: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Tensors of a loss whose first axis has this size, in the order of its signature."""
    function: Callable[..., Tensor] = getattr(functional, name)
    axes = {axis for k in kinds(function).values() for form in k.forms for axis, _ in form.before}
    space = (6, 5) if "n" in axes else (batch, 5)
    sizes = {"n": batch, "*m": (batch,), "*s": space}
    return example(function, sizes=sizes, seed=seed, options=options)
