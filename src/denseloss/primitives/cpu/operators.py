"""The operators of `denseloss.primitives.fused.ops` in C. Importing this offers them."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from denseloss.primitives import fused
from denseloss.primitives.cpu import library
from denseloss.primitives.fused import ops

# The order of `enum dtype` in elements.h.
CODES = {
    dtype: code
    for code, dtypes in enumerate(
        [
            (torch.float32,),
            (torch.float16,),
            (torch.bfloat16,),
            (torch.uint8, torch.bool),
            (torch.int32,),
            (torch.int64,),
        ]
    )
    for dtype in dtypes
}

_TYPES = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_int64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def _function(name: str, arguments: str, *, counts: bool = False) -> Callable[..., Any]:
    """A function of the object, its argument types one letter each."""
    function = getattr(library.load(), f"denseloss_{name}")
    function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
    function.restype = ctypes.c_int64 if counts else None
    return function  # type: ignore[no-any-return]


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _empty(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _results(
    rows: Tensor, scores: Tensor, *, sums: bool, values: bool, grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what a row-wise operator returns; nothing [0] for what is not asked for."""
    return (
        _empty(rows, 2 if sums else 0),
        torch.empty_like(scores, dtype=torch.float32) if values else _empty(rows, 0),
        torch.empty_like(rows) if grad else _empty(rows, 0, dtype=rows.dtype),
    )


def _asked(x: Tensor) -> int | None:
    return x.data_ptr() if x.numel() else None


def _mapped(upstream: Tensor | None) -> bool:
    return upstream is not None and upstream.ndim > 0


_pointwise = _function("pointwise", "pipil ppp ll iff id l pif i ppp")


