"""The inputs that the checks draw: extreme, void, cropped, laid out otherwise, varied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from denseloss.contract import Argument, Kind, Sizes
from denseloss.testing.drawing import example
from denseloss.testing.subject import Case, Subject


def has_space(subject: Subject) -> bool:
    """Whether the loss takes maps."""
    forms = next(iter(subject.tensors.values())).forms
    return any(form.star is not None and form.star[0] == "*s" for form in forms)


def has_images(subject: Subject) -> bool:
    """Whether the first axis of the loss is images."""
    forms = next(iter(subject.tensors.values())).forms
    return any(axis == "n" for form in forms for axis, _ in form.before)


def per_element(subject: Subject) -> bool:
    """Whether ``none`` has a value per element, and not per region or image."""
    # Told by shapes, from sizes that cannot be mistaken for each other.
    sizes = {"n": 2, "c": 3, "*s": (5, 4), "*m": (7,), "k": 6}
    inputs = subject.draw(Case(sizes), options=["weight"])
    return subject.value(inputs, reduction="none").shape == inputs["weight"].shape


def extreme_inputs(
    subject: Subject, inputs: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Saturated scores, degenerate boxes, and targets that hold one value only; each in words."""
    first, *others = subject.tensors
    kind, x = subject.tensors[first].name, inputs[first]
    changed: dict[str, Tensor] = {}
    if kind == "Boxes":
        target = inputs[others[0]]
        changed = {
            "identical boxes": target,
            "boxes without width": target[..., [0, 1, 0, 3]],
            "boxes without height": target[..., [0, 1, 2, 1]],
            "boxes without area": target[..., [0, 1, 0, 1]],
            "inverted boxes": target[..., [2, 3, 0, 1]],
            "boxes inverted in one axis": target[..., [2, 1, 0, 3]],
            "distant boxes": target + 1e4,
            "tiny boxes": target * 1e-6,
            "huge boxes": target * 1e6,
            "boxes at 0": torch.zeros_like(target),
        }
        for what, boxes in list(changed.items()):
            yield f"{what}, both alike", {**inputs, first: boxes, others[0]: boxes}
    else:
        sign = torch.where(x >= 0, 1, -1).to(x.dtype)
        changed = {
            "scores of 1e4 and -1e4": 1e4 * sign,
            "scores of -1e4 and 1e4": -1e4 * sign,
            "scores of 1e4": torch.full_like(x, 1e4),
            "scores of -1e4": torch.full_like(x, -1e4),
            "scores of 0": torch.zeros_like(x),
        }
    for what, value in changed.items():
        yield what, {**inputs, first: value}
        for name in others:
            yield (
                f"{what}, {name} all 0",
                {
                    **inputs,
                    first: value,
                    name: torch.zeros_like(inputs[name]),
                },
            )
            ones = torch.ones_like(inputs[name])
            if not ones.is_floating_point():
                ones = ones.clamp(max=x.shape[1] - 1)  # the last of the classes, if only one
            yield f"{what}, {name} all 1", {**inputs, first: value, name: ones}


