"""COCO's json: one file for each split, with the objects of all its images."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO

from denseloss.data.annotations.outlines import (
    Annotated,
    AnnotatedImage,
    Object,
    Outlined,
    classes_of,
    labels_of,
    largest_first,
)
from denseloss.data.errors import DataError
from denseloss.data.folders import Folder
from denseloss.data.paths import meaning
from denseloss.data.samples import Findings

_HEAD = 1 << 16
_OTHERS = ("panoptic", "captions", "image_info")


def read_coco(root: Path, folders: Sequence[Folder], findings: Findings) -> Annotated | None:
    """Read the files of COCO below a folder, None where there are none."""
    files = list(_files(root, folders))
    if not files:
        return None
    tables = {file: _loaded(file) for file in files}
    names = _names(tables)
    labels = labels_of(names)
    at: dict[str, list[Path]] = {}
    for folder in folders:
        for picture in folder.files:
            at.setdefault(picture.name, []).append(picture)
    images: list[AnnotatedImage] = []
    missing: list[str] = []
    without = 0
    for file, table in tables.items():
        parts = (*file.relative_to(root).parts[:-1], file.stem)
        split = next((m.split for m in map(meaning, parts) if m.split), None)
        for entry in table.imgs.values():
            image = _found(
                str(entry["file_name"]), split, at.get(Path(entry["file_name"]).name, [])
            )
            if image is None:
                missing.append(str(entry["file_name"]))
                continue
            objects = []
            for item in table.imgToAnns.get(entry["id"], ()):
                objects.append(_object(file, item, table.cats, labels))
            without += sum(o.outline is None for o in objects)
            truth = Outlined(file, (entry["width"], entry["height"]), largest_first(objects))
            name = image.relative_to(root).with_suffix("").as_posix()
            images.append(AnnotatedImage(name, image, split, truth))
    if missing:
        shown = ", ".join([*missing[:3], *["..."] * (len(missing) > 3)])
        text = f"{len(missing)} images that it names are not there ({shown}); add them"
        findings.problem(f"{files[0]}: {text}")
    total = sum(len(image.truth.objects) for image in images)
    doubts: tuple[str, ...] = ()
    if 0 < without < total:
        doubts = (f"{without} of {total} objects have a box and no outline: they are not drawn",)
    kind = f"COCO in {root} ({', '.join(file.name for file in files)})"
    return Annotated(kind, classes_of(labels), tuple(images), warnings=doubts)


def _files(root: Path, folders: Sequence[Folder]) -> Iterator[Path]:
    stems = {(f.path, picture.stem) for f in folders for picture in f.files}
    found = [
        file
        for file in sorted(root.rglob("*.json"))
        if (file.parent, file.stem) not in stems and _looks_like_coco(file)
    ]
    # Beside the instances, COCO has captions, keypoints and things of other tasks.
    instances = [file for file in found if "instances" in file.name]
    others = [file for file in found if not any(word in file.name for word in _OTHERS)]
    yield from instances or others


def _looks_like_coco(file: Path) -> bool:
    # The whole of a large file need not be read to see that it is another format.
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
        opened.seek(max(0, file.stat().st_size - _HEAD))
        tail = opened.read()
    there = [key for key in (b'"annotations"', b'"categories"') if key in head or key in tail]
    return b'"images"' in head + tail and bool(there)


def _loaded(file: Path) -> Any:
    try:
        # What it says and warns of is about scoring boxes.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = COCO(str(file))
        for entry in table.imgs.values():
            _ = entry["id"], entry["file_name"], int(entry["width"]), int(entry["height"])
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(
            f"{file}: looks like COCO's json, but cannot be read ({type(error).__name__}: {error})"
        ) from None
    return table


def _names(tables: dict[Path, Any]) -> tuple[str, ...]:
    """The classes in the order of their ids; Roboflow's name of the project is none."""
    used = {item["category_id"] for table in tables.values() for item in table.anns.values()}
    of = {
        key: str(category["name"])
        for table in tables.values()
        for key, category in table.cats.items()
        if key in used or category.get("supercategory") != "none"
    }
    return tuple(dict.fromkeys(name for _, name in sorted(of.items())))


def _found(name: str, split: str | None, places: Sequence[Path]) -> Path | None:
    """The picture of a name, of those that lie in the data's folder and nowhere else."""
    exact = [place for place in places if place.as_posix().endswith(f"/{name.lstrip('./')}")]
    near = exact or list(places)
    same = [p for p in near if split and any(meaning(part).split == split for part in p.parts[:-1])]
    return next(iter(same or near), None)


def _object(file: Path, item: Any, categories: Any, labels: dict[str, int]) -> Object:
    if item["category_id"] not in categories:
        raise DataError(
            f"{file}: annotation {item.get('id')} has category {item['category_id']}, which is "
            "none of its categories; repair the file"
        )
    left, top, width, height = item.get("bbox") or (0, 0, 0, 0)
    return Object(
        label=labels[str(categories[item["category_id"]]["name"])],
        outline=item.get("segmentation") or None,
        box=(left, top, left + width, top + height) if item.get("bbox") else None,
    )
