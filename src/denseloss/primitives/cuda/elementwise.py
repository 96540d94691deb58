"""`elementwise`: losses of single elements, value and gradient in one pass over the logits."""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from denseloss.primitives.cuda.launch import buffers, collected, launch, readable
from denseloss.primitives.cuda.numbers import TINY, bernoulli, load, power

__all__ = ["counted", "elementwise", "fetch", "share"]

BLOCK = 1024

BCE = tl.constexpr(0)
FOCAL = tl.constexpr(1)
QUALITY = tl.constexpr(2)  # the target of this and of those after it is a quality
VARIFOCAL_CONSTANT = tl.constexpr(4)  # 3 differs from it in the gradient only


@triton.jit
def counted(target, weight, i, mask, ignore):
    """Targets and weights at ``i``, 0 where void."""
    t = load(target + i, mask)
    w = tl.where(mask, 1.0, 0.0) if weight is None else load(weight + i, mask)
    if ignore is not None:
        w = tl.where(t == ignore, 0.0, w)
    return tl.where(w != 0, t, 0.0), w


@triton.jit
def share(t):
    """The target, NaN where it is too far from [0, 1] to be meant."""
    return tl.where((t > -0.5) & (t < 1.5), t, float("nan"))


@triton.jit
def _truth(t, GRADED: tl.constexpr):
    """The target in [0, 1]. A quality may be any number below 0, but hardly above 1."""
    t = tl.where(t > 1.01, float("nan"), t) if GRADED else share(t)
    return tl.where(t < 0, 0.0, tl.where(t > 1, 1.0, t))


@triton.jit
def fetch(logits, target, weight, i, mask, ignore, GRADED: tl.constexpr):
    """Logits, targets and weights at ``i``, where void elements are 0 in all three."""
    t, w = counted(target, weight, i, mask, ignore)
    return tl.where(w != 0, load(logits + i, mask), 0.0), _truth(t, GRADED), w


@triton.jit
def _fetch_labels(
    logits,
    target,
    score,
    weight,
    row,
    channel,
    mask,
    ignore,
    CHANNELS: tl.constexpr,
    GRADED: tl.constexpr,
):
    """As `fetch`, with the score at the class of the label as target and 0 at every other."""
    label = tl.load(target + row, mask=mask, other=0).to(tl.int64)
    w = tl.where(mask, 1.0, 0.0) if weight is None else load(weight + row, mask)
    if ignore is not None:
        w = tl.where(label == ignore, 0.0, w)
    counts = w != 0
    z = tl.where(counts, load(logits, mask), 0.0)
    hot = counts & (label == channel)
    t = hot.to(tl.float32) if score is None else _truth(load(score + row, hot), GRADED)
    return z, t, tl.where(counts & ((label < -1) | (label >= CHANNELS)), float("nan"), w)


@triton.jit
def _term(z, t, b, a, g, KIND: tl.constexpr, POWER: tl.constexpr):
    """The loss of an element and its derivative; ``b`` is what a positive counts for in BCE."""
    p, q, yes, no = bernoulli(z)
    if KIND == BCE:
        value = b * t * yes + (1 - t) * no
        slope = (1 - t) * p - b * t * q
    else:
        ce = t * yes + (1 - t) * no
        error = (1 - t) * p - t * q  # p - t, exact where p rounds to 1
        if KIND <= QUALITY:
            if KIND == FOCAL:
                miss = t * q + (1 - t) * p
                change = 1 - 2 * t
            else:
                miss = tl.abs(error)
                change = tl.where(error > 0, 1.0, -1.0)
            # m^g is differentiated where it is not cut off at TINY: g m^(g-1) m', m' = change p q
            inner = miss > TINY
            miss = tl.where(miss < TINY, TINY, miss)
            factor = tl.where(a < 0, 1.0, a * t + (1 - a) * (1 - t)) * power(miss, g, POWER)
            fade = g * change * tl.where(inner, p * q / miss, 0.0)
        else:
            background = t == 0
            base = tl.where(p < TINY, TINY, p)
            factor = tl.where(background, a * power(base, g, POWER), t)
            fade = tl.where(background & (p > TINY), g * q, 0.0)
        value = factor * ce
        slope = factor * (error if KIND == VARIFOCAL_CONSTANT else error + fade * ce)
    return value, slope


@triton.jit
def _elementwise(
    logits,
    target,
    score,
    weight,
    pos_weight,
    upstream,
    partial,
    values,
    grad,
    size,
    stride,
    a,
    g,
    ignore,
    scale,
    LABELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KIND: tl.constexpr,
    POWER: tl.constexpr,
    MAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    first = block * BLOCK
    i = first + lane
    mask = i < size
    if LABELS:
        # The division of 64-bit numbers is done once per program, that of lanes in 32 bits.
        row = first // CHANNELS
        lane += (first - row * CHANNELS).to(tl.int32)
        row += lane // CHANNELS
        z, t, w = _fetch_labels(
            logits + i,
            target,
            score,
            weight,
            row,
            lane % CHANNELS,
            mask,
            ignore,
            CHANNELS,
            KIND >= QUALITY,
        )
    else:
        z, t, w = fetch(logits, target, weight, i, mask, ignore, KIND >= QUALITY)
    # The stride of axis 1 tells the channel, whatever the permutation of the axes in memory.
    b = a if pos_weight is None else tl.load(pos_weight + i // stride % CHANNELS, mask, other=0)
    value, slope = _term(z, t, b, a, g, KIND, POWER)

    value *= w
    if partial is not None:
        tl.store(partial + block, scale * tl.sum(value, 0))
        tl.store(partial + tl.num_programs(0) + block, tl.sum(w, 0))
    if values is not None:
        tl.store(values + i, value, mask)
    if grad is not None:
        slope *= scale * w
        if upstream is not None:
            slope *= load(upstream + i, mask) if MAP else tl.load(upstream)
        slope = tl.where(w != 0, slope, 0.0)  # whatever the upstream of a void element is
        tl.store(grad + i, slope.to(grad.dtype.element_ty), mask)


def _exponent(g: float) -> int:
    """The exponent as `power` takes it: 0, 1 and 2 are compiled in."""
    return int(g) if g in (0, 1, 2) else -1


def _ignored(ignore: float | None, *, labels: bool) -> float | None:
    """The value of void elements as kernels compare it; labels are compared as integers."""
    if ignore is None or not labels:
        return ignore
    return int(ignore) if ignore == int(ignore) else None


def elementwise(
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
    """See `denseloss.primitives.fused.ops`."""
    labels = target.ndim < logits.ndim
    channels = logits.shape[-1] if labels else 1 if pos_weight is None else logits.shape[1]
    blocks = triton.cdiv(logits.numel(), BLOCK)
    partial, value, slope = buffers(logits, logits, blocks, sums=sums, values=values, grad=grad)
    launch(
        _elementwise,
        (blocks,),
        logits,
        logits,
        readable(target),
        score,
        weight,
        pos_weight,
        upstream,
        partial,
        value,
        slope,
        logits.numel(),
        1 if pos_weight is None else max(logits.stride(1), 1),
        a,
        g,
        _ignored(ignore, labels=labels),
        scale,
        LABELS=labels,
        CHANNELS=channels,
        KIND=kind,
        POWER=_exponent(g),
        MAP=upstream is not None and upstream.ndim > 0,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return collected(logits, partial, value, slope)
