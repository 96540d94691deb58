"""What the values in masks mean: which are classes, which is void."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from denseloss.data.class_names import ClassNames
from denseloss.data.errors import DataError
from denseloss.data.images import Array
from denseloss.data.masks import MaskFacts, total_counts
from denseloss.data.samples import VOID, Findings
from denseloss.tasks.segmentation.colours import (
    check_palettes,
    listed,
    nearly_equal,
    soft_edges,
    spelt,
)

Mode = Literal["binary", "multiclass"]
"""One foreground, or exclusive classes."""

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep"),
    *("sofa", "train", "tvmonitor"),
)
# What people train on, of the ids that Cityscapes' labelIds have.
CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
    **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"},
    **{24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"},
    **{32: "motorcycle", 33: "bicycle"},
}
_VOC_VOID_COLOUR = 0xE0E0C0
_BACKGROUNDS = ("background", "bg", "unlabeled", "unlabelled", "nothing", "none")
_MOST_COLOURS = 64
_MOST_CLASSES = 254
_UNKNOWN = 254


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the user says of the masks; `None` where the masks themselves decide.

    Attributes:
        mode: One foreground, or exclusive classes.
        classes: How many classes there are or their names, background included.
        ignore_index: The raw mask value of void pixels.
        images: Where the images are: a folder, or a glob with one `*`.
        masks: The same for the masks.
        skip_unlabelled: Leave out images without a mask.
    """

    mode: Mode | None = None
    classes: int | Sequence[str] | None = None
    ignore_index: int | None = None
    images: str | None = None
    masks: str | None = None
    skip_unlabelled: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """The classes' names."""
        return None if self.classes is None or isinstance(self.classes, int) else (*self.classes,)

    @property
    def count(self) -> int | None:
        """How many classes there are."""
        if isinstance(self.classes, int):
            return self.classes
        return None if self.names is None else len(self.names)


@dataclass(frozen=True)
class Labels:
    """How raw mask values become class indices.

    Attributes:
        mode: One foreground, or exclusive classes.
        names: The name of each class.
        values: The raw value of each class; with a threshold, the two ends.
        ignore_value: The raw value that is void.
        colour: Raw values are colours `0xRRGGBB`.
        threshold: Raw values from here on are foreground, those below are background.
        others_are_void: Values that are no class are void, too.
        alpha: The masks are in the alpha channel.
        background: Class 0 is what is left beside the others, and not a class like them.
        notes: What was concluded, in plain words.
        warnings: What the user should look at.
    """

    mode: Mode
    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore_value: int | None = None
    colour: bool = False
    threshold: int | None = None
    others_are_void: bool = False
    alpha: bool = False
    background: bool = True
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def index_of(self, value: int) -> int | None:
        """The class of a raw value, `VOID`, or `None` for a value that is no class."""
        if value == self.ignore_value:
            return VOID
        if self.threshold is not None:
            return int(value >= self.threshold)
        if value in self.values:
            return self.values.index(value)
        return VOID if self.others_are_void else None

    def count(self, mask: MaskFacts) -> Counter[int]:
        """How many pixels of each class and of `VOID` a mask has."""
        pixels: Counter[int] = Counter()
        for value, n in mask.counts.items():
            index = self.index_of(value)
            if index is not None:
                pixels[index] += n
        return pixels

    def decode(self, raw: Array, *, colour: bool, path: Path | None = None) -> NDArray[np.uint8]:
        """Class indices `uint8[h, w]`, `VOID` where void.

        Raises:
            DataError: The mask holds a value that no mask held when the data was opened.
        """
        if self.colour and not colour:
            raw = raw.astype(np.int32) * 0x010101
        values, places = np.arange(256), raw
        if raw.dtype != np.uint8:
            values, places = np.unique(raw, return_inverse=True)
        table = [self.index_of(value) for value in values.tolist()]
        lookup = np.array([_UNKNOWN if i is None else i for i in table], dtype=np.uint8)
        indices = lookup[places.reshape(raw.shape)]
        unknown = indices == _UNKNOWN
        if unknown.any():
            value = self.spell(int(raw[unknown][0]))
            raise DataError(f"{path}: label {value} is none of the classes; repair the mask")
        return indices

    def spell(self, value: int) -> str:
        """A raw value as people write it."""
        return spelt(value, colour=self.colour)


