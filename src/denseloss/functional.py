"""Every public function under its own name, as in `torch.nn.functional`.

NaN? No function reads values to decide: a label that is no class, or a mask of 0 and 255, makes
its value NaN. `denseloss.testing.diagnose` says which input is wrong, as in
``diagnose(dice_loss, logits, target)``.
"""

from typing import TYPE_CHECKING

from denseloss import losses, metrics, weights
from denseloss.losses import *
from denseloss.metrics import *
from denseloss.weights import *

if not TYPE_CHECKING:  # as in denseloss.losses
    __all__ = [*losses.__all__, *metrics.__all__, *weights.__all__]
    __all__ = [name for name in __all__ if name.islower()]