def layouts(inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same values in other memory layouts; each in words."""

    def strided(x: Tensor) -> Tensor:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    yield "strided", {n: strided(t) for n, t in inputs.items()}
    yield (
        "transposed",
        {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in inputs.items()},
    )
    if any(t.ndim == 4 for t in inputs.values()):
        yield (
            "channels_last",
            {
                n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
                for n, t in inputs.items()
            },
        )


def void_axis(kind: Kind, tensor: Tensor) -> int:
    """The last axis of ``*s`` or ``*m`` in a tensor."""
    for form in kind.forms:
        if form.star is not None and len(form.before) + len(form.after) <= tensor.ndim:
            return tensor.ndim - len(form.after) - 1
    raise AssertionError("no space to be void")


def _garbage(x: Tensor, value: float) -> Tensor:
    """What a void element may hold: any number, or a label that is no class."""
    return torch.tensor(value if x.is_floating_point() else 77, dtype=x.dtype)


def voided(
    subject: Subject, inputs: Mapping[str, Tensor], case: Case, way: str, *, garbage: float | None
) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """Inputs with random elements void, where those are in the first tensor, and the option."""
    first, *others = subject.tensors
    generator = torch.Generator().manual_seed(case.seed + 1)
    changed, options = dict(inputs), {}
    if way == "weight":
        where = torch.rand(inputs["weight"].shape, generator=generator) < 0.4
        changed["weight"] = torch.where(where, 0, inputs["weight"])
    else:
        target = inputs[others[0]]
        where = torch.rand(target.shape, generator=generator) < 0.4
        options["ignore_index"] = 255
        changed[others[0]] = torch.where(where, 255, target)
    void = spread(where, subject, inputs)
    if garbage is not None:
        for name in (first, *others):
            x = changed[name]
            if way == "ignore_index" and name != first:
                continue
            at = spread(where, subject, inputs, name)
            changed[name] = torch.where(at, _garbage(x, garbage), x)
    return changed, void, options


def spread(
    where: Tensor, subject: Subject, inputs: Mapping[str, Tensor], name: str | None = None
) -> Tensor:
    """A mask of void elements brought to the shape of a tensor (the first by default)."""
    name = name or next(iter(subject.tensors))
    x = inputs[name]
    if where.ndim == x.ndim:
        return where
    if subject.tensors[name].name == "Logits":
        return where.unsqueeze(1).expand(x.shape)  # pixels of [n c *s]
    return where.unsqueeze(-1).expand(x.shape)  # boxes [*m 4], bins [*s k]


def cropped(
    subject: Subject, inputs: Mapping[str, Tensor], way: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """The first part of the inputs, and the whole with the rest void."""
    part, whole, options = {}, dict(inputs), {}
    kinds = {n: a.kind for n, a in subject.arguments.items() if n in inputs and a.kind}
    for name, x in inputs.items():
        axis = void_axis(kinds[name], x)
        size = x.shape[axis] - 2
        part[name] = x.narrow(axis, 0, size)
        void = (way == "weight" and name == "weight") or (
            way == "ignore_index" and name == list(subject.tensors)[1]
        )
        if void:
            rest = torch.full_like(x.narrow(axis, size, 2), 0 if way == "weight" else 255)
            whole[name] = torch.cat([part[name], rest], dim=axis)
    if way == "ignore_index":
        options["ignore_index"] = 255
    return part, whole, options


def all_void(
    subject: Subject, inputs: Mapping[str, Tensor], way: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs of which nothing counts, and the option that says so."""
    if way == "weight":
        return {**inputs, "weight": torch.zeros_like(inputs["weight"])}, {}
    target = list(subject.tensors)[1]
    return {**inputs, target: torch.full_like(inputs[target], 255)}, {"ignore_index": 255}


def option_sets(subject: Subject, case: Case) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Defaults, then each keyword at another value with the rest at their defaults."""
    inputs = subject.draw(case)
    yield inputs, {}
    for name, stated in subject.arguments.items():
        if name in subject.tensors or name == "reduction":
            continue
        for value in other_values(subject, stated, inputs):
            if isinstance(value, Tensor):
                yield {**inputs, name: value}, {}
            else:
                yield inputs, {name: value}


def varied_inputs(subject: Subject, case: Case) -> Iterator[dict[str, Tensor]]:
    """Inputs that show what a keyword does: weighted ones, ones with a class absent."""
    inputs = subject.draw(case)
    yield inputs
    target = list(subject.tensors)[-1]
    few = {**inputs, target: torch.zeros_like(inputs[target])}
    yield few
    if subject.has("weight"):
        yield subject.draw(case, options=["weight"])


def other_values(subject: Subject, stated: Argument, inputs: Mapping[str, Tensor]) -> Iterator[Any]:
    """Values that a keyword may take, its default among them or not."""
    if stated.choices is not None:
        yield from stated.choices
    elif stated.kind is not None and stated.name not in inputs:
        function = subject.like or subject.function
        if stated.interval is not None:
            yield 0.37
        first = inputs[next(iter(subject.tensors))]
        drawn = example(function, sizes=sizes_of(subject, inputs), options=[stated.name], seed=5)
        yield drawn[stated.name].to(first.dtype)
    elif stated.name == "ignore_index":
        yield from (0, 1)
    elif stated.interval is not None:
        yield from (v for v in (1, 3, 0.37, 0.81, 2.6) if stated.interval.holds(v))
    else:
        yield from (True, False)


def sizes_of(subject: Subject, inputs: Mapping[str, Tensor]) -> Sizes:
    """The sizes of the axes of given inputs."""
    sizes: Sizes = {}
    for name, kind in subject.tensors.items():
        sizes = kind.check(subject.name, name, inputs[name], sizes)
    return sizes


def two_values(a: Argument, b: Argument) -> tuple[Any, Any]:
    """Two different values that both keywords may take."""
    fit = [
        v
        for v in (3, 1, 5, 0.3, 0.8, 2.6)
        if a.interval and b.interval and a.interval.holds(v) and b.interval.holds(v)
    ]
    return fit[0], fit[1]
