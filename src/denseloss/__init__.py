"""denseloss: the losses of dense prediction, exact and proven.

    import denseloss
    loss = denseloss.FocalLoss(gamma=2)(logits, target)
    loss = denseloss.functional.focal_loss(logits, target, gamma=2)

Nothing here imports more than torch; the training tool lives in `denseloss.train`.
"""

from typing import TYPE_CHECKING

from denseloss import backend as backend
from denseloss import compose as compose
from denseloss import distributed as distributed
from denseloss import functional as functional
from denseloss import losses as losses
from denseloss import metrics as metrics
from denseloss import weights as weights
from denseloss.compose import AtTargetSize as AtTargetSize
from denseloss.compose import DeepSupervision as DeepSupervision
from denseloss.compose import WeightedSum as WeightedSum
from denseloss.losses import *
from denseloss.metrics import *
from denseloss.module import LossModule as LossModule
from denseloss.targets import ClassScores as ClassScores
from denseloss.weights import *

__version__ = "0.1.0"  # the only place; pyproject.toml reads it here

if not TYPE_CHECKING:  # as in denseloss.losses; what is imported "as" its own name is public, too
    __all__ = ["AtTargetSize", "ClassScores", "DeepSupervision", "LossModule", "WeightedSum"]
    __all__ += ["backend", "compose", "distributed", "functional", "losses", "metrics", "weights"]
    __all__ += [name for name in losses.__all__ if name not in functional.__all__]
    __all__ += [name for name in metrics.__all__ if name not in functional.__all__]
    __all__ += [name for name in weights.__all__ if name not in functional.__all__]
