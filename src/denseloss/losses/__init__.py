"""The catalogue: every name in the ``__all__`` of a family. There is no registry."""

from typing import TYPE_CHECKING

from denseloss.losses.affinity import *
from denseloss.losses.box import *
from denseloss.losses.distribution import *
from denseloss.losses.pixel import *
from denseloss.losses.quality import *
from denseloss.losses.region import *
from denseloss.losses.structure import *

# mypy does not follow sums of lists, and would find no loss in them. Without a list it takes what
# a star imports as public, which is the same.
if not TYPE_CHECKING:
    __all__ = []  # in the order in which the documentation shows them
    __all__ += pixel.__all__
    __all__ += region.__all__
    __all__ += structure.__all__
    __all__ += affinity.__all__
    __all__ += quality.__all__
    __all__ += box.__all__
    __all__ += distribution.__all__
