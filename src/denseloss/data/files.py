"""Files that are seen whole or not at all."""

import csv
import io
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# What reading a file can raise whose bytes were changed.
UNREADABLE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, pickle.UnpicklingError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error),
)

# A cell that begins so is a formula to a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_whole(path: Path, text: str) -> None:
    """Write a file such that it is seen with its old content or its new one, never half."""
    with writing_whole(path) as file:
        file.write(text.encode())


def read_text(path: Path) -> str:
    """Read a text in any of the usual encodings, which editors of all systems leave.

    Raises:
        OSError: It cannot be read.
    """
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` when it is complete, and otherwise never was."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV.

    Names of files and classes are strangers' words. One that a spreadsheet would run as a formula
    gets a ' in front, by which spreadsheets know text; numbers stay as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_as_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def _as_text(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed `.npz`, such that it is seen whole or not at all.

    Args:
        path: Of the file; what it held before is replaced.
        arrays: Of plain numbers or text.
    """
    with writing_whole(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote, all of it, with its checksums.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged; the message names it.
    """
    try:
        # numpy need not read up to the checksum of an array.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it to make it again") from error