def as_colours(masks: list[MaskFacts]) -> list[MaskFacts]:
    """Every mask's values as colours, where one mask has colours."""
    if not any(m.colour for m in masks):
        return masks

    return [
        m
        if m.colour
        else replace(
            m, counts={v * 0x010101: n for v, n in m.counts.items() if v < 256}, colour=True
        )
        for m in masks
    ]


def in_transparency(masks: Sequence[MaskFacts]) -> bool:
    """Whether the masks are in the alpha channel: their colour is one and the same everywhere."""
    return (
        all(mask.transparency is not None for mask in masks)
        and len(total_counts(masks)) == 1
        and len({value for mask in masks for value in mask.transparency or ()}) > 1
    )


def transparencies(masks: Sequence[MaskFacts]) -> list[MaskFacts]:
    """Every mask as its alpha channel has it."""
    return [replace(m, counts=m.transparency or m.counts, colour=False) for m in masks]


def check_said(said: Said) -> None:
    """Refuse what cannot be meant.

    Raises:
        DataError: With the option.
    """
    count, names = said.count, said.names or ()
    if count is not None and count < 2:
        raise DataError(f"--classes {count}: a mask has at least 2 classes, background included")
    if count is not None and count >= _MOST_CLASSES:
        raise DataError(f"--classes {count}: at most {_MOST_CLASSES} classes can be read")
    if said.mode == "binary" and count not in (None, 2):
        raise DataError(f"--mode binary has 2 classes, --classes says {count}; drop one of them")
    for name in names:
        if not name.strip():
            raise DataError(f"--classes {','.join(names)}: a name is empty; name every class")
        if names.count(name) > 1:
            raise DataError(
                f"--classes {','.join(names)}: {name} is there twice; the names must be distinct"
            )


