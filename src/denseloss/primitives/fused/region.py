"""Sums over the pixels of each channel of sigmoid losses, and the structure loss made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from denseloss.backend import reference
from denseloss.primitives.edges import EdgeSums
from denseloss.primitives.fused import layout, second
from denseloss.primitives.fused.layout import plain
from denseloss.primitives.overlap import Overlap, of_images

__all__ = ["box_mean", "edge_sums", "overlap"]


class Regions(torch.autograd.Function):
    """I, P and the weighted BCE, with their gradient in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        definition: Callable[[Tensor], tuple[Tensor, ...]] | None,
        target: Tensor,
        weight: Tensor | None,
        ignore: float | None,
        entropy: bool,
    ) -> tuple[Tensor, ...]:
        """[n c] each: I, P, sum w BCE; then T, how many are not void, sum w."""
        sums = torch.ops.denseloss.region(logits, target, weight, ignore, entropy)
        ctx.definition, ctx.options = definition, (ignore, entropy)
        ctx.save_for_backward(logits, target, weight)
        both, predicted, true, present, value, total = (x.clone() for x in sums.unbind(-1))
        ctx.mark_non_differentiable(true, present, total)
        return both, predicted, value, true, present, total

    @staticmethod
    def backward(ctx: Any, both: Tensor, predicted: Tensor, value: Tensor, *_: Tensor) -> Any:
        """The gradient by the logits."""
        logits, target, weight = ctx.saved_tensors
        nothing = (None,) * 5
        if (by_definition := second.gradient(ctx, logits, (both, predicted, value))) is not None:
            return (*by_definition, *nothing)
        ignore, entropy = ctx.options
        upstream = torch.stack([both, predicted, value], -1)
        grad = torch.ops.denseloss.region_backward(
            logits, target, weight, ignore, entropy, upstream
        )
        return (grad, *nothing)


def run(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
    definition: Callable[[Tensor], tuple[Tensor, ...]],
) -> tuple[Tensor, ...] | None:
    """The sums of each channel of logits [n c *s]; None where the operators do not take them."""
    where = layout.scores(logits)
    if where is None or logits.ndim < 2 or not plain(target, weight):
        return None
    given = layout.masks(target, logits, where)
    counted = None if weight is None else layout.alike(weight.float(), logits, where)
    sums: tuple[Tensor, ...] = Regions.apply(
        logits, second.kept(definition, logits), given, counted, ignore, entropy
    )
    return sums


def overlap(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pool: str,
    threshold: float | None = None,
) -> Overlap | None:
    """`sigmoid_overlap`."""

    def definition(z: Tensor) -> tuple[Tensor, ...]:
        sums = reference("sigmoid_overlap")(z, target, weight, ignore_index, pool="image")
        return sums.both, sums.predicted

    if threshold is not None or not isinstance(target, Tensor):
        return None
    done = run(logits, target, weight, ignore_index, False, definition)
    if done is None:
        return None
    both, predicted, _, true, present, _ = done
    return of_images(both, predicted, true, present, pool=pool)


def box_mean(x: Tensor, window: int, *, border: str) -> Tensor | None:
    """`denseloss.primitives.windows.box_mean`."""
    if (
        x.ndim != 4
        or window == 1
        or window > 2 * max(x.shape[2:]) + 1
        or layout.scores(x) != "first"
        or not plain(x)
    ):
        return None
    mean: Tensor = torch.ops.denseloss.edge(x, None, None, -1.0, window, border == "valid")
    return mean.to(x.dtype)


def edge_sums(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    gamma: float,
    window: int,
    plain: bool,
) -> EdgeSums | None:
    """`denseloss.primitives.edges.edge_sums`."""
    if (
        logits.ndim != 4
        or window > 2 * max(logits.shape[2:]) + 1
        or layout.scores(logits) != "first"
        or not layout.plain(target, weight)
    ):
        return None
    given = layout.masks(target, logits, "first")
    counted = None if weight is None else layout.alike(weight.float(), logits, "first")
    edges = torch.ops.denseloss.edge(given, counted, ignore_index, gamma, window, False)

    def sums_of(z: Tensor) -> EdgeSums:
        sums: EdgeSums = reference("edge_sums")(
            z, target, weight, ignore_index, gamma=gamma, window=window, plain=plain
        )
        return sums

    def definition(z: Tensor) -> tuple[Tensor, ...]:
        sums = sums_of(z)
        return sums.overlap.both, sums.overlap.predicted, sums.entropy

    def plain_definition(z: Tensor) -> tuple[Tensor, ...]:
        entropy = sums_of(z).plain_entropy
        assert entropy is not None
        return 0 * entropy, 0 * entropy, entropy  # the sums of the overlap are not used

    done = run(logits, given, edges, ignore_index, True, definition)
    if done is None:
        return None
    both, predicted, entropy, true, present, total = done
    plain_entropy = plain_total = None
    if plain:
        alone = run(logits, given, counted, ignore_index, True, plain_definition)
        if alone is None:
            return None
        plain_entropy, plain_total = alone[2], alone[5]
    return EdgeSums(
        Overlap(both, predicted, true, present > 0), entropy, total, plain_entropy, plain_total
    )
