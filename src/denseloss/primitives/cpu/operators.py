"""The operators of `denseloss.primitives.fused.ops` in C. Importing this offers them."""

from denseloss.primitives import fused
from denseloss.primitives.cpu import (
    affinity,
    bins,
    boxes,
    elementwise,
    labels,
    mean,
    rescale,
    sigmoid,
    softmax,
    windows,
)
from denseloss.primitives.fused import ops

FILES = [affinity, bins, boxes, elementwise, labels, mean, rescale, sigmoid, softmax, windows]
ops.implement(
    "CPU",
    {name: getattr(file, name) for file in FILES for name in ops.SCHEMAS if hasattr(file, name)},
)
fused.register("cpu")
