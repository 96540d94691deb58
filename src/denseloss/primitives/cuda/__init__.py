"""Fast versions on CUDA devices: one pass in Triton. Importing this offers them where there is one.

With TRITON_INTERPRET=1 they are the versions of the CPU instead, for tests without a GPU.
"""

import os

import torch

from denseloss.primitives import fused
from denseloss.primitives.cuda import (
    affinity,
    bins,
    boxes,
    elementwise,
    labels,
    mean,
    ratio,
    rescale,
    sigmoid,
    softmax,
    windows,
)
from denseloss.primitives.fused import ops

# The GPUs on which tests/test_backends.py has passed with these kernels. None has been at hand yet:
# until then each fast version on CUDA compares itself with its definition before its first use.
MEASURED: tuple[str, ...] = ()

BACKEND = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

ops.implement(
    BACKEND.upper(),
    {
        "elementwise": elementwise.elementwise,
        "boxes": boxes.boxes,
        "bins": bins.bins,
        "softmax": softmax.softmax,
        "softmax_backward": softmax.softmax_backward,
        "sigmoid": sigmoid.sigmoid,
        "sigmoid_backward": sigmoid.sigmoid_backward,
        "edge": windows.edge,
        "association": affinity.association,
        "association_backward": affinity.association_backward,
        "label_count": labels.label_count,
        "class_values": labels.class_values,
        "weighted_mean": mean.weighted_mean,
        "weighted_mean_backward": mean.weighted_mean_backward,
        "ratio": ratio.ratio,
        "ratio_backward": ratio.ratio_backward,
        "rescale": rescale.rescale,
    },
)
if BACKEND == "cpu" or torch.cuda.is_available():
    fused.register(BACKEND, measured=BACKEND == "cpu" or bool(MEASURED))
