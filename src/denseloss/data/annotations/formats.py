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
from denseloss.data.errors import DataError
from denseloss.data.paths import meaning


def is_installed() -> bool:
    """Whether Datumaro is there, which comes with an extra."""
    return importlib.util.find_spec("datumaro") is not None


def read_formats(root: Path) -> Annotated | None:
    """Read whatever Datumaro detects in a folder, None where that is nothing."""
    if not is_installed():
        return None
    import datumaro
    from datumaro.components.environment import Environment

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it speaks of every image, through the root of all logs
    try:
        return _first_that_reads(root, Environment().detect_dataset(str(root)), datumaro)
    finally:
        logging.disable(before)


def _first_that_reads(root: Path, detected: Sequence[str], datumaro: Any) -> Annotated | None:
    failed = ""
    for name in _preferred(detected):
        try:
            dataset = datumaro.Dataset.import_from(str(root), name)
            found = _read(root, name, dataset)
        except DataError:
            raise
        except Exception as error:
            failed = failed or f"looks like {name}, but Datumaro cannot read it ({error})"
            continue
        if found.images:
            return found
    if failed:
        raise DataError(f"{root}: {failed}")
    return None


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
