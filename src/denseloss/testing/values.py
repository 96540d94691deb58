"""Wrong values in real inputs, in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from denseloss.compose import AtTargetSize, DeepSupervision, UserLoss, WeightedSum
from denseloss.contract import Kind, Sizes, arguments
from denseloss.module import LossModule
from denseloss.primitives.void import full_precision
from denseloss.targets import BACKGROUND, ClassScores

__all__ = ["diagnose"]


def diagnose(function: Callable[..., Any], *tensors: Any, **options: Any) -> list[str]:
    """Wrong values in the inputs of a loss, in words. It reads values, so it waits for the device.

    A loss never reads values to decide; wrong ones give a wrong number or NaN. This says why.

    Args:
        function: a public loss, its Module, or a criterion made of such (`WeightedSum`,
            `AtTargetSize`, `DeepSupervision`).
        tensors: what it is called with; a `ClassScores` is looked into.
        options: its keywords.

    Returns:
        One sentence for each thing that is wrong; empty where all is well.

    Raises:
        TypeError, ValueError: the call itself is wrong, as the loss would say.

    Example:
        >>> from denseloss.functional import dice_loss
        >>> diagnose(dice_loss, torch.zeros(1, 2, 3), torch.tensor([[0, 1, 7]]))
        ['target: 1 of 3 labels are outside 0 to 1 and are not ignore_index: 7']
    """
    found: list[str] = []
    for loss, given, chosen in _calls(function, tensors, options):
        found += [said for said in _diagnosed(loss, given, chosen) if said not in found]
    return found


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _calls(
    function: Callable[..., Any], tensors: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[_Call]:
    """The calls of losses that a call of a criterion comes to."""
    if isinstance(function, LossModule):
        held = {n: getattr(function, n) for n in function.options}
        yield type(function).function, tensors, {**held, **options}
    elif isinstance(function, UserLoss):
        if function.kinds:  # nothing is known of what others take
            yield function.function, tensors, {**function.given, **options}
    elif isinstance(function, WeightedSum):
        for _, _, loss in function.named_terms():
            yield from _calls(loss, tensors, options)
    elif isinstance(function, AtTargetSize):
        logits = function.resized(tensors[0], tensors[1])
        yield from _calls(function.criterion, (logits, *tensors[1:]), options)
    elif isinstance(function, DeepSupervision):
        for logits, target, chosen in function.stages(*tensors, **options):
            yield from _calls(function.at_size, (logits, target), chosen)
    elif arguments(function):
        yield function, tensors, options


def _diagnosed(
    function: Callable[..., Any], tensors: tuple[Any, ...], options: dict[str, Any]
) -> list[str]:
    stated = arguments(function)
    defaults = inspect.signature(function).parameters
    named = dict(zip(stated, tensors, strict=False)) | options
    ignore = named.get("ignore_index", getattr(defaults.get("ignore_index"), "default", None))
    found: list[str] = []
    sizes: Sizes = {}
    for name, argument in stated.items():  # in the order in which they set the sizes
        value = named.get(name)
        if argument.kind is None or not isinstance(value, Tensor | ClassScores):
            continue
        sizes = argument.check(function.__name__, value, sizes)
        if isinstance(value, ClassScores):
            classes = next(iter(named.values())).shape[-1]
            found += _wrong_class_scores(name, argument.kind, value, classes, ignore)
        else:
            found += _wrong_values(name, argument.kind, value, sizes, ignore, named)
    return found


def _wrong_class_scores(
    name: str, kind: Kind, target: ClassScores, classes: int, ignore: int | None
) -> list[str]:
    label = target.label.long()
    outside = (label < BACKGROUND) | (label >= classes)
    if ignore is not None:
        outside = outside & (label != ignore)
    found = []
    if outside.any():
        said = (
            f"{name}.label: {outside.sum().item()} of {label.numel()} labels are outside -1 to "
            f"{classes - 1}: {_few(label[outside])}"
        )
        if (label[outside] == classes).all():
            said += "; background is -1 here: torch.where(label == C, -1, label)"
        found.append(said)
    if target.score is not None:
        score = target.score
        if ignore is not None:
            score = score[label != ignore]
        if not score.isfinite().all():
            bad = (~score.isfinite()).sum().item()
            found.append(f"{name}.score: {bad} of {score.numel()} values are NaN or infinite")
        found += _outside_unit(f"{name}.score", score[score.isfinite()], kind, None)
    return found


def _few(values: Tensor) -> str:
    distinct = sorted(set(values.tolist()))
    return ", ".join(f"{v:g}" for v in distinct[:8]) + (", ..." if len(distinct) > 8 else "")


def _outside_unit(name: str, x: Tensor, kind: Kind, ignore: int | None) -> list[str]:
    y = x.double()
    # A quality below 0 is background.
    wrong = (y > 1) if kind.name == "Quality" else (y < 0) | (y > 1)
    if ignore is not None:
        wrong &= y != ignore
    if not wrong.any():
        return []
    return [
        f"{name}: {wrong.sum().item()} of {x.numel()} values are outside 0 to 1: {_few(y[wrong])}"
    ]


def _wrong_values(
    name: str,
    kind: Kind,
    x: Tensor,
    sizes: Sizes,
    ignore: int | None,
    named: dict[str, Any],
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
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} labels are outside 0 to "
                f"{sizes['c'] - 1} and are not ignore_index: {_few(wrong)}"
            )
    elif kind.name in ("Masks", "Quality", "ClassMap"):
        found += _outside_unit(name, x, kind, ignore)
    elif kind.name == "BinTarget" and "k" in sizes:
        wrong = x[(x < 0) | (x > sizes["k"] - 1)]
        if wrong.numel():
            found.append(
                f"{name}: {wrong.numel()} of {x.numel()} positions are outside 0 to "
                f"{sizes['k'] - 1} and are clamped"
            )
    elif kind.name == "Boxes":
        x = full_precision(x)
        corners = named.get("fmt", "xyxy") == "xyxy"
        size = x[..., 2:] - x[..., :2] if corners else x[..., 2:]
        inverted, flat = (size < 0).any(-1).sum().item(), (size == 0).any(-1).sum().item()
        if inverted:
            found.append(f"{name}: {inverted} boxes are inverted (x2 < x1 or y2 < y1)")
        if flat:
            found.append(f"{name}: {flat} boxes have no width or no height")
        huge = (size.isfinite().all(-1) & size.prod(-1).isinf()).sum().item()
        if huge:
            found.append(
                f"{name}: {huge} boxes are so large that their areas overflow: sides up to 1e18 "
                "are safe"
            )
    elif kind.name == "Image" and x.double().max() <= 1 and x.double().min() >= 0:
        found.append(f"{name}: intensities lie in 0 to 1, expected 0 to 255")
    elif kind.name.endswith("Weight") and (x < 0).any():
        found.append(f"{name}: {(x < 0).sum().item()} values are negative")
    elif kind.name in ("Logits", "Scores", "Bins") and _like_probabilities(x):
        found.append(f"{name}: all values lie in 0 to 1: probabilities, not logits?")
    return found


def _like_probabilities(x: Tensor) -> bool:
    return bool((x >= 0).all() and (x <= 1).all() and (x != 0).any())
