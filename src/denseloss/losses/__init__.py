"""The catalogue. A loss is found by its name in ``__all__``; there is no registry."""

from denseloss.losses.affinity import *
from denseloss.losses.box import *
from denseloss.losses.distribution import *
from denseloss.losses.pixel import *
from denseloss.losses.quality import *
from denseloss.losses.region import *
from denseloss.losses.structure import *

# A literal list: type checkers do not follow sums of lists, and would see no loss at all.
__all__ = [
    "BalancedCrossEntropyLoss",
    "BinaryCrossEntropyLoss",
    "BinaryDiceLoss",
    "BinaryFocalLoss",
    "BinaryJaccardLoss",
    "BinaryTverskyLoss",
    "CIoULoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "DistributionMean",
    "FocalLoss",
    "GIoULoss",
    "IoULoss",
    "JaccardLoss",
    "NCutLoss",
    "QualityFocalLoss",
    "StructureLoss",
    "TverskyLoss",
    "VarifocalLoss",
    "balanced_cross_entropy_loss",
    "binary_cross_entropy_loss",
    "binary_dice_loss",
    "binary_focal_loss",
    "binary_jaccard_loss",
    "binary_tversky_loss",
    "ciou_loss",
    "cross_entropy_loss",
    "dice_loss",
    "diou_loss",
    "distribution_focal_loss",
    "distribution_mean",
    "focal_loss",
    "giou_loss",
    "iou_loss",
    "jaccard_loss",
    "ncut_loss",
    "quality_focal_loss",
    "structure_loss",
    "tversky_loss",
    "varifocal_loss",
]
