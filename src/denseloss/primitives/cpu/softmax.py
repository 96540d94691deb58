"""The operators of exclusive classes, and where resized pixels come from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

__all__ = ["softmax", "softmax_backward"]

_SCORES = "pi pi pp l lll i "
_PLACES = "llll ppp ppp "
_softmax = abi.function("softmax", _SCORES + "ii pppppp", allocates=True)
_backward = abi.function("softmax_backward", _SCORES + "pppp ii p", allocates=True)
_resized = abi.function("softmax_resized", _SCORES + _PLACES + "ii pppppp", allocates=True)
_resized_backward = abi.function(
    "softmax_resized_backward", _SCORES + _PLACES + "ppl pppp ii p", allocates=True
)


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spread: Tensor | None,
    ignore: int,
    entropy: bool,
    sums: int,
    size: Sequence[int],
    align_corners: bool,
) -> tuple[Tensor, ...]:
    """Maps of -log p, of 1 - p, of the weights and of the smoothed target, and the overlap sums."""
    images, classes = logits.shape[:2]
    entropies, miss, weights, smooth, overlap, present = abi.NOTHING
    if entropy:
        entropies = torch.empty_like(target, dtype=torch.float32)
        miss, weights = torch.empty_like(entropies), torch.empty_like(entropies)
    if spread is not None:
        smooth = torch.empty_like(target, dtype=torch.float32)
    if sums:
        overlap, present = abi.small(images, classes, sums), abi.small(images, classes)
    places = Places.of(logits, size, align_corners).pointers if size else ()
    (_resized if size else _softmax)(
        logits.data_ptr(),
        abi.CODES[logits.dtype],
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        abi.at(spread),
        ignore,
        images,
        classes,
        target.numel() // images,
        abi.last(logits),
        *places,
        sums,
        torch.get_num_threads(),
        abi.at(entropies),
        abi.at(miss),
        abi.at(weights),
        abi.at(smooth),
        abi.at(overlap),
        abi.at(present),
    )
    return entropies, miss, weights, smooth, overlap, present


def softmax_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spread: Tensor | None,
    ignore: int,
    grad_entropy: Tensor | None,
    grad_miss: Tensor | None,
    grad_smooth: Tensor | None,
    grad_sums: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
) -> Tensor:
    """The gradient of the maps and sums by the logits."""
    images, classes = logits.shape[:2]
    grad = torch.empty_like(logits)
    places: tuple[Any, ...] = ()
    if size:
        found = Places.of(logits, size, align_corners)
        users = (found.at.data_ptr(), found.share.data_ptr(), found.at.shape[0])
        places = (*found.pointers, *users)
    (_resized_backward if size else _backward)(
        logits.data_ptr(),
        abi.CODES[logits.dtype],
        target.data_ptr(),
        abi.CODES[target.dtype],
        abi.at(weight),
        abi.at(spread),
        ignore,
        images,
        classes,
        target.numel() // images,
        abi.last(logits),
        *places,
        abi.at(grad_entropy),
        abi.at(grad_miss),
        abi.at(grad_smooth),
        abi.at(grad_sums),
        0 if grad_sums is None else grad_sums.shape[2],
        torch.get_num_threads(),
        grad.data_ptr(),
    )
    return grad


class Places:
    """Where the pixels of the labels lie among those of smaller logits, along both axes."""

    def __init__(self, tall: int, wide: int, high: int, broad: int, align_corners: bool) -> None:
        self.rows, self.columns = (
            _places(tall, high, align_corners),
            _places(wide, broad, align_corners),
        )
        self.at, self.share = _users(*self.columns, wide)
        axes = (x.data_ptr() for axis in (self.rows, self.columns) for x in axis)
        self.pointers = (tall, wide, high, broad, *axes)

    @staticmethod
    def of(logits: Tensor, size: Sequence[int], align_corners: bool) -> Places:
        """Those for logits of this shape; made once for each pair of sizes."""
        tall, wide = logits.shape[2:]
        return _remembered(tall, wide, *size, align_corners)


@functools.lru_cache(maxsize=64)
def _remembered(tall: int, wide: int, high: int, broad: int, align_corners: bool) -> Places:
    return Places(tall, wide, high, broad, align_corners)


def _places(inside: int, outside: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The neighbours of each place and how far it lies from the first, as F.interpolate has it."""
    index = torch.arange(outside, dtype=torch.float64, device="cpu")
    if align_corners:
        at = index * ((inside - 1) / (outside - 1) if outside > 1 else 0.0)
    else:
        at = ((index + 0.5) * (inside / outside) - 0.5).clamp(min=0)
    low = at.floor().clamp(max=inside - 1)
    following = (low + 1).clamp(max=inside - 1)
    return low.int(), following.int(), (at - low).float()


def _users(low: Tensor, following: Tensor, part: Tensor, inside: int) -> tuple[Tensor, Tensor]:
    """For each place of the logits those of the labels it takes part in, and with what share.

    Slot s of place j is at[s, j] with share[s, j]; a place with fewer has slots of share 0.
    """
    place = torch.cat([low, following]).long()
    share = torch.cat([1 - part, part])
    user = torch.arange(len(low), device="cpu").repeat(2)
    # Clamped at the end, both neighbours are one place: it has the whole share, in two slots.
    used = share != 0
    place, share, user = place[used], share[used], user[used]
    order = torch.argsort(place, stable=True)
    place, share, user = place[order], share[order], user[order]
    count = torch.bincount(place, minlength=inside)
    slot = torch.arange(len(place), device="cpu") - (count.cumsum(0) - count)[place]
    size = int(count.max()), inside
    at = torch.zeros(size, dtype=torch.int32, device="cpu")
    shares = torch.zeros(size, dtype=torch.float32, device="cpu")
    at[slot, place], shares[slot, place] = user.int(), share
    return at, shares
