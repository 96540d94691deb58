"""Names of classes that lie beside the data, in the files that common tools write."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from denseloss.data.files import read_text

_FILES = (
    *("labelmap.txt", "label_colors.txt", "label_colours.txt", "class_colors.txt", "colors.txt"),
    *(
        "class_dict.csv",
        "class_dict_seg.csv",
        "label_class_dict.csv",
        "_classes.csv",
        "classes.csv",
        "labels.csv",
    ),
    *("label_colors.csv", "colormap.csv", "class_names.txt", "classes.txt", "labels.txt"),
    *("class_dict.txt", "names.txt", "label_map.txt", "label_names.txt", "categories.txt"),
    *("classes.json", "dataset.json", "id2label.json", "labels.json", "class_names.json"),
    *("meta.json", "label_map.json", "obj_class_to_machine_color.json", "obj.names"),
    *("data.yaml", "dataset.yaml", "data.yml", "classes.yaml"),
)
_SOMETHING_ELSE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, StopIteration),
    *(RecursionError, yaml.YAMLError, csv.Error),
)
_IGNORED = ("__ignore__", "_ignore_", "ignore", "void")
_MOST, _LONGEST, _FARTHEST, _LARGEST = 10_000, 100, 1 << 31, 10 << 20
_NAME = re.compile(r"[^\W\d][\w .\-]*")
_COLOUR = re.compile(r"^#?([0-9a-fA-F]{6})$")


@dataclass(frozen=True)
class ClassNames:
    """The names of classes by the raw values of masks, in the file's order.

    Attributes:
        file: Where they come from, None where that is said already.
        of: The name of each value, or of each colour `0xRRGGBB`.
        colour: Whether the values are colours.
        void: Values whose name says that they do not count.
        exact: Whether the file says the values; otherwise they are the places in a list.
    """

    file: Path | None
    of: Mapping[int, str]
    colour: bool = False
    void: tuple[int, ...] = ()
    exact: bool = True


def find_class_names(folders: Iterable[Path]) -> Iterator[ClassNames]:
    """Yield the names of classes that lie in folders, one for each file that is understood."""
    for folder in dict.fromkeys(folders):
        for name in _FILES:
            if (folder / name).is_file() and (folder / name).stat().st_size < _LARGEST:
                try:
                    found = _read(folder / name)
                except _SOMETHING_ELSE:
                    continue  # a file of this name that is something else
                if found is not None and (len(found.of) > 1 or _is_a_name(found)):
                    yield found


def _is_a_name(found: ClassNames) -> bool:
    """Whether the only entry of a file looks like the name of a class."""
    return all(_NAME.fullmatch(name) for name in found.of.values()) and len(found.of) == 1


def _read(file: Path) -> ClassNames | None:
    text = read_text(file)
    if file.suffix == ".json":
        return _from_json(file, json.loads(text))
    if file.suffix in (".yaml", ".yml"):
        said = yaml.safe_load(text) or {}
        return _from_json(file, said.get("names") or said.get("classes"))
    lines = [re.sub(r"\s#.*$", "", line).strip() for line in text.splitlines()]
    rows = [line for line in lines if line and not line.startswith("#")]
    if file.suffix == ".csv":
        return _from_csv(file, rows)
    if file.name.lower() == "labelmap.txt":
        pairs = [(line.split(":")[0], line.split(":")[1]) for line in rows]
        if not any(colour for _, colour in pairs):
            return _by_colour(file, [(n, _voc_colour(i)) for i, (n, _) in enumerate(pairs)])
        return _by_colour(file, [(n, _three(c.split(","))) for n, c in pairs])
    coloured = [re.match(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)$", line) for line in rows]
    if all(coloured):
        found = [m.groups() for m in coloured if m is not None]
        return _by_colour(file, [(name, _three((r, g, b))) for r, g, b, name in found])
    coloured = [re.match(r"(\S.*?)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)$", line) for line in rows]
    if all(coloured):
        found = [m.groups() for m in coloured if m is not None]
        return _by_colour(file, [(name, _three((r, g, b))) for name, r, g, b in found])
    numbered = [re.match(r"(\d+)\s*[:,;=\t ]\s*(\S.*)$", line) for line in rows]
    if all(numbered):
        return _by_value(file, {int(m[1]): m[2] for m in numbered if m is not None})
    return _from_list(file, rows)


def _from_csv(file: Path, rows: Sequence[str]) -> ClassNames | None:
    table = [[cell.strip() for cell in row] for row in csv.reader(rows)]
    head = [cell.lower() for cell in table[0]]
    body = [row for row in table[1:] if row and any(row)]
    names = [i for i, cell in enumerate(head) if cell in ("name", "class", "label", "class_name")]
    for channels in (("r", "g", "b"), ("red", "green", "blue")):
        if names and set(channels) <= set(head):
            colours = [[row[head.index(channel)] for channel in channels] for row in body]
            named = [row[names[0]] for row in body]
            return _by_colour(file, list(zip(named, map(_three, colours), strict=True)))
    values = [i for i, cell in enumerate(head) if cell in ("pixel value", "value", "id", "index")]
    if names and values:
        return _by_value(file, {int(row[values[0]]): row[names[0]] for row in body})
    return None


def _from_json(file: Path, said: Any) -> ClassNames | None:
    if isinstance(said, dict):
        for key in ("classes", "labels", "categories", "names", "id2label"):
            if key in said:
                return _from_json(file, said[key])
        if said and all(isinstance(value, int) for value in said.values()):
            return _by_value(file, {value: name for name, value in said.items()})
        if said and all(isinstance(value, list) for value in said.values()):
            found = [(name, _three(value)) for name, value in said.items()]
            if all(colour % 0x010101 == 0 for _, colour in found):  # greys are values
                return _by_value(file, {0: "background"} | {c & 255: n for n, c in found})
            return _by_colour(file, found)
        if all(str(key).isdecimal() and isinstance(value, str) for key, value in said.items()):
            return _by_value(file, {int(key): value for key, value in said.items()})
        return None
    if not isinstance(said, list):
        return None
    if all(isinstance(item, str) for item in said):
        return _from_list(file, said)
    names = [next(i[k] for k in ("title", "name", "label", "class") if k in i) for i in said]
    colours = [next((i[k] for k in ("color", "colour", "rgb") if k in i), None) for i in said]
    if all(colour is not None for colour in colours):
        return _by_colour(file, [(n, _json_colour(c)) for n, c in zip(names, colours, strict=True)])
    values = [next((i[k] for k in ("id", "value", "index") if k in i), None) for i in said]
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) == len(names):
        return _by_value(file, dict(zip(numbers, names, strict=True)))
    return _from_list(file, names)


def _from_list(file: Path, names: Sequence[str]) -> ClassNames | None:
    # labelme's list begins with the value -1, __ignore__.
    start = -1 if names and names[0] == "__ignore__" else 0
    return _by_value(file, dict(enumerate(names, start)), exact=False)


def _by_value(file: Path, of: Mapping[int, str], *, exact: bool = True) -> ClassNames | None:
    if len(of) > _MOST or not all(_is_short(name) for name in of.values()):
        return None
    if not all(-_FARTHEST < value < _FARTHEST for value in of):
        return None
    void = tuple(value for value, name in of.items() if name.lower() in _IGNORED)
    return ClassNames(file, of, void=void, exact=exact)


def _is_short(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name.strip()) <= _LONGEST


def _by_colour(file: Path, found: Sequence[tuple[str, int]]) -> ClassNames | None:
    named = _by_value(file, {colour: name for name, colour in found})
    return None if named is None else replace(named, colour=True)


def _voc_colour(index: int) -> int:
    """The colour that Pascal VOC paints a class with: its bits, spread over the channels."""
    colour = 0
    for bit in range(8):
        for channel in range(3):
            if index >> (3 * bit + channel) & 1:
                colour |= 1 << (7 - bit) << 8 * (2 - channel)
    return colour


def _json_colour(said: Any) -> int:
    if isinstance(said, str):
        match = _COLOUR.match(said)
        if match is None:
            raise ValueError(f"{said} is no colour")
        return int(match[1], 16)
    return _three(said)


def _three(channels: Sequence[Any]) -> int:
    red, green, blue = (int(value) for value in channels[:3])
    return red << 16 | green << 8 | blue
