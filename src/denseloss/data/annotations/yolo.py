"""YOLO's texts: beside each image a file with a line for each object."""

from collections.abc import Sequence
from pathlib import Path

from denseloss.data.annotations.outlines import (
    MOST_CLASSES,
    Annotated,
    AnnotatedImage,
    Object,
    Outlined,
    check_count,
    largest_first,
    outline_of,
)
from denseloss.data.class_names import find_class_names
from denseloss.data.errors import DataError
from denseloss.data.files import read_text
from denseloss.data.folders import Folder
from denseloss.data.images import oriented_size
from denseloss.data.samples import Findings

# Outlines may reach a little over the edge of the image.
_LOW, _HIGH = -0.5, 1.5


def read_yolo(root: Path, folders: Sequence[Folder], findings: Findings) -> Annotated | None:
    """Read the texts of YOLO below a folder, None where there are none."""
    texts = {f.path: _texts(f) for f in folders}
    named = next(iter(find_class_names([root, root.parent])), None)
    yaml = any((root / name).is_file() for name in ("data.yaml", "dataset.yaml"))
    if not any(texts.values()) or not (yaml or _are_lines(texts)):
        return None
    ids = [] if named is None else sorted(named.of)
    images, bare, top = [], 0, -1
    for folder in folders:
        for picture in folder.files:
            text = texts[folder.path].get(picture.stem)
            objects: list[Object] = []
            if text is None:
                bare += 1
            else:
                try:
                    objects = _objects(text, oriented_size(picture), ids)
                except DataError as error:
                    findings.problem(str(error), picture)
                    continue
            top = max([top, *(o.label for o in objects)])
            truth = Outlined(text or picture, oriented_size(picture), largest_first(objects))
            name = "/".join([*folder.place, picture.stem])
            images.append(AnnotatedImage(name, picture, folder.split, truth))
    notes = [f"{bare} images without a text are background"] * bool(bare)
    # 0 is the first foreground.
    every = tuple(f"class {i}" for i in range(top + 1))
    if named is not None:
        every = tuple(named.of[i] for i in ids)
        check_count(named.file or root, every)
    file = None if named is None else named.file
    kind = f"YOLO's texts in {root}"
    return Annotated(kind, every, tuple(images), file, notes=tuple(notes))


def _texts(folder: Folder) -> dict[str, Path]:
    """The texts of a folder's images, which lie beside them or in labels/ in place of images/."""
    parts = folder.path.parts
    places = [folder.path]
    for i in reversed(range(len(parts))):
        if parts[i].lower() in ("images", "image"):
            places.append(Path(*parts[:i], "labels", *parts[i + 1 :]))
            break
    stems = {picture.stem for picture in folder.files}
    return {
        file.stem: file
        for place in places
        if place.is_dir()
        for file in sorted(place.glob("*.txt"))
        if file.stem in stems
    }


def _are_lines(texts: dict[Path, dict[str, Path]]) -> bool:
    """Whether the first text with anything in it has lines of numbers."""
    for files in texts.values():
        for file in files.values():
            words = read_text(file).split("\n")[0].split()
            if words:
                return len(words) >= 5 and all(_is_number(word) for word in words)
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _objects(file: Path, size: tuple[int, int], ids: Sequence[int]) -> list[Object]:
    width, height = size
    found = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 5 or not all(map(_is_number, words)) or not float(words[0]).is_integer():
            raise DataError(
                f"{file}: line {number}: {line[:40]!r} is no class with a box or a polygon"
            )
        label, values = int(float(words[0])), [float(word) for word in words[1:]]
        if label not in (ids or range(MOST_CLASSES)):
            classes = f"{len(ids)} classes ({ids[0]} to {ids[-1]})" if ids else "classes"
            raise DataError(
                f"{file}: line {number}: class {label} is none of the {classes}; repair the line "
                "or name the class in data.yaml"
            )
        label = ids.index(label) if ids else label
        if not all(_LOW < value < _HIGH for value in values):
            raise DataError(
                f"{file}: line {number}: {line[:40]!r} has numbers far from 0 to 1; YOLO's are "
                "shares of the image's width and height"
            )
        if len(values) == 4:
            x, y, w, h = values
            box = ((x - w / 2) * width, (y - h / 2) * height)
            found.append(Object(label, None, (*box, box[0] + w * width, box[1] + h * height)))
        else:
            corners = [v * (height if i % 2 else width) for i, v in enumerate(values)]
            try:
                found.append(Object(label, outline_of(corners)))
            except ValueError as error:
                raise DataError(f"{file}: line {number}: {error}; repair the line") from None
    return found
