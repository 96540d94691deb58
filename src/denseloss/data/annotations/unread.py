"""Annotation files that are not read, told by words in them, and what to do instead."""

import itertools
import re
from pathlib import Path

_SOME = 5
_HEAD = 1 << 16
_EXPORT = "export COCO json, or a PNG mask for each image, from the tool that made them"
_DRAW = (
    "draw a PNG mask for each image, or give a data set in Python (denseloss check my_data.py:make)"
)
# The words that a file has, all of them, and what it is.
_SIGNS = (
    (".json", ('"classTitle"',), "Supervisely's json", _EXPORT),
    (".json", ('"region_attributes"',), "VIA's json (VGG Image Annotator)", _EXPORT),
    (".json", ('"slots"', '"annotations"'), "V7's json (Darwin)", _EXPORT),
    (".json", ('"paths"', '"polygon"'), "V7's json (Darwin)", _EXPORT),
    (".json", ('"from_name"', '"to_name"'), "Label Studio's json", _EXPORT),
    (".json", ('"data_row"',), "Labelbox's json", _EXPORT),
    (".json", ('"Labeled Data"',), "Labelbox's json", _EXPORT),
    (".ndjson", ('"data_row"',), "Labelbox's json", _EXPORT),
    (".json", ('"asset"', '"regions"'), "VoTT's json", _EXPORT),
    (".json", ('"poly2d"',), "BDD100K's json", _DRAW),
    (".json", ('"imgHeight"', '"objects"'), "Cityscapes' polygons", _DRAW),
    (".json", ('"FeatureCollection"',), "GeoJSON, as QuPath and maps have it", _DRAW),
    (".geojson", ('"FeatureCollection"',), "GeoJSON, as QuPath and maps have it", _DRAW),
    (".json", ('"export_format_version"', '"label_classes"'), "Hasty's json", _EXPORT),
    (".json", ('"segmentation"', '"bbox"'), "outlines in json of no known form", _DRAW),
    (".xml", ("<Annotation", "<Vert"), "Aperio ImageScope's xml", _DRAW),
    (".csv", ("region_shape_attributes",), "VIA's table (VGG Image Annotator)", _EXPORT),
    (".csv", ("EncodedPixels",), "run lengths in a table, as Kaggle's", _DRAW),
    (".csv", ("rle",), "run lengths in a table, as Kaggle's", _DRAW),
)
_LABEL_STUDIO = re.compile(r"task-\d+-annotation-\d+-")


def unread_format(root: Path) -> str | None:
    """Return what the annotation files below a folder are and what to do, None if unknown."""
    for suffix in dict.fromkeys(sign[0] for sign in _SIGNS):
        for file in itertools.islice(sorted(root.rglob(f"*{suffix}")), _SOME):
            if not file.is_file():
                continue
            with file.open("rb") as opened:
                head = opened.read(_HEAD).decode("utf-8", errors="replace")
            for ending, words, name, way in _SIGNS:
                there = head.split("\n")[0] if suffix == ".csv" else head  # the columns
                if ending == suffix and all(word in there for word in words):
                    return f"{file}: is {name}, which is not read; {way}"
    masks = next(
        (file for file in root.rglob("task-*.png") if _LABEL_STUDIO.match(file.name)), None
    )
    if masks is not None:
        return (
            f"{masks}: Label Studio's masks do not say whose image they belong to; export COCO "
            "json from it instead"
        )
    return None
