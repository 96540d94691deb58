"""Opening a data set: found by looking, and said in plain words."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from denseloss.data.class_names import ClassNames
from denseloss.data.errors import DataError
from denseloss.data.images import (
    ImageFacts,
    Window,
    deep_window,
    look_at_image,
    oriented_size,
    read_image,
)
from denseloss.data.masks import Mask, MaskFacts, facts_of, look_at_mask, mask_path, read_mask
from denseloss.data.samples import VOID, Findings, Sample
from denseloss.data.synthetic import Scenes
from denseloss.data.user_dataset import UserDataset
from denseloss.tasks.segmentation.labels import (
    Labels,
    Mode,
    Said,
    as_colours,
    check_said,
    decide_labels,
    in_transparency,
    transparencies,
)
from denseloss.tasks.segmentation.pairing import Layout
from denseloss.tasks.segmentation.sources import find_samples
from denseloss.tasks.task import Progress, Split
from denseloss.user_code import full_name, is_user_code

T = TypeVar("T")

_SPLIT_NAMES = {"val": "validation", "test": "a held-out split"}


class Drawer(Protocol):
    """What draws samples by their names."""

    def draw(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the image, `uint8[3, h, w]`, and the raw mask, `int[h, w]`."""


@dataclass(frozen=True)
class SegmentationData:
    """A data set for semantic segmentation: what is in it, and how to read a sample.

    Attributes:
        name: A short name, of the folder or of the scenes.
        source: What was found where, in words.
        train: The samples to train on.
        val: The samples to validate on.
        test: The samples to test on, often none.
        labels: How raw mask values become classes.
        sizes: How many images there are of each (width, height).
        void_share: The share of void pixels in the training masks.
        class_share: The share of each class in the training pixels that are not void.
        split_note: How the samples were divided.
        notes: What else was found, in plain words.
        warnings: What the user should look at.
        window: The deep (16 bit, float) image values that become 0 and 255.
        drawer: What draws the samples that are no files.
        digests: Of the raw values of each mask, by the sample's name.
        pixels: How many pixels of each class and of `VOID` a mask has, by the sample's name, as far
            as the masks were looked at when the data was opened.
    """

    name: str
    source: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    labels: Labels
    sizes: dict[tuple[int, int], int]
    void_share: float
    class_share: tuple[float, ...]
    split_note: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    window: Window | None = None
    drawer: Drawer | None = field(default=None, repr=False)
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    pixels: Mapping[str, Counter[int]] = field(default_factory=dict, repr=False)

    @property
    def mode(self) -> Mode:
        """`"binary"` (one foreground) or `"multiclass"` (exclusive classes)."""
        return self.labels.mode

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, background included."""
        return self.labels.names

    @property
    def values(self) -> tuple[int, ...]:
        """The raw mask value of each class."""
        return self.labels.values

    @property
    def ignore_value(self) -> int | None:
        """The raw mask value that is void, `None` when there is none."""
        return self.labels.ignore_value

    @property
    def has_background(self) -> bool:
        """Whether class 0 is what is left beside the others, and not a class like them."""
        return self.labels.background

    @property
    def num_classes(self) -> int:
        """How many classes there are, background included."""
        return len(self.labels.names)

    def read(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The image as `uint8[3, h, w]` RGB and the class indices `uint8[h, w]`.

        Void pixels have the index `VOID` (255).

        Raises:
            DataError: A file cannot be read, or holds what it did not hold when it was opened.
        """
        if sample.image is None or sample.mask is None:
            return self._drawn(sample)
        mask = self.mask(sample)
        height, width = mask.shape
        image = read_image(sample.image, window=self.window, size=(width, height))
        if image.shape[:2] != mask.shape:
            size = image.shape[1::-1]
            file = mask_path(sample.mask)
            raise DataError(_sizes_differ(sample.image, size, file, (width, height)))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), mask

    def mask(self, sample: Sample) -> Tensor:
        """The class indices alone, as `read` gives them: the image's file is not opened.

        Raises:
            DataError: As `read`, of the mask.
        """
        if sample.mask is None:
            return self._drawn(sample)[1]
        raw, colour = read_mask(sample.mask, alpha=self.labels.alpha)
        file = mask_path(sample.mask)
        return torch.from_numpy(self.labels.decode(raw, colour=colour, path=file))

    def index_pixels(self, sample: Sample) -> Counter[int]:
        """As `class_pixels`, by the index of the class, and of `VOID`."""
        return self.pixels[sample.name] if sample.name in self.pixels else _count(self.mask(sample))

    def class_pixels(self, sample: Sample) -> tuple[int, ...]:
        """How many pixels of each class a sample's mask has; void is none.

        Raises:
            DataError: As `read`, of the mask.
        """
        pixels = self.index_pixels(sample)
        return tuple(pixels[i] for i in range(self.num_classes))

    def _drawn(self, sample: Sample) -> tuple[Tensor, Tensor]:
        if self.drawer is None:
            raise DataError(f"{sample.name}: is no sample of {self.source}")
        image, raw = self.drawer.draw(sample.name)
        decoded = self.labels.decode(raw.numpy(), colour=False, path=Path(self.name, sample.name))
        return image, torch.from_numpy(decoded)

    def describe(self) -> list[str]:
        """What was found, in plain words, one thing on a line."""
        spell = self.labels.spell
        lines = [
            f"data: {self.source}",
            f"images: {len(self.train)} train, {len(self.val)} val, {len(self.test)} test; "
            f"{_described(self.sizes)}",
            f"split: {self.split_note}",
        ]
        if self.mode == "binary":
            low, high = (spell(value) for value in self.values)
            if (limit := self.labels.threshold) is not None:
                low, high = f"below {limit}", f"{limit} and above"
            background, foreground = self.class_names
            lines.append(f"task: binary: mask value {low} is {background}, {high} is {foreground}")
        else:
            lines.append(f"task: {self.num_classes} exclusive classes")
        width = max(len(name) for name in self.class_names)
        lines += [
            f"  class {i}  {name:<{width}}  {percent(share):>8} of the train pixels"
            for i, (name, share) in enumerate(zip(self.class_names, self.class_share, strict=True))
        ]
        void = "none"
        if self.ignore_value is not None:
            shown = percent(self.void_share)
            void = f"mask value {spell(self.ignore_value)}, {shown} of the train pixels"
        lines.append(f"void: {void}")
        lines += [f"note: {note}" for note in self.notes]
        return lines + [f"warning: {warning}" for warning in self.warnings]


