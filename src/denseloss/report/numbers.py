"""Estimates, and numbers as a report writes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "–"
"""What stands where there is no value."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and images, and how sure it is.

    Attributes:
        value: The estimate.
        low: Lower end of the confidence interval; NaN where there is none.
        high: Upper end.
        standard_error: Of the estimate, over new seeds and new images.
        freedom: Degrees of freedom at which a t interval with this standard error would be as
            wide; inf for the normal.
    """

    value: float
    low: float
    high: float
    standard_error: float
    freedom: float


def number(value: float, decimals: int = 3, *, signed: bool = False) -> str:
    """A number with a fixed count of decimals, a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.replace("+", "").replace("-", "")
    return text.replace("-", "−")


def interval(estimate: Estimate, decimals: int = 3, *, signed: bool = False) -> str:
    """The ends of a confidence interval, empty where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    ends = [number(end, decimals, signed=signed) for end in (estimate.low, estimate.high)]
    return (" to " if signed or estimate.low < 0 else "–").join(ends)


def chance(p: float) -> str:
    """A probability in whole percents; one that is not certain is never `0 %` or `100 %`."""
    if math.isnan(p):
        return NOTHING
    if 0 < p < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < p < 1 else f"{100 * p:.0f} %"


def short(value: float) -> str:
    """A number with three significant digits, without an exponent where that is short."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e7 else text.replace("-", "−")


def rate(lr: float) -> str:
    """A learning rate, such as `0.001` or `3e-05`."""
    return NOTHING if math.isnan(lr) else f"{lr:.3g}"


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: Any) -> str:
    """The value of a setting as a reader expects it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={plain(item)}" for key, item in value.items())
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    return ", ".join(map(plain, value))


def duration(seconds: float) -> str:
    """A time as `42 s`, `3 min 20 s` or `2 h 05 min`."""
    if math.isnan(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
