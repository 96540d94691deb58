"""Fast versions on CUDA devices: one pass in Triton. Importing this offers them where there is one.

With TRITON_INTERPRET=1 they are the versions of the CPU instead, for tests without a GPU.
"""

import os

import torch

from denseloss.primitives import fused
from denseloss.primitives.cuda import (
    association,
    bins,
    boxes,
    column,
    edge,
    labels,
    pointwise,
    region,
    rescale,
)
from denseloss.primitives.fused import ops

BACKEND = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

ops.implement(
    BACKEND.upper(),
    {
        "pointwise": pointwise.pointwise,
        "boxes": boxes.boxes,
        "bins": bins.bins,
        "column": column.column,
        "column_backward": column.column_backward,
        "region": region.region,
        "region_backward": region.region_backward,
        "edge": edge.edge,
        "association": association.association,
        "association_backward": association.association_backward,
        "label_count": labels.label_count,
        "rescale": rescale.rescale,
    },
)
if BACKEND == "cpu" or torch.cuda.is_available():
    fused.register(BACKEND)