def percent(share: float) -> str:
    """A share with as many digits as a rare class needs."""
    value = 100 * share
    digits = 1 if value >= 10 or value == 0 else 2 if value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{digits}f} %"


def _described(sizes: dict[tuple[int, int], int]) -> str:
    if not sizes:
        return "no size"
    widths, heights = zip(*sizes, strict=True)
    if len(sizes) == 1:
        return f"all {widths[0]}x{heights[0]}"
    return (
        f"{len(sizes)} sizes, {min(widths)} to {max(widths)} wide and "
        f"{min(heights)} to {max(heights)} high"
    )


def _sizes_differ(
    image: Path, image_size: tuple[int, ...], mask: Path, mask_size: tuple[int, ...]
) -> str:
    return (
        f"{image}: is {image_size[0]}x{image_size[1]} but its mask {mask} is "
        f"{mask_size[0]}x{mask_size[1]}; make them the same size or remove the pair"
    )


def open_data(
    where: str | Path | None,
    *,
    mode: Mode | None = None,
    classes: int | Sequence[str] | None = None,
    ignore_index: int | None = None,
    images: str | None = None,
    masks: str | None = None,
    skip_unlabelled: bool = False,
    seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.0,
    progress: Progress | None = None,
) -> SegmentationData:
    """Open a data set for semantic segmentation; its format is found by looking.

    Args:
        where: A folder of images and masks, a Pascal VOC folder, `"synthetic:NAME"` with knobs as
            in `"synthetic:blobs?n=64&size=128&seed=3"`, or `None` for `"synthetic:blobs"`; or the
            name of a function, `"file.py:make"` or `"package.module:make"`, that returns a
            `torch.utils.data.Dataset` of pairs (image, mask), or a dict of them by split.
        mode: Overrides what the masks say.
        classes: How many classes there are or their names, background included.
        ignore_index: The raw mask value of void pixels.
        images: Where the images are, if looking does not find them: a folder, or a glob with one
            `*`, which is what an image and its mask share; as it is, or below `where`.
        masks: The same for the masks.
        skip_unlabelled: Leave out images without a mask.
        seed: Which samples become validation samples where the folder has no split.
        val_share: How many of them do.
        test_share: How many samples are held out where the folder has no test split.
        progress: Wraps the loop over the files, as `tqdm` or `rich.progress.track` do.

    Raises:
        DataError: On the first bad file.
    """
    return survey(
        where,
        Said(
            mode=mode,
            classes=classes,
            ignore_index=ignore_index,
            images=images,
            masks=masks,
            skip_unlabelled=skip_unlabelled,
        ),
        Split(seed=seed, val_share=val_share, test_share=test_share),
        progress=progress,
        findings=Findings(stop=True),
        whole=False,
    )


