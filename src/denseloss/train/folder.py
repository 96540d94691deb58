"""The run folder: what a run leaves behind, and how an interrupted one is found again."""

import contextlib
import json
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from denseloss.data.errors import InputError
from denseloss.data.files import csv_text, write_whole
from denseloss.train.lock import is_of_a_lock, only_writer

Table = Mapping[str, Any]

FORMAT = 3
"""Of the folders of runs and comparisons. 1 and 2 were those of development versions up to November
2026: they say less of the data, and their columns and settings had other names."""


class RunFolder:
    """The files of one run.

    `config.toml` is there from the start, `summary.json` is written last: a folder with the first
    and without the second is a run to be resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.csv"
        self.log_file = path / "log.jsonl"
        self.best_file = path / "best.ckpt"
        self.last_file = path / "last.ckpt"
        self.curves_file = path / "curves.png"
        self.samples_file = path / "samples.png"
        self.summary_file = path / "summary.json"
        self._holds = 0

    @contextlib.contextmanager
    def locked(
        self, *, patience: float = 0.0, say: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Keep other processes from writing to the run; blocks of one object may be nested.

        Args:
            patience: Seconds to wait for a process that has it.
            say: Told that it has to wait.

        Raises:
            InputError: One does already, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            if not self._holds:
                lock = only_writer(
                    self.path,
                    doing="trains here",
                    way_out="wait for it, stop it, or choose another --out",
                    patience=patience,
                    say=say,
                )
                held.enter_context(lock)
            self._holds += 1
            try:
                yield
            finally:
                self._holds -= 1

    def unfinished(self) -> dict[str, Any] | None:
        """Return the configuration of the run to be resumed, None where there is no run yet.

        Raises:
            InputError: The folder holds a finished run, or something else.
        """
        path = self.path
        if self.summary_file.exists():
            raise InputError(
                f"{path}: holds a finished run, which is never overwritten; choose another --out "
                "or --seed, or remove the folder"
            )
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; choose another --out")
        if self.config_file.exists():
            return self.config()
        # What a killed process was about to write is nobody's.
        if self.holds_anything():
            raise InputError(
                f"{path}: is not empty and holds no run of denseloss; choose another --out"
            )
        return None

    def holds_anything(self) -> bool:
        """Whether there is any file besides what a killed process left half."""
        return self.path.is_dir() and any(
            file.suffix != ".part" and not is_of_a_lock(file) for file in self.path.iterdir()
        )

    def config(self) -> dict[str, Any]:
        """Return the configuration that the run was begun with.

        Raises:
            InputError: It cannot be read, or is of another version.
            FileNotFoundError: There is none.
        """
        config = read_tables(
            self.config_file,
            ("settings", "data", "run"),
            way_out=f"remove {self.path} or choose another --out",
        )
        refuse_other_formats(self.path, config)
        return config

    def config_of_first(self, *, patience: float = 600.0) -> dict[str, Any]:
        """Return the configuration once the first process of a run on several devices wrote it."""
        end = time.monotonic() + patience
        while not self.config_file.exists() and time.monotonic() < end:
            time.sleep(0.2)
        return self.config()

    def write_config(self, config: Table) -> None:
        """Make the folder and write the configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.config_file, to_toml(config))
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from None

    def log(self, event: str, **facts: Any) -> None:
        """Append what happened to `log.jsonl`."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        with self.log_file.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                # A full disk, or a kill, may have left half a line.
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")

    def write_metrics(self, rows: Sequence[Table]) -> None:
        """Write all rows anew: what a killed run wrote after its last checkpoint disappears."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = [names, *([row.get(name, "") for name in names] for row in rows)]
        write_whole(self.metrics_file, csv_text(table))

    def finish(self, summary: Table) -> None:
        """Write `summary.json`, which makes the run a finished one."""
        # JSON has neither NaN nor infinity; a class that occurs nowhere has no score.
        text = json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(self.summary_file, text + "\n")


def read_tables(file: Path, names: Sequence[str], *, way_out: str) -> dict[str, Any]:
    """Read a configuration.

    Args:
        file: Of TOML.
        names: Of what must be tables, where it is there.
        way_out: What to do if it cannot be read.

    Raises:
        InputError: It cannot be read.
        FileNotFoundError: There is none.
    """
    try:
        config = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {way_out}") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); {way_out}") from None
    for name in names:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(
                f"{file}: cannot be read ({name} must be a table, and is "
                f"{_toml_value(config[name])}); {way_out}"
            )
    return config


def refuse_other_formats(path: Path, config: Table) -> None:
    """Refuse the folder of a run or comparison that another version made.

    Raises:
        InputError: With the version.
    """
    made = config.get("run", {})
    if made.get("format", 1) != FORMAT:
        raise InputError(
            f"{path}: was made by denseloss {made.get('denseloss', 'of unknown version')} with "
            f"folders of format {made.get('format', 1)}, and this version reads format {FORMAT}; "
            "use that version for it, or choose another --out"
        )


def bound(settings: Table) -> dict[str, Any]:
    """Return the settings without the place of the data; made-up data is what its name says."""
    made_up = "synthetic:" in str(settings.get("data"))
    return {k: v for k, v in settings.items() if k != "data" or made_up}


def difference(old: Table, new: Table, *, only: Sequence[str] = ()) -> str | None:
    """Return the first setting in which two configurations differ, in words.

    Args:
        old: Tables of values.
        new: The same.
        only: Keys that count; none stands for all.
    """
    for section in new:
        before, now = old.get(section, {}), new[section]
        for key in only or sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"{key} was {_shown(before, key)}, now it is {_shown(now, key)}"
    return None


def _shown(table: Table, key: str) -> str:
    return _toml_value(table[key]) if key in table else "not set"


def to_toml(tables: Table) -> str:
    """Write tables of plain values as TOML, which the standard library only reads."""
    parts = []
    for name, table in tables.items():
        lines = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in table.items() if v is not None]
        parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(parts)


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool | int | float | str):
        # JSON and TOML write these alike.
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml_value, value))}]"
    raise TypeError(f"{value!r} has no place in a configuration")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
