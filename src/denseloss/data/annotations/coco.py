"""COCO's json: one file for each split, with the objects of all its images."""

import contextlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from faster_coco_eval import COCO

from denseloss.data.annotations.outlines import (
    MOST_CLASSES,
    Annotated,
    AnnotatedImage,
    Object,
    Outlined,
    check_count,
    classes_of,
    labels_of,
    largest_first,
    outline_of,
)
from denseloss.data.errors import DataError
from denseloss.data.files import read_text
from denseloss.data.folders import Folder
from denseloss.data.images import size_as_said
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
    check_count(files[0], names)
    labels = labels_of(names)
    at: dict[str, list[Path]] = {}
    for folder in folders:
        for picture in folder.files:
            at.setdefault(picture.name, []).append(picture)
    images: list[AnnotatedImage] = []
    missing: list[str] = []
    known: set[tuple[str | None, Path]] = set()
    twice: dict[Path, dict[str, Path]] = {}
    for file, table in tables.items():
        parts = (*file.relative_to(root).parts[:-1], file.stem)
        split = next((m.split for m in map(meaning, parts) if m.split), None)
        for entry in table.imgs.values():
            said = _file_name(entry)
            image = _found(said, split, at.get(said.rpartition("/")[2], []))
            if image is None:
                missing.append(str(entry["file_name"]))
                continue
            if (split, image) in known:
                twice.setdefault(file, {})[said] = image
                continue
            known.add((split, image))
            try:
                size = size_as_said(image, _size(entry), file)
                objects = [
                    _object(item, table.cats, labels)
                    for item in table.imgToAnns.get(entry["id"], ())
                ]
            except DataError as error:
                findings.problem(str(error), image)
                continue
            except ValueError as error:
                findings.problem(f"{file}: {said}: {error}; repair the file", image)
                continue
            truth = Outlined(file, size, largest_first(objects), image=said)
            name = image.relative_to(root).with_suffix("").as_posix()
            images.append(AnnotatedImage(name, image, split, truth))
    for file, again in twice.items():
        one = next(iter(again))
        text = (
            f"{one} is there twice" if len(again) == 1 else f"{len(again)} images are there twice"
        )
        which = "" if len(again) == 1 else f" (such as {one})"
        text += f"{which}, with objects of its own each time; keep one entry for an image"
        findings.problem(f"{file}: {text}", *again.values())
    if missing:
        shown = ", ".join([*missing[:3], *["..."] * (len(missing) > 3)])
        text = f"{len(missing)} of the images that it names are not there ({shown}); add them"
        if not known:
            raise DataError(f"{files[0]}: {text}")
        findings.problem(f"{files[0]}: {text}")
    kind = f"COCO in {root} ({', '.join(file.relative_to(root).as_posix() for file in files)})"
    return Annotated(
        kind,
        classes_of(labels),
        tuple(images),
        notes=tuple(_notes(folders, {image for _, image in known})),
        warnings=tuple(_doubts(tables)),
    )


def _notes(folders: Sequence[Folder], known: set[Path]) -> Iterator[str]:
    left = [f for folder in folders if known.intersection(folder.files) for f in folder.files]
    if more := len(left) - len(known.intersection(left)):
        yield f"{more} images that no json names, left out"


def _doubts(tables: dict[Path, Any]) -> Iterator[str]:
    for file, table in tables.items():
        counts = Counter(str(category["name"]) for category in table.cats.values())
        for name in (name for name, n in counts.items() if n > 1):
            yield f"{file.name}: {counts[name]} categories are called {name}: they are one class"


def _files(root: Path, folders: Sequence[Folder]) -> Iterator[Path]:
    stems = {(f.path, picture.stem) for f in folders for picture in f.files}
    found = [
        file
        for file in sorted(root.rglob("*.json"))
        if (file.parent, file.stem) not in stems and file.is_file() and _looks_like_coco(file)
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
            table = COCO(json.loads(read_text(file)))
        for entry in table.imgs.values():
            _ = entry["id"], entry["file_name"]
        for category in table.cats.values():
            _ = category["id"], category["name"]
        for item in table.anns.values():
            _ = item["image_id"], item["category_id"]
    except KeyError as error:
        raise DataError(
            f"{file}: looks like COCO's json, but an entry has no {error}; export it again"
        ) from None
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise DataError(
            f"{file}: looks like COCO's json, but cannot be read ({type(error).__name__}: {error})"
        ) from None
    return table


def _file_name(entry: Any) -> str:
    """The file that an entry names, wherever its path was written: on Windows, in the web."""
    name = str(entry["file_name"]).replace("\\", "/")
    return unquote(urlsplit(name).path) if "://" in name else name


def _size(entry: Any) -> tuple[int, int] | None:
    """(width, height), None where the file does not say."""
    said = entry.get("width"), entry.get("height")
    if None in said:
        return None
    try:
        width, height = (int(value) for value in said)
    except (TypeError, ValueError):
        width = height = 0
    if width < 1 or height < 1:
        raise ValueError(f"its size is {said[0]!r} x {said[1]!r}")
    return width, height


def _names(tables: dict[Path, Any]) -> tuple[str, ...]:
    """The classes in the order of their ids; Roboflow's name of the project is none."""
    used = {item["category_id"] for table in tables.values() for item in table.anns.values()}
    of = {
        key: str(category["name"])
        for table in tables.values()
        for key, category in table.cats.items()
        if key in used or category.get("supercategory") != "none"
    }
    if len(of) > MOST_CLASSES:  # a vocabulary, most of which occurs nowhere
        of = {key: name for key, name in of.items() if key in used}
    return tuple(dict.fromkeys(name for _, name in sorted(of.items())))


def _found(name: str, split: str | None, places: Sequence[Path]) -> Path | None:
    """The picture of a name, of those that lie in the data's folder and nowhere else."""
    exact = [place for place in places if place.as_posix().endswith(f"/{name.lstrip('./')}")]
    near = exact or list(places)
    same = [p for p in near if split and any(meaning(part).split == split for part in p.parts[:-1])]
    return next(iter(same or near), None)


def _object(item: Any, categories: Any, labels: dict[str, int]) -> Object:
    """The object of an annotation.

    Raises:
        ValueError: With what is wrong with it.
    """
    which = f"annotation {item.get('id')}"
    if item["category_id"] not in categories:
        raise ValueError(
            f"{which} has the category {item['category_id']!r}, which is none of its categories"
        )
    try:
        outline = outline_of(item.get("segmentation"))
        left, top, width, height = (float(value) for value in item.get("bbox") or (0, 0, 0, 0))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{which} cannot be drawn ({error})") from None
    return Object(
        label=labels[str(categories[item["category_id"]]["name"])],
        outline=outline,
        box=(left, top, left + width, top + height) if item.get("bbox") else None,
    )
