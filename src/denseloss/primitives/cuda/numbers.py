"""Scalars that the kernels share, made of what the interpreter has, too: it has no libdevice.

A NaN comes out of each as NaN: comparisons are written so that it falls to the side that keeps it.
"""

# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["TINY", "atan2", "bernoulli", "load", "log1p", "power", "quotient"]

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)  # as the definitions have it


@triton.jit
def load(pointer, mask):
    """What lies there as float32, 0 where masked; half precision is for memory only."""
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1]."""
    s = x / (2 + x)
    w = s * s
    # 2 atanh(s); the polynomial is (atanh(s)/s - 1)/s^2 within 5e-9 relative to the sum
    series = 0.33333207 + w * (0.2001085 + w * (0.1399957 + w * 0.1401223))
    return 2 * (s + s * w * series)


@triton.jit
def bernoulli(z):
    """Probability p = sigmoid(z), 1 - p, -log p and -log(1 - p), each without cancellation."""
    e = tl.exp(-tl.abs(z))
    large = 1 / (1 + e)
    small = e * large
    rest = log1p(e)
    positive = z > 0
    p = tl.where(positive, large, small)
    q = tl.where(positive, small, large)
    return p, q, tl.where(positive, rest, rest - z), tl.where(positive, rest + z, rest)


@triton.jit
def power(x, g, POWER: tl.constexpr):
    """x^g for x > 0: POWER is g where it is 0, 1 or 2, and -1 for any g."""
    if POWER == 0:
        return tl.full(x.shape, 1, tl.float32)
    elif POWER == 1:  # noqa: RET505 - what is decided at compile time needs both branches
        return x
    elif POWER == 2:
        return x * x
    else:
        return tl.exp(g * tl.log(x))


@triton.jit
def quotient(part, whole, empty):
    """Correctly rounded part / whole, and ``empty`` where |whole| < TINY."""
    nothing = tl.abs(whole) < TINY
    return tl.where(nothing, empty, tl.div_rn(part, tl.where(nothing, 1.0, whole)))


@triton.jit
def atan2(y, x):
    """The angle of (x, y) for x >= 0, not both 0."""
    a = tl.abs(y)
    steep = a > x
    s = tl.where(steep, x, a) / tl.where(steep, a, x)
    w = s * s
    # (atan(s)/s - 1)/s^2 within 2e-8 relative to the sum
    series = -0.01636791 + w * 0.00292069
    series = -0.07552212 + w * (0.04321184 + w * series)
    series = -0.33333153 + w * (0.19993773 + w * (-0.14211055 + w * (0.10666004 + w * series)))
    angle = s + s * w * series
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    return tl.where(y < 0, -angle, angle)