def decide_labels(
    masks: list[MaskFacts],
    said: Said,
    *,
    findings: Findings,
    kind: str = "",
    named: Sequence[ClassNames] = (),
    alpha: bool = False,
) -> Labels:
    """Find out from the values of all masks what they mean.

    Args:
        masks: Every mask, looked at.
        said: What the user says they mean.
        findings: Where a mask with a label beyond the classes is told.
        kind: Of a known data set: `"voc"`, `"cityscapes"` (ids of labels) or `"cityscapes train"`
            (ids of training); `""` for others.
        named: The names that lie beside the data.
        alpha: The masks are in the alpha channel.

    Raises:
        DataError: The masks are no label images, or contradict what the user says.
    """
    mode, count, ignore = said.mode, said.count, said.ignore_index
    voc = kind == "voc"
    masks = as_colours(masks)
    colour = any(m.colour for m in masks)
    notes: list[str] = []
    warnings: list[str] = []
    if alpha:
        notes.append("the masks are all of one colour: they are read from their alpha channel")
    check_palettes(masks, warnings, sure=count is not None)

    def labels(values: Sequence[int], found: Mode, threshold: int | None = None) -> Labels:
        chosen, names = mode or found, said.names
        if names is None and chosen == "binary":
            names = ("background", "foreground")
        if names is None and voc and tuple(values) == tuple(range(len(VOC_NAMES))):
            names = VOC_NAMES
        return Labels(
            mode=chosen,
            names=names or tuple(_default_name(i, v, colour=colour) for i, v in enumerate(values)),
            values=tuple(values),
            ignore_value=ignore,
            colour=colour,
            threshold=threshold,
            alpha=alpha,
            background=names is not None or not colour or values[0] == 0,
            notes=tuple(notes),
            warnings=tuple(warnings),
        )

    totals = total_counts(masks)
    if count is None and mode is None and (known := _known(masks, said, kind, named, warnings)):
        known = replace(known, alpha=alpha, notes=(*notes, *known.notes))
        return replace(known, warnings=tuple(warnings))
    if ignore is None and count in (None, 2) and mode != "multiclass" and not colour:
        if (mixture := _mixture(masks)) is not None:
            warnings.append(mixture)
            return labels((0, 255), "binary", threshold=1)
        if count is None and (numbered := _instances(masks)) is not None:
            warnings.append(numbered)
            return labels((0, 1), "binary", threshold=1)
    if count is None and mode is None and (soft := soft_edges(masks, totals, colour=colour)):
        raise DataError(soft)
    lossy = [m for m in masks if m.lossy]
    if not colour and ignore is None and count in (None, 2) and mode != "multiclass":
        blurred = _blurred_binary(totals, lossy=bool(lossy))
        if blurred is not None:
            warnings.append(blurred)
            return labels((0, 255), "binary", threshold=128)
    top = max(totals)
    if not colour and ignore is None and mode == "binary" and len(totals) > 8 and top >= 200:
        half = (top + 1) // 2  # soft greys, not a handful of labels
        notes.append(f"the task is binary: greys from {half} on are foreground")
        return labels((0, top), "binary", threshold=half)
    if not colour and len(totals) > 8 and lossy:
        raise DataError(
            f"{lossy[0].path}: is a lossy picture (JPEG, WebP) and its {len(lossy[0].counts)} grey "
            "values are no labels any more; save the masks as PNG"
        )
    if len(totals) > (_MOST_COLOURS if colour else _MOST_CLASSES):
        worst = max(masks, key=lambda m: len(m.counts))
        raise DataError(
            f"{worst.path}: {len(worst.counts)} different {'colours' if colour else 'values'} "
            f"(in all masks {len(totals)}) are too many for classes; is this a photograph, a JPEG "
            "or a map of instances? Save masks as PNG with one value for each class"
        )

    if colour and (near := nearly_equal(totals)) is not None:
        warnings.append(near)
    kept = masks
    if ignore is None and count is None and mode is None and not colour:
        kept = _without_strays(masks, findings)
        totals = total_counts(kept)
    if ignore is not None and ignore not in totals:
        notes.append(f"void value {ignore} does not occur in the masks")
    elif ignore is None:
        ignore = _void_value(sorted(totals), said, colour=colour)
        if ignore is not None and not (count is None and voc):
            value = spelt(ignore, colour=colour)
            notes.append(f"value {value} beside other labels is taken as void")

    present = sorted(v for v in totals if v != ignore)
    if not present:
        raise DataError(
            f"{masks[0].path}: every pixel of all {len(masks)} masks is void "
            f"(value {ignore}); there is nothing to learn, check --ignore-index"
        )
    if count is not None:
        values = _given_classes(kept, present, count, ignore, findings)
        return labels(values, "binary" if count == 2 else "multiclass")
    if len(present) == 1:
        raise DataError(
            f"{masks[0].path}: all {len(masks)} masks hold only the value "
            f"{spelt(present[0], colour=colour)}; there is nothing to learn, "
            "paint the foreground or say --classes"
        )
    if mode == "binary" and len(present) > 2:
        notes.append(
            f"{len(present)} values, but the task is binary: every value from {present[1]} on "
            "is foreground"
        )
        return labels(present[:2], "binary", threshold=present[1])
    if voc and not colour and len(present) >= 3 and present[-1] < len(VOC_NAMES):
        return labels(range(len(VOC_NAMES)), "multiclass")
    if len(present) == 2:
        if present[0] < 0:
            warnings.append(
                f"the masks hold {present[0]} and {present[1]}: {present[0]} is taken as "
                f"background and {present[1]} as foreground; if {present[0]} is void, there is "
                "only one class"
            )
        return labels(present, "binary")
    if present != list(range(len(present))):
        notes.append(
            f"{'colours' if colour else 'values'} {listed(present, colour=colour)} become classes "
            f"0 to {len(present) - 1}"
        )
        if ignore is None and present[-1] == 255:
            notes.append("255 is taken as a class; if it is void, say --ignore-index 255")
    return labels(present, "multiclass")


def _default_name(index: int, value: int, *, colour: bool) -> str:
    if value == 0:
        return "background"
    if colour:
        return spelt(value, colour=True)
    return f"class {index}" if index == value else f"value {value}"


