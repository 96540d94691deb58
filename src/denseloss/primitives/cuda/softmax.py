"""One tile of pixels under exclusive classes: what the kernels of `column` and `upsample` share.

A tile is [classes pixels] and stays in registers, whatever the number of classes: the logits are
read once. Classes that only fill it up to a power of two have the logit -inf. GAMMA and SMOOTHING,
K numbers each, are compiled in.
"""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl

from denseloss.primitives.cuda.numbers import TINY, load, log1p, power

__all__ = ["add_entropy", "observed", "slope", "store_sums"]


@triton.jit
def observed(target, weight, at, inside, ignore, CLASSES: tl.constexpr):
    """Label and weight of the pixels ``at``, and which of them count."""
    label = tl.load(target + at, mask=inside, other=0).to(tl.int64)
    w = tl.where(inside, 1.0, 0.0) if weight is None else load(weight + at, inside)
    counts = inside & (label != ignore) & (w != 0)
    known = (label >= 0) & (label < CLASSES)
    w = tl.where(counts, tl.where(known, w, float("nan")), 0.0)
    return tl.where(counts & known, label, 0).to(tl.int32), w, counts


@triton.jit
def _likelihood(z, z_t, hit):
    """The logits less their largest, the log of the sum of e^them, p, p_t, log p_t and 1 - p_t."""
    largest = tl.max(z, 0)
    z -= largest[None, :]
    e = tl.exp(z)
    other = tl.sum(tl.where(hit, 0.0, e), 0)
    z_t = tl.sum(tl.where(hit, z, 0.0), 0) if z_t is None else z_t - largest
    e_t = tl.exp(z_t)
    total = other + e_t
    log_total = tl.log(total)
    miss = other / total
    # z_t - log_total is a difference of equals where the pixel is nearly right.
    near = tl.minimum(miss, 0.5)
    log_p = tl.where(miss < 0.5, -log1p(near / (1 - near)), z_t - log_total)
    return z, log_total, e * (1 / total)[None, :], e_t / total, log_p, miss


@triton.jit
def _class_weight(class_weight, at, mask):
    if class_weight is None:
        return tl.where(mask, 1.0, 0.0)
    else:  # noqa: RET505 - what is decided at compile time needs both branches
        return load(class_weight + at, mask)


@triton.jit
def _entropy(
    z,
    log_total,
    log_p,
    miss,
    own,
    each,
    there,
    CLASSES: tl.constexpr,
    GAMMA: tl.constexpr,
    E: tl.constexpr,
):
    """Value v of a term, from the weights of the label's class and of each class."""
    value = own * -log_p * power(tl.maximum(miss, TINY), GAMMA, GAMMA)
    if E == 0:
        return value
    else:  # noqa: RET505
        even = each[:, None] * tl.where(there[:, None], log_total[None, :] - z, 0.0)
        return (1 - E) * value + E / CLASSES * tl.sum(even, 0)


