"""Opening a data set: found by looking, and said in plain words."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denseloss.data.errors import DataError
from denseloss.data.images import (
    ImageFacts,
    MaskFacts,
    Window,
    deep_window,
    look_at_image,
    look_at_mask,
    oriented_size,
    read_image,
    read_mask,
)
from denseloss.data.samples import VOID, Findings, Sample
from denseloss.data.synthetic import Scenes
from denseloss.tasks.segmentation.folders import Layout, find_pairs
from denseloss.tasks.segmentation.labels import Labels, Mode, as_colours, decide_labels

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_SPLIT_NAMES = {"val": "validation", "test": "a held-out split"}


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
        scenes: What draws the samples when they are synthetic.
        pixels: How many pixels of each class a sample's mask has, by the sample's name, as far as
            the masks were looked at when the data was opened.
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
    scenes: Scenes | None = field(default=None, repr=False)
    pixels: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

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
        mask = self._decoded(sample.mask)
        size = (mask.shape[1], mask.shape[0])
        image = read_image(sample.image, window=self.window, size=size)
        if image.shape[:2] != mask.shape:
            raise DataError(_sizes_differ(sample.image, image.shape[1::-1], sample.mask, size))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)

    def mask(self, sample: Sample) -> Tensor:
        """The class indices alone, as `read` gives them: the image's file is not opened.

        Raises:
            DataError: As `read`, of the mask.
        """
        if sample.image is None or sample.mask is None:
            return self._drawn(sample)[1]
        return torch.from_numpy(self._decoded(sample.mask))

    def class_pixels(self, sample: Sample) -> tuple[int, ...]:
        """How many pixels of each class a sample's mask has; void is none.

        Raises:
            DataError: As `read`, of the mask.
        """
        if sample.name not in self.pixels:
            counts = torch.bincount(self.mask(sample).flatten(), minlength=VOID + 1)
            return tuple(counts[: self.num_classes].tolist())
        return self.pixels[sample.name]

    def _drawn(self, sample: Sample) -> tuple[Tensor, Tensor]:
        if self.scenes is None:
            raise DataError(f"{sample.name}: is no sample of {self.source}")
        return self.scenes.draw(sample.name)

    def _decoded(self, path: Path) -> NDArray[np.uint8]:
        raw, colour = read_mask(path)
        return self.labels.decode(raw, colour=colour, path=path)

    def describe(self) -> list[str]:
        """What was found, in plain words, one thing on a line."""
        spell = self.labels.spell
        lines = [
            f"data: {self.source}",
            f"images: {len(self.train)} train, {len(self.val)} val, {len(self.test)} test; "
            f"{describe_sizes(self.sizes)}",
            f"split: {self.split_note}",
        ]
        if self.mode == "binary":
            low, high = (spell(v) for v in self.values)
            low, high = (
                (low, high)
                if self.labels.threshold is None
                else (f"below {self.labels.threshold}", f"{self.labels.threshold} and above")
            )
            what = f"binary: mask value {low} is {self.class_names[0]}, "
            lines.append(f"task: {what}{high} is {self.class_names[1]}")
        else:
            lines.append(f"task: {self.num_classes} exclusive classes")
        width = max(len(name) for name in self.class_names)
        for i, (name, share) in enumerate(zip(self.class_names, self.class_share, strict=True)):
            lines.append(f"  class {i}  {name:<{width}}  {percent(share)} of the train pixels")
        if self.ignore_value is None:
            lines.append("void: none")
        else:
            lines.append(
                f"void: mask value {spell(self.ignore_value)}, "
                f"{percent(self.void_share).strip()} of the train pixels"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return lines


def percent(share: float) -> str:
    """A share with as many digits as a rare class needs."""
    value = 100 * share
    digits = 1 if value >= 10 or value == 0 else 2 if value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{digits}f} %".rjust(8)


def describe_sizes(sizes: dict[tuple[int, int], int]) -> str:
    """One size, or the range of sizes."""
    if not sizes:
        return "no size"
    if len(sizes) == 1:
        ((width, height),) = sizes
        return f"all {width}x{height}"
    widths, heights = zip(*sizes, strict=True)
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
    seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.0,
    progress: Progress | None = None,
) -> SegmentationData:
    """Open a data set for semantic segmentation; its format is found by looking.

    Args:
        where: A folder of images and masks, a Pascal VOC folder, `"synthetic:NAME"` with knobs as
            in `"synthetic:blobs?n=64&size=128&seed=3"`, or `None` for `"synthetic:blobs"`.
        mode: Overrides what the masks say.
        classes: How many classes there are or their names, background included.
        ignore_index: The raw mask value of void pixels.
        seed: Which samples become validation samples where the folder has no split.
        val_share: How many of them do.
        test_share: How many samples are held out where the folder has no test split.
        progress: Wraps the loop over the files, as `tqdm` or `rich.progress.track` do.

    Raises:
        DataError: On the first bad file.
    """
    data, _ = survey(
        where,
        mode=mode,
        classes=classes,
        ignore_index=ignore_index,
        seed=seed,
        val_share=val_share,
        test_share=test_share,
        progress=progress,
        findings=Findings(stop=True),
        whole=False,
    )
    return data


def survey(
    where: str | Path | None,
    *,
    mode: Mode | None,
    classes: int | Sequence[str] | None,
    ignore_index: int | None,
    seed: int,
    val_share: float,
    test_share: float = 0.0,
    progress: Progress | None,
    findings: Findings,
    whole: bool,
) -> tuple[SegmentationData, dict[Path, MaskFacts]]:
    """Open a data set and tell what is bad in it; `whole` decodes every image, too."""
    if where is None or str(where).startswith("synthetic:"):
        return _synthetic(str(where or "synthetic:blobs"), mode, classes, ignore_index), {}
    root = Path(where).expanduser()
    layout = find_pairs(root, findings)
    samples = [sample for group in layout.splits.values() for sample in group]
    if not samples:
        raise DataError(f"{root}: no image has a mask; see `denseloss check {root}`")
    seen = list(_look_at_all(samples, progress, findings, whole=whole))
    images = {s: image for s, image, _ in seen}
    masks = {s: mask for s, _, mask in seen}
    _check_sizes(images, masks, findings)
    good = [m for s, m in masks.items() if s.mask not in findings.bad]
    if not good:
        raise DataError(f"{root}: no readable pair of image and mask; see `denseloss check {root}`")
    labels = decide_labels(
        good,
        mode=mode,
        classes=classes,
        ignore_index=ignore_index,
        voc=layout.voc,
        findings=findings,
    )
    for split, group in layout.splits.items():
        layout.splits[split] = [
            s for s in group if s in masks and not {s.image, s.mask} & findings.bad
        ]
    train, val, test, note = _split(layout, seed=seed, val_share=val_share, test_share=test_share)
    window = deep_window([i.deep_range for i in images.values() if i.deep_range is not None])
    notes = [*layout.notes, *labels.notes]
    if window is not None:
        modes = sorted({i.mode for i in images.values() if i.deep_range is not None})
        notes.append(
            f"images of more than 8 bits ({', '.join(modes)}): values {window[0]:g} to "
            f"{window[1]:g} become 0 to 255 in every image"
        )
    counted = as_colours([masks[s] for s in train])
    void_share, class_share = _shares(labels, counted)
    data = SegmentationData(
        name=root.resolve().name,
        source=layout.kind,
        train=train,
        val=val,
        test=test,
        labels=labels,
        sizes=dict(Counter(masks[s].size for s in (*train, *val, *test))),
        void_share=void_share,
        class_share=class_share,
        split_note=note,
        notes=tuple(notes),
        warnings=(*layout.warnings, *labels.warnings),
        window=window,
        pixels=_class_pixels(labels, {s.name: masks[s] for s in (*train, *val, *test)}),
    )
    return data, {m.path: m for m in masks.values()}


def _look_at_all(
    samples: list[Sample], progress: Progress | None, findings: Findings, *, whole: bool
) -> Iterator[tuple[Sample, ImageFacts, MaskFacts]]:
    def look(sample: Sample) -> tuple[ImageFacts | DataError, MaskFacts | DataError]:
        assert sample.image is not None
        assert sample.mask is not None
        image: ImageFacts | DataError
        mask: MaskFacts | DataError
        try:
            image = look_at_image(sample.image, whole=whole)
        except DataError as error:
            image = error
        try:
            mask = look_at_mask(sample.mask)
        except DataError as error:
            mask = error
        return image, mask

    # Decoders release the interpreter lock, so threads are enough.
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        looked_at = progress(samples) if progress else samples
        for sample, (image, mask) in zip(looked_at, pool.map(look, samples), strict=True):
            files = [p for p in (sample.image, sample.mask) if p is not None]
            for found in (image, mask):
                if isinstance(found, DataError):
                    findings.problem(str(found), *files)
            if not isinstance(image, DataError) and not isinstance(mask, DataError):
                yield sample, image, mask
    finally:
        pool.shutdown(cancel_futures=True)


def _check_sizes(
    images: dict[Sample, ImageFacts], masks: dict[Sample, MaskFacts], findings: Findings
) -> None:
    for sample, image in images.items():
        mask = masks[sample]
        if image.size != mask.size and oriented_size(image.path) != mask.size:
            findings.problem(
                _sizes_differ(image.path, image.size, mask.path, mask.size), image.path, mask.path
            )


def _class_pixels(labels: Labels, masks: dict[str, MaskFacts]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, mask in zip(masks, as_colours(list(masks.values())), strict=True):
        pixels: Counter[int | None] = Counter()
        for value, n in mask.counts.items():
            pixels[labels.index_of(value)] += n
        found[name] = tuple(pixels[i] for i in range(len(labels.names)))
    return found


def _shares(labels: Labels, masks: list[MaskFacts]) -> tuple[float, tuple[float, ...]]:
    pixels: Counter[int | None] = Counter()
    for mask in masks:
        for value, n in mask.counts.items():
            pixels[labels.index_of(value)] += n
    return shares_of(pixels, len(labels.names))


def shares_of(pixels: Counter[int | None], num_classes: int) -> tuple[float, tuple[float, ...]]:
    """The share of void in all pixels, and of each class in the pixels that are not void."""
    counts = [pixels[i] for i in range(num_classes)]
    known, total = sum(counts), sum(counts) + pixels[VOID]
    return pixels[VOID] / max(total, 1), tuple(n / max(known, 1) for n in counts)


def _split(
    layout: Layout, *, seed: int, val_share: float, test_share: float
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[Sample, ...], str]:
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
    if not shares:
        return tuple(train), tuple(val), tuple(test), "as in the folder"
    train, drawn = _drawn_split(train, seed=seed, shares=shares)
    lacks = (
        "no split" if None in groups else " and ".join(f"no {name}" for name in shares) + " split"
    )
    counts = " / ".join(f"{len(group)} {name}" for name, group in drawn.items())
    note = f"{lacks} in the folder: {len(train)} train / {counts} by seed {seed}"
    return tuple(train), tuple(drawn.get("val", val)), tuple(drawn.get("test", test)), note


def _drawn_split(
    samples: list[Sample], *, seed: int, shares: dict[str, float]
) -> tuple[list[Sample], dict[str, list[Sample]]]:
    # By a digest of each name: the same on every machine and in every order of listing, and an
    # image added later moves few others. Validation images are drawn first, so that they are the
    # same with a held-out split and without.
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


def _synthetic(
    where: str, mode: Mode | None, classes: int | Sequence[str] | None, ignore_index: int | None
) -> SegmentationData:
    scenes = Scenes.parse(where)
    count = classes if isinstance(classes, int) else len(classes or scenes.class_names)
    if count is not None and count != len(scenes.class_names):
        raise DataError(
            f"{where}: has {len(scenes.class_names)} classes, --classes says {count}; leave it out"
        )
    if mode == "binary" and len(scenes.class_names) != 2:
        raise DataError(f"{where}: has {len(scenes.class_names)} classes, it is not binary")
    if ignore_index not in (None, VOID):
        raise DataError(f"{where}: its void value is {VOID}; leave --ignore-index out")
    names = scenes.class_names if classes is None or isinstance(classes, int) else tuple(classes)
    samples = tuple(Sample(name, None, None) for name in scenes.sample_names)
    train_n = max(1, round(len(samples) * 2 / 3))
    val_n = max(1, (len(samples) - train_n + 1) // 2)
    train, val = samples[:train_n], samples[train_n : train_n + val_n]
    pixels: Counter[int | None] = Counter()
    looked_at = train[:64]
    for sample in looked_at:
        _, mask = scenes.draw(sample.name)
        for index, n in enumerate(torch.bincount(mask.flatten(), minlength=256).tolist()):
            pixels[index] += n
    void_share, class_share = shares_of(pixels, len(names))
    note = "the shares are those of the first 64 scenes"
    return SegmentationData(
        name=scenes.name,
        source=f"{scenes}: {scenes.about}",
        train=train,
        val=val,
        test=samples[train_n + val_n :],
        labels=Labels(
            mode=mode or ("binary" if len(names) == 2 else "multiclass"),
            names=names,
            values=tuple(range(len(names))),
            ignore_value=VOID if scenes.has_void else None,
        ),
        sizes={(scenes.size, scenes.size): len(samples)},
        void_share=void_share,
        class_share=class_share,
        split_note="fixed: the first two thirds train",
        notes=(note,) if len(looked_at) < len(train) else (),
        scenes=scenes,
    )
