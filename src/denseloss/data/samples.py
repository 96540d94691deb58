"""What every reader speaks of: a sample, the index of void, and what is wrong with files."""

from dataclasses import dataclass
from pathlib import Path

from denseloss.data.errors import DataError
from denseloss.data.masks import Mask, mask_files

VOID = 255
"""The index of a void pixel in every mask that `denseloss.data` returns."""


@dataclass(frozen=True)
class Sample:
    """One image and its mask: files, or what draws them by the sample's name (both `None`)."""

    name: str
    image: Path | None
    mask: Mask | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it comes from."""
        return (*(() if self.image is None else (self.image,)), *mask_files(self.mask))


class Findings:
    """Where bad files are told: to stop at the first one, or to collect them all."""

    def __init__(self, *, stop: bool) -> None:
        self.stop = stop
        self.problems: list[str] = []
        self.bad: set[Path] = set()

    def problem(self, message: str, *files: Path) -> None:
        """Raise `DataError`, or remember the message and the files that it makes useless."""
        if self.stop:
            raise DataError(message)
        self.problems.append(message)
        self.bad.update(files)


def evenly(count: int, *, of: int) -> tuple[int, ...]:
    """Return at most `count` places of `of`, evenly spaced from the first to the last."""
    count = min(count, of)
    return tuple(round(i * (of - 1) / max(1, count - 1)) for i in range(count))
