"""Losses that weigh pixels by the structure around them."""

from typing import Literal

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import (
    ElementWeight,
    Logits,
    Masks,
    NonNegative,
    Odd,
    Reduction,
    checked,
)
from denseloss.losses.reduce import reduce
from denseloss.module import loss_module
from denseloss.primitives.edges import EdgeSums, edge_sums
from denseloss.primitives.overlap import ratio

__all__ = ["StructureLoss", "structure_loss"]

Variant = Literal["corrected", "released", "equation"]


@checked
def structure_loss(
    logits: Logits,
    target: Masks,
    *,
    gamma: NonNegative = 5.0,
    window: Odd = 31,
    smooth: NonNegative = 1.0,
    variant: Variant = "corrected",
    weight: ElementWeight | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Edge-weighted binary cross entropy plus edge-weighted IoU (F3Net, PraNet).

    L = Σ w BCE(p, t) / Σ w + 1 - (Σ w p t + s) / (Σ w (p + t) - Σ w p t + s)
    w = 1 + γ |box mean of t - t|,   p = sigmoid(z),   sums over the pixels of each channel

    Use it for salient objects, polyps and camouflaged objects, where edges decide.

    Args:
        logits: scores z.
        target: t in [0, 1], a mask per channel.
        gamma: γ >= 0, the emphasis on edges.
        window: side of the box in pixels, odd.
        smooth: s >= 0 of the IoU.
        variant: see Variant.
        weight: what each element counts for, times w; 0 is void, and counts as 0 in the box mean,
            as pixels outside the image do.
        ignore_index: the value of void pixels in the target, such as 255.
        reduction: over images and channels. A channel that is all void does not count.

    Returns:
        A scalar, or float[n c] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, γ or s < 0, an even window, or an unknown word.

    Variant:
        ``"corrected"``: the loss as meant, above. ``"released"``: the published code passes
        ``reduce='none'``, a deprecated flag that any non-empty string makes true, so its BCE is
        the plain mean over the batch; the published numbers were trained with it.
        ``"equation"``: the paper prints Σ γ |box mean - t| below the fraction of the BCE, not Σ w;
        a mask without any edge, where that is 0, is divided by Σ w.

    Differs from:
        UACANet and other descendants, whose IoU is taken per pixel.

    Source:
        Wei et al., *F3Net*, AAAI 2020, pixel position aware loss, arXiv:1911.11445; Fan et al.,
        *PraNet*, MICCAI 2020, section 2.4, arXiv:2006.11392; released code of both.

    Example:
        >>> t = torch.tensor([[[[1.0]]]])  # window=1: w = 1; BCE = ln 2; 1 - 1.5/2
        >>> structure_loss(torch.zeros(1, 1, 1, 1), t, window=1)
        tensor(0.9431)
    """
    sums = edge_sums(
        logits,
        target,
        weight,
        ignore_index,
        gamma=gamma,
        window=window,
        plain=variant != "corrected",
    )
    both, predicted, true, counts = sums.overlap
    iou = ratio(both + smooth, predicted + true - both + smooth, empty=1)
    values = _entropy(sums, variant) + 1 - iou
    return reduce(torch.where(counts, values, 0), reduction, weight=counts.to(values.dtype))


def _entropy(sums: EdgeSums, variant: Variant) -> Tensor:
    """The BCE term of each channel, [n c]."""
    below = sums.weight
    if sums.plain_entropy is not None and sums.plain_weight is not None:
        if variant == "released":
            total = distributed.total(sums.plain_entropy.sum())
            whole = distributed.total(sums.plain_weight.sum())
            return ratio(total, whole, empty=0).expand(below.shape)
        edges = below - sums.plain_weight
        below = torch.where(edges == 0, below, edges)
    return ratio(sums.entropy, below, empty=0)


StructureLoss = loss_module(structure_loss)
