"""The folder of a comparison: its settings, its lock, its trials and its results."""

import contextlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from denseloss.train import InputError
from denseloss.train.folder import difference, to_toml, write_whole

_DATA = ("task", "class_names", "train", "val", "test", "split")


class ComparisonFolder:
    """The files of a comparison.

    `compare.toml` is there from the start. What the trials need in common cannot change; losses,
    seeds and learning rates can be added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "compare.toml"
        self.trials = path / "trials"
        self.costs_file = path / "costs.json"
        self.looks_file = path / "looks.npz"
        self.images = path / "images"
        self.report_file = path / "report.html"
        self.table_file = path / "results.csv"
        self.lines_file = path / "results.jsonl"

    def config(self) -> dict[str, Any] | None:
        """Return `compare.toml`, None where there is no comparison yet.

        Raises:
            InputError: It cannot be read, or the folder holds something else.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; choose another --out")
        if self.config_file.exists():
            try:
                return tomllib.loads(self.config_file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{self.config_file}: cannot be read ({error}); mend it, or choose another "
                    "--out; the trials beside it are untouched"
                ) from None
        lock = self._lock_file.name
        # What a killed process was about to write is nobody's.
        if path.exists() and any(
            file.name != lock and file.suffix != ".part" for file in path.iterdir()
        ):
            raise InputError(
                f"{path}: is not empty and holds no comparison of denseloss; choose another --out"
            )
        return None

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `compare.toml`.

        Raises:
            InputError: What all trials have in common differs from what is there.
        """
        before = self.config()
        if before is not None:
            changed = difference(_binding(before), _binding(config))
            if changed is None and before.get("data", {}).get("files") != config["data"]["files"]:
                changed = "images or masks were added, removed, renamed or changed since it began"
            if changed is not None:
                raise InputError(
                    f"{self.path}: holds a comparison of something else: {changed}; set it back "
                    "to go on with that one, choose another --out, or remove the folder"
                )
        self._writing(lambda: write_whole(self.config_file, to_toml(config)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the folder.

        Raises:
            InputError: One does already, or the folder cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; choose another --out")
        self._writing(lambda: self.path.mkdir(parents=True, exist_ok=True))
        lock = FileLock(self._lock_file)
        try:
            self._writing(lambda: lock.acquire(timeout=0))
        except Timeout:
            raise InputError(
                f"{self.path}: another denseloss compare works in this folder; wait for it, or "
                "choose another --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _writing(self, action: Any) -> None:
        try:
            action()
        except Timeout:
            raise
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from None


def _binding(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what must be the same for all trials, or they are of different things."""
    data = config.get("data", {})
    return {
        "common": config.get("common", {}),
        "data": {key: data[key] for key in _DATA if key in data},
    }
