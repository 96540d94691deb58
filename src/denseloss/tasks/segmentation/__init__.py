"""Semantic segmentation: images with masks of classes, with one foreground or many classes."""

from denseloss.tasks.segmentation.check import SegmentationReport, check_data
from denseloss.tasks.segmentation.data import SegmentationData, open_data
from denseloss.tasks.segmentation.dataset import SegmentationDataset
from denseloss.tasks.segmentation.task import Segmentation, SegmentationSettings

__all__ = [
    "TASK",
    "Segmentation",
    "SegmentationData",
    "SegmentationDataset",
    "SegmentationReport",
    "SegmentationSettings",
    "check_data",
    "open_data",
]

TASK = Segmentation
