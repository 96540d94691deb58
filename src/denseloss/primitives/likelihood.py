"""How likely the truth of single yes-or-no elements is: log-probabilities, in log space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.primitives import void
from denseloss.targets import ClassScores

__all__ = [
    "TINY",
    "Bernoulli",
    "balanced",
    "sigmoid_likelihood",
]

# Powers of a probability are taken of at least this, so that the gradient of m ** gamma at m = 0
# is 0 and not inf * 0. A probability below it differs from 0 in no sum.
TINY = torch.finfo(torch.float32).tiny


# No named tuple, whose properties torch.compile of 2.6 does not find.
@dataclass(slots=True, eq=False)
class Bernoulli:
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


def sigmoid_likelihood(
    logits: Tensor,
    target: Tensor | ClassScores,
    weight: Tensor | None,
    ignore_index: int | None = None,
    *,
    quality: bool = False,
) -> Bernoulli:
    """The log-probabilities of yes and no for each element."""
    z, target, weight = void.elements(logits, target, weight, ignore_index, quality=quality)
    return Bernoulli(F.logsigmoid(z), F.logsigmoid(-z), target, weight)


def balanced(alpha: float, target: Tensor) -> Tensor:
    """Alpha for what is, 1 - alpha for what is not."""
    return alpha * target + (1 - alpha) * (1 - target)
