"""Lists beside the data that say which sample is in which split."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from denseloss.data.files import read_text
from denseloss.data.folders import Split
from denseloss.data.images import SUFFIXES
from denseloss.data.paths import SPLIT_OF, SPLITS, meaning
from denseloss.data.samples import Findings, Sample
from denseloss.tasks.segmentation.pairing import Layout

_FOLDERS = (
    *("ImageSets/Segmentation", "ImageSets", "splits", "split", "lists", "list"),
    *("annotations", "."),
)
_SUFFIXES = (".txt", ".lst", ".csv")
_MORE_WORDS = ("", "list", "lists", "names", "split", "set")
_LARGEST = 50 << 20

Known = Mapping[str, Sample | None]
"""The sample of each ending of a path; None where it is that of several."""


def use_lists(layout: Layout, findings: Findings) -> None:
    """Divide samples by the lists of ImageSets, or of other folders that hold lists."""
    if set(layout.splits) != {None}:
        return
    known = _endings(layout.splits[None], layout.root)
    for name in _FOLDERS:
        folder = layout.root / name
        splits, used = _of_files(folder, known, layout, findings)
        if not splits:
            splits, used = _of_tables(folder, known)
        if splits:
            _name_twins(layout, splits)
            listed = {s.image for group in splits.values() for s in group}
            left = sum(s.image not in listed for s in layout.samples)
            layout.splits = splits
            layout.notes.append(f"the splits are those of {', '.join(f.name for f in used)}")
            layout.notes += [f"{left} pairs are in no list, left out"] * bool(left)
            return


def _endings(samples: Sequence[Sample], root: Path) -> Known:
    found: dict[str, Sample | None] = {}
    for sample in samples:
        keys: set[str] = set()
        for path in (sample.name, *(str(f).removeprefix(f"{root}/") for f in sample.files)):
            parts = path.split("/")
            if path != sample.name:
                parts[-1] = parts[-1].rpartition(".")[0]
            keys.update("/".join(parts[i:]) for i in range(len(parts)))
        for key in keys:
            found[key] = None if key in found else sample
    return found


def _files(folder: Path) -> list[Path]:
    """The files in a folder that may be lists: no pictures, and none of gigabytes."""
    if not folder.is_dir():
        return []
    ends = (*_SUFFIXES, ".json")
    found = sorted(file for file in folder.iterdir() if file.name.lower().endswith(ends))
    return [file for file in found if file.is_file() and file.stat().st_size < _LARGEST]


def _sample(entry: str, known: Known) -> Sample | None:
    """The sample that an entry of a list names: "name", "name.jpg", a path on any machine."""
    parts = entry.strip().strip("\"'").replace("\\", "/").split("/")
    stem, dot, suffix = parts[-1].rpartition(".")
    ends = [stem, parts[-1]] if f"{dot}{suffix}".lower() in SUFFIXES else [parts[-1]]
    for i in range(len(parts)):
        for end in ends:
            if found := known.get("/".join([*parts[i:-1], end])):
                return found
    return None


def _entries(file: Path, known: Known) -> Iterator[tuple[str, Sample | None]]:
    """What each line names, and its sample; a name may have spaces, or words after it."""
    for number, line in enumerate(read_text(file).splitlines()):
        cell = line.replace(";", ",").replace("\t", ",").split(",")[0].strip()
        if not cell or cell.startswith("#"):
            continue
        words = cell.split()
        found = _sample(cell, known) or _sample(words[0], known)
        if found is None and number == 0 and file.suffix.lower() == ".csv":
            continue  # the names of the columns
        yield cell.replace("\\", "/").rpartition("/")[2], found


def _of_files(
    folder: Path, known: Known, layout: Layout, findings: Findings
) -> tuple[dict[Split, list[Sample]], list[Path]]:
    """The splits by a file for each."""
    files: dict[Split, Path] = {}
    for file in _files(folder):
        if file.suffix.lower() in _SUFFIXES:
            said = meaning(file.stem)
            if file.stem.lower() == "trainval":
                files.setdefault(None, file)
            elif said.split and said.rest in _MORE_WORDS:
                files.setdefault(said.split, file)
    splits: dict[Split, list[Sample]] = {}
    used = []
    for split in (*SPLITS, None):
        if split not in files or (split is None and {"train", "val"} & set(splits)):
            continue
        file = files[split]
        entries = list(dict.fromkeys(_entries(file, known)))
        there = list(dict.fromkeys(sample for _, sample in entries if sample is not None))
        if split == "test" and not there:
            layout.notes.append(f"test: {len(entries)} images without masks, left out")
            continue
        if folder.parent.name != "ImageSets" and 2 * len(there) <= len(entries):
            if entries:
                text = "is no list of these images"
                layout.notes.append(f"{file.name} {text} (it names {entries[0][0]})")
            continue
        if gone := [entry for entry, sample in entries if sample is None]:
            masks = layout.root / "SegmentationClass"
            where = masks if masks.is_dir() else layout.root
            text = f"{file}: lists {gone[0]}, but {where} has no such file"
            more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
            findings.problem(f"{text}{more}; add it or remove the line")
        if there:
            splits["train" if split is None and splits else split] = there
            used.append(file)
    return splits, used


def _of_tables(folder: Path, known: Known) -> tuple[dict[Split, list[Sample]], list[Path]]:
    """The splits by one file: a table with a column for them, or json with a list for each."""
    for file in _files(folder):
        suffix, rows = file.suffix.lower(), 0
        splits: dict[Split, list[Sample]] = {}
        if suffix == ".csv":
            pairs = _rows(file)
        elif suffix == ".json" and "split" in file.stem.lower():
            pairs = _lists(file)
        else:
            continue
        for split, cells in pairs:
            rows += 1
            found = next((s for s in (_sample(cell, known) for cell in cells) if s), None)
            if split and found is not None and found not in splits.setdefault(split, []):
                splits[split].append(found)
        # A column may have a class that is called train.
        if "train" in splits and len(splits) > 1 and 2 * sum(map(len, splits.values())) > rows:
            return splits, [file]
    return {}, []


def _rows(file: Path) -> Iterator[tuple[Split, list[str]]]:
    try:
        for row in csv.reader(read_text(file).splitlines()):
            words = [SPLIT_OF.get(cell.strip().lower()) for cell in row]
            split = next((word for word in words if word), None)
            yield split, [cell for cell, word in zip(row, words, strict=True) if not word]
    except csv.Error:
        return


def _lists(file: Path) -> Iterator[tuple[Split, list[str]]]:
    try:
        said = json.loads(read_text(file))
    except (ValueError, RecursionError):
        return
    for name, entries in said.items() if isinstance(said, dict) else ():
        if name.lower() in SPLIT_OF and isinstance(entries, list):
            for entry in entries:
                yield SPLIT_OF[name.lower()], [str(entry)]


def _name_twins(layout: Layout, splits: dict[Split, list[Sample]]) -> None:
    """Warn of samples that are listed in two splits, and give the later one another name."""
    known: set[Sample] = set()
    for split, group in splits.items():
        for i, sample in enumerate(group):
            if sample in known:
                text = "is in two splits; keep it in one, or scores are too good"
                layout.warnings.append(f"{sample.image}: {text}")
                group[i] = replace(sample, name=f"{split}/{sample.name}")
            known.add(sample)
