"""After training: `denseloss predict`, `denseloss.train.load`, tiles of large images, export."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from denseloss import cli
from denseloss.data.errors import InputError
from denseloss.data.images import read_image
from denseloss.data.masks import read_mask
from denseloss.data.transforms import MEAN, STD, normalise
from denseloss.tasks.segmentation import open_data, tiles
from denseloss.tasks.segmentation.measure import measure
from denseloss.tasks.segmentation.meter import OverlapMeter
from denseloss.tasks.segmentation.network import Segmenter
from denseloss.tasks.segmentation.predict import facts
from denseloss.train import TrainSettings, load, load_run, train
from tests import toy_task

EXAMPLES = Path(__file__).parents[1] / "examples"
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def picture(mask: np.ndarray) -> np.ndarray:
    """An image with a brightness for each class."""
    noise = np.random.default_rng(0).integers(0, 20, (*mask.shape, 3))
    return (mask[..., None] * 80 + noise).astype(np.uint8)


class Brightness(nn.Module):
    """A network that knows `picture` without training; its one weight is hardly changed."""

    def __init__(self, _: int, outputs: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.1))
        self.outputs = outputs

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        seen = 255 * (image * std + mean).mean(1, keepdim=True)
        if self.outputs == 1:
            return self.gain * (seen - 50)
        wanted = 80 * torch.arange(self.outputs).view(1, -1, 1, 1) + 10
        return -self.gain * (seen - wanted).abs()


def classes_of(i: int, *, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """Classes 0, 1 and 2, each in a place of its own."""
    mask = np.zeros(size, np.uint8)
    top = 3 + 2 * (i % 5)
    mask[top : top + 14, 4:20] = 1
    mask[24:40, 6 + top : 22 + top] = 2
    return mask


def save_mask(mask: np.ndarray, kind: str, path: Path) -> None:
    """One mask in one of the encodings that people have."""
    if kind == "0 and 255":
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(path)
    elif kind == "raw values":
        Image.fromarray(np.array([7, 30, 100], np.uint8)[mask]).save(path)
    elif kind == "16 bit":
        Image.fromarray(np.array([0, 1000, 30000], np.uint16)[mask]).save(path)
    elif kind == "colours":
        Image.fromarray(np.array([(0, 0, 0), (10, 200, 3), (250, 0, 9)], np.uint8)[mask]).save(path)
    else:
        coded = Image.fromarray(mask)
        coded.putpalette([value for colour in VOC for value in colour])
        coded.save(path)


KINDS = ("0 and 255", "raw values", "16 bit", "colours", "palette")


def make_folder(root: Path, kind: str) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        mask = classes_of(i)
        Image.fromarray(picture(mask)).save(root / "images" / f"{i}.png")
        save_mask(mask, kind, root / "masks" / f"{i}.png")
    return root


def trained(data: Path | str, out: Path, **changed: object) -> Path:
    settings = {"steps": 2, "val_every": 2, "size": 48, "batch_size": 4, **changed}
    train(
        TrainSettings(
            data=str(data), out=out, workers=0, accelerator="cpu", precision="32-true",
            loss="cross_entropy", **settings,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A run whose data is gone, and the kind of its masks."""
    root = tmp_path_factory.mktemp("predict")
    data = make_folder(root / "data", request.param)
    # What raw values mean is known by their order.
    out = trained(data, root / "run", model=f"{__file__}:Brightness")
    shutil.rmtree(data)
    return out, request.param


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "blobs"
    return trained("synthetic:blobs?n=16&size=48", out, steps=10, val_every=10)


# ---------------------------------------------------------------- masks out of it


def test_masks_come_in_the_encoding_of_the_training_masks(run: tuple, tmp_path: Path) -> None:
    out, kind = run
    mask = classes_of(7, size=(53, 61))
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(picture(mask)).save(images / "new.png")
    assert cli.main(["predict", str(out), str(images), "--out", str(tmp_path / "masks")]) == 0
    wanted = tmp_path / "wanted.png"
    save_mask(mask, kind, wanted)
    with Image.open(tmp_path / "masks" / "new.png") as found, Image.open(wanted) as true:
        assert (found.mode, found.size) == (true.mode, true.size)
        if kind == "palette":
            assert found.getpalette()[:9] == true.getpalette()[:9] == [*sum(VOC, ())]
    (found, found_colour), (true, true_colour) = map(
        read_mask, (tmp_path / "masks" / "new.png", wanted)
    )
    assert found_colour == true_colour
    assert len(np.unique(true)) > 1
    assert np.array_equal(found, true)
    model = load(out)
    values = model.values[model.predict(torch.from_numpy(picture(mask)).permute(2, 0, 1))]
    assert np.array_equal(values, found)


