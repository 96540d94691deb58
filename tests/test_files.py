"""Files that are seen whole or not at all, and tables that a spreadsheet may open."""

import csv
import errno
from pathlib import Path

import pytest

from denseloss.data.files import csv_text, write_whole


def test_strangers_words_are_no_formulas_and_numbers_stay_numbers() -> None:
    names = [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-2+3",
        "@sum(1)",
        "\t=1",
        "a=b",
        "cell -1.png",
        'say "x"',
    ]
    numbers = ["-0.25", "+1e-05", "-inf", -3, 0.5, ""]
    (shown, kept) = csv.reader(csv_text([names, numbers]).splitlines())
    quoted = [f"'{name}" for name in names[:5]]
    assert shown == [*quoted, "a=b", "cell -1.png", 'say "x"']
    assert kept == ["-0.25", "+1e-05", "-inf", "-3", "0.5", ""]
    # A name is one cell, whatever it holds.
    assert next(csv.reader([csv_text([["a,b", "x\ny"]])], strict=True)) == ["a,b", "x\ny"]


def test_a_full_disk_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.json"
    write_whole(file, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