def pointwise(
    logits: Tensor,
    target: Tensor,
    score: Tensor | None,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    kind: int,
    a: float,
    g: float,
    ignore: float | None,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of single elements."""
    results = _results(logits, logits, sums=sums, values=values, grad=grad)
    channels = inner = 1
    if pos_weight is not None:
        channels = logits.shape[1]
        inner = 1 if _last(logits) else max(1, logits[0, 0].numel())
    _pointwise(
        logits.data_ptr(),
        CODES[logits.dtype],
        target.data_ptr(),
        CODES[target.dtype],
        logits.shape[-1] if target.ndim < logits.ndim else 0,
        _at(score),
        _at(weight),
        _at(pos_weight),
        channels,
        inner,
        kind,
        a,
        g,
        ignore is not None,
        ignore or 0.0,
        logits.numel(),
        _at(upstream),
        _mapped(upstream),
        scale,
        torch.get_num_threads(),
        *map(_asked, results),
    )
    return results


_boxes = _function("boxes", "pipi p iil pif i ppp")


def boxes(
    boxes: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kind: int,
    fmt: int,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of box pairs."""
    results = _results(boxes, boxes[..., 0].contiguous(), sums=sums, values=values, grad=grad)
    _boxes(
        boxes.data_ptr(),
        CODES[boxes.dtype],
        target.data_ptr(),
        CODES[target.dtype],
        _at(weight),
        kind,
        fmt,
        boxes.numel() // 4,
        _at(upstream),
        _mapped(upstream),
        scale,
        torch.get_num_threads(),
        *map(_asked, results),
    )
    return results


_bins = _function("bins", "pipp ll pif i p ppp")
ROWS = 128  # as in rows.h


def bins(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None,
    scale: float,
    sums: bool,
    values: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distribution focal loss."""
    results = _results(logits, logits[..., 0].contiguous(), sums=sums, values=values, grad=grad)
    count, threads = logits.shape[-1], torch.get_num_threads()
    space = _empty(logits, 2 * threads * count * ROWS)
    _bins(
        logits.data_ptr(),
        CODES[logits.dtype],
        target.data_ptr(),
        _at(weight),
        count,
        target.numel(),
        _at(upstream),
        _mapped(upstream),
        scale,
        threads,
        space.data_ptr(),
        *map(_asked, results),
    )
    return results


def _last(logits: Tensor) -> bool:
    """Whether the classes of logits [n c *s] lie innermost."""
    return not logits.is_contiguous()


@functools.cache
def _numbers(values: tuple[float, ...]) -> Any:
    return (ctypes.c_double * len(values))(*values)


_COLUMNS = "pi pi p p pp i l lll i "
_PLACES = "llll ppp ppp "
_column_work = _function("column_work", "lllll", counts=True)
_column_space = _function("column_space", "lll", counts=True)
_column = _function("column", _COLUMNS + "ii pp pppp")
_column_backward = _function("column_backward", _COLUMNS + "ppp i pp")
_resized_work = _function("column_resized_work", "llllll", counts=True)
_resized = _function("column_resized", _COLUMNS + _PLACES + "ii pp pppp")
_resized_backward = _function("column_resized_backward", _COLUMNS + _PLACES + "ppl ppp i pp")


def _columns(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    gamma: Sequence[float],
    smoothing: Sequence[float],
    ignore: int,
) -> tuple[Any, ...]:
    """The arguments that the functions of softmax columns share."""
    images, classes = logits.shape[:2]
    return (
        logits.data_ptr(),
        CODES[logits.dtype],
        target.data_ptr(),
        CODES[target.dtype],
        _at(weight),
        _at(class_weight),
        _numbers(tuple(gamma)),
        _numbers(tuple(smoothing)),
        len(gamma),
        ignore,
        images,
        classes,
        target.numel() // max(images, 1),
        _last(logits),
    )


def column(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    gamma: Sequence[float],
    smoothing: Sequence[float],
    ignore: int,
    overlap: bool,
    values: bool,
    size: Sequence[int],
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the pixels of softmax losses."""
    images, classes = logits.shape[:2]
    terms, threads = len(gamma), torch.get_num_threads()
    entropy = _empty(logits, images, terms, 2)
    sums = _empty(logits, images, classes, 3) if overlap else _empty(logits, 0)
    weights = _empty(logits, images, 2)
    map_ = torch.empty_like(target, dtype=torch.float32) if values else _empty(logits, 0)
    shared = _columns(logits, target, weight, class_weight, gamma, smoothing, ignore)
    results = (entropy.data_ptr(), sums.data_ptr(), weights.data_ptr(), _asked(map_))
    if size:
        places = Places.of(logits, size, align_corners)
        work = _resized_work(images, classes, *size, terms, overlap)
        space = threads * _column_space(classes, size[1], logits.shape[3])
        function, shared = _resized, (*shared, *places.pointers)
    else:
        work = _column_work(images, classes, shared[12], terms, overlap)
        space = threads * _column_space(classes, 0, 0)
        function = _column
    doubles = _empty(logits, work, dtype=torch.float64)
    room = _empty(logits, space)
    function(*shared, overlap, threads, doubles.data_ptr(), room.data_ptr(), *results)
    return entropy, sums, weights, map_


def column_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    gamma: Sequence[float],
    smoothing: Sequence[float],
    ignore: int,
    grad_entropy: Tensor | None,
    grad_sums: Tensor | None,
    upstream: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
) -> Tensor:
    """The gradient of those sums."""
    grad = torch.empty_like(logits)
    shared = _columns(logits, target, weight, class_weight, gamma, smoothing, ignore)
    if grad_entropy is not None:
        grad_entropy = grad_entropy.contiguous()
    if grad_sums is not None:
        grad_sums = grad_sums.transpose(1, 2).contiguous()  # all I, then all P of an image
    ups = (_at(grad_entropy), _at(grad_sums), _at(upstream))
    threads = torch.get_num_threads()
    if size:
        places = Places.of(logits, size, align_corners)
        room = _empty(logits, threads * _column_space(logits.shape[1], size[1], logits.shape[3]))
        users = (places.at.data_ptr(), places.share.data_ptr(), places.at.shape[0])
        _resized_backward(
            *shared, *places.pointers, *users, *ups, threads, room.data_ptr(), grad.data_ptr()
        )
    else:
        room = _empty(logits, threads * _column_space(logits.shape[1], 0, 0))
        _column_backward(*shared, *ups, threads, room.data_ptr(), grad.data_ptr())
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


_REGION = "pi pi p id i lll i i "
_region_work = _function("region_work", "lll", counts=True)
_region = _function("region", _REGION + "pp")
_region_backward = _function("region_backward", _REGION + "pp")


def _channels(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
) -> tuple[Any, ...]:
    """The arguments that both functions of regions share."""
    images, channels = logits.shape[:2]
    return (
        logits.data_ptr(),
        CODES[logits.dtype],
        target.data_ptr(),
        CODES[target.dtype],
        _at(weight),
        ignore is not None,
        ignore or 0.0,
        entropy,
        images,
        channels,
        logits.numel() // max(images * channels, 1),
        _last(logits),
        torch.get_num_threads(),
    )


def region(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
) -> Tensor:
    """Sums over the pixels of each channel."""
    shared = _channels(logits, target, weight, ignore, entropy)
    sums = _empty(logits, *logits.shape[:2], 6)
    work = _empty(logits, _region_work(*shared[8:11]), dtype=torch.float64)
    _region(*shared, work.data_ptr(), sums.data_ptr())
    return sums


def region_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    entropy: bool,
    grad: Tensor,
) -> Tensor:
    """The gradient of those sums."""
    shared = _channels(logits, target, weight, ignore, entropy)
    result = torch.empty_like(logits)
    upstream = grad.contiguous()
    _region_backward(*shared, upstream.data_ptr(), result.data_ptr())
    return result