def survey(
    where: str | Path | None,
    said: Said,
    split: Split,
    *,
    progress: Progress | None,
    findings: Findings,
    whole: bool,
) -> SegmentationData:
    """Open a data set and tell what is bad in it; `whole` decodes every image, too."""
    check_said(said)
    if where is None or str(where).startswith("synthetic:"):
        return _synthetic(str(where or "synthetic:blobs"), said)
    drawer: UserDataset | None = None
    if is_user_code(str(where)):
        root = Path(full_name(str(where)))
        drawer = UserDataset.open(str(where))
        layout = Layout(root, f"the data set of {where}")
        if len(drawer.classes) > 1:
            layout.names.append(ClassNames(root, dict(enumerate(drawer.classes))))
        for name, names in drawer.splits.items():
            layout.splits[name] = [Sample(each, None, None) for each in names]
    else:
        root = Path(where).expanduser()
        layout = find_samples(
            root, findings, images=said.images, masks=said.masks, skip=said.skip_unlabelled
        )
    samples = layout.samples
    if not samples:
        raise DataError(f"{root}: no image has a mask; see `denseloss check {root}`")
    if drawer is not None:
        seen = list(_drawn_once(drawer, samples, progress))
    else:
        seen = list(_look_at_all(samples, progress, findings, whole=whole))
    masks = {sample: mask for sample, _, mask in seen}
    _check_sizes(seen, findings)
    good = [m for s, m in masks.items() if not findings.bad.intersection(s.files)]
    if not good:
        raise DataError(f"{root}: no readable pair of image and mask is left")
    if alpha := in_transparency(good):
        masks = dict(zip(masks, transparencies(list(masks.values())), strict=True))
        good = transparencies(good)
    labels = decide_labels(
        good, said, findings=findings, kind=layout.known, named=layout.names, alpha=alpha
    )
    for name, group in layout.splits.items():
        layout.splits[name] = [
            s for s in group if s in masks and not findings.bad.intersection(s.files)
        ]
    train, val, test, note = _split(layout, split)
    kept = [*train, *val, *test]
    facts = as_colours([masks[s] for s in kept])
    pixels = {s.name: labels.count(mask) for s, mask in zip(kept, facts, strict=True)}
    void_share, class_share = _shares([pixels[s.name] for s in train], len(labels.names))
    notes = [*layout.notes, *labels.notes]
    warnings = [*layout.warnings, *labels.warnings]
    warnings += _doubts([image for _, image, _ in seen], train, val, test)
    deep = [(image.mode, image.deep_range) for _, image, _ in seen if image.deep_range is not None]
    window = deep_window([values for _, values in deep])
    if window is not None:
        low, high = window
        notes.append(
            f"images of more than 8 bits ({', '.join(sorted(dict(deep)))}): values {low:g} to "
            f"{high:g} become 0 to 255 in every image"
        )
    return SegmentationData(
        name=root.name if drawer else root.resolve().name,
        source=layout.kind,
        train=train,
        val=val,
        test=test,
        labels=labels,
        sizes=dict(Counter(mask.size for mask in facts)),
        void_share=void_share,
        class_share=class_share,
        split_note=note,
        notes=tuple(notes),
        warnings=tuple(warnings),
        window=window,
        drawer=drawer,
        digests={s.name: masks[s].digest for s in kept},
        pixels=pixels,
    )


def _check_sizes(seen: Sequence[tuple[Sample, ImageFacts, MaskFacts]], findings: Findings) -> None:
    """Tell of masks that have another size than their image; of one kind of difference, once."""
    differ = [
        (image, mask)
        for _, image, mask in seen
        if image.size != mask.size and oriented_size(image.path) != mask.size
    ]
    if len(differ) > 3 and len(differ) == len(seen):
        image, mask = differ[0]
        ratios = {a / b for i, m in differ for a, b in zip(i.size, m.size, strict=True)}
        text = _sizes_differ(image.path, image.size, mask.path, mask.size)
        if all(i.size == m.size[::-1] for i, m in differ):
            text = f"all {len(seen)} masks are turned by 90 degrees or transposed, such as {text}"
        elif len(ratios) == 1:
            ratio = ratios.pop()
            factor = f"1/{ratio:g} of" if ratio > 1 else f"{1 / ratio:g} times"
            text = (
                f"all {len(seen)} masks have {factor} their image's width and height, such as "
                f"{text}; resize masks to the nearest value, without smoothing"
            )
        else:
            text = f"all {len(seen)} masks have another size than their image, such as {text}"
        findings.problem(text, *(i.path for i, _ in differ))
        return
    for image, mask in differ:
        text = _sizes_differ(image.path, image.size, mask.path, mask.size)
        findings.problem(text, image.path)


