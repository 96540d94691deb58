"""The check of a data set: everything that is in it and everything that is wrong with it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from denseloss.data.errors import DataError
from denseloss.data.images import MaskFacts
from denseloss.data.samples import VOID, Findings, Sample
from denseloss.tasks.segmentation.data import Progress, SegmentationData, percent, survey
from denseloss.tasks.segmentation.labels import Labels, Mode, as_colours
from denseloss.tasks.segmentation.pictures import draw_overlays
from denseloss.tasks.task import DataReport

_LISTED = 20
_RARE = 0.005


@dataclass(frozen=True, kw_only=True)
class SegmentationReport(DataReport):
    """What `check_data` saw.

    Attributes:
        where: What was checked.
        data: The data set of all good samples, `None` if there are too few.
        problems: One line for each bad file, with its name and what to do.
        warnings: What should be looked at, but does not stop training.
        empty: The names of the samples whose mask has no foreground.
        class_images: In how many masks each class occurs.
        class_shares: The share of each class in the pixels of each sample, by its name.
    """

    data: SegmentationData | None
    warnings: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    class_images: tuple[int, ...] = ()
    class_shares: dict[str, dict[int, float]] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many good samples each split has."""
        if self.data is None:
            return {"train": 0, "val": 0, "test": 0}
        return {name: len(getattr(self.data, name)) for name in ("train", "val", "test")}

    @property
    def sizes(self) -> dict[tuple[int, int], int]:
        """How many good images there are of each (width, height)."""
        return {} if self.data is None else self.data.sizes

    @property
    def class_share(self) -> tuple[float, ...]:
        """The share of each class in the training pixels that are not void."""
        return () if self.data is None else self.data.class_share

    @property
    def void_share(self) -> float:
        """The share of void in the training pixels."""
        return 0.0 if self.data is None else self.data.void_share

    def lines(self) -> list[str]:
        """The report in plain words, the verdict last."""
        lines = [] if self.data is None else self.data.describe()
        lines = [line for line in lines if not line.startswith("warning: ")]
        if self.data is not None:
            total = sum(self.counts.values())
            for i, (name, n) in enumerate(
                zip(self.data.class_names, self.class_images, strict=True)
            ):
                if n < total and i > 0:
                    lines.append(f"class {i} {name}: in {n} of {total} masks")
            lines.append(_empty_line(self.empty, total))
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"bad: {problem}" for problem in self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"bad: and {len(self.problems) - _LISTED} more")
        if self.ok:
            lines.append("verdict: good to train on" + (", see the warnings" * bool(self.warnings)))
        else:
            n = len(self.problems)
            lines.append(f"verdict: {n} problem{'s' * (n != 1)} to repair before training")
        return lines

    def draw(self, path: str | Path) -> Path:
        """Draw eight samples with their masks laid over, to a PNG; gives its path.

        Raises:
            DataError: There is no good sample to draw.
        """
        if self.data is None:
            raise DataError(f"{self.where}: no good sample to draw; repair the files named first")
        chosen = _telling(self.data, self.class_shares or {}, count=8)
        return draw_overlays(self.data, chosen, Path(path))


