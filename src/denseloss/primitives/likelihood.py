"""How likely the truth is under the logits: log-probabilities, in log space throughout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.backend import primitive
from denseloss.primitives import void
from denseloss.targets import ClassScores

__all__ = [
    "Bernoulli",
    "Categorical",
    "class_count",
    "one_hot",
    "sigmoid_likelihood",
    "softmax_likelihood",
]

# Powers of a probability are taken of at least this, so that the gradient of m ** gamma at m = 0
# is 0 and not inf * 0. A probability below it differs from 0 in no sum.
TINY = torch.finfo(torch.float32).tiny


class Categorical(NamedTuple):
    """One of ``c`` exclusive classes: k = 1 row for labels, k = c rows for class probabilities."""

    log_p: Tensor
    """[n k *s] log-probability of the class of each row."""
    share: Tensor
    """[n k *s] how much of the pixel is of that class; 1 for labels."""
    label: Tensor | None
    """int64 [n *s], the class of the one row; None for probabilities, where row k is class k."""
    weight: Tensor
    """[n *s], 0 where void."""

    @property
    def miss(self) -> Tensor:
        """1 - p, [n k *s], without the cancellation of that subtraction."""
        return (-torch.expm1(self.log_p)).clamp_min(TINY)

    @property
    def valid(self) -> Tensor:
        """1 where a pixel counts at all, 0 where it is void; [n *s]."""
        return (self.weight.detach() != 0).to(self.log_p.dtype)

    def pixels(self, num_classes: int) -> Tensor:
        """The number of valid pixels of each class in the batch, [c]."""
        if self.label is not None:
            return class_count(self.label, num_classes, self.valid).to(self.log_p.dtype)
        return (self.valid.unsqueeze(1) * self.share).transpose(0, 1).flatten(1).sum(1)

    def per_class(self, value: Tensor) -> Tensor:
        """A value per class [c], brought to the rows."""
        value = value.to(self.log_p.dtype)
        if self.label is not None:
            return value[self.label].unsqueeze(1)
        return value.reshape(-1, *[1] * (self.log_p.ndim - 2))


@primitive
def softmax_likelihood(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None
) -> Categorical:
    """The log-probability of each pixel's class, or of every class where the target is soft."""
    z, target, weight = void.pixels(logits, target, weight, ignore_index)
    log_p = F.log_softmax(z, dim=1)
    if target.is_floating_point():
        return Categorical(log_p, target, None, weight)
    log_p = log_p.gather(1, target.unsqueeze(1))
    return Categorical(log_p, torch.ones_like(log_p), target, weight)


class Bernoulli(NamedTuple):
    """Independent yes-or-no elements, all of one shape."""

    log_p: Tensor
    """log sigmoid(z)"""
    log_q: Tensor
    """log sigmoid(-z) = log(1 - p), exact where p rounds to 1"""
    target: Tensor
    weight: Tensor | None

    @property
    def p(self) -> Tensor:
        """The probability of yes."""
        return self.log_p.exp()

    @property
    def entropy(self) -> Tensor:
        """BCE(p, t) = -t log p - (1-t) log(1-p)."""
        return -(self.target * self.log_p + (1 - self.target) * self.log_q)

    @property
    def miss(self) -> Tensor:
        """1 - p_t, the probability given to the wrong answer."""
        t = self.target
        return (t * self.log_q.exp() + (1 - t) * self.log_p.exp()).clamp_min(TINY)


@primitive
def sigmoid_likelihood(
    logits: Tensor,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None = None,
) -> Bernoulli:
    """The log-probabilities of yes and no for each element."""
    z, target, weight = void.elements(logits, target, weight, ignore_index)
    return Bernoulli(F.logsigmoid(z), F.logsigmoid(-z), target, weight)


def one_hot(target: Tensor, num_classes: int, *, ignore_index: int | None = -100) -> Tensor:
    """Labels int[n *s] as float32 [n c *s]; see `denseloss.functional.one_hot`."""
    classes = torch.arange(num_classes, device=target.device)
    label = target.long()
    hot = (label.unsqueeze(1) == classes.reshape(-1, *[1] * (target.ndim - 1))).float()
    outside = (label < 0) | (label >= num_classes)
    if ignore_index is not None:
        void = label == ignore_index
        outside = outside & ~void
        # ignore_index may itself be the number of a class, which is then void everywhere.
        hot = torch.where(void.unsqueeze(1), 0.0, hot)
    return torch.where(outside.unsqueeze(1), torch.nan, hot)


def class_count(label: Tensor, num_classes: int, valid: Tensor) -> Tensor:
    """The number of valid pixels of each class, int64 [c], from labels that are classes."""
    count = torch.zeros(num_classes, dtype=torch.int64, device=label.device)
    return count.scatter_add(0, label.flatten(), valid.long().flatten())
