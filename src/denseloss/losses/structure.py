"""Losses that weigh pixels by the structure around them."""

from typing import Literal

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import (
    Count,
    ElementWeight,
    Logits,
    Masks,
    NonNegative,
    Odd,
    Reduction,
    checked,
)
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives.edges import EdgeSums, edge_sums
from denseloss.primitives.overlap import ratio
from denseloss.primitives.reduce import reduce

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
    count: Count | NonNegative | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Edge-weighted binary cross entropy plus edge-weighted IoU (F3Net, PraNet).

    L = Σ w BCE(p, t) / Σ w + 1 - (I + s) / (Σ w (p + t) - I + s),   I = Σ w min(p, t)
    w = 1 + γ |box mean of t - t|,   p = sigmoid(z),   sums over the pixels of each channel

    Use it for salient objects, polyps and camouflaged objects, where edges decide.

    Args:
        gamma: γ >= 0, the emphasis on edges.
        window: side of the box in pixels, odd.
        smooth: s >= 0 of the IoU.
        variant: see Variant.
        weight: what each element counts for, times w; 0 is void, and counts as 0 in the box mean,
            as pixels outside the image do.
        reduction: over images and channels. A channel that is all void does not count.

    Returns:
        A scalar, or float[n c] with ``reduction="none"``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, γ or s < 0, an even window, or an unknown word.

    Variant:
        ``"corrected"``: the loss as meant, above. ``"released"``: the published code passes
        ``reduce='none'``, a deprecated flag that any non-empty string makes true, so its BCE is
        the plain mean over the batch; the published numbers of F3Net and PraNet were trained with
        it. With ``reduction='none'`` in its place that code is ``"corrected"``.
        ``"equation"``: the paper prints Σ γ |box mean - t| below the fraction of the BCE, not Σ w;
        a mask without any edge, where that is 0, is divided by Σ w.

    Differs from:
        UACANet and other descendants, whose IoU is taken per pixel. For soft targets all of them
        take I = Σ w p t: the IoU part is then not 0 and not lowest at p = t.

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
    values = sums.overlap.dissimilarity(a=1, b=-1, c=1, d=1, s=smooth)
    present = sums.overlap.present
    if variant != "released":
        values = values + _channel_entropy(sums, variant)
        return reduce(values, reduction, weight=present, divisor=count)
    entropy, channels = _batch_entropy(sums)
    if reduction != "mean":
        return reduce(values + entropy, reduction, weight=present)
    overlap = reduce(values, reduction, weight=present, divisor=count)
    return overlap + distributed.mean_of_one(entropy, channels, count)


def _channel_entropy(sums: EdgeSums, variant: Variant) -> Tensor:
    """The BCE term of each channel, [n c]."""
    below = sums.weight
    if variant == "equation" and sums.plain_weight is not None:
        edges = below - sums.plain_weight
        below = torch.where(edges == 0, below, edges)
    return ratio(sums.entropy, below, empty=0)


def _batch_entropy(sums: EdgeSums) -> tuple[Tensor, Tensor]:
    """The one BCE term of all channels of the batch, and how many channels those are."""
    assert sums.plain_entropy is not None
    assert sums.plain_weight is not None
    parts = [sums.plain_entropy.sum(), sums.plain_weight.sum(), sums.overlap.present.sum()]
    entropy, whole, channels = distributed.total(torch.stack(parts))
    return ratio(entropy, whole, empty=0), channels.detach()


class StructureLoss(LossModule):
    """`structure_loss` as a Module."""

    @options_of(structure_loss)
    def __init__(self) -> None: ...

    @call_of(structure_loss)
    def __call__(self) -> None: ...
