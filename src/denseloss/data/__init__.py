"""Data to train on: folders of images and masks, Pascal VOC and synthetic scenes."""

from denseloss.data.check import DataReport, check_data
from denseloss.data.dataset import SegmentationDataset, denormalise, normalise
from denseloss.data.samples import VOID, DataError, Sample, Task
from denseloss.data.segmentation import SegmentationData, open_data

__all__ = [
    "VOID",
    "DataError",
    "DataReport",
    "Sample",
    "SegmentationData",
    "SegmentationDataset",
    "Task",
    "check_data",
    "denormalise",
    "normalise",
    "open_data",
]
