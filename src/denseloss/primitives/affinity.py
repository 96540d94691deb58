"""Pairwise affinities of nearby pixels, gathered class by class."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from denseloss.backend import primitive

__all__ = ["Association", "association"]


class Association(NamedTuple):
    """How strongly each class is tied to itself, and to the whole image; [n k]."""

    within: Tensor
    """sum_u p_uk sum_v w_uv p_vk"""
    total: Tensor
    """sum_u p_uk sum_v w_uv"""


@primitive
def association(
    probability: Tensor, image: Tensor, *, radius: float, sigma_intensity: float, sigma_space: float
) -> Association:
    """Sums over all pixel pairs nearer than ``radius``, a pixel and itself included.

    w_uv = exp(-|F_u - F_v|^2 / sigma_intensity^2) exp(-|x_u - x_v|^2 / sigma_space^2)

    Args:
        probability: [n k *s]
        image: [n i *s], in the same floating-point dtype.
        radius: pixels farther than or as far as this are not tied.
        sigma_intensity: scale of the colour difference, in the image's units.
        sigma_space: scale of the distance, in pixels.
    """
    space = tuple(range(2, probability.ndim))
    # A pixel is tied to itself with w = 1.
    within, total = (probability * probability).sum(space), probability.sum(space)
    for offset in _half_disc(radius, probability.shape[2:]):
        u, v = _shifted(offset)
        p_u, p_v = probability[u], probability[v]
        colour = (image[u] - image[v]).square().sum(1, keepdim=True)
        distance = sum(d * d for d in offset)
        w = torch.exp(-colour / sigma_intensity**2 - distance / sigma_space**2)
        # w is symmetric: each pair is met once and counts for both of its directions.
        within = within + 2 * (w * p_u * p_v).sum(space)
        total = total + (w * (p_u + p_v)).sum(space)
    return Association(within, total)


def _half_disc(radius: float, shape: torch.Size) -> list[tuple[int, ...]]:
    """One of each pair (d, -d) of the offsets inside the disc that fit the image."""
    reach = math.ceil(radius) - 1
    steps = [range(-min(reach, size - 1), min(reach, size - 1) + 1) for size in shape]
    zero = (0,) * len(shape)
    return [
        d for d in itertools.product(*steps) if d > zero and sum(x * x for x in d) < radius * radius
    ]


def _shifted(offset: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Slices of the pixels u and of their partners v = u + offset, both inside the image."""
    u = tuple(slice(max(0, -d), -d if d > 0 else None) for d in offset)
    v = tuple(slice(max(0, d), d if d < 0 else None) for d in offset)
    # The axes of images and classes are not sliced: torch.export takes that for a bound.
    return (..., *u), (..., *v)
