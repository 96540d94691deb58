"""Which loss suits the data: trials, statistics and the report."""

from denseloss.compare.run import CompareResult, compare, report
from denseloss.compare.settings import CompareSettings

__all__ = ["CompareResult", "CompareSettings", "compare", "report"]
