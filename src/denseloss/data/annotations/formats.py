"""All other formats with annotation files, read by Datumaro."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image

from denseloss.data.annotations.outlines import (
    Annotated,
    AnnotatedImage,
    Object,
    Outlined,
    classes_of,
    labels_of,
)
from denseloss.data.paths import meaning

# What every folder of images looks like.
_ANY_FOLDER = ("image_dir", "image_zip")


def is_installed() -> bool:
    """Whether Datumaro is there, which comes with an extra."""
    return importlib.util.find_spec("datumaro") is not None


def read_formats(root: Path) -> Annotated | str | None:
    """Read whatever Datumaro detects in a folder.

    Returns:
        What it says; a sentence where a format was detected that cannot be read; None where there
        is nothing.
    """
    if not is_installed():
        return None
    import datumaro
    from datumaro.components.environment import Environment

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it speaks of every image, through the root of all logs
    failed = None
    try:
        for name in _preferred(_detected(Environment(), root)):
            try:
                found = _read(root, name, datumaro.Dataset.import_from(str(root), name))
            except Exception as error:  # whatever a reader of a stranger's file may raise
                failed = failed or f"Datumaro takes it for {name} and cannot read it ({error})"
                continue
            if found.images:
                return found
    finally:
        logging.disable(before)
    return failed


def _detected(environment: Any, root: Path) -> list[str]:
    try:
        found: list[str] = environment.detect_dataset(str(root))
    except Exception:  # a detector that lacks a package of its own, say
        return []
    return [name for name in found if name not in _ANY_FOLDER]


def _preferred(detected: Sequence[str]) -> Iterator[str]:
    yield from (name for name in detected if "segm" in name or "mask" in name)
    yield from (name for name in detected if not ("segm" in name or "mask" in name))


def _read(root: Path, kind: str, dataset: Any) -> Annotated:
    import datumaro

    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    labels = labels_of(names)
    images = []
    for item in dataset:
        path = getattr(item.media, "path", None)
        if not path or not Path(path).is_file():
            continue
        with Image.open(path) as picture:
            size = picture.size
        objects = [
            Object(labels[names[a.label]], outline)
            for a in sorted(item.annotations, key=lambda a: getattr(a, "z_order", 0))
            if a.label is not None and (outline := _outline(a, size)) is not None
        ]
        split = meaning(item.subset or "").split
        truth = Outlined(Path(path), size, tuple(objects))
        images.append(AnnotatedImage(str(item.id), Path(path), split, truth))
    if images and not any(image.truth.objects for image in images):
        return Annotated(kind, (), ())
    said = f"{kind} in {root}, read by Datumaro"
    return Annotated(said, classes_of(labels), tuple(images))


def _outline(annotation: Any, size: tuple[int, int]) -> Any:
    if hasattr(annotation, "points") and annotation.type.name == "polygon":
        return (tuple(annotation.points),)
    if annotation.type.name == "mask":
        image = np.asarray(annotation.image, dtype=np.uint8)
        if image.shape == (size[1], size[0]):
            return rle.encode(np.asfortranarray(image))
    return None