def test_what_it_must_know_is_plain_and_in_the_run_folder(run: tuple) -> None:
    out, kind = run
    known = tomllib.loads((out / "config.toml").read_text())
    data = known["data"]
    assert data["mode"] == ("binary" if kind == "0 and 255" else "multiclass")
    values = {
        "0 and 255": [0, 255],
        "raw values": [7, 30, 100],
        "16 bit": [0, 1000, 30000],
        "colours": [0, 0x0AC803, 0xFA0009],
        "palette": [0, 1, 2],
    }
    assert data["values"] == values[kind]
    assert data["colours"] is (kind == "colours")
    assert ("palette" in data) is (kind == "palette")
    assert known["outputs"]["link"] == ("sigmoid" if kind == "0 and 255" else "softmax")


def test_deep_images_keep_the_window_of_the_training_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for i in range(8):
        mask = classes_of(i)
        deep = 500 + mask.astype(np.uint16) * 400
        deep[0, 0], deep[0, 1] = 100, 2000
        Image.fromarray(deep).save(data / "images" / f"{i}.png")
        save_mask(mask, "palette", data / "masks" / f"{i}.png")
    out = trained(data, tmp_path / "run", steps=1, val_every=1)
    opened = open_data(str(data))
    shutil.copytree(data / "images", tmp_path / "images")
    shutil.rmtree(data)
    assert (
        tuple(tomllib.loads((out / "config.toml").read_text())["data"]["window"]) == opened.window
    )
    assert (
        cli.main(["predict", str(out), str(tmp_path / "images"), "--out", str(tmp_path / "o")]) == 0
    )
    seen = read_image(tmp_path / "images" / "3.png", window=opened.window)
    wanted = load(out).predict(torch.from_numpy(seen).permute(2, 0, 1))
    found, _ = read_mask(tmp_path / "o" / "3.png")
    assert np.array_equal(found, wanted)
    with_other = read_image(tmp_path / "images" / "3.png", window=(0.0, 65535.0))
    assert not np.array_equal(seen, with_other)


# ---------------------------------------------------------------- files


