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
from denseloss.targets import ClassScores
from denseloss.weights import *

__version__ = "0.1.0"

__all__ = [
    "AtTargetSize",
    "BalancedCrossEntropyLoss",
    "BinaryCrossEntropyLoss",
    "BinaryDiceLoss",
    "BinaryFScore",
    "BinaryFocalLoss",
    "BinaryJaccardLoss",
    "BinaryTverskyLoss",
    "CIoULoss",
    "ClassScores",
    "CrossEntropyLoss",
    "DIoULoss",
    "DeepSupervision",
    "DiceLoss",
    "DistributionFocalLoss",
    "DistributionMean",
    "EdgeWeight",
    "FScore",
    "FocalLoss",
    "GIoULoss",
    "InverseFrequency",
    "IoULoss",
    "JaccardLoss",
    "NCutLoss",
    "OneHot",
    "QualityFocalLoss",
    "StructureLoss",
    "TverskyLoss",
    "VarifocalLoss",
    "WeightedSum",
    "backend",
    "compose",
    "distributed",
    "functional",
    "losses",
    "metrics",
    "weights",
]
