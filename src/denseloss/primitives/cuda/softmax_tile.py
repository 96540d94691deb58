"""One tile of pixels under exclusive classes: what the kernels of `softmax` share.

A tile is [classes pixels] and stays in registers, whatever the number of classes: the logits are
read once. Classes that only fill it up to a power of two have the logit -inf.
"""

# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl

from denseloss.primitives.cuda.numbers import TINY, load, log1p

__all__ = ["likelihood", "observed", "slope", "store_maps", "store_sums"]


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
def likelihood(z, z_t, hit):
    """The logits less their largest, the log of the sum of e^them, p; -log p_t, p_t and 1 - p_t.

    ``z_t`` is the logit of the label; None: it is looked for in the tile.
    """
    top = tl.max(z, 0)
    z -= top[None, :]
    e = tl.exp(z)
    other = tl.sum(tl.where(hit, 0.0, e), 0)
    z_t = tl.sum(tl.where(hit, z, 0.0), 0) if z_t is None else z_t - top
    e_t = tl.exp(z_t)
    whole = other + e_t
    # Where the label is on top, e_t is 1, and 1 + other would lose what is small in other. Where
    # it is not, -z_t has the digits: nothing cancels.
    right = (z_t == 0) & (other < 1)
    log_whole = tl.where(right, log1p(tl.minimum(other, 1.0)), tl.log(whole))
    return z, log_whole, e * (1 / whole)[None, :], log_whole - z_t, e_t / whole, other / whole


@triton.jit
def store_maps(
    entropy,
    miss,
    weights,
    smooth,
    spread,
    z,
    log_whole,
    nll,
    missed,
    w,
    counts,
    at,
    inside,
    number,
    CLASSES: tl.constexpr,
):
    """Leave what is asked for of the pixels ``at``; entropy, miss and weights come together."""
    if entropy is not None:
        tl.store(entropy + at, tl.where(counts, nll, 0.0), inside)
        # Not tl.maximum: NaN must come out.
        tl.store(miss + at, tl.where(counts, tl.where(missed < TINY, TINY, missed), TINY), inside)
        tl.store(weights + at, w, inside)
    if smooth is not None:
        there = number < CLASSES
        share = load(spread + number, there)[:, None]
        each = share * tl.where(there[:, None], log_whole[None, :] - z, 0.0)
        tl.store(smooth + at, tl.where(counts, tl.sum(each, 0), 0.0), inside)


@triton.jit
def store_sums(
    sums,
    present,
    both,
    predicted,
    square,
    true,
    seen,
    image,
    program,
    programs,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Leave the sums of a program in [n c SUMS programs], and whether it saw anything."""
    number = tl.arange(0, both.shape[0])
    there = number < CLASSES
    row = image * CLASSES + number
    tl.store(present + row * programs + program, tl.zeros_like(both) + seen, there)
    at = sums + row * SUMS * programs + program
    tl.store(at, both, there)
    tl.store(at + programs, predicted, there)
    tl.store(at + 2 * programs, true, there)
    if SUMS == 5:
        tl.store(at + 3 * programs, square, there)
        tl.store(at + 4 * programs, true, there)  # labels are 0 or 1


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
    spread,
    grad_sums,
    by_entropy,
    by_miss,
    by_smooth,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
):
    """The gradient of a tile, 0 where a pixel does not count.

    ``by_entropy``, ``by_miss`` and ``by_smooth`` are what comes from above for each pixel, or None.
    """
    _, _, p, _, p_t, miss = likelihood(z, z_t, hit)
    there = number < CLASSES
    pull = tl.zeros_like(w)  # what is for each class in proportion to its p
    if grad_sums is not None:
        sums = grad_sums + image * CLASSES * SUMS
        level = tl.load(sums + SUMS * label) + tl.load(sums + SUMS * label + 1)
        rise = load(sums + SUMS * number + 1, there)[:, None]
        if SUMS == 5:
            level += 2 * p_t * tl.load(sums + SUMS * label + 3)
            rise += 2 * p * load(sums + SUMS * number + 3, there)[:, None]
        # Seen from the label's class, nothing cancels where the pixel is nearly right.
        grad = w[None, :] * p * tl.where(hit, 0.0, rise - level[None, :])
        pull -= tl.sum(grad, 0)
    else:
        grad = tl.zeros_like(p)
    if by_smooth is not None:
        share = load(spread + number, there)
        pull += by_smooth * tl.sum(share, 0)
        grad -= by_smooth[None, :] * share[:, None]
    own = p_t * pull
    if by_miss is not None:  # the slope of 1 - p by -log p is p
        by_miss *= p_t
        by_entropy = by_miss if by_entropy is None else by_entropy + by_miss
    if by_entropy is not None:
        # 1 - p_t of the label's class is exact where the subtraction from 1 would not be.
        own -= by_entropy * miss
        pull += by_entropy
    grad += tl.where(hit, own[None, :], pull[None, :] * p)
    return tl.where(counts[None, :], grad, 0.0)
