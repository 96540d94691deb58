"""The folder of a comparison: its settings, its lock, its trials and its results."""

import contextlib
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from denseloss.compare.plan import ComparePlan
from denseloss.data.errors import InputError
from denseloss.data.files import write_whole, writing_whole
from denseloss.tasks import Data
from denseloss.train.folder import (
    bound,
    difference,
    read_tables,
    refuse_other_formats,
    to_toml,
)
from denseloss.train.lock import only_writer
from denseloss.train.own_code import changed as edited
from denseloss.train.plan import typed

# What may change about the data: where it lies, and what is compared by another rule.
_NOT_BINDING = ("name", "found", "lines", "files")
_TABLES = ("asked", "reasons", "common", "where", "data", "notes", "context", "run")
_MEND = "mend it, or choose another --out; the trials beside it are untouched"
# What the report says of the data.
_TOLD = {"name": str, "lines": list, "train": int, "val": int, "test": int, "split": str}


class ComparisonFolder:
    """The files of a comparison.

    `compare.toml` is there from the start. What the trials need in common cannot change; losses,
    seeds and learning rates can be added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "compare.toml"
        self.trials = path / "trials"
        self.code = path / "code"
        self.costs_file = path / "costs.json"
        self.data_file = path / "data.pickle"
        self.report_file = path / "report.html"
        self.table_file = path / "results.csv"
        self.lines_file = path / "results.jsonl"
        self.looks_file = path / "looks.json"

    def config(self) -> dict[str, Any] | None:
        """Return `compare.toml`, None where there is no comparison yet.

        Raises:
            InputError: It cannot be read, or the folder holds something else.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; choose another --out")
        if self.config_file.exists():
            config = read_tables(self.config_file, _TABLES, way_out=_MEND)
            refuse_other_formats(path, config)
            return config
        # What a killed process was about to write is nobody's.
        if path.exists() and any(
            file.name != self.data_file.name
            and file.suffix != ".part"
            and not file.name.startswith(".")
            for file in path.iterdir()
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
            if changed is None:
                changed = edited(before.get("code", {}), config.get("code", {}))
            if changed is None and before.get("data", {}).get("files") != config["data"]["files"]:
                changed = "images or masks were added, removed, renamed or changed since it began"
            if changed is not None:
                raise InputError(
                    f"{self.path}: holds a comparison of something else: {changed}; set it back "
                    "to go on with that one, choose another --out, or remove the folder"
                )
        self._writing(lambda: write_whole(self.config_file, to_toml(config)))

    def plan(self, config: Mapping[str, Any]) -> ComparePlan:
        """Return the plan that `compare.toml` holds.

        Raises:
            InputError: It holds none.
        """
        with self._expected():
            plan = ComparePlan.from_tables(config)
            if plan.metric not in [metric.key for metric in plan.task.metrics]:
                raise TypeError(f"{plan.task.name} has no metric {plan.metric!r}")
            if plan.pooling not in ("image", "pooled"):
                raise TypeError(f"pooling is {plan.pooling!r}, and must be 'image' or 'pooled'")
            return plan

    def check_told(self, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that lacks what the report tells besides the plan.

        Raises:
            InputError: With what it lacks.
        """
        with self._expected():
            for key, kind in _TOLD.items():
                typed(config["data"], key, kind)
            typed(config["run"], "command", str)

    @contextlib.contextmanager
    def _expected(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(
                f"{self.config_file}: is not what denseloss compare writes ({what}); {_MEND}"
            ) from None

    def write_data(self, data: Data) -> str:
        """Keep the data as it was opened, for all trials, and return the digest of the file.

        Raises:
            InputError: The folder cannot be written.
        """
        content = pickle.dumps(data)

        def write() -> None:
            with writing_whole(self.data_file) as file:
                file.write(content)

        self._writing(write)
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def earlier_looks(self, seeds: int) -> int:
        """Return how many answers were given before, with fewer seeds: each spent some error.

        Raises:
            InputError: The file that counts them was changed.
        """
        return sum(look < seeds for look in self._looks())

    def add_look(self, seeds: int) -> None:
        """Remember that an answer was given with so many seeds."""
        looks = sorted({*self._looks(), seeds})
        self._writing(lambda: write_whole(self.looks_file, json.dumps(looks) + "\n"))

    def _looks(self) -> list[int]:
        if not self.looks_file.exists():
            return []
        try:
            looks = json.loads(self.looks_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            looks = None
        if not (isinstance(looks, list) and all(isinstance(look, int) for look in looks)):
            raise InputError(
                f"{self.looks_file}: is not what denseloss writes, a list of numbers of seeds; "
                "remove it, and the next answer counts as the first"
            )
        return looks

    def read_data(self, digest: str) -> Data:
        """Return the data that was kept.

        Raises:
            InputError: It is not what was written: such a file is never unpickled.
        """
        try:
            content = self.data_file.read_bytes()
        except OSError as error:
            raise InputError(f"{self.data_file}: cannot be read ({error.strerror})") from None
        if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
            raise InputError(
                f"{self.data_file}: was changed; give the same denseloss compare again"
            )
        data: Data = pickle.loads(content)
        return data

    @contextlib.contextmanager
    def locked(self, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Keep other processes from working in the folder.

        Args:
            say: Told that it has to wait.

        Raises:
            InputError: One does already, or the folder cannot be made.
        """
        with only_writer(
            self.path,
            doing="compares here",
            way_out="it makes the report when it ends; wait for it, or stop it: denseloss report "
            "then shows what is finished, and the same denseloss compare goes on",
            say=say,
        ):
            yield

    def _writing(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); choose another --out"
            ) from None


def _binding(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what must be the same for all trials, or they are of different things."""
    data = config.get("data", {})
    return {
        "common": bound(config.get("common", {})),
        "data": {key: value for key, value in data.items() if key not in _NOT_BINDING},
    }
