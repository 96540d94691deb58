"""Every public function under its own name, as in `torch.nn.functional`."""

from denseloss import losses, metrics, weights
from denseloss.losses import *
from denseloss.metrics import *
from denseloss.weights import *

__all__ = sorted(
    name for name in (*losses.__all__, *metrics.__all__, *weights.__all__) if name.islower()
)
