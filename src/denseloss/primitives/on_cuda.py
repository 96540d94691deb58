"""Imported at the first call on CUDA: offers the operators in Triton, or says why there are none.

A module for the reason of `denseloss.primitives.on_cpu`.
"""

from denseloss.backend import Missing

missing: Missing | None = None
try:
    import denseloss.primitives.cuda  # noqa: F401 - offers them
except (ImportError, RuntimeError) as error:
    missing = Missing(str(error))
