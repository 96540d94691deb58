"""Valid tensors for a function, drawn from its annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from denseloss.contract import Form, Kind, Sizes, arguments, kinds

__all__ = ["example"]


def example(
    function: Callable[..., Any],
    *,
    sizes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    options: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Valid tensors for a function, drawn from its annotations.

    Args:
        function: a public loss, metric or weight map (or a user's, annotated alike). Of a kind
            that is not known here, any numbers of its first form are drawn.
        sizes: sizes of the axes, such as ``{"n": 2, "c": 3, "*s": (8, 8)}``; others are small.
        dtype: of the floating-point tensors.
        seed: the same seed draws the same values.
        options: names of optional tensor arguments to draw as well.

    Returns:
        The tensors by argument name, in the order of the signature.
    """
    full: Sizes = {"n": 2, "c": 3, "*s": (6, 5), "*m": (7,), "k": 5, **(sizes or {})}
    stated = kinds(function)
    # A signature without n and c (scores, bins) must not see them: its weight has no such axes.
    used = {axis for kind in stated.values() for form in kind.forms for axis in _axes(form)}
    full = {axis: size for axis, size in full.items() if axis in used or axis == "c"}
    if "n" not in used:
        full.pop("n", None)
    generator = torch.Generator().manual_seed(seed)
    wanted = [n for n, arg in arguments(function).items() if arg.required or n in set(options)]
    drawn = {n: _drawn(stated[n], full, generator) for n in wanted if n in stated}
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in drawn.items()}


def _axes(form: Form) -> Iterable[str]:
    yield from (axis for axis, _ in form.before + form.after)
    if form.star is not None:
        yield form.star[0]


def _drawn(kind: Kind, sizes: Sizes, g: Generator) -> Tensor:
    draw = _DRAW.get(kind.name)
    return _any_numbers(kind.forms[0], sizes, g) if draw is None else draw(sizes, g)


def _any_numbers(form: Form, sizes: Sizes, g: Generator) -> Tensor:
    """Numbers of a form whose meaning is not known: in [0, 1), or 0 and 1 for integers."""

    def size(axis: str) -> int:
        return int(axis) if axis.isdecimal() else int(sizes.setdefault(axis, 3))

    star = () if form.star is None else sizes.setdefault(form.star[0], (4,))
    shape = [size(axis) for axis, _ in form.before]
    shape += [*star, *(size(axis) for axis, _ in form.after)]
    if form.dtype == "int":
        return torch.randint(0, 2, shape, generator=g)
    return torch.rand(shape, generator=g)


def _draw_logits(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(sizes["n"], sizes["c"], *sizes["*s"], generator=g)


def _draw_scores(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(sizes["*s"], generator=g)


def _draw_labels(sizes: Sizes, g: Generator) -> Tensor:
    return torch.randint(0, sizes["c"], (sizes["n"], *sizes["*s"]), generator=g)


def _draw_masks(sizes: Sizes, g: Generator) -> Tensor:
    return torch.randint(0, 2, (sizes["n"], sizes["c"], *sizes["*s"]), generator=g).float()


def _draw_quality(sizes: Sizes, g: Generator) -> Tensor:
    # Most places of a detection head hold no object: their quality is exactly 0.
    quality = torch.rand(sizes["*s"], generator=g)
    return quality * (torch.rand(sizes["*s"], generator=g) < 0.5)


def _draw_boxes(sizes: Sizes, g: Generator) -> Tensor:
    corner = 4 * torch.rand(*sizes["*m"], 2, generator=g)
    return torch.cat([corner, corner + 1 + 4 * torch.rand(*sizes["*m"], 2, generator=g)], dim=-1)


def _draw_bins(sizes: Sizes, g: Generator) -> Tensor:
    return 2 * torch.randn(*sizes["*s"], sizes["k"], generator=g)


def _draw_bin_target(sizes: Sizes, g: Generator) -> Tensor:
    last: int = sizes["k"] - 1
    return last * torch.rand(sizes["*s"], generator=g)


def _draw_image(sizes: Sizes, g: Generator) -> Tensor:
    return 255 * torch.rand(sizes["n"], 3, *sizes["*s"], generator=g)


def _draw_pixel_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["n"], *sizes["*s"], generator=g)


def _draw_element_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(_all_axes(sizes), generator=g)


def _draw_box_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["*m"], generator=g)


def _draw_class_weight(sizes: Sizes, g: Generator) -> Tensor:
    return 0.1 + torch.rand(sizes["c"], generator=g)


def _draw_pos_weight(sizes: Sizes, g: Generator) -> Tensor:
    return torch.rand(sizes["c"], generator=g) + 0.5


def _draw_count(_: Sizes, g: Generator) -> Tensor:
    return 2 + torch.rand((), generator=g)


def _all_axes(sizes: Sizes) -> tuple[int, ...]:
    lead = (sizes["n"], sizes["c"]) if "n" in sizes else ()
    return (*lead, *sizes["*s"])


_DRAW: dict[str, Callable[[Sizes, Generator], Tensor]] = {
    "BinTarget": _draw_bin_target,
    "Bins": _draw_bins,
    "BoxWeight": _draw_box_weight,
    "Boxes": _draw_boxes,
    "ClassMap": _draw_labels,
    "ClassWeight": _draw_class_weight,
    "Count": _draw_count,
    "ElementWeight": _draw_element_weight,
    "Image": _draw_image,
    "Labels": _draw_labels,
    "Logits": _draw_logits,
    "Masks": _draw_masks,
    "PixelWeight": _draw_pixel_weight,
    "PosWeight": _draw_pos_weight,
    "Quality": _draw_quality,
    "Scores": _draw_scores,
}
