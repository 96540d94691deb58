"""The check of a data set: everything that is in it and everything that is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from denseloss.data.errors import DataError
from denseloss.data.samples import VOID, Findings, Sample, evenly
from denseloss.tasks.segmentation.data import SegmentationData, percent, survey
from denseloss.tasks.segmentation.labels import Mode, Said
from denseloss.tasks.segmentation.pictures import draw_overlays
from denseloss.tasks.task import DataReport, Progress, Split

_LISTED = 20
_ALIKE = 3
_RARE, _MOST = 0.005, 0.8


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
        return {name: len(getattr(self.data, name, ())) for name in ("train", "val", "test")}

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
        lines: list[str] = []
        if self.data is not None:
            lines += [line for line in self.data.describe() if not line.startswith("warning: ")]
            total = sum(self.counts.values())
            named = zip(self.data.class_names[1:], self.class_images[1:], strict=True)
            lines += [
                f"class {i} {name}: in {n} of {total} masks"
                for i, (name, n) in enumerate(named, start=1)
                if n < total
            ]
            shown = ", ".join(self.empty[:5]) + ", ..." * (len(self.empty) > 5)
            if self.empty:
                lines.append(
                    f"empty masks (background only): {len(self.empty)} of {total}: {shown}"
                )
            elif self.data.has_background:
                lines.append("empty masks: none")
        lines += [f"warning: {warning}" for warning in self.warnings]
        bad, n = _grouped(self.problems), len(self.problems)
        lines += [f"bad: {line}" for line in bad[:_LISTED]]
        if len(bad) > _LISTED:
            lines.append(f"bad: and {len(bad) - _LISTED} more")
        verdict = f"{n} problem{'s' * (n != 1)} to repair before training"
        if self.ok:
            verdict = "good to train on" + ", see the warnings" * bool(self.warnings)
        return [*lines, f"verdict: {verdict}"]

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
    images: str | None = None,
    masks: str | None = None,
    skip_unlabelled: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> SegmentationReport:
    """Look at every file of a data set, decode it whole, and collect all that is wrong.

    Args:
        where: As for `open_data`, and so are the others.
        mode: Overrides what the masks say.
        classes: How many classes there are or their names, background included.
        ignore_index: The raw mask value of void pixels.
        images: Where the images are.
        masks: Where the masks are.
        skip_unlabelled: Leave out images without a mask.
        seed: Which samples become validation samples where the folder has no split.
        progress: Wraps the loop over the files.
    """
    findings = Findings(stop=False)
    shown = str(where or "synthetic:blobs")
    try:
        data = survey(
            where,
            Said(
                mode=mode,
                classes=classes,
                ignore_index=ignore_index,
                images=images,
                masks=masks,
                skip_unlabelled=skip_unlabelled,
            ),
            Split(seed=seed),
            progress=progress,
            findings=findings,
            whole=True,
        )
    except DataError as error:
        return SegmentationReport(where=shown, data=None, problems=(*findings.problems, str(error)))
    samples = [*data.train, *data.val, *data.test]
    shares: dict[str, dict[int, float]] = {}
    for sample in samples:
        pixels = data.index_pixels(sample)
        shares[sample.name] = {i: n / pixels.total() for i, n in pixels.items()}
    empty = tuple(
        s.name for s in samples if data.has_background and not set(shares[s.name]) - {0, VOID}
    )
    seen = tuple(sum(1 for s in samples if i in shares[s.name]) for i in range(data.num_classes))
    return SegmentationReport(
        where=shown,
        data=data,
        problems=tuple(findings.problems),
        warnings=(*data.warnings, *_warnings(data, seen, empty)),
        empty=empty,
        class_images=seen,
        class_shares=shares,
    )


def _grouped(problems: Sequence[str]) -> list[str]:
    """Problems; many that differ in nothing but their file are one line."""
    files: dict[str, list[str]] = {}
    for problem in problems:
        file, _, text = problem.partition(": ")
        files.setdefault(text, []).append(file)
    lines = []
    for text, group in files.items():
        if len(group) <= _ALIKE:
            lines += [f"{file}: {text}" for file in group]
            continue
        more = ", ".join(file.rpartition("/")[2] for file in group[1 : _ALIKE + 1])
        rest = f" and {len(group) - _ALIKE - 1} more" * (len(group) > _ALIKE + 1)
        lines.append(f"{group[0]}: {text} (also {more}{rest})")
    return lines


def _warnings(data: SegmentationData, images: tuple[int, ...], empty: tuple[str, ...]) -> list[str]:
    warnings = []
    rare = []
    for i, (name, n) in enumerate(zip(data.class_names, images, strict=True)):
        share = data.class_share[i]
        if n == 0:
            warnings.append(f"class {i} {name} occurs in no mask")
        elif share == 0:
            warnings.append(f"class {i} {name} occurs in no training mask; it cannot be learnt")
        elif share < _RARE:
            rare.append(f"class {i} {name} is rare ({percent(share)})")
    if len(rare) > _ALIKE:
        rare = [f"{rare[0]}, and so are {len(rare) - 1} more"]
    warnings += [
        f"{text}: plain cross entropy and accuracy hardly see it; look at its own score, and "
        "compare Dice and focal losses"
        for text in rare
    ]
    if data.mode == "binary" and data.class_share[1] > _MOST:
        warnings.append(
            f"{data.class_names[1]} fills {percent(data.class_share[1])} of the pixels: look at "
            "the picture; if the masks are inverted, invert them"
        )
    total = len(data.train) + len(data.val) + len(data.test)
    if len(empty) > total / 2:
        warnings.append(
            f"{len(empty)} of {total} masks are empty: Dice of an empty mask is 0 or 1 by "
            "convention alone"
        )
    if data.void_share > 0.5:
        warnings.append(f"{percent(data.void_share)} of the pixels are void")
    if 0 < len(data.val) < 5:
        warnings.append(
            f"only {len(data.val)} validation images: differences between losses may be chance"
        )
    return warnings


def _telling(
    data: SegmentationData, shares: dict[str, dict[int, float]], *, count: int
) -> list[Sample]:
    """Samples that show every class, the rarest first, and void; the rest evenly spread."""
    samples = [*data.train, *data.val, *data.test]
    wanted = sorted(range(1, data.num_classes), key=lambda i: data.class_share[i])
    chosen: list[Sample] = []
    for index in [*wanted, VOID]:
        best = max(samples, key=lambda s: shares[s.name].get(index, 0.0))
        shown = any(index in shares[s.name] for s in chosen)
        if not shown and index in shares[best.name] and len(chosen) < count:
            chosen.append(best)
    left = [s for s in samples if s not in chosen]
    chosen += [left[i] for i in evenly(count - len(chosen), of=len(left))]
    return sorted(dict.fromkeys(chosen), key=samples.index)