@triton.jit
def add_entropy(
    totals,
    z,
    z_t,
    hit,
    label,
    w,
    counts,
    number,
    class_weight,
    CLASSES: tl.constexpr,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Add the sums of entropy and weights to their rows of ``totals``.

    ``z_t`` is the logit of the label; None: it is looked for in the tile.

    Returns:
        ``totals``, the last w v, and p.
    """
    z, log_total, p, _, log_p, miss = _likelihood(z, z_t, hit)
    row = tl.arange(0, totals.shape[0])
    there = number < CLASSES
    value = w
    for k in tl.static_range(K):
        own = _class_weight(class_weight, k * CLASSES + label, label >= 0)
        each = _class_weight(class_weight, k * CLASSES + number, there)
        value = w * _entropy(
            z, log_total, log_p, miss, own, each, there, CLASSES, list(GAMMA)[k], list(SMOOTHING)[k]
        )
        totals += tl.where(row == 2 * k, tl.sum(value, 0), 0.0)
        totals += tl.where(row == 2 * k + 1, tl.sum(w * own, 0), 0.0)
    totals += tl.where(row == 2 * K, tl.sum(w, 0), 0.0)
    totals += tl.where(row == 2 * K + 1, tl.sum(counts.to(tl.float32), 0), 0.0)
    return totals, value, p


@triton.jit
def store_sums(
    partial,
    totals,
    both,
    predicted,
    true,
    image,
    program,
    programs,
    CLASSES: tl.constexpr,
    K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Leave the sums of a program in ``partial`` [n 2K+2+3c programs]."""
    rows: tl.constexpr = 2 * K + 2
    out = partial + image * (rows + (3 * CLASSES if OVERLAP else 0)) * programs + program
    row = tl.arange(0, totals.shape[0])
    tl.store(out + row * programs, totals, row < rows)
    if OVERLAP:
        number = tl.arange(0, both.shape[0])
        there = number < CLASSES
        out += (rows + 3 * number) * programs
        tl.store(out, both, there)
        tl.store(out + programs, predicted, there)
        tl.store(out + 2 * programs, true, there)


@triton.jit
def _focus(miss, p_t, log_p, GAMMA: tl.constexpr):
    """Slope p_t dv/dp_t of v = m^g (-log p_t), m = 1 - p_t; dv/dz_c is it times [c = t] - p_c."""
    if GAMMA == 0:
        return tl.full(miss.shape, -1, tl.float32)
    else:  # noqa: RET505
        m = tl.maximum(miss, TINY)
        return power(m, GAMMA - 1, GAMMA - 1) * (GAMMA * p_t * log_p - m)


@triton.jit
def _spread(grad, p, share, each, CLASSES: tl.constexpr, E: tl.constexpr):
    """Add the gradient of the evenly spread part of the target."""
    if E == 0:
        return grad
    else:  # noqa: RET505
        return grad + (share * (E / CLASSES))[None, :] * (p * tl.sum(each, 0) - each[:, None])


@triton.jit
def slope(
    z,
    z_t,
    hit,
    label,
    w,
    counts,
    number,
    image,
    class_weight,
    grad_entropy,
    grad_sums,
    upstream,
    CLASSES: tl.constexpr,
    K: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """The gradient of a tile, 0 where a pixel does not count."""
    _, _, p, p_t, log_p, miss = _likelihood(z, z_t, hit)
    there = number < CLASSES
    toward = tl.zeros_like(w)
    grad = tl.zeros_like(p)
    if (grad_entropy is not None) or (upstream is not None):
        for k in tl.static_range(K):
            share = w * (tl.load(grad_entropy + image * K + k) if upstream is None else upstream)
            own = _class_weight(class_weight, k * CLASSES + label, label >= 0)
            each = _class_weight(class_weight, k * CLASSES + number, there)
            toward += (
                share * own * _kept(_focus(miss, p_t, log_p, list(GAMMA)[k]), list(SMOOTHING)[k])
            )
            grad = _spread(grad, p, share, each, CLASSES, list(SMOOTHING)[k])
        # 1 - p_t of the label's class is exact where the subtraction from 1 would not be.
        grad += tl.where(hit, (toward * miss)[None, :], -toward[None, :] * p)
    if grad_sums is not None:
        sums = grad_sums + image * CLASSES * 2
        own = tl.load(sums + 2 * label) + tl.load(sums + 2 * label + 1)
        # Seen from the label's class, nothing cancels where the pixel is nearly right.
        rise = load(sums + 2 * number + 1, there)[:, None] - own[None, :]
        rise = tl.where(hit, 0.0, rise)
        grad += w[None, :] * p * (rise - tl.sum(p * rise, 0)[None, :])
    return tl.where(counts[None, :], grad, 0.0)


@triton.jit
def _kept(x, E: tl.constexpr):
    return x if E == 0 else x * (1 - E)