def _blurred_binary(totals: dict[int, int], *, lossy: bool) -> str | None:
    """The warning if the masks are black and white, spoilt by JPEG or by smooth resizing."""
    values = sorted(totals)
    if len(values) <= 2 or values[0] < 0 or values[-1] > 255 or values[-1] < 215:
        return None
    pixels = sum(totals.values())
    near_ends = sum(n for v, n in totals.items() if v <= 40 or v >= 215)
    # Label maps with 255 as void have nothing just below 255; greys do.
    high = [v for v in values if 200 <= v < 255]
    only_ends = all(v <= 10 or v >= 245 for v in values) and bool(high)
    if near_ends / pixels < 0.9 or not (only_ends or len(high) >= 3 or (lossy and high)):
        return None
    grey = pixels - totals.get(0, 0) - totals.get(255, 0)
    return (
        f"masks are black and white with greys between ({len(values)} values, "
        f"{100 * grey / pixels:.2g} % of the pixels, as JPEG or smooth resizing leaves them); "
        "128 and above is taken as foreground: saving masks as PNG with 0 and 255 is better"
    )


def _void_value(values: list[int], said: Said, *, colour: bool) -> int | None:
    if colour:
        return _VOC_VOID_COLOUR if _VOC_VOID_COLOUR in values and len(values) > 2 else None
    if values[0] < 0 <= values[1] and len(values) > 2 and said.count is None:
        return values[0]  # -1, or what maps have where there is no data, such as -9999
    for void in (255, 65535):
        rest = [v for v in values if v != void]
        if void not in values or rest[-1:] > [void]:
            continue
        if said.count is not None:
            fits = bool(rest) and rest[-1] < said.count
            return void if fits and not (len(values) == said.count == 2) else None
        if len(rest) < 2:
            continue
        # Classes painted as greys (0, 128, 255 or 0, 85, 170, 255) use 255 as the last of them.
        painted = min(b - a for a, b in pairwise(values)) >= 16
        if not painted or said.mode == "binary":
            return void
    return None


def _known(
    masks: Sequence[MaskFacts],
    said: Said,
    kind: str,
    named: Sequence[ClassNames],
    warnings: list[str],
) -> Labels | None:
    """The labels of a known data set, or as the names beside the data say."""
    if kind.startswith("cityscapes"):
        ids = tuple(range(len(CITYSCAPES))) if kind.endswith("train") else tuple(CITYSCAPES)
        note = "Cityscapes: the 19 classes that are trained on; all other ids are void"
        return Labels(
            mode="multiclass",
            names=tuple(CITYSCAPES.values()),
            values=ids,
            ignore_value=said.ignore_index,
            others_are_void=True,
            background=False,
            notes=(note,),
        )
    colour = any(mask.colour for mask in masks)
    totals = total_counts(list(masks))
    for names in named:
        found = _by_names(names, sorted(totals), colour=colour, ignore=said.ignore_index)
        if found is not None:
            return found
        if names.colour == colour:
            warnings.append(
                f"{names.file.name if names.file else 'a file'} names {len(names.of)} classes that "
                f"do not fit the values of the masks ({listed(sorted(totals), colour=colour)}); "
                "it is not used"
            )
    return None


def _by_names(
    names: ClassNames, values: Sequence[int], *, colour: bool, ignore: int | None
) -> Labels | None:
    """The labels as a file names them, None where the masks hold other values."""
    if names.colour != colour:
        return None
    of = {value: name for value, name in names.of.items() if value not in names.void}
    void = {*names.void, *(() if ignore is None else (ignore,))}
    if not colour:
        void |= {-1} | ({255, 65535} - set(of))
    present = [value for value in values if value not in void]
    if len(of) == 1 and len(values) == 2 and values[0] == 0:  # the only thing there is
        of = {0: "background", values[1]: next(iter(of.values()))}
        present, void = list(values), set()
    if not names.exact and list(values) == [0, 255] and len(of) == 2:
        of = dict(zip((0, 255), of.values(), strict=True))
        present, void = [0, 255], set()
    beyond = set(present) - set(of) == {len(of)}
    if not names.exact and beyond and min(present) == 0:
        # A list of things, which leaves the background out.
        of = {0: "background", **{value + 1: name for value, name in of.items()}}
    if not 2 <= len(of) < _MOST_CLASSES or len(set(of.values())) < len(of):
        return None
    if not set(present) <= set(of) or len(present) < 2:
        return None
    hidden = sorted(void.intersection(values))
    notes = [f"the classes are named by {names.file.name}"] if names.file else []
    if hidden:
        notes.append(f"value {listed(hidden, colour=colour)} is void")
    return Labels(
        mode="binary" if len(of) == 2 else "multiclass",
        names=tuple(of.values()),
        values=tuple(of),
        ignore_value=hidden[0] if hidden else ignore,
        colour=colour,
        others_are_void=len(hidden) > 1,
        background=len(of) == 2 or next(iter(of.values())).lower().strip("_ ") in _BACKGROUNDS,
        notes=tuple(notes),
    )


