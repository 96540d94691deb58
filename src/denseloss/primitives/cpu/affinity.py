"""The operators of normalised cuts: the ties of each pixel to its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from denseloss.primitives.cpu import abi

_association_work = abi.function("association_work", "lll", counts=True)
_association = abi.function("association", "pp lllll fff i pp pppp")
_association_backward = abi.function("association_backward", "pppp lll i p")


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
    within, total = (abi.empty(images, classes) for _ in range(2))
    filtered, degree = torch.empty_like(probability), abi.empty(images, high, wide)
    work = abi.empty(_association_work(images, classes, high), dtype=torch.float64)
    space = abi.empty(threads * 2 * wide)
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
