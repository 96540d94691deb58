"""Fast versions: operators of one pass, and the autograd Functions over them.

`register` puts them into the table of `denseloss.backend`. Each has the arguments of what it stands
for, and answers None where its operators do not take them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from denseloss.backend import implement
from denseloss.primitives.fused import affinity, column, region, rows

__all__ = ["register"]

VERSIONS: dict[str, Callable[..., Any]] = {
    "association": affinity.association,
    "balanced_cross_entropy_loss": column.balanced_cross_entropy,
    "binary_cross_entropy_loss": rows.binary_cross_entropy,
    "binary_focal_loss": rows.binary_focal,
    "box_mean": region.box_mean,
    "ciou_loss": rows.box_losses("ciou"),
    "cross_entropy_loss": column.cross_entropy,
    "diou_loss": rows.box_losses("diou"),
    "distribution_focal_loss": rows.distribution_focal,
    "edge_sums": region.edge_sums,
    "focal_loss": column.focal,
    "giou_loss": rows.box_losses("giou"),
    "iou_loss": rows.box_losses("iou"),
    "quality_focal_loss": rows.quality_focal,
    "sigmoid_overlap": region.overlap,
    "softmax_overlap": column.overlap,
    "together": column.together,
    "varifocal_loss": rows.varifocal,
}


def register(backend: str) -> None:
    """Offer the fast versions on a backend whose operators are implemented."""
    for name, version in VERSIONS.items():
        implement(name, backend=backend)(version)
