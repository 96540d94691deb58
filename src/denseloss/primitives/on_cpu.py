"""Imported at the first call on the CPU: offers the operators in C, or says why there are none.

A module, because torch.compile runs an import as it stands, with the exceptions in it; those of a
function it would have to trace.
"""

from denseloss.backend import Missing
from denseloss.primitives.cpu.library import Unavailable

missing: Missing | None = None
try:
    import denseloss.primitives.cpu.operators  # noqa: F401 - offers them
except Unavailable as error:
    missing = Missing(str(error), error.mendable)
