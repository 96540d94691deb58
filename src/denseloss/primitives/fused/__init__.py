"""Fast versions: operators of one pass, and the autograd Functions over them.

`register` puts them into the table of `denseloss.backend`. Each has the arguments of what it stands
for, and answers `Declined` where its operators do not take them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from denseloss.backend import implement
from denseloss.primitives.fused import (
    affinity,
    bins,
    boxes,
    elementwise,
    labels,
    reduce,
    sigmoid,
    softmax,
    windows,
)
from denseloss.primitives.fused.proof import proven

__all__ = ["register"]

VERSIONS: dict[str, Callable[..., Any]] = {
    "association": affinity.association,
    "bin_loss": bins.bin_loss,
    "box_loss": boxes.box_loss,
    "box_mean": windows.box_mean,
    "class_count": labels.class_count,
    "class_values": labels.class_values,
    "edge_sums": sigmoid.edge_sums,
    "element_loss": elementwise.element_loss,
    "linear_ratio": reduce.linear_ratio,
    "sigmoid_sums": sigmoid.sigmoid_sums,
    "softmax_pass": softmax.softmax_pass,
    "weighted_mean": reduce.weighted_mean,
}


def register(backend: str, *, measured: bool = True) -> None:
    """Offer the fast versions on a backend whose operators are implemented.

    Args:
        backend: its name.
        measured: whether they have been tested on such a device; where not, each proves itself
            before it is used.
    """
    for name, version in VERSIONS.items():
        implement(name, backend=backend)(version if measured else proven(name, version))
