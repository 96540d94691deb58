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
    classes_of,
    labels_of,
)
from denseloss.data.errors import DataError
from denseloss.data.files import read_text
from denseloss.data.folders import Folder
from denseloss.data.samples import Findings

_VOID = "__ignore__"
_CORNERS_OF_A_CIRCLE = 64


def read_labelme(root: Path, folders: Sequence[Folder], findings: Findings) -> Annotated | None:
    """Read the json files of labelme beside the images, None where there are none."""
    found: list[tuple[Folder, Path, Path, Any]] = []
    left = 0
    for folder in folders:
        for picture in folder.files:
            file = picture.with_suffix(".json")
            if not file.is_file():
                left += 1
                continue
            try:
                said = json.loads(read_text(file))
                _ = [(s["label"], s["points"]) for s in said["shapes"]]
            except (ValueError, KeyError, TypeError) as error:
                if found:
                    text = f"cannot be read ({type(error).__name__}: {error}); repair or remove it"
                    findings.problem(f"{file}: {text}", picture)
                continue
            found.append((folder, picture, file, said))
    if not found:
        return None
    used = {str(shape["label"]) for *_, said in found for shape in said["shapes"]}
    labels = labels_of(sorted(used - {_VOID})) | {_VOID: VOID}
    images, skipped = [], 0
    for folder, picture, file, said in found:
        with Image.open(picture) as opened:
            size = opened.size
        size = (int(said.get("imageWidth") or size[0]), int(said.get("imageHeight") or size[1]))
        objects = []
        for shape in said["shapes"]:
            outline = _outline(file, shape, size)
            if outline is None:
                skipped += 1
            else:
                objects.append(Object(labels[str(shape["label"])], outline))
        truth = Outlined(file, size, tuple(objects))
        name = "/".join([*folder.place, picture.stem])
        images.append(AnnotatedImage(name, picture, folder.split, truth))
    notes = [f"{left} images without a json, left out"] * bool(left)
    notes += [f"{skipped} lines and points have no area: they are not drawn"] * bool(skipped)
    kind = f"labelme's json in {root}"
    return Annotated(kind, classes_of(labels), tuple(images), notes=tuple(notes))


def _outline(file: Path, shape: Any, size: tuple[int, int]) -> Any:
    """COCO's form of a shape, None for one without an area."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    try:
        if kind == "polygon":
            return (
                (tuple(float(v) for point in points for v in point),) if len(points) > 2 else None
            )
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points[0], points[-1] if len(points) == 2 else points[2]
            return ((x0, y0, x1, y0, x1, y1, x0, y1),)
        if kind == "circle":
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            turns = [2 * math.pi * i / _CORNERS_OF_A_CIRCLE for i in range(_CORNERS_OF_A_CIRCLE)]
            return (
                tuple(
                    v
                    for turn in turns
                    for v in (x + radius * math.cos(turn), y + radius * math.sin(turn))
                ),
            )
        if kind == "mask":
            return _mask(shape, size)
    except (ValueError, TypeError, IndexError, OSError) as error:
        raise DataError(
            f"{file}: a {kind} of {shape['label']} cannot be read ({error}); repair the file"
        ) from None
    return None


def _mask(shape: Any, size: tuple[int, int]) -> Any:
    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
    left, top = (round(v) for v in shape["points"][0])
    whole = np.zeros((size[1], size[0]), dtype=np.uint8)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return rle.encode(np.asfortranarray(whole))
