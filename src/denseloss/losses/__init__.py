"""The catalogue. A loss is found by its name in ``__all__``; there is no registry."""

from denseloss.losses import affinity, box, distribution, pixel, quality, region, structure
from denseloss.losses.affinity import *
from denseloss.losses.box import *
from denseloss.losses.distribution import *
from denseloss.losses.pixel import *
from denseloss.losses.quality import *
from denseloss.losses.region import *
from denseloss.losses.structure import *

__all__: list[str] = []
__all__ += affinity.__all__
__all__ += box.__all__
__all__ += distribution.__all__
__all__ += pixel.__all__
__all__ += quality.__all__
__all__ += region.__all__
__all__ += structure.__all__