def _look_at_all(
    samples: list[Sample], progress: Progress | None, findings: Findings, *, whole: bool
) -> Iterator[tuple[Sample, ImageFacts, MaskFacts]]:
    def look(sample: Sample) -> tuple[ImageFacts | DataError, MaskFacts | DataError]:
        image, mask = _files(sample)
        return (
            _or_error(lambda: look_at_image(image, whole=whole)),
            _or_error(lambda: look_at_mask(mask)),
        )

    # Decoders release the interpreter lock, so threads are enough.
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        looked_at = progress(samples) if progress else samples
        for sample, (image, mask) in zip(looked_at, pool.map(look, samples), strict=True):
            for found in (image, mask):
                if isinstance(found, DataError):
                    findings.problem(str(found), *sample.files)
            if not isinstance(image, DataError) and not isinstance(mask, DataError):
                yield sample, image, mask
    finally:
        pool.shutdown(cancel_futures=True)


def _drawn_once(
    drawer: Drawer, samples: list[Sample], progress: Progress | None
) -> Iterator[tuple[Sample, ImageFacts, MaskFacts]]:
    for sample in progress(samples) if progress else samples:
        raw = drawer.draw(sample.name)[1]
        path = Path(sample.name)
        facts = facts_of(path, raw.numpy(), colour=False)
        yield sample, ImageFacts(path, facts.size, "RGB", None), facts


def _doubts(
    images: Sequence[ImageFacts], train: Sequence[Sample], *held_out: Sequence[Sample]
) -> Iterator[str]:
    """What is doubtful about the images themselves."""
    if more := [image for image in images if image.more_bands]:
        bands = more[0].more_bands
        yield (
            f"{len(more)} images have more bands than colour (such as {more[0].path.name}, "
            f"{bands} more): the other bands are left out"
        )
    # Whether a mask was painted on the turned image or on the stored one, only sizes can tell.
    turned = [i for i in images if i.turn in (2, 3, 4) or (i.turn > 4 and i.size[0] == i.size[1])]
    if turned:
        yield (
            f"{len(turned)} images are marked as turned by the camera (EXIF orientation, such as "
            f"{turned[0].path.name}) and are turned; if the masks were painted without turning, "
            "they do not fit: look at the picture of `denseloss check`"
        )
    for name, samples in zip(("validation", "test"), held_out, strict=True):
        if twins := _twins(train, samples):
            one, other = twins[0]
            yield (
                f"{len(twins)} of {len(samples)} {name} images are identical to training images "
                f"(such as {one.name} and {other.name}): scores are too good; remove the copies"
            )


