"""Every public function under its own name, as in `torch.nn.functional`."""

from denseloss.losses import *
from denseloss.metrics import *
from denseloss.weights import *

__all__ = [
    "balanced_cross_entropy_loss",
    "binary_cross_entropy_loss",
    "binary_dice_loss",
    "binary_f_score",
    "binary_focal_loss",
    "binary_jaccard_loss",
    "binary_tversky_loss",
    "ciou_loss",
    "cross_entropy_loss",
    "dice_loss",
    "diou_loss",
    "distribution_focal_loss",
    "distribution_mean",
    "edge_weight",
    "f_score",
    "focal_loss",
    "giou_loss",
    "inverse_frequency",
    "iou_loss",
    "jaccard_loss",
    "ncut_loss",
    "one_hot",
    "quality_focal_loss",
    "structure_loss",
    "tversky_loss",
    "varifocal_loss",
]
