"""Which mask a name makes an image's own: words are taken off both until they are equal."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from denseloss.data.folders import Folder
from denseloss.data.paths import stem_of

_SEPARATOR = re.compile(r"[_\-. ]")
_MOST_ENDS = 30
Edges = dict[Path, tuple[list[Path], str]]
"""For each mask its images, one if all is well, and what was taken off the mask's name."""


def matched_names(images: Sequence[Path], masks: Sequence[tuple[Path, Folder]]) -> Edges:
    """Find the image of each mask by their names.

    Args:
        images: The images.
        masks: The masks, with their folders.
    """
    edges = _by_words(images, masks)
    if len(edges) < min(len(images), len(masks)) / 2:
        others = _without_what_all_share(images, masks) or _with_more_words(images, masks)
        edges = others or edges
    return edges


def _by_words(images: Iterable[Path], masks: Sequence[tuple[Path, Folder]]) -> Edges:
    at: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for image in images:
        for words, key in enumerate(stem_of(image.stem).keys):
            at[key].append((words, image))
    edges: Edges = {}
    for mask, _ in masks:
        stem = stem_of(mask.stem)
        nearest: dict[Path, tuple[int, int]] = {}
        for place, key in enumerate(stem.keys):
            for words, image in at.get(key, ()):
                nearest.setdefault(image, (place + words, place))
        if nearest:
            fewest = min(nearest.values())
            owners = sorted(i for i, cost in nearest.items() if cost[0] == fewest[0])
            edges[mask] = owners, stem.affixes[fewest[1]]
    return edges


def _without_what_all_share(images: Sequence[Path], masks: Sequence[tuple[Path, Folder]]) -> Edges:
    """Match what is left of the names without the beginning and end that all of a side share."""
    start, end = _shared([image.stem for image in images])
    of = {_number(image.stem[start : len(image.stem) - end].lower()): [image] for image in images}
    if len(of) < len(images):
        return {}
    alike: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for mask, folder in masks:
        alike[folder.template, stem_of(mask.stem).affixes[-1]].append(mask)
    edges: Edges = {}
    for (_, affix), group in alike.items():
        rests = {mask: stem_of(mask.stem).keys[-1] for mask in group}
        first, last = _shared(list(rests.values()))
        for mask, rest in rests.items():
            key = _number(rest[first : len(rest) - last])
            if key in of:
                around = f"{rest[:first]}*{rest[len(rest) - last :]}"
                edges[mask] = of[key], affix.replace("*", around)
    return edges


def _with_more_words(images: Sequence[Path], masks: Sequence[tuple[Path, Folder]]) -> Edges:
    """Match masks that begin or end with their image's name, such as 7_car and 7_road."""
    of = {image.stem.lower(): image for image in images}
    edges: Edges = {}
    for mask, _ in masks:
        stem = mask.stem.lower()
        between = list(_SEPARATOR.finditer(stem))
        starts = [(stem[: m.start()], "*", mask.stem[m.start() :]) for m in reversed(between)]
        ends = [(stem[m.end() :], mask.stem[: m.end()], "*") for m in between]
        for key, before, after in (*starts, *ends):
            if image := of.get(key):
                edges[mask] = [image], re.sub(r"\d+", "#", f"{before}{after}")
                break
    affixes = Counter(affix for _, affix in edges.values())
    few = len(affixes) <= _MOST_ENDS and all(2 * n >= len(images) for n in affixes.values())
    return edges if few and len(edges) > 0.9 * len(masks) else {}


def _number(rest: str) -> str:
    """A number without the zeros that it begins with: 1 and 0001 are one image."""
    return str(int(rest)) if rest.isdecimal() else rest


def _shared(stems: Sequence[str]) -> tuple[int, int]:
    """How many letters all names share at the beginning and at the end; never part of a number."""
    if len(stems) < 2:
        return 0, 0
    start = _common(stems)
    while start and stems[0][start - 1].isdigit():
        start -= 1
    end = _common([stem[::-1] for stem in stems])
    while end and stems[0][len(stems[0]) - end].isdigit():
        end -= 1
    return start, min(end, min(map(len, stems)) - start)


def _common(words: Sequence[str]) -> int:
    """How many letters all words begin with."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*words, strict=False))
    return sum(1 for _ in same)
