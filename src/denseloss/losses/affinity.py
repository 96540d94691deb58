"""Losses without labels: pixels that are alike belong together."""

from typing import Literal

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import (
    Count,
    Image,
    NonNegative,
    Positive,
    Reduction,
    SegmentLogits,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.affinity import Association, association
from denseloss.primitives.overlap import ratio
from denseloss.primitives.reduce import reduce
from denseloss.primitives.void import full_precision

__all__ = ["NCutLoss", "ncut_loss"]

FAINT = 1e-30

Variant = Literal["paper", "class_mean"]


@checked
def ncut_loss(
    logits: SegmentLogits,
    image: Image,
    *,
    radius: Positive = 5,
    sigma_intensity: Positive = 10.0,
    sigma_space: Positive = 4.0,
    variant: Variant = "paper",
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Soft normalised cut: segments an image without labels (W-Net).

    J = K - Σ_k [Σ_u p_uk Σ_v w_uv p_vk] / [Σ_u p_uk Σ_v w_uv],   p = softmax(z)
    w_uv = exp(-‖F_u - F_v‖² / σ_I²) exp(-‖x_u - x_v‖² / σ_X²) where ‖x_u - x_v‖ < r, else 0

    Use it to find segments of even colour, alone or beside a supervised loss.

    Args:
        logits: scores z of the K = c segments.
        image: F, intensities 0 to 255; any number of channels, whose squared differences add up.
        radius: r in pixels; a pixel is tied to itself and to those nearer than r.
        sigma_intensity: σ_I, in the units of the image.
        sigma_space: σ_X in pixels.
        variant: see Variant.
        reduction: over images.

    Returns:
        A scalar in [0, K], or float[n] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a radius or σ <= 0, or an unknown word.

    Variant:
        ``"paper"``: the equation, per image. ``"class_mean"``: a cheap approximation, which is
        another loss: the weight of a pixel is exp(-(‖F - μ_k‖²)² / σ_I²) with μ_k the mean colour
        of the class in the image; K - Σ_k Σ p p w / Σ p w with sums over the whole batch (every
        image has that value). The code in common use that it comes from also blurs p and w with a
        Gaussian window of radius 4: here there is no window, and the numbers differ. With
        intensities of 0 to 255 its fourth power saturates: scale the image to [0, 1] and set σ_I
        to 1 for it.

    Differs from:
        Code that compares √(dx⁴ + dy⁴) with r (21 neighbours instead of 69), takes the full
        square window, or sums over the batch before the ratio.

    Source:
        Xia and Kulis, *W-Net*, 2017, eq. 2, arXiv:1711.08506, after Shi and Malik, PAMI 2000.

    Example:
        >>> z = torch.tensor([[[9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]]])  # segments {u, v}, {w}
        >>> image = torch.tensor([[[0.0, 0.0, 255.0]]])  # no tie crosses the cut
        >>> ncut_loss(z, image)
        tensor(0.)
    """
    p = full_precision(logits).softmax(dim=1)
    f = image.to(p.dtype)
    if p.ndim == 2:
        p, f = p.unsqueeze(-1), f.unsqueeze(-1)  # images of one pixel
    counts = p.flatten(1).sum(1) != 0  # an image without pixels does not
    present = counts.to(p.dtype)
    if variant == "paper":
        tied = association(
            p, f, radius=radius, sigma_intensity=sigma_intensity, sigma_space=sigma_space
        )
    else:
        tied, images = _class_mean_association(p, f, sigma_intensity, present)
    # The share of a class is about its p: one this faint has none, and a gradient beyond float32.
    cut = p.shape[1] - ratio(tied.within, tied.total, empty=0, least=FAINT).sum(-1)
    if variant == "class_mean" and reduction == "mean":
        return distributed.mean_of_one(cut, images, count)
    return reduce(torch.where(counts, cut, 0), reduction, weight=present, divisor=count)


def _class_mean_association(
    p: Tensor, f: Tensor, sigma_intensity: float, present: Tensor
) -> tuple[Association, Tensor]:
    """Each pixel tied to its class's mean colour instead of to other pixels.

    The sums [k] and the number of images, both of the whole batch.
    """
    p, f = p.flatten(2), f.flatten(2)
    colours = (p.unsqueeze(2) * f.unsqueeze(1)).sum(3)
    mean = ratio(colours, p.sum(2, keepdim=True), empty=0, least=FAINT)
    squared = (f.unsqueeze(1) - mean.unsqueeze(3)).square().sum(2)
    w = torch.exp(-squared.square() / sigma_intensity**2)
    sums = [(p * p * w).sum((0, 2)), (p * w).sum((0, 2)), present.sum().unsqueeze(0)]
    everywhere = distributed.total(torch.cat(sums))
    within, total, images = torch.split(everywhere, [len(x) for x in sums])
    return Association(within, total), images.detach().squeeze(0)


class NCutLoss(LossModule):
    """`ncut_loss` as a Module."""

    @options_of(ncut_loss)
    def __init__(self) -> None: ...

    @call_of(ncut_loss)
    def __call__(self) -> None: ...
