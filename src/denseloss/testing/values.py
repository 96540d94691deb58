"""Wrong values in real inputs, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss.contract import Kind, Sizes, arguments
from denseloss.module import LossModule

__all__ = ["diagnose"]


def diagnose(function: Callable[..., Any], *tensors: Tensor, **options: Any) -> list[str]:
    """Wrong values in the inputs of a loss, in words. It reads values, so it waits for the device.

    A loss never reads values to decide; wrong ones give a wrong number or NaN. This says why.

    Args:
        function: a public loss, or its Module.
        tensors: what it is called with.
        options: its keywords.

    Returns:
        One sentence for each thing that is wrong; empty where all is well.

    Example:
        >>> from denseloss.functional import dice_loss
        >>> diagnose(dice_loss, torch.zeros(1, 2, 3), torch.tensor([[0, 1, 7]]))
        ['target: 1 of 3 labels are outside 0 to 1 and are not ignore_index: 7']
    """
    if isinstance(function, LossModule):
        module, function = function, type(function).function
        options = {**{n: getattr(module, n) for n in module.options}, **options}
    stated = arguments(function)
    defaults = inspect.signature(function).parameters
    named = dict(zip(stated, tensors, strict=False)) | options
    ignore = named.get("ignore_index", getattr(defaults.get("ignore_index"), "default", None))
    found: list[str] = []
    sizes: Sizes = {}
    for name, argument in stated.items():  # in the order in which they set the sizes
        value = named.get(name)
        if not isinstance(value, Tensor) or argument.kind is None:
            continue
        sizes = argument.kind.check(function.__name__, name, value, sizes)
        found += _wrong_values(name, argument.kind, value, sizes, ignore, named.get("fmt", "xyxy"))
    return found


def _wrong_values(
    name: str, kind: Kind, x: Tensor, sizes: Sizes, ignore: int | None, fmt: str
) -> list[str]:
    found = []
    if x.is_floating_point() and not x.isfinite().all():
        bad = (~x.isfinite()).sum().item()
        found.append(f"{name}: {bad} of {x.numel()} values are NaN or infinite")
    x = x[x.isfinite()] if kind.name != "Boxes" and x.is_floating_point() else x
    if x.numel() == 0:
        return found
    if kind.name in ("ClassMap", "Labels") and not x.is_floating_point() and "c" in sizes:
        void = torch.zeros_like(x, dtype=torch.bool) if ignore is None else x.long() == ignore
        wrong = x.long()[~void & ((x.long() < 0) | (x.long() >= sizes["c"]))]
        if wrong.numel():
            values = ", ".join(str(v) for v in sorted(set(wrong.tolist()))[:8])
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} labels are outside 0 to "
                f"{sizes['c'] - 1} and are not ignore_index: {values}"
            )
    elif kind.name in ("Masks", "Quality", "ClassMap"):
        y = x.double()
        wrong = y[((y < 0) | (y > 1)) & (y != (ignore if ignore is not None else 0))]
        if wrong.numel():
            values = ", ".join(f"{v:g}" for v in sorted(set(wrong.tolist()))[:8])
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} values are outside 0 to 1: {values}"
            )
    elif kind.name == "BinTarget" and "k" in sizes:
        wrong = x[(x < 0) | (x > sizes["k"] - 1)]
        if wrong.numel():
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} positions are outside 0 to "
                f"{sizes['k'] - 1} and are clamped"
            )
    elif kind.name == "Boxes":
        size = x[..., 2:] - x[..., :2] if fmt == "xyxy" else x[..., 2:]
        inverted, flat = (size < 0).any(-1).sum().item(), (size == 0).any(-1).sum().item()
        if inverted:
            found.append(f"{name}: {inverted} boxes are inverted (x2 < x1 or y2 < y1)")
        if flat:
            found.append(f"{name}: {flat} boxes have no width or no height")
    elif kind.name == "Image" and x.double().max() <= 1 and x.double().min() >= 0:
        found.append(f"{name}: intensities lie in 0 to 1, expected 0 to 255")
    elif kind.name.endswith("Weight") and (x < 0).any():
        found.append(f"{name}: {(x < 0).sum().item()} values are negative")
    elif kind.name in ("Logits", "Scores", "Bins") and _like_probabilities(x):
        found.append(f"{name}: all values lie in 0 to 1: probabilities, not logits?")
    return found


def _like_probabilities(x: Tensor) -> bool:
    return bool((x >= 0).all() and (x <= 1).all() and (x != 0).any())