_edge_space = _function("edge_space", "ll", counts=True)
_edge = _function("edge", "pi p id f l i lll i pp")


def edge(
    target: Tensor,
    weight: Tensor | None,
    ignore: float | None,
    gamma: float,
    window: int,
    inside: bool,
) -> Tensor:
    """Window means, or the edge weights made of them."""
    result = torch.empty_like(target, dtype=torch.float32)
    high, wide = target.shape[-2:]
    threads = torch.get_num_threads()
    space = _empty(target, threads * _edge_space(wide, window))
    _edge(
        target.data_ptr(),
        CODES[target.dtype],
        _at(weight),
        ignore is not None,
        ignore or 0.0,
        gamma,
        window,
        inside,
        target.numel() // max(high * wide, 1),
        high,
        wide,
        threads,
        space.data_ptr(),
        result.data_ptr(),
    )
    return result


_association_work = _function("association_work", "lll", counts=True)
_association = _function("association", "pp lllll fff i pp pppp")
_association_backward = _function("association_backward", "pppp lll i p")


def association(
    probability: Tensor,
    image: Tensor,
    radius: float,
    sigma_intensity: float,
    sigma_space: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ties of each pixel to its neighbours."""
    images, classes, high, wide = probability.shape
    threads = torch.get_num_threads()
    within, total = (_empty(probability, images, classes) for _ in range(2))
    filtered, degree = torch.empty_like(probability), _empty(probability, images, high, wide)
    work = _empty(probability, _association_work(images, classes, high), dtype=torch.float64)
    space = _empty(probability, threads * 2 * wide)
    _association(
        probability.data_ptr(),
        image.data_ptr(),
        images,
        classes,
        image.shape[1],
        high,
        wide,
        radius,
        sigma_intensity,
        sigma_space,
        threads,
        work.data_ptr(),
        space.data_ptr(),
        within.data_ptr(),
        total.data_ptr(),
        filtered.data_ptr(),
        degree.data_ptr(),
    )
    return within, total, filtered, degree


def association_backward(
    filtered: Tensor, degree: Tensor, grad_within: Tensor, grad_total: Tensor
) -> Tensor:
    """The gradient by the probability."""
    grad = torch.empty_like(filtered)
    images, classes, high, wide = filtered.shape
    inner, outer = grad_within.contiguous(), grad_total.contiguous()
    _association_backward(
        filtered.data_ptr(),
        degree.data_ptr(),
        inner.data_ptr(),
        outer.data_ptr(),
        images,
        classes,
        high * wide,
        torch.get_num_threads(),
        grad.data_ptr(),
    )
    return grad


_label_count_work = _function("label_count_work", "ll", counts=True)
_label_count = _function("label_count", "pi p ll l i pp")


def label_count(target: Tensor, weight: Tensor | None, ignore: int, classes: int) -> Tensor:
    """Pixels of each class."""
    result = _empty(target, classes)
    work = _empty(target, _label_count_work(target.numel(), classes), dtype=torch.int64)
    _label_count(
        target.data_ptr(),
        CODES[target.dtype],
        _at(weight),
        ignore,
        classes,
        target.numel(),
        torch.get_num_threads(),
        work.data_ptr(),
        result.data_ptr(),
    )
    return result


def rescale(grad: Tensor, factor: Tensor) -> None:
    """A gradient that was computed ahead, times what comes down the graph."""
    times = factor.item()
    if times == 1:
        return
    if math.isfinite(times):
        grad.mul_(factor)
    else:  # what is void stays 0
        grad.copy_(torch.where(grad == 0, 0, grad * factor))


ops.implement(
    "CPU",
    {
        "pointwise": pointwise,
        "boxes": boxes,
        "bins": bins,
        "column": column,
        "column_backward": column_backward,
        "region": region,
        "region_backward": region_backward,
        "edge": edge,
        "association": association,
        "association_backward": association_backward,
        "label_count": label_count,
        "rescale": rescale,
    },
)
fused.register("cpu")
