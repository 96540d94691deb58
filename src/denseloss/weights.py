"""Weight maps: what each pixel or class counts for. Any loss takes any weight."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from denseloss import distributed
from denseloss.contract import Interval, Labels, MasksAlone, NonNegative, Odd, checked
from denseloss.module import LossModule, call_of, options_of
from denseloss.primitives import labels
from denseloss.primitives.overlap import ratio
from denseloss.primitives.void import full_precision, mask
from denseloss.primitives.windows import edge_emphasis

__all__ = [
    "EdgeWeight",
    "InverseFrequency",
    "OneHot",
    "edge_weight",
    "inverse_frequency",
    "one_hot",
]

Border = Literal["zero", "valid"]
Count = Annotated[int, Interval(1, whole=True)]


@checked
def edge_weight(
    target: MasksAlone, *, gamma: NonNegative = 5.0, window: Odd = 31, border: Border = "zero"
) -> Tensor:
    r"""Weight map that is high near the edges of a mask.

    w = 1 + γ |box mean of t - t|

    Use it where boundaries and thin parts matter; it is the weight of `structure_loss`.

    Args:
        target: t, masks; 0/1 or soft.
        gamma: γ >= 0, the emphasis; w lies in [1, 1 + γ]. A mask far outside [0, 1], such as one
            of 0 and 255, gives NaN.
        window: side of the box in pixels, odd.
        border: pixels outside the image count as 0 (``"zero"``, as published: an object that
            touches the border has an edge there), or do not count (``"valid"``).

    Returns:
        float[n c *s], float32 (float64 for float64 masks).

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, γ < 0, an even window, or an unknown border.

    Differs from:
        The published code only in cost: running sums, not a 31 x 31 average pooling. A NaN in the
        mask spreads along the sums, beyond its window.

    Source:
        Wei et al., *F3Net*, AAAI 2020, pixel position aware loss, arXiv:1911.11445, and its
        released code.

    Example:
        >>> edge_weight(torch.tensor([[[0.0, 0.0, 1.0]]]), gamma=3, window=3)  # 1 + 3 |mean - t|
        tensor([[[1., 2., 3.]]])
    """
    return edge_emphasis(mask(full_precision(target)), gamma=gamma, window=window, border=border)


@checked
def inverse_frequency(
    target: Labels, num_classes: Count, *, ignore_index: int | None = -100
) -> Tensor:
    r"""Class weights that are inverse to the number of pixels.

    cw[c] = 1 / (pixels of class c), 0 for a class that is absent

    Use it as ``class_weight``, from the labels of a batch or of the whole data set. Inside
    `denseloss.distributed.exact` the labels of all ranks are counted.

    Args:
        target: labels.
        num_classes: c.
        ignore_index: the label of void pixels, which count for no class.

    Returns:
        float32 [c]; all NaN where a label is neither void nor a class.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or num_classes < 1.

    Source:
        King and Zeng, *Logistic Regression in Rare Events Data*, Political Analysis 9, 2001.

    Example:
        >>> inverse_frequency(torch.tensor([[0, 0, 2, -100]]), 3)
        tensor([0.5000, 0.0000, 1.0000])
    """
    valid = torch.ones_like(target, dtype=torch.float32)
    if ignore_index is not None:
        valid = (target.long() != ignore_index).float()
    # A label that is no class makes the count NaN: it must not vanish from a statistic unseen.
    pixels = distributed.total(labels.class_count(target, valid, num_classes))
    return ratio(torch.ones_like(pixels), pixels, empty=0)


@checked
def one_hot(target: Labels, num_classes: Count, *, ignore_index: int | None = -100) -> Tensor:
    r"""Labels as one mask per class.

    t_c = 1 where the label is c, else 0; 0 in every class where void

    Use it to feed labels to a ``binary_`` loss.

    Args:
        target: labels.
        num_classes: c.

    Returns:
        float32 [n c *s]; NaN at a pixel whose label is neither void nor a class.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or num_classes < 1.

    Differs from:
        F.one_hot, which puts the classes last and raises on void labels.

    Source:
        Iverson, *A Programming Language*, 1962: the bracket [label = c].

    Example:
        >>> one_hot(torch.tensor([[1, -100, 0]]), 2)
        tensor([[[0., 0., 1.],
                 [1., 0., 0.]]])
    """
    return labels.one_hot(target, num_classes, ignore_index=ignore_index)


class EdgeWeight(LossModule):
    """`edge_weight` as a Module."""

    @options_of(edge_weight)
    def __init__(self) -> None: ...

    @call_of(edge_weight)
    def __call__(self) -> None: ...


class InverseFrequency(LossModule):
    """`inverse_frequency` as a Module."""

    @options_of(inverse_frequency)
    def __init__(self) -> None: ...


class OneHot(LossModule):
    """`one_hot` as a Module."""

    @options_of(one_hot)
    def __init__(self) -> None: ...