def images_in(root: Path) -> Path:
    (root / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "deep/a.png", "deep/er/c.bmp")):
        size = (30 + 7 * i, 50 - 5 * i)
        Image.fromarray(picture(classes_of(i, size=size))).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main(["predict", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_folders_files_and_globs_keep_names_and_subfolders(blobs: Path, tmp_path: Path) -> None:
    root = images_in(tmp_path / "scans")
    for out, words, wanted in (
        ("folder", [root], {"a.png", "b.png", "deep/a.png", "deep/er/c.png"}),
        ("files", [root / "b.jpg", root / "deep/er/c.bmp"], {"b.png", "c.png"}),
        ("glob", [root / "*.png"], {"a.png"}),
        ("globs", [f"{root}/**/*.png"], {"a.png", "deep/a.png"}),
    ):
        words = ["predict", blobs, *words, "--out", tmp_path / out]
        assert cli.main([*map(str, words)]) == 0
        assert files(tmp_path / out) == wanted
    with Image.open(tmp_path / "folder" / "deep" / "a.png") as found:
        assert found.size == (40, 44)


def test_probabilities_and_overlays_are_written_on_request(blobs: Path, tmp_path: Path) -> None:
    root = images_in(tmp_path / "scans")
    words = ["predict", str(blobs), str(root / "a.png"), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--probabilities", "--overlays"]) == 0
    (name,) = files(tmp_path / "out" / "probabilities")
    assert name.startswith("a.1-")
    assert files(tmp_path / "out") == {"a.png", f"probabilities/{name}", "overlays/a.png"}
    found = np.array(Image.open(tmp_path / "out" / "probabilities" / name))
    assert found.dtype == np.uint16
    model = load(blobs)
    image = torch.from_numpy(read_image(root / "a.png")).permute(2, 0, 1)
    with torch.no_grad():
        wanted = model(image)
    assert wanted.shape == (2, 30, 50)
    torch.testing.assert_close(wanted.sum(0), torch.ones(30, 50))
    np.testing.assert_allclose(found / 65535, wanted[1].numpy(), atol=1.6e-5)
    mask, _ = read_mask(tmp_path / "out" / "a.png")
    assert np.array_equal(mask == model.values[1], (wanted[1] > 0.5).numpy())
    with Image.open(tmp_path / "out" / "overlays" / "a.png") as overlay:
        assert overlay.mode == "RGB"


def test_nothing_is_overwritten_in_silence(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images_in(tmp_path / "scans")
    out = tmp_path / "out"
    assert cli.main(["predict", str(blobs), str(root / "a.png"), "--out", str(out)]) == 0
    (out / "a.png").write_bytes(b"mine")
    capsys.readouterr()
    said = refused(capsys, blobs, root, "--out", out)
    assert "1 of the files are there already" in said
    assert files(out) == {"a.png"}
    assert (out / "a.png").read_bytes() == b"mine"
    assert cli.main(["predict", str(blobs), str(root), "--out", str(out), "--overwrite"]) == 0
    assert (out / "a.png").read_bytes() != b"mine"
    # An image is never overwritten, and what was written into a folder of images is none of them.
    capsys.readouterr()
    said = refused(capsys, blobs, root / "a.png", "--out", root, "--overwrite")
    assert "a.png is an image to predict" in said
    inside = root / "masks"
    for again in ((), ("--overwrite",)):
        assert cli.main(["predict", str(blobs), str(root), "--out", str(inside), *again]) == 0
        assert files(inside) == {"a.png", "b.png", "deep/a.png", "deep/er/c.png"}


def test_two_images_of_one_name_are_refused(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images_in(tmp_path / "scans")
    said = refused(capsys, blobs, root / "a.png", root / "deep" / "a.png", "--out", tmp_path / "o")
    assert "would both be written to" in said
    shutil.copy(root / "a.png", root / "b.png")
    assert "b.jpg and" in refused(capsys, blobs, root, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_broken_image_is_named_and_the_others_go_on(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = images_in(tmp_path / "scans")
    content = (root / "b.jpg").read_bytes()
    (root / "b.jpg").write_bytes(content[: len(content) // 3])
    (root / "aa.png").write_bytes(b"nothing")
    assert cli.main(["predict", str(blobs), str(root), "--out", str(tmp_path / "o")]) == 2
    shown, complaint = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in shown.splitlines() if line[:4] == "bad:"] == [
        str(root / "aa.png"),
        str(root / "b.jpg"),
    ]
    assert "2 of 5 images could not be predicted" in complaint
    assert files(tmp_path / "o") == {"a.png", "deep/a.png", "deep/er/c.png"}


def test_an_unfinished_run_predicts_and_is_called_so(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = images_in(tmp_path / "scans"), tmp_path / "run"
    shutil.copytree(blobs, run)
    (run / "summary.json").unlink()
    assert cli.main(["predict", str(run), str(root), "--out", str(tmp_path / "o")]) == 0
    assert "this run is not finished" in capsys.readouterr().out
    (run / "best.ckpt").unlink()
    assert "best.ckpt: is missing" in refused(capsys, run, root, "--out", tmp_path / "o2")


def test_changed_bytes_among_the_weights_are_noticed(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = images_in(tmp_path / "scans"), tmp_path / "run"
    shutil.copytree(blobs, run)
    content = bytearray((run / "best.ckpt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    (run / "best.ckpt").write_bytes(content)
    complaint = refused(capsys, run, root, "--out", tmp_path / "o")
    assert "best.ckpt" in complaint
    assert "wrong checksum" in complaint
    (run / "config.toml").write_text(
        (run / "config.toml").read_text().replace("steps = ", "stops = ")
    )
    assert "'steps' is missing" in refused(capsys, run, root, "--out", tmp_path / "o")


def test_what_cannot_be_predicted_is_one_line(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = images_in(tmp_path / "scans"), tmp_path / "o"
    assert "no such file or folder" in refused(capsys, blobs, root / "nowhere", "--out", out)
    assert "there is no PNG" in refused(capsys, blobs, root / "*.tif", "--out", out)
    assert "IMAGES: give" in refused(capsys, blobs, "--out", out)
    assert "there is no such folder" in refused(capsys, tmp_path / "x", root, "--out", out)
    assert "holds no run" in refused(capsys, root, root, "--out", out)
    assert "is a file" in refused(capsys, blobs, root, "--out", root / "a.png")
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "compare.toml").write_text("")
    assert "one of its trials" in refused(capsys, tmp_path / "comparison", root, "--out", out)
    toy = f"{toy_task.__file__}:Brightness"
    run = tmp_path / "toy"
    assert cli.main(["train", "bright", "--task", toy, "--steps", "2", "--out", str(run)]) == 0
    capsys.readouterr()
    assert "brightness cannot predict" in refused(capsys, run, root, "--out", out)
    assert not out.exists()


# ---------------------------------------------------------------- the network in Python


def test_load_gives_what_was_measured(blobs: Path) -> None:
    data = open_data("synthetic:blobs?n=16&size=48")
    before = torch.get_rng_state()
    model = load(blobs)
    assert (torch.get_rng_state() == before).all()
    assert not model.training
    assert model.names == data.class_names
    _, module = load_run(blobs, data)
    found = measure(module, data, data.test, size_limits=None, keep=len(data.test))
    images = torch.stack([data.read(sample)[0] for sample in data.test])
    for place, classes in enumerate(model.predict(images)):
        assert np.array_equal(classes, found.predictions[place])
        assert torch.equal(model.predict(images[place]), classes)
    with torch.no_grad():
        assert model(images).shape == (len(images), 2, 48, 48)
    with pytest.raises(TypeError, match="uint8"):
        model(images.float())
    with pytest.raises(ValueError, match=r"\[3 h w\]"):
        model.predict(images[:, :1])


def test_the_example_exports_a_program(blobs: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("export", EXAMPLES / "export.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.export(blobs, tmp_path / "net.pt2", height=40, width=56)
    program = torch.export.load(tmp_path / "net.pt2").module()
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program(image), load(blobs)(image))


# ---------------------------------------------------------------- the facts of the data


def interrupted(data: Path, out: Path) -> TrainSettings:
    """A run that goes on: its summary is gone."""
    settings = TrainSettings(
        data=str(data), out=out, steps=2, val_every=1, size=32, batch_size=2, workers=0,
        accelerator="cpu", precision="32-true", loss="cross_entropy",
    )  # fmt: skip
    train(settings)
    (out / "summary.json").unlink()
    return settings


def test_a_resumed_run_notices_other_mask_values(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", "raw values")
    settings = interrupted(data, tmp_path / "run")
    for i in range(8):
        Image.fromarray(np.array([7, 30, 101], np.uint8)[classes_of(i)]).save(
            data / "masks" / f"{i}.png"
        )
    with pytest.raises(InputError, match=r"was .*100.*, now it is .*101"):
        train(settings)


def test_a_resumed_run_notices_another_void_value(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", "16 bit")

    def masks_with(void: int) -> None:
        for i in range(8):
            mask = classes_of(i).astype(np.uint16)
            mask[:2] = void
            Image.fromarray(mask).save(data / "masks" / f"{i}.png")

    masks_with(255)
    settings = interrupted(data, tmp_path / "run")
    masks_with(65535)
    with pytest.raises(InputError, match="ignore was 255, now it is 65535"):
        train(settings)
    masks_with(255)
    train(settings)


def test_facts_have_the_same_keys_for_all_data() -> None:
    keys = [set(facts(open_data(f"synthetic:{name}"))) for name in ("blobs", "void", "classes")]
    assert keys[0] == keys[1] == keys[2]


# ---------------------------------------------------------------- tiles


class Local(nn.Module):
    """A network whose logits depend on nothing but the pixel: tiles cannot change them."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[:, 0], image[:, 1] - image[:, 2], image.mean(1)], dim=1)


def local() -> Segmenter:
    return Segmenter(Local(), num_outputs=3, divisor=32, smallest=64).eval()


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code, with images that a test can wait for."""
    monkeypatch.setattr(tiles, "LARGEST", 100 * 100)
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(tiles, "_MARGIN", 16)
    monkeypatch.setattr(tiles, "_BAND_LOGITS", 3 * 150 * 150)


@pytest.mark.parametrize("size", [(300, 170), (170, 300), (33, 1100), (1100, 33), (129, 128)])
@pytest.mark.usefixtures("small_limits")
def test_tiles_cover_every_pixel_once(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    network = local()
    assert tiles.is_large(size)
    (found,) = network(image)
    torch.testing.assert_close(found, network.network(image))
    kept = [*tiles.bands(size, channels=3)]
    assert [row for rows, _ in kept for row in range(rows.start, rows.stop)] == [*range(size[0])]
    for rows, seen in kept:
        assert seen.start <= rows.start < rows.stop <= seen.stop
        assert seen.start == 0 or rows.start - seen.start >= 16
        assert seen.stop >= size[0] or seen.stop - rows.stop >= 16


def test_an_image_at_the_limit_goes_through_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = local(), torch.randn(1, 3, 90, 100)
    seen: list[tuple[int, ...]] = []
    network.network.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    monkeypatch.setattr(tiles, "LARGEST", 90 * 100)
    network(image)
    assert seen == [(1, 3, 96, 128)]
    monkeypatch.setattr(tiles, "LARGEST", 90 * 100 - 1)
    monkeypatch.setattr(tiles, "TILE", 64)
    seen.clear()
    network(image)
    assert len(seen) > 1
    assert set(seen) == {(1, 3, 64, 64)}
    # Training squares are never cut.
    seen.clear()
    network.train()(image)
    assert seen == [(1, 3, 96, 128)]


@pytest.mark.usefixtures("small_limits")
def test_training_measuring_and_predicting_in_tiles_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for i in range(8):
        mask = classes_of(i) if i in (0, 5) else np.tile(classes_of(i), (3, 4))
        Image.fromarray(picture(mask)).save(data / "images" / f"{i}.png")
        save_mask(mask, "palette", data / "masks" / f"{i}.png")
    words = ["train", str(data), "--steps", "20", "--val-every", "10", "--size", "48", "--workers"]
    words += ["0", "--test-share", "0.3", "--lr", "0.01", "--out", str(tmp_path / "run")]
    words += ["--accelerator", "cpu", "--precision", "32-true", "--loss", "cross_entropy"]
    assert cli.main(words) == 0
    assert "overlap by 128, to spare memory: 6 of 8 here" in capsys.readouterr().out
    opened = open_data(str(data), test_share=0.3)
    _, module = load_run(tmp_path / "run", opened)
    found = measure(module, opened, opened.test, size_limits=None, keep=9)
    test = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    pooled = found.confusion.sum(0)
    dice = 2 * np.diag(pooled) / (pooled.sum(0) + pooled.sum(1))
    assert dice.mean() == pytest.approx(test["score"], abs=1e-6)
    model = load(tmp_path / "run")
    for place, sample in enumerate(opened.test):
        image, _ = opened.read(sample)
        assert np.array_equal(model.predict(image), found.predictions[place])
        with torch.no_grad():
            likeliest = model(image).argmax(0)
        assert np.array_equal(likeliest, found.predictions[place])
    assert sum(tiles.is_large(data.shape) for data in map(opened.mask, opened.test)) >= 2


@pytest.mark.usefixtures("small_limits")
def test_a_large_image_is_measured_as_if_it_were_small(
    blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data("synthetic:void?n=9&size=128")
    out = blobs.parent / "void"
    trained("synthetic:void?n=9&size=128", out, steps=2, val_every=2)
    _, module = load_run(out, data)
    # The same logits both times: only what is made of them goes part by part.
    whole = module.model.whole
    monkeypatch.setattr(type(module.model), "forward", lambda _, image: whole(image))
    in_parts = measure(module, data, data.test, size_limits=(20.0, 60.0), keep=1)
    batch = {"mask": torch.stack([data.mask(s).long() for s in data.test])}
    batch["counts"] = torch.ones(len(data.test))
    outputs = [torch.randn(len(data.test), data.num_classes, 128, 128)]
    meters = [OverlapMeter(data), OverlapMeter(data)]
    meters[0].update(outputs, batch)
    assert len([*tiles.rows_at_a_time((128, 128))]) == 2
    monkeypatch.setattr(tiles, "LARGEST", 10**9)
    meters[1].update(outputs, batch)
    assert meters[0].compute() == meters[1].compute()
    at_once = measure(module, data, data.test, size_limits=(20.0, 60.0), keep=1)
    for name in ("confusion", "boundary", "hd95", "objects", "histogram"):
        assert np.array_equal(getattr(in_parts, name), getattr(at_once, name)), name
    np.testing.assert_allclose(in_parts.reliability, at_once.reliability, rtol=1e-12)


def test_normalising_leaves_its_input_alone() -> None:
    image = torch.rand(3, 4, 5)
    before = image.clone()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(normalise(image), (before - mean) / std)
    assert torch.equal(image, before)


@pytest.mark.slow
def test_a_large_image_is_predicted_in_less_than_2_gb(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    data = make_folder(tmp_path / "data", "palette")
    for i in range(8):  # a fourth class
        mask = classes_of(i)
        mask[:6, :6] = 3
        Image.fromarray(mask).save(data / "masks" / f"{i}.png")
    out = trained(data, tmp_path / "run", steps=2, val_every=2)
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise.repeat(100, 0).repeat(100, 1)).save(tmp_path / "large.png")
    words = [
        "predict",
        out,
        tmp_path / "large.png",
        "--out",
        tmp_path / "o",
        "--accelerator",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "denseloss.cli", *map(str, words)]
    done = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    assert done.returncode == 0
    unit = 1 if sys.platform == "darwin" else 1024
    assert used.ru_maxrss * unit < 2e9
    assert resource is not None