def _mixture(masks: Sequence[MaskFacts]) -> str | None:
    """The warning if some masks are 0 and 1, and the others 0 and 255."""
    ones = [m for m in masks if 1 in m.counts]
    highs = [m for m in masks if 255 in m.counts]
    if set(total_counts(list(masks))) != {0, 1, 255} or any(m in highs for m in ones):
        return None
    return (
        f"the masks mix two ways: {len(ones)} hold 0 and 1 (such as {ones[0].path.name}), "
        f"{len(highs)} hold 0 and 255 (such as {highs[0].path.name}), none holds both; 1 and 255 "
        "are taken as foreground: if 255 is void, say --ignore-index 255"
    )


def _instances(masks: Sequence[MaskFacts]) -> str | None:
    """The warning if the values number the objects of each image."""
    many = [m for m in masks if len(m.counts) > 5]
    filled = [m for m in masks if len(m.counts) > 1]
    top = max(total_counts(list(masks)))
    numbered = [m for m in many if m.instances]
    if top < 8 or 2 * len(many) < len(filled) or len(numbered) < 0.8 * len(many) or not many:
        return None
    return (
        f"the masks number their objects (up to {top}, each value one small spot): they are maps "
        "of instances, and every object is taken as foreground; if the values are classes, say "
        "--classes"
    )


def _without_strays(masks: list[MaskFacts], findings: Findings) -> list[MaskFacts]:
    """Tell of a mask that alone holds a label far from those of all the others."""
    if len(masks) < 5:
        return masks

    def without(bad: Callable[[int], bool], known: str) -> list[MaskFacts] | None:
        strays = [m for m in masks if any(bad(v) for v in m.counts)]
        if not 0 < len(strays) <= max(1, len(masks) // 50):
            return None
        for mask in strays:
            value = next(v for v in mask.counts if bad(v))
            findings.problem(
                f"{mask.path}: label {value} is beyond the classes, the other masks hold {known}; "
                f"repair the mask, or say --ignore-index {value} or --classes",
                mask.path,
            )
        return [m for m in masks if m not in strays]

    usual = total_counts(masks)
    if 255 in usual and 0 in usual:
        kept = without(lambda v: v not in (0, 255), "only 0 and 255")
        if kept is not None and set(total_counts(kept)) == {0, 255}:
            return kept
    top = 0
    while top + 1 in usual:
        top += 1
    beyond = [v for v in usual if v > top and v not in (255, 65535)]
    if top >= 1 and len(beyond) == 1 and beyond[0] > top + 1:
        return without(lambda v: v == beyond[0], f"0 to {top}") or masks
    return masks


def _given_classes(
    masks: list[MaskFacts], present: list[int], count: int, ignore: int | None, findings: Findings
) -> tuple[int, ...]:
    """The raw value of each class when the user says how many there are."""
    if present[0] >= 0 and present[-1] < count:
        return tuple(range(count))
    if len(present) == count:
        return tuple(present)
    if masks[0].colour:
        raise DataError(
            f"{masks[0].path}: the masks have {len(present)} colours "
            f"({listed(present, colour=True)}), --classes says {count}; "
            "leave --classes out or repair the masks"
        )
    for mask in masks:
        beyond = sorted(v for v in mask.counts if v != ignore and not 0 <= v < count)
        if beyond:
            findings.problem(
                f"{mask.path}: label {beyond[0]} is beyond the {count} classes (0 to {count - 1}); "
                f"repair the mask, raise --classes, or say --ignore-index {beyond[0]}",
                mask.path,
            )
    return tuple(range(count))
