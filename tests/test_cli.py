"""`denseloss`, the command: what it prints, what it refuses, and with which exit code."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denseloss import cli, compose
from denseloss.tasks.segmentation import Segmentation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(6):
        mask = np.zeros((40, 40), np.uint8)
        mask[8:24, 4 + i : 20 + i] = 255
        image = mask[..., None] // 2 + rng.integers(0, 60, (40, 40, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"cell{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"cell{i}.png")
    return root


def tiny(folder: Path, out: Path, *options: str) -> list[str]:
    words = ["train", str(folder), "--out", str(out), "--accelerator", "cpu", "--workers", "0"]
    return [*words, "--steps", "2", "--size", "32", "--batch-size", "2", *options]


def refused(
    capsys: pytest.CaptureFixture[str], words: list[str], *, out: Path | None = None
) -> str:
    """The single line with which a command is refused."""
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("denseloss: error: ")
    if out is not None:
        assert not (out / "summary.json").exists()
    return line


# ---------------------------------------------------------------- train


def test_train_says_what_it_found_did_and_left(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = tiny(folder, out, "--loss", "dice + binary_focal")
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for part in (
        "images: 5 train, 1 val",
        "task: binary: mask value 0 is background, 255 is foreground",
        "model: dynunet, 1.29 million parameters",
        "binary task: dice is taken as binary_dice",
        "budget: 2 steps of 2 images",
        "AdamW, learning rate 0.005",
        f"out: {out}",
        "step 2/2",
        "best: step 2",
        f"files in {out}:",
        "samples.png",
        "next: ",
    ):
        assert part in shown.out, part
    line = refused(capsys, words)
    assert f"{out}: holds a finished run" in line


def test_out_is_named_after_data_loss_and_seed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tiny(folder, Path("x"), "--loss", "2*dice(smooth=1.5) + structure")
    del words[2:4]
    assert cli.main([*words, "--seed", "3"]) == 0
    assert (tmp_path / "runs" / "data-2-dice-smooth-1.5-structure-3" / "summary.json").exists()


def break_data(folder: Path, kind: str) -> str:
    """Break one file; returns the name that the error must mention."""
    image, mask = folder / "images" / "cell2.png", folder / "masks" / "cell2.png"
    if kind == "missing mask":
        mask.unlink()
        return image.name
    if kind == "sizes differ":
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(mask)
        return mask.name
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
        return str(image)
    if kind == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:60])
        return str(mask)
    if kind == "not a picture":
        image.write_text("hello")
        return str(image)
    for path in (*folder.rglob("*.png"),):
        path.unlink()
    return str(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "missing mask",
        "sizes differ",
        "truncated image",
        "truncated mask",
        "not a picture",
        "no pairs",
    ],
)
def test_bad_data_is_one_line_that_names_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    name = break_data(folder, kind)
    out = tmp_path / "run"
    assert name in refused(capsys, tiny(folder, out), out=out)
    assert not out.exists()


def test_a_file_that_breaks_during_training_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Segmentation.open

    def open_then_break(self: Segmentation, *args: Any, **options: Any) -> object:
        data = opened(self, *args, **options)
        for image in (folder / "images").iterdir():
            image.write_bytes(image.read_bytes()[:200])
        return data

    monkeypatch.setattr(Segmentation, "open", open_then_break)
    out = tmp_path / "run"
    for workers in ("0", "1"):
        line = refused(capsys, [*tiny(folder, out), "--workers", workers], out=out)
        assert "images/cell" in line


def test_a_label_beyond_the_classes_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.full((40, 40), 7, np.uint8)
    mask[0] = 3
    Image.fromarray(mask).save(folder / "masks" / "cell3.png")
    out = tmp_path / "run"
    line = refused(capsys, tiny(folder, out, "--classes", "2", "--mode", "multiclass"), out=out)
    assert "masks" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "dise"], "did you mean 'dice'"),
        (["--loss", "dice(smoth=1)"], "smooth"),
        (["--loss", "dice +"], "cannot read the loss"),
        (["--loss", "giou"], "giou is a loss of pairs of boxes"),
        (["--model", "dynunett"], "did you mean dynunet"),
        (["--epochs", "3"], "--steps and --epochs both say how long"),
        (["--lr", "-1"], "--lr -1: must be larger than 0"),
        (["--lr", "fast"], "--lr"),
        (["--losss", "dice"], "did you mean --loss?"),
        (["--mode", "both"], "--mode"),
        (["--task", "segmentatoin"], "did you mean segmentation?"),
        (["--task", "binary"], "--mode binary"),
        (["--task", "nowhere.py:Mine"], "there is no file"),
    ],
)
def test_bad_options_are_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "run"
    assert message in refused(capsys, tiny(folder, out, *options), out=out)
    assert not out.exists()


def test_nan_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = tiny(folder, out, "--lr", "1e30", "--precision", "32-true", "--steps", "9")
    assert "the loss term" in refused(capsys, words, out=out)


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, tiny(tmp_path / "nowhere", tmp_path / "run"))


# ---------------------------------------------------------------- check


def test_check_draws_and_says_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "look.png"
    assert cli.main(["check", str(folder), "--out", str(picture)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "foreground" in shown.out
    assert f"next: denseloss train {folder}" in shown.out
    with Image.open(picture) as drawn:
        assert drawn.width > 100


def test_check_lists_all_that_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "masks" / "cell1.png").unlink()
    truncated = folder / "images" / "cell4.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    assert cli.main(["check", str(folder), "--out", str(tmp_path / "look.png")]) == 2
    shown = capsys.readouterr()
    assert "cell1.png" in shown.out
    assert "cell4.png" in shown.out
    assert "2 problems" in shown.err


# ---------------------------------------------------------------- ls, show, help, version


def test_ls_lists_every_loss_with_task_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.strip()}
    assert set(compose.names()) <= set(listed)
    for name in compose.names():
        assert "segmentation" in listed[name] or "detection" in listed[name], name
        assert re.search(r"\b(19|20)\d\d\b", listed[name]), f"{name}: no year in its source"


@pytest.mark.parametrize("name", ["focal", "focal_loss"])
def test_show_prints_signature_and_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("focal_loss(\n    logits: float[n c *s],")
    assert "gamma=2" in shown
    assert "arXiv" in shown


def test_show_knows_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean focal?" in refused(capsys, ["show", "focl"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"denseloss {version('denseloss')}\n"
    for words in ([], ["--help"], ["train", "--help"]):
        assert cli.main(words) == 0
        assert "usage: denseloss" in capsys.readouterr().out
    assert "trai" in refused(capsys, ["trai"])


def test_what_is_not_installed_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert 'pip install "denseloss[train]"' in refused(capsys, ["train", str(folder)])
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    words = ["train", str(folder), "--model", "smp:Unet"]
    assert 'pip install "denseloss[smp]"' in refused(capsys, words)


def test_the_command_itself_is_quiet_and_quick() -> None:
    code = (
        "import sys, denseloss.cli as c; c.main(['ls']);"
        "slow = {'lightning', 'monai', 'matplotlib', 'torchvision'} & set(sys.modules);"
        "assert not slow, slow"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