def check_data(
    where: str | Path | None,
    *,
    mode: Mode | None = None,
    classes: int | Sequence[str] | None = None,
    ignore_index: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SegmentationReport:
    """Look at every file of a data set, decode it whole, and collect all that is wrong.

    Args:
        where: As for `open_data`, and so are the others.
        mode: Overrides what the masks say.
        classes: How many classes there are or their names, background included.
        ignore_index: The raw mask value of void pixels.
        seed: Which samples become validation samples where the folder has no split.
        progress: Wraps the loop over the files.
    """
    findings = Findings(stop=False)
    shown = str(where or "synthetic:blobs")
    try:
        data, masks = survey(
            where,
            mode=mode,
            classes=classes,
            ignore_index=ignore_index,
            seed=seed,
            val_share=0.2,
            progress=progress,
            findings=findings,
            whole=True,
        )
    except DataError as error:
        return SegmentationReport(where=shown, data=None, problems=(*findings.problems, str(error)))
    shares = _class_shares(data, masks)
    samples = [s for s in (*data.train, *data.val, *data.test) if s.name in shares]
    empty = tuple(s.name for s in samples if not set(shares[s.name]) - {0, VOID})
    images = tuple(sum(1 for s in samples if i in shares[s.name]) for i in range(data.num_classes))
    return SegmentationReport(
        where=shown,
        data=data,
        problems=tuple(findings.problems),
        warnings=(*data.warnings, *_warnings(data, images, empty)),
        empty=empty,
        class_images=images,
        class_shares=shares,
    )


def _class_shares(
    data: SegmentationData, masks: dict[Path, MaskFacts]
) -> dict[str, dict[int, float]]:
    shares = {}
    facts = {m.path: m for m in as_colours(list(masks.values()))}
    for sample in (*data.train, *data.val, *data.test):
        if sample.mask is not None:
            shares[sample.name] = _share_of(data.labels, facts[sample.mask].counts)
        else:
            _, mask = data.read(sample)
            found, counts = torch.unique(mask, return_counts=True)
            pixels = dict(zip(found.tolist(), counts.tolist(), strict=True))
            shares[sample.name] = {i: n / mask.numel() for i, n in pixels.items()}
    return shares


def _share_of(labels: Labels, counts: dict[int, int]) -> dict[int, float]:
    pixels: Counter[int] = Counter()
    for value, n in counts.items():
        index = labels.index_of(value)
        if index is not None:
            pixels[index] += n
    total = sum(counts.values())
    return {i: n / total for i, n in pixels.items()}


def _warnings(data: SegmentationData, images: tuple[int, ...], empty: tuple[str, ...]) -> list[str]:
    warnings = []
    for i, (name, n) in enumerate(zip(data.class_names, images, strict=True)):
        share = data.class_share[i]
        if n == 0:
            warnings.append(f"class {i} {name} occurs in no mask")
        elif share == 0:
            warnings.append(f"class {i} {name} occurs in no training mask; it cannot be learnt")
        elif share < _RARE:
            warnings.append(
                f"class {i} {name} is rare ({percent(share).strip()}): plain cross entropy and "
                "accuracy hardly see it; look at its own score, and compare Dice and focal losses"
            )
    total = len(data.train) + len(data.val) + len(data.test)
    if len(empty) > total / 2:
        warnings.append(
            f"{len(empty)} of {total} masks are empty: Dice of an empty mask is 0 or 1 by "
            "convention alone"
        )
    if data.void_share > 0.5:
        warnings.append(f"{percent(data.void_share).strip()} of the pixels are void")
    if 0 < len(data.val) < 5:
        warnings.append(
            f"only {len(data.val)} validation images: differences between losses may be chance"
        )
    return warnings


def _empty_line(empty: tuple[str, ...], total: int) -> str:
    if not empty:
        return "empty masks: none"
    named = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
    return f"empty masks (background only): {len(empty)} of {total}: {named}"


def _telling(
    data: SegmentationData, shares: dict[str, dict[int, float]], *, count: int
) -> list[Sample]:
    """Samples that show every class, the rarest first, and void; the rest evenly spread."""
    samples = [*data.train, *data.val, *data.test]
    wanted = sorted(range(1, data.num_classes), key=lambda i: data.class_share[i])
    chosen: list[Sample] = []
    for index in [*wanted, VOID]:
        if any(index in shares.get(s.name, {}) for s in chosen) or len(chosen) == count:
            continue
        best = max(samples, key=lambda s: shares.get(s.name, {}).get(index, 0.0))
        if index in shares.get(best.name, {}):
            chosen.append(best)
    left = [s for s in samples if s not in chosen]
    missing = min(count - len(chosen), len(left))
    chosen += [left[round(i * (len(left) - 1) / max(missing - 1, 1))] for i in range(missing)]
    return sorted(dict.fromkeys(chosen), key=samples.index)
