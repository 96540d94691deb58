"""Objects out of annotation files: COCO, YOLO, labelme, and what Datumaro reads."""

from collections.abc import Sequence
from pathlib import Path

from denseloss.data.annotations.coco import read_coco
from denseloss.data.annotations.formats import is_installed, read_formats
from denseloss.data.annotations.labelme import read_labelme
from denseloss.data.annotations.outlines import Annotated, AnnotatedImage, Object, Outlined
from denseloss.data.annotations.unread import unread_format
from denseloss.data.annotations.yolo import read_yolo
from denseloss.data.folders import Folder
from denseloss.data.samples import Findings

__all__ = [
    "Annotated",
    "AnnotatedImage",
    "Object",
    "Outlined",
    "is_installed",
    "read_annotations",
    "read_formats",
    "unread_format",
]


def read_annotations(root: Path, folders: Sequence[Folder], findings: Findings) -> Annotated | None:
    """Read the annotation files below a folder.

    Args:
        root: The folder.
        folders: Those in it that hold pictures.
        findings: Where what is wrong with them is told.

    Returns:
        What they say; None where there are none that are understood.

    Raises:
        DataError: They are there, and broken.
    """
    for read in (read_coco, read_labelme, read_yolo):
        found = read(root, folders, findings)
        if found is not None:
            return found
    return None