def _twins(samples: Sequence[Sample], others: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Pairs of an image of `others` and one of `samples` that are equal byte for byte."""
    # By less and less cheap marks, so that few files are read whole: pictures without compression
    # have all the same length.
    sides = [[(s, "") for s in samples], [(s, "") for s in others]]
    for mark in (_length, _middle, _content):
        sides = [[(s, f"{key}/{mark(s.image)}") for s, key in side if s.image] for side in sides]
        both = {key for _, key in sides[0]} & {key for _, key in sides[1]}
        sides = [[(s, key) for s, key in side if key in both] for side in sides]
    first = {key: sample for sample, key in reversed(sides[0])}
    return [(sample, first[key]) for sample, key in sides[1]]


def _length(path: Path) -> int:
    return path.stat().st_size


def _middle(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(4096).hex()


def _content(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _files(sample: Sample) -> tuple[Path, Mask]:
    assert sample.image is not None
    assert sample.mask is not None
    return sample.image, sample.mask


def _or_error(look: Callable[[], T]) -> T | DataError:
    try:
        return look()
    except DataError as error:
        return error


def _count(mask: Tensor) -> Counter[int]:
    counts = torch.bincount(mask.flatten(), minlength=VOID + 1)
    return Counter({i: n for i, n in enumerate(counts.tolist()) if n})


def _shares(pixels: list[Counter[int]], classes: int) -> tuple[float, tuple[float, ...]]:
    """The share of void in all pixels, and of each class in the pixels that are not void."""
    counts = [sum(each[i] for each in pixels) for i in range(classes)]
    known, void = sum(counts), sum(each[VOID] for each in pixels)
    return void / max(known + void, 1), tuple(n / max(known, 1) for n in counts)


def _split(
    layout: Layout, split: Split
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[Sample, ...], str]:
    val_share, test_share = split.val_share, split.test_share
    if not 0 < val_share < 1:
        raise DataError(f"val_share {val_share:g}: the validation share lies between 0 and 1")
    if not 0 <= test_share < 1 - val_share:
        raise DataError(
            f"test_share {test_share:g}: the held-out share lies between 0 and "
            f"{1 - val_share:g}, the rest beside validation"
        )
    groups = layout.splits
    train = groups.get(None) or groups.get("train") or []
    val, test = groups.get("val") or [], groups.get("test") or []
    if not train:
        raise DataError(f"{layout.root}: has no train split, only val or test; add train/")
    shares = {}
    if not val:
        shares["val"] = val_share
    if not test and test_share > 0:
        shares["test"] = test_share
    if len(train) < 1 + len(shares):
        pairs = "one pair" if len(train) == 1 else f"{len(train)} pairs"
        raise DataError(
            f"{layout.root}: only {pairs} of image and mask; training and "
            f"{' and '.join(_SPLIT_NAMES[name] for name in shares)} need at least "
            f"{1 + len(shares)}"
        )
    note = "as in the folder"
    if shares:
        train, drawn = _drawn_split(train, seed=split.seed, shares=shares)
        val, test = drawn.get("val", val), drawn.get("test", test)
        lacks = "no split" if None in groups else f"no {' and no '.join(shares)} split"
        counts = " / ".join(f"{len(group)} {name}" for name, group in drawn.items())
        note = f"{lacks} in the folder: {len(train)} train / {counts} by seed {split.seed}"
    return tuple(train), tuple(val), tuple(test), note


def _drawn_split(
    samples: list[Sample], *, seed: int, shares: dict[str, float]
) -> tuple[list[Sample], dict[str, list[Sample]]]:
    # By a digest of each name: the same on every machine, and a new image moves few others.
    # Validation images are drawn first: a held-out split does not change them.
    def digest(sample: Sample) -> bytes:
        return hashlib.blake2b(f"{seed}/{sample.name}".encode(), digest_size=16).digest()

    order = sorted(samples, key=digest)
    drawn: dict[str, list[Sample]] = {}
    taken: set[Sample] = set()
    for left, (name, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        # At least one for this split, for those that follow, and for training.
        count = min(max(1, round(len(samples) * share)), len(samples) - len(taken) - left - 1)
        chosen = set(order[len(taken) : len(taken) + count])
        drawn[name] = [s for s in samples if s in chosen]
        taken |= chosen
    return [s for s in samples if s not in taken], drawn


def _synthetic(where: str, said: Said) -> SegmentationData:
    scenes = Scenes.parse(where)
    own = scenes.kind.class_names
    if said.count not in (None, len(own)):
        raise DataError(
            f"{where}: has {len(own)} classes, --classes says {said.count}; leave it out"
        )
    if said.mode == "binary" and len(own) != 2:
        raise DataError(f"{where}: has {len(own)} classes, it is not binary")
    if said.ignore_index not in (None, VOID):
        raise DataError(f"{where}: its void value is {VOID}; leave --ignore-index out")
    samples = tuple(Sample(name, None, None) for name in scenes.sample_names)
    train_n = max(1, round(len(samples) * 2 / 3))
    val_n = max(1, (len(samples) - train_n + 1) // 2)
    looked_at = [_count(scenes.draw(sample.name)[1]) for sample in samples[: min(train_n, 64)]]
    void_share, class_share = _shares(looked_at, len(own))
    note = "the shares are those of the first 64 scenes"
    return SegmentationData(
        name=scenes.name,
        source=f"{scenes}: {scenes.kind.about}",
        train=samples[:train_n],
        val=samples[train_n : train_n + val_n],
        test=samples[train_n + val_n :],
        labels=Labels(
            mode=said.mode or ("binary" if len(own) == 2 else "multiclass"),
            names=said.names or own,
            values=tuple(range(len(own))),
            ignore_value=VOID if scenes.kind.has_void else None,
        ),
        sizes={(scenes.size, scenes.size): len(samples)},
        void_share=void_share,
        class_share=class_share,
        split_note="fixed: the first two thirds train",
        notes=(note,) if len(looked_at) < train_n else (),
        drawer=scenes,
    )
