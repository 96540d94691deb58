"""Which loss suits the data: trials, statistics and the report."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from denseloss.compare.run import CompareResult, compare, make_report
    from denseloss.compare.settings import CompareSettings

__all__ = ["CompareResult", "CompareSettings", "compare", "make_report"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a trial's process, which starts often, needs little of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "settings" if name == "CompareSettings" else "run"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
