"""Images, samples and synthetic scenes: what every task's data is made of."""

from denseloss.data.errors import DataError
from denseloss.data.samples import VOID, Sample
from denseloss.data.transforms import denormalise, normalise

__all__ = ["VOID", "DataError", "Sample", "denormalise", "normalise"]
