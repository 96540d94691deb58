"""labelme's json: one file beside each image."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image

from denseloss.data.annotations.outlines import (
    VOID,
    Annotated,
    AnnotatedImage,
    Object,
    Outlined,
    check_count,
    classes_of,
    labels_of,
    outline_of,
)
from denseloss.data.errors import DataError
from denseloss.data.files import read_text
from denseloss.data.folders import Folder
from denseloss.data.images import size_as_said
from denseloss.data.samples import Findings

_VOID = "__ignore__"
_CORNERS_OF_A_CIRCLE = 64


def read_labelme(root: Path, folders: Sequence[Folder], findings: Findings) -> Annotated | None:
    """Read the json files of labelme, one for each image, None where there are none.

    They lie beside the images, or in folders of their own under the images' names.
    """
    found: list[tuple[Folder, Path, Path, Any]] = []
    broken: list[tuple[str, Path]] = []
    left = 0
    apart: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.json")):
        apart.setdefault(file.stem, []).append(file)
    for folder in folders:
        for picture in folder.files:
            beside, others = picture.with_suffix(".json"), apart.get(picture.stem, [])
            file = beside if beside in others or len(others) != 1 else others[0]
            if not file.is_file():
                left += 1
                continue
            try:
                said = json.loads(read_text(file))
                _ = [(s["label"], s["points"]) for s in said["shapes"]]
                _size(said)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                text = f"cannot be read ({type(error).__name__}: {error}); repair or remove it"
                broken.append((f"{file}: {text}", picture))
                continue
            found.append((folder, picture, file, said))
    if not found:
        return None
    for text, picture in broken:
        findings.problem(text, picture)
    used = {str(shape["label"]) for *_, said in found for shape in said["shapes"]}
    labels = labels_of(sorted(used - {_VOID})) | {_VOID: VOID}
    check_count(root, classes_of(labels))
    images = []
    for folder, picture, file, said in found:
        try:
            size = size_as_said(picture, _size(said), file)
        except DataError as error:
            findings.problem(str(error), picture)
            continue
        objects = []
        for shape in said["shapes"]:
            try:
                outline = outline_of(_outline(shape, size))
            except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
                what = f"a {shape.get('shape_type')} of {shape['label']}"
                raise DataError(
                    f"{file}: {what} cannot be read ({error}); repair the file"
                ) from None
            objects.append(Object(labels[str(shape["label"])], outline))
        truth = Outlined(file, size, tuple(objects))
        name = "/".join([*folder.place, picture.stem])
        images.append(AnnotatedImage(name, picture, folder.split, truth))
    notes = [f"{left} images without a json, left out"] * bool(left)
    kind = f"labelme's json in {root}"
    return Annotated(kind, classes_of(labels), tuple(images), notes=tuple(notes))


def _size(said: Any) -> tuple[int, int] | None:
    width, height = said.get("imageWidth"), said.get("imageHeight")
    return (int(width), int(height)) if width and height else None


def _outline(shape: Any, size: tuple[int, int]) -> Any:
    """COCO's form of a shape, None for one without an area."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return [points] if points else None
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[0], points[-1] if len(points) == 2 else points[2]
        return ((x0, y0, x1, y0, x1, y1, x0, y1),)
    if kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * i / _CORNERS_OF_A_CIRCLE for i in range(_CORNERS_OF_A_CIRCLE)]
        return ([(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns],)
    if kind == "mask":
        return _mask(shape, size)
    return None


def _mask(shape: Any, size: tuple[int, int]) -> Any:
    picture = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
    # A part of the image, which may reach over its edge.
    whole = Image.new("L", size)
    whole.paste(picture.convert("L").point(bool), tuple(round(v) for v in shape["points"][0]))
    return rle.encode(np.asfortranarray(np.asarray(whole)))
