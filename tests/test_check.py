"""The check of a data set: it names every bad file, says what it sees, and draws it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denseloss.data import VOID, DataError
from denseloss.tasks.segmentation import check_data, open_data
from denseloss.tasks.segmentation.pictures import class_colours, overlay

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def make(root: Path, n: int = 10, *, size: int = 24, classes: int = 3, void: bool = False) -> Path:
    rng = np.random.default_rng(1)
    for i in range(n):
        write(root / "images" / f"f{i}.png", rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        mask = np.zeros((size, size), dtype=np.uint8)
        for index in range(1, classes):
            mask[4 * index : 4 * index + 3, 2:20] = index
        if void:
            mask[-4:] = 255
        write(root / "masks" / f"f{i}.png", mask)
    return root


def test_good_data(tmp_path: Path) -> None:
    report = check_data(make(tmp_path, void=True))
    assert report.ok
    assert report.problems == report.warnings[1:] == ()
    assert report.counts == {"train": 8, "val": 2, "test": 0}
    assert report.sizes == {(24, 24): 10}
    assert report.class_share == report.data.class_share
    assert report.void_share == pytest.approx(4 / 24)
    assert report.class_images == (10, 10, 10)
    text = "\n".join(report.lines())
    for words in ("8 train, 2 val", "all 24x24", "3 exclusive classes", "value 255", "16.7 %"):
        assert words in text
    assert "empty masks: none" in text
    assert report.lines()[-1].startswith("verdict: good to train on")


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    root = make(tmp_path, 20)
    (root / "masks" / "f0.png").unlink()
    (root / "images" / "f1.png").unlink()
    write(root / "masks" / "f2.png", np.zeros((24, 20), dtype=np.uint8))
    for name in ("images/f3.png", "masks/f4.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[:-30])
    (root / "images" / "f5.png").write_text("no picture")
    write(root / "masks" / "f6.png", np.full((24, 24), 77, dtype=np.uint8))
    # Damaged in the middle, with a whole end: only decoding finds it.
    path = root / "images" / "f7.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20] = b"\0" * 20
    path.write_bytes(content)

    report = check_data(root)
    assert not report.ok
    assert len(report.problems) == 8
    for name, words in {
        "images/f0.png": "has no mask",
        "masks/f1.png": "has no image",
        "images/f2.png": "is 24x24 but its mask",
        "images/f3.png": "cannot be read",
        "masks/f4.png": "cannot be read",
        "images/f5.png": "cannot be read",
        "masks/f6.png": "label 77 is beyond the classes",
        "images/f7.png": "cannot be read",
    }.items():
        found = [p for p in report.problems if p.startswith(f"{root / name}: ")]
        assert len(found) == 1
        assert words in found[0]
        assert "\n" not in found[0]
    assert report.data.num_classes == 3
    assert sum(report.counts.values()) == 12
    lines = report.lines()
    assert sum(line.startswith("bad: ") for line in lines) == 8
    assert lines[-1] == "verdict: 8 problems to repair before training"
    assert report.draw(tmp_path / "check.png").is_file()


def test_labels_beyond_the_given_classes(tmp_path: Path) -> None:
    root = make(tmp_path, 6)
    for i in (1, 4):
        write(root / "masks" / f"f{i}.png", np.full((24, 24), 9, dtype=np.uint8))
    report = check_data(root, classes=3)
    assert [p.split(":")[0][-6:] for p in report.problems] == ["f1.png", "f4.png"]
    assert sum(report.counts.values()) == 4


def test_many_problems_are_not_all_printed(tmp_path: Path) -> None:
    root = make(tmp_path, 40)
    for i in range(30):
        write(root / "masks" / f"f{i}.png", np.ones((24, 25 + i), dtype=np.uint8))
    report = check_data(root)
    assert len(report.problems) == 30
    assert "bad: and 10 more" in report.lines()


def test_one_problem_of_many_files_is_one_line(tmp_path: Path) -> None:
    root = make(tmp_path, 40)
    for i in range(30):
        (root / "masks" / f"f{i}.png").write_bytes(b"")
    report = check_data(root)
    assert len(report.problems) == 30
    (line,) = (line for line in report.lines() if line.startswith("bad: "))
    assert "f0.png: is empty; replace or remove it (also f1.png, " in line
    assert line.endswith("and 26 more)")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((12, 12), "have 1/2 of their image's width and height"),
        ((48, 48), "have 2 times their image's width and height"),
        ((24, 30), "have another size than their image"),
    ],
)
def test_all_masks_of_another_size_are_one_line(
    tmp_path: Path, shape: tuple[int, int], words: str
) -> None:
    root = make(tmp_path, 5)
    for path in (root / "masks").iterdir():
        write(path, np.ones(shape, dtype=np.uint8))
    first, last = check_data(root).problems
    assert f"all 5 masks {words}, such as {root}/images/f0.png" in first
    assert "no readable pair" in last


def test_many_files_without_a_partner_are_one_line(tmp_path: Path) -> None:
    root = make(tmp_path, 40)
    for i in range(30):
        (root / "masks" / f"f{i}.png").unlink()
        (root / "images" / f"f{i}.png").rename(root / "images" / f"g{i}.png")
    (root / "masks" / "h1.png").write_bytes((root / "masks" / "f31.png").read_bytes())
    (root / "masks" / "h2.png").write_bytes((root / "masks" / "f31.png").read_bytes())
    images, masks = check_data(root).problems
    assert "images: 30 of 40 images have no mask (g0.png, g1.png, g10.png, ...); add" in images
    assert "masks: 2 masks have no image (h1.png, h2.png)" in masks
    report = check_data(root, skip_unlabelled=True)
    assert "30 images without a mask, left out" in report.data.notes


@pytest.mark.parametrize("where", ["nowhere", "empty", "synthetic:blub"])
def test_nothing_to_check(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    report = check_data(where if ":" in where else tmp_path / where)
    assert not report.ok
    assert report.data is None
    assert len(report.problems) == 1
    assert report.lines()[-1] == "verdict: 1 problem to repair before training"
    assert report.counts == {"train": 0, "val": 0, "test": 0}
    assert (report.sizes, report.class_share, report.void_share) == ({}, (), 0)
    with pytest.raises(DataError, match="no good sample to draw"):
        report.draw(tmp_path / "check.png")


def test_no_good_pair_at_all(tmp_path: Path) -> None:
    root = make(tmp_path, 3)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"")
    report = check_data(root)
    assert len(report.problems) == 4
    assert "no readable pair" in report.problems[-1]


def test_empty_masks_rare_and_absent_classes(tmp_path: Path) -> None:
    root = make(tmp_path, 10, size=64, classes=2)
    rare = np.zeros((64, 64), dtype=np.uint8)
    rare[10:20, 10:20] = 1
    rare[3, 3] = 2
    zero = np.zeros((64, 64), dtype=np.uint8)
    for i in range(7):
        write(root / "masks" / f"f{i}.png", zero)
    for i in (8, 9):
        write(root / "masks" / f"f{i}.png", rare)
    report = check_data(root, classes=["ground", "cell", "dot", "never"])
    assert len(report.empty) == 7
    text = "\n".join(report.lines())
    assert "empty masks (background only): 7 of 10: f" in text
    assert "7 of 10 masks are empty" in text
    assert "class 3 never occurs in no mask" in text
    assert "class 2 dot: in 2 of 10 masks" in text
    assert "class 2 dot " in "\n".join(report.warnings)
    assert report.ok


@pytest.mark.parametrize("n", [2, 8])
def test_the_picture(tmp_path: Path, n: int) -> None:
    report = check_data(make(tmp_path / "a $data$ _set", n, void=True))
    path = report.draw(tmp_path / "out" / "check.png")
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert min(picture.shape[:2]) > 400
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert (picture == 255).all(-1).mean() < 0.6


def test_the_picture_shows_the_rarest_class(tmp_path: Path) -> None:
    root = make(tmp_path, 40, classes=2)
    mask = np.zeros((24, 24), dtype=np.uint8)
    mask[:2, :2] = 2
    write(root / "masks" / "f17.png", mask)
    report = check_data(root)
    from denseloss.tasks.segmentation.check import _telling

    chosen = _telling(report.data, report.class_shares, count=8)
    assert len(set(chosen)) == 8
    assert "f17" in [s.name for s in chosen]


def test_overlay() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:, 20:40] = 1
    mask[:, 40:] = VOID
    drawn = overlay(image, mask, 2, side=120)
    assert drawn.shape == (80, 120, 3)
    assert (drawn[:, :38] == 100).all()
    assert drawn[10, 60, 0] > drawn[10, 60, 2] + 30
    assert len(np.unique(drawn[:, 82:])) == 2  # hatched


def test_a_thin_line_survives_being_made_smaller() -> None:
    image = np.full((400, 400, 3), 100, dtype=np.uint8)
    mask = np.zeros((400, 400), dtype=np.uint8)
    mask[:, 101:103] = 1
    drawn = overlay(image, mask, 2, side=100).astype(int)
    assert ((drawn[..., 0] - drawn[..., 2]).max(axis=1) > 60).all()


def test_colours_differ() -> None:
    colours = class_colours(60)
    assert len(np.unique(colours, axis=0)) == 60
    assert colours[0].tolist() == [0, 0, 0]


def test_synthetic() -> None:
    report = check_data("synthetic:classes?n=6&size=48")
    assert report.ok
    assert len(report.class_images) == 6


def test_the_check_agrees_with_opening(tmp_path: Path) -> None:
    root = make(tmp_path, 10, void=True)
    assert check_data(root).data == open_data(root)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize("name", ["dsb2018_nuclei", "nasa_ebc", "nasa_super"])
def test_real_data(tmp_path: Path, name: str) -> None:
    report = check_data(SHARED / name)
    assert report.ok
    assert report.draw(tmp_path / "check.png").stat().st_size > 100_000
