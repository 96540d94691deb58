"""A loss of your own, beside those of denseloss: a sum of cross entropy and of 1 - p.

    denseloss show examples/my_loss.py:poly_loss
    denseloss train DATA --loss "examples/my_loss.py:poly_loss(epsilon=2) + 0.5*dice"
    denseloss compare DATA --loss cross_entropy --loss examples/my_loss.py:poly_loss

The annotations say what the arguments are: scores, and the class of each pixel. On a binary task
there are then two classes. Without annotations the loss would get class indices where there are
several classes, and otherwise one channel with the mask of the foreground.

`ignore_index` is what the target holds where a pixel is void. A loss that has a `weight` instead
gets 0 there and 1 elsewhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from denseloss.contract import ClassMap, Logits


def poly_loss(
    logits: Logits, target: ClassMap, *, epsilon: float = 1.0, ignore_index: int = -100
) -> Tensor:
    """Cross entropy whose first term, 1 - p, counts more.

    L = mean(-log p_t + ε (1 - p_t)),   p = softmax(z)

    Leng et al., *PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions*,
    ICLR 2022, eq. 6, arXiv:2204.12511.
    """
    entropy = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # Where void the entropy is 0 and p is 1, so that nothing is added.
    values = entropy + epsilon * (1 - torch.exp(-entropy))
    return values.sum() / (target != ignore_index).sum().clamp(min=1)
