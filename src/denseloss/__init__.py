"""denseloss: the losses of dense prediction, exact and proven.

    import denseloss
    loss = denseloss.FocalLoss(gamma=2)(logits, target)
    loss = denseloss.functional.focal_loss(logits, target, gamma=2)

Nothing here imports more than torch; the training tool lives in `denseloss.train`.
"""

from denseloss import backend, compose, distributed, functional, losses, metrics, weights
from denseloss.compose import AtTargetSize, DeepSupervision, WeightedSum
from denseloss.losses import *
from denseloss.metrics import *
from denseloss.weights import *

__version__ = "0.1.0"

__all__ = [
    "AtTargetSize",
    "DeepSupervision",
    "WeightedSum",
    "backend",
    "compose",
    "distributed",
    "functional",
    "losses",
    "metrics",
    "weights",
]
__all__ += [
    name for name in (*losses.__all__, *metrics.__all__, *weights.__all__) if not name.islower()
]
