"""What a comparison cannot say is said, before it trains and in its report."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from denseloss import cli
from denseloss.compare.aggregate import _others
from denseloss.compare.caveats import of_images
from denseloss.compare.trials import loss_slug
from denseloss.data import VOID, DataError
from denseloss.tasks import SplitSummary
from denseloss.tasks.segmentation import Segmentation, open_data


def make_data(root: Path, *, images: int = 12, size: int = 32) -> Path:
    """Three classes, of which the second is brighter."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(images):
        mask = np.zeros((size, size), np.uint8)
        mask[4:14, 4:20] = 1
        mask[18:28, 8:28] = 2
        image = mask[..., None] * 80 + rng.integers(0, 60, (size, size, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    return root


def relabelled(path: Path | None, **values: int) -> None:
    """Replace classes in a mask: `all` of it, or one class."""
    assert path is not None
    with Image.open(path) as file:
        mask = np.array(file)
    for key, value in values.items():
        mask[mask == int(key[1:]) if key != "all" else ...] = value
    Image.fromarray(mask).save(path)


def words(data: Path, out: Path, *options: str) -> list[str]:
    return [
        *("compare", str(data), "--loss", "cross_entropy", "--loss", "dice", "--out", str(out)),
        *("--seeds", "1", "--lr", "1", "--steps", "2", "--batch-size", "2", "--size", "32"),
        *("--ignore-index", str(VOID), "--classes", "3", "--accelerator", "cpu", *options),
    ]


def told(held_out: SplitSummary, validation: SplitSummary | None = None) -> list[str]:
    return [*of_images(validation=validation or held_out, held_out=held_out)]


def test_what_the_masks_hold_is_seen(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    relabelled(folder / "masks" / "03.png", all=VOID)
    data = open_data(str(folder), ignore_index=VOID, classes=3)
    by_name = {sample.name: sample for sample in (*data.train, *data.val)}
    task = Segmentation()
    found = task.summary(data, [by_name["03"], by_name["04"], by_name["05"]])
    assert found == SplitSummary(images=2, unscored=1)
    found = task.summary(data, [by_name["03"]])
    assert found == SplitSummary(images=0, unscored=1, missing=data.class_names)
    relabelled(folder / "masks" / "04.png", c1=0)
    data = open_data(str(folder), ignore_index=VOID, classes=3)
    found = task.summary(data, [by_name["04"]])
    assert found == SplitSummary(images=1, missing=(data.class_names[1],))


def test_a_binary_task_may_lack_the_background(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    for path in (folder / "masks").iterdir():
        relabelled(path, c2=1)
    data = open_data(str(folder))
    assert data.mode == "binary"
    assert data.train[0].mask is not None
    relabelled(data.train[0].mask, all=1)
    relabelled(data.train[1].mask, all=0)
    data = open_data(str(folder))
    task = Segmentation()
    assert task.summary(data, data.train[:1]) == SplitSummary(images=1)
    missing = (data.class_names[1],)
    assert task.summary(data, data.train[1:2]) == SplitSummary(images=1, missing=missing)


def test_masks_are_read_without_their_images(tmp_path: Path) -> None:
    data = open_data(str(make_data(tmp_path / "data")), ignore_index=VOID, classes=3)
    drawn = open_data("synthetic:void")
    for source in (data, drawn):
        sample = source.train[0]
        assert source.mask(sample).equal(source.read(sample)[1])
    sample = data.train[0]
    assert sample.image is not None
    sample.image.unlink()
    assert data.mask(sample).unique().tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="is no sample of"):
        data.mask(drawn.train[0])


def test_of_enough_images_with_every_class_there_is_no_doubt() -> None:
    assert told(SplitSummary(images=30)) == []


def test_classes_that_are_not_there_are_named() -> None:
    some = SplitSummary(images=30, missing=("a", "b"))
    held_out, validation = told(some)
    assert held_out.startswith("No held-out image holds `a` or `b`: a score of it only says")
    assert validation.startswith("No validation image holds `a` or `b`: learning rates and")
    (only,) = told(SplitSummary(images=30), some)
    assert only == validation


def test_too_few_images_to_rule_anything_out_are_told() -> None:
    (line,) = told(SplitSummary(images=5))
    assert line == (
        "With 5 held-out images no loss can be ruled out, however bad it is: it takes at least 6."
    )
    assert told(SplitSummary(images=6)) == []


def test_losses_that_the_report_leaves_out_are_named(tmp_path: Path) -> None:
    for loss in ("dice", "focal", "tversky"):
        trial = tmp_path / "trials" / loss_slug(loss) / "seed0-lr0.005"
        trial.mkdir(parents=True)
        (trial / "config.toml").write_text(f'[settings]\nloss = "{loss}"\n')
        if loss != "tversky":
            (trial / "held_out.npz").touch()
    # Set aside, as what is broken is.
    aside = tmp_path / "trials" / loss_slug("jaccard") / "seed0-lr0.005.broken1"
    aside.mkdir(parents=True)
    (aside / "config.toml").write_text('[settings]\nloss = "jaccard"\n')
    (aside / "held_out.npz").touch()
    found = SimpleNamespace(
        folder=SimpleNamespace(trials=tmp_path / "trials"),
        losses=[SimpleNamespace(expression="dice")],
    )
    assert _others(found) == ["focal"]  # type: ignore[arg-type]


def test_void_images_are_no_images_and_missing_classes_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_data(tmp_path / "data", images=15)
    split = open_data(str(folder), ignore_index=VOID, classes=3, val_share=0.2, test_share=0.2)
    assert len(split.test) == 3
    relabelled(split.test[0].mask, all=VOID)
    for sample in split.test[1:]:
        relabelled(sample.mask, c2=0)
    out = tmp_path / "out"
    assert cli.main(words(folder, out)) == 0
    shown = " ".join(capfd.readouterr().out.split())
    text = " ".join((out / "report.md").read_text(encoding="utf-8").split())
    for sentence in (
        "No held-out image holds",
        "1 held-out image is void everywhere and counted nowhere",
        "With 2 held-out images no loss can be ruled out",
    ):
        assert f"note: {sentence}" in shown
        assert sentence in text
    with (out / "images.csv").open(newline="") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) >= 2

    # Other losses in the same folder: those of before are not forgotten.
    line = words(folder, out)
    line[line.index("cross_entropy")] = "focal"
    assert cli.main(line) == 0
    assert "finished trials of `cross_entropy`, which are not" in capfd.readouterr().out

    # Without any labelled pixel there is nothing to score.
    for sample in split.test:
        relabelled(sample.mask, all=VOID)
    assert cli.main(words(folder, tmp_path / "other")) == 2
    complaint = capfd.readouterr().err
    assert "every held-out image is void everywhere" in complaint
    assert cli.main(words(folder, tmp_path / "other", "--metric", "hd95", "--pooled")) == 2
    assert "--pooled: hd95 is of single images; leave it out" in capfd.readouterr().err
    assert not (tmp_path / "other" / "compare.toml").exists()
