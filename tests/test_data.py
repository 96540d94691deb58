"""Readers: every layout, every kind of mask and image, every bad input, and the seeded items."""

import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from denseloss.data import VOID, DataError, denormalise, normalise
from denseloss.data.images import read_image
from denseloss.tasks.segmentation import SegmentationDataset, open_data
from denseloss.tasks.segmentation.dataset import augment

SHARED = Path(__file__).parents[2] / "shared" / "data"
RNG = np.random.default_rng(0)


def picture(width: int = 20, height: int = 16) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(*values: int, width: int = 20, height: int = 16) -> np.ndarray:
    """A mask in which every value occurs."""
    mask = RNG.choice(np.array(values), (height, width))
    mask.reshape(-1)[: len(values)] = values
    return mask.astype(np.uint8 if max(values) < 256 else np.uint16)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def pairs(
    root: Path,
    *masks: np.ndarray,
    images: str = "images",
    folder: str = "masks",
    start: int = 0,
    end: str = "",
    suffix: str = ".png",
) -> Path:
    for i, mask in enumerate(masks, start=start):
        save(root / images / f"f{i}{suffix}", picture(mask.shape[1], mask.shape[0]))
        save(root / folder / f"f{i}{end}.png", mask)
    return root


def binary(n: int) -> list[np.ndarray]:
    return [labels(0, 255) for _ in range(n)]


def names(samples: tuple) -> list[str]:
    return sorted(s.name for s in samples)


class TestLayouts:
    @pytest.mark.parametrize("images", ["images", "image", "imgs", "img", "JPEGImages", "Images"])
    @pytest.mark.parametrize(
        "folder", ["masks", "mask", "labels", "label", "gt", "SegmentationClass", "Annotations"]
    )
    def test_folder_names(self, tmp_path: Path, images: str, folder: str) -> None:
        data = open_data(pairs(tmp_path, *binary(2), images=images, folder=folder))
        assert len(data.train) == len(data.val) == 1

    @pytest.mark.parametrize("end", ["", "_mask", "_gt", "_label", "-mask", "_MASK"])
    def test_ends_of_mask_names(self, tmp_path: Path, end: str) -> None:
        data = open_data(pairs(tmp_path, *binary(5), end=end))
        assert names(data.train + data.val) == ["f0", "f1", "f2", "f3", "f4"]
        for sample in data.train:
            assert sample.mask.name == f"{sample.name}{end}.png"

    def test_seeded_split_is_said_and_does_not_depend_on_other_images(self, tmp_path: Path) -> None:
        root = pairs(tmp_path, *binary(20))
        data = open_data(root, seed=3)
        assert data.split_note == "no split in the folder: 16 train / 4 val by seed 3"
        assert open_data(root, seed=3) == data
        assert open_data(root, seed=4).val != data.val
        assert len(open_data(root, val_share=0.5).val) == 10
        assert not set(data.train) & set(data.val)

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
    def test_split_below(self, tmp_path: Path, val: str) -> None:
        for split, n in (("train", 3), (val, 2), ("test", 1)):
            pairs(tmp_path, *binary(n), images=f"images/{split}", folder=f"masks/{split}")
        data = open_data(tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (3, 2, 1)
        assert data.split_note == "as in the folder"
        everything = [s.name for s in data.train + data.val + data.test]
        assert len(set(everything)) == 6

    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_split_above(self, tmp_path: Path, val: str) -> None:
        for split, n in (("train", 3), (val, 2), ("test", 1)):
            pairs(tmp_path / split, *binary(n))
        data = open_data(tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (3, 2, 1)

    def test_only_train_and_test(self, tmp_path: Path) -> None:
        pairs(tmp_path / "train", *binary(10))
        pairs(tmp_path / "test", *binary(2))
        data = open_data(tmp_path)
        assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 2)
        assert data.split_note == "no val split in the folder: 8 train / 2 val by seed 0"

    def test_split_images_with_undivided_masks(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(3), images="images/train")
        pairs(tmp_path, *binary(2), images="images/val", start=3)
        data = open_data(tmp_path)
        assert (len(data.train), len(data.val)) == (3, 2)

    @pytest.mark.parametrize("above", [True, False])
    def test_test_images_without_masks_are_left_out(self, tmp_path: Path, above: bool) -> None:
        pairs(tmp_path / "train" if above else tmp_path, *binary(4))
        if above:
            save(tmp_path / "test" / "images" / "x.png", picture())
        else:
            for i in range(4):
                for folder in ("images", "masks"):
                    old = tmp_path / folder / f"f{i}.png"
                    (tmp_path / folder / "train").mkdir(exist_ok=True)
                    old.rename(tmp_path / folder / "train" / old.name)
            save(tmp_path / "images" / "test" / "x.png", picture())
        data = open_data(tmp_path)
        assert data.test == ()
        assert any("test: 1 images without masks" in line for line in data.describe())

    @pytest.mark.parametrize("split", ["", "train"])
    def test_side_by_side(self, tmp_path: Path, split: str) -> None:
        pairs(tmp_path / split, *binary(3), images=".", folder=".", end="_mask", suffix=".jpg")
        data = open_data(tmp_path)
        assert names(data.train + data.val) == ["f0", "f1", "f2"]

    def test_jpeg_images_beside_png_masks(self, tmp_path: Path) -> None:
        data = open_data(pairs(tmp_path, *binary(3), images=".", folder=".", suffix=".jpg"))
        assert {s.image.suffix for s in data.train} == {".jpg"}

    def test_folder_in_a_folder(self, tmp_path: Path) -> None:
        pairs(tmp_path / "download" / "set-1", *binary(2))
        (tmp_path / "__MACOSX").mkdir()
        data = open_data(tmp_path)
        assert any("set-1" in note for note in data.notes)

    def test_folders_below_images(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2), images="images/a", folder="masks/a")
        pairs(tmp_path, *binary(2), images="images/b", folder="masks/b")
        data = open_data(tmp_path)
        assert names(data.train + data.val) == ["a/f0", "a/f1", "b/f0", "b/f1"]

    def test_junk_is_ignored(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        for folder in ("images", "masks"):
            for junk in ("._f0.png", ".DS_Store", "Thumbs.db", "notes.txt"):
                (tmp_path / folder / junk).write_bytes(b"junk")
        assert len(open_data(tmp_path).train) == 1

    def test_symlinks(self, tmp_path: Path) -> None:
        pairs(tmp_path / "real", *binary(2))
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "images").symlink_to(tmp_path / "real" / "images")
        (tmp_path / "linked" / "masks").mkdir()
        for i in range(2):
            link = tmp_path / "linked" / "masks" / f"f{i}.png"
            link.symlink_to(tmp_path / "real" / "masks" / f"f{i}.png")
        assert len(open_data(tmp_path / "linked").train) == 1

    def test_progress_wraps_the_files(self, tmp_path: Path) -> None:
        seen = []

        def progress(files: list) -> list:
            seen.append(len(files))
            return files

        open_data(pairs(tmp_path, *binary(4)), progress=progress)
        assert seen == [4]


def voc(root: Path, values: tuple[int, ...], *, trainval: bool = False, n: int = 4) -> Path:
    palette = [(37 * i) % 256 for i in range(768)]
    for i in range(n):
        save(root / "JPEGImages" / f"2007_{i}.jpg", picture())
        mask = Image.fromarray(labels(*values))
        mask.putpalette(palette)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(root / "SegmentationClass" / f"2007_{i}.png")
    save(root / "JPEGImages" / "only_boxes.jpg", picture())
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    if trainval:
        (lists / "trainval.txt").write_text("".join(f"2007_{i}\n" for i in range(n)))
    else:
        (lists / "train.txt").write_text("".join(f"2007_{i}\n" for i in range(n - 1)))
        (lists / "val.txt").write_text(f"2007_{n - 1}\r\n\n")
    return root


class TestVOC:
    def test_lists_names_and_void(self, tmp_path: Path) -> None:
        data = open_data(voc(tmp_path, (0, 1, 15, 255)))
        assert names(data.train) == ["2007_0", "2007_1", "2007_2"]
        assert names(data.val) == ["2007_3"]
        assert data.num_classes == 21
        assert data.class_names[15] == "person"
        assert data.ignore_value == 255
        _, mask = data.read(data.val[0])
        raw = np.asarray(Image.open(data.val[0].mask))
        assert np.array_equal(mask.numpy(), raw)  # entries of the palette, never colours

    def test_trainval_alone_is_divided(self, tmp_path: Path) -> None:
        data = open_data(voc(tmp_path, (0, 1, 15, 255), trainval=True))
        assert (len(data.train), len(data.val)) == (3, 1)
        assert "by seed 0" in data.split_note

    def test_inside_vocdevkit(self, tmp_path: Path) -> None:
        (tmp_path / "VOCdevkit" / "VOC2012").mkdir(parents=True)
        voc(tmp_path / "VOCdevkit" / "VOC2012", (0, 5, 20))
        assert open_data(tmp_path).num_classes == 21

    def test_own_classes(self, tmp_path: Path) -> None:
        root = voc(tmp_path, (0, 1, 255))
        assert open_data(root).mode == "binary"
        data = open_data(root, classes=["ground", "roof", "tree"])
        assert data.class_names == ("ground", "roof", "tree")
        assert data.ignore_value == 255

    def test_without_lists(self, tmp_path: Path) -> None:
        root = voc(tmp_path, (0, 1, 15, 255))
        for file in (root / "ImageSets" / "Segmentation").iterdir():
            file.unlink()
        data = open_data(root)
        assert len(data.train) + len(data.val) == 4
        assert any("1 images without a mask" in note for note in data.notes)

    def test_an_image_in_two_splits_is_warned_of(self, tmp_path: Path) -> None:
        root = voc(tmp_path, (0, 1, 15, 255))
        (root / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_3\n")
        data = open_data(root)
        assert len(data.test) == 1
        assert [w for w in data.warnings if "2007_3.jpg: is in two splits" in w]

    def test_a_listed_file_that_is_missing(self, tmp_path: Path) -> None:
        root = voc(tmp_path, (0, 1, 15, 255))
        (root / "SegmentationClass" / "2007_1.png").unlink()
        with pytest.raises(DataError, match=r"train\.txt: lists 2007_1, but .*SegmentationClass"):
            open_data(root)


class TestMasks:
    """What the values mean: (values) -> (mode, values of the classes, void)."""

    @pytest.mark.parametrize(
        ("values", "mode", "expected", "ignore"),
        [
            ((0, 255), "binary", (0, 255), None),
            ((0, 1), "binary", (0, 1), None),
            ((0, 128), "binary", (0, 128), None),
            ((0, 1, 255), "binary", (0, 1), 255),
            ((0, 1, 2), "multiclass", (0, 1, 2), None),
            ((0, 1, 2, 3, 4, 5), "multiclass", (0, 1, 2, 3, 4, 5), None),
            ((0, 1, 2, 255), "multiclass", (0, 1, 2), 255),
            ((0, 3, 7), "multiclass", (0, 3, 7), None),
            ((0, 128, 255), "multiclass", (0, 128, 255), None),
            ((0, 85, 170, 255), "multiclass", (0, 85, 170, 255), None),
            ((0, 1000, 2000), "multiclass", (0, 1000, 2000), None),
            ((0, 1, 2, 65535), "multiclass", (0, 1, 2), 65535),
        ],
    )
    def test_meaning(
        self, tmp_path: Path, values: tuple, mode: str, expected: tuple, ignore: int | None
    ) -> None:
        data = open_data(pairs(tmp_path, *(labels(*values) for _ in range(3))))
        assert (data.mode, data.values, data.ignore_value) == (mode, expected, ignore)
        assert data.num_classes == len(expected) == len(data.class_names)
        for sample in data.train:
            raw = np.asarray(Image.open(sample.mask))
            _, mask = data.read(sample)
            assert mask.dtype == torch.uint8
            for index, value in enumerate(expected):
                assert np.array_equal(mask.numpy() == index, raw == value)
            assert np.array_equal(mask.numpy() == VOID, raw == (-1 if ignore is None else ignore))
        assert math.isclose(sum(data.class_share), 1)
        assert (data.void_share > 0) == (ignore is not None)

    def test_one_bit(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        for path in (tmp_path / "masks").iterdir():
            Image.open(path).convert("1").save(path)
        data = open_data(tmp_path)
        assert (data.mode, data.values) == ("binary", (0, 1))

    def test_palette(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        for path in (tmp_path / "masks").iterdir():
            mask = Image.fromarray(labels(0, 1, 2, 255))
            mask.putpalette([0, 0, 0, 0, 0, 0] + [255] * 762)  # 0 and 1 look alike, and the others
            mask.save(path)
        data = open_data(tmp_path)
        assert (data.values, data.ignore_value) == ((0, 1, 2), 255)
        assert data.read(data.train[0])[1].unique().tolist() == [0, 1, 2, 255]

    def test_different_palettes_are_warned_of(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        for i, path in enumerate(sorted((tmp_path / "masks").iterdir())):
            mask = Image.fromarray(labels(0, 1, 2))
            mask.putpalette([i] * 9)
            mask.save(path)
        assert any("different palettes" in w for w in open_data(tmp_path).warnings)

    def test_colours(self, tmp_path: Path) -> None:
        wheel = np.array([(0, 0, 0), (255, 0, 0), (0, 128, 255)], dtype=np.uint8)
        indices = [labels(0, 1, 2), labels(0, 1, 2), np.zeros((16, 20), dtype=np.uint8)]
        root = pairs(tmp_path, *(wheel[i] for i in indices))
        data = open_data(root)
        assert data.values == (0, 0x0080FF, 0xFF0000)
        assert data.class_names == ("background", "#0080ff", "#ff0000")
        order = np.array([0, 2, 1])
        for sample in (*data.train, *data.val):
            expected = order[indices[int(sample.name[1:])]]
            assert np.array_equal(data.read(sample)[1].numpy(), expected)

    def test_grey_saved_as_colour_or_with_alpha(self, tmp_path: Path) -> None:
        root = pairs(tmp_path, *(labels(0, 255) for _ in range(3)))
        for path, mode in zip(
            sorted((root / "masks").iterdir()), ("RGB", "RGBA", "LA"), strict=True
        ):
            Image.open(path).convert(mode).save(path)
        assert open_data(root).values == (0, 255)

    @pytest.mark.parametrize("spoil", ["jpeg", "resize"])
    def test_black_and_white_with_greys(self, tmp_path: Path, spoil: str) -> None:
        clean = np.zeros((64, 64), dtype=np.uint8)
        clean[20:50, 10:40] = 255
        for i in range(3):
            save(tmp_path / "images" / f"f{i}.png", picture(64, 64))
            if spoil == "jpeg":
                save(tmp_path / "masks" / f"f{i}.jpg", clean, quality=80)
            else:
                small = Image.fromarray(clean).resize((50, 50), Image.Resampling.BILINEAR)
                (tmp_path / "masks").mkdir(exist_ok=True)
                small.resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / f"masks/f{i}.png")
        data = open_data(tmp_path)
        assert data.mode == "binary"
        assert any("128 and above is taken as foreground" in w for w in data.warnings)
        wrong = (data.read(data.train[0])[1].numpy() == 1) != (clean == 255)
        assert wrong.mean() < 0.02

    def test_overrides(self, tmp_path: Path) -> None:
        root = pairs(tmp_path, *(labels(0, 1, 255) for _ in range(3)))
        assert open_data(root, mode="multiclass").num_classes == 2
        data = open_data(root, ignore_index=0)
        assert (data.values, data.ignore_value) == ((1, 255), 0)
        data = open_data(root, classes=5)
        assert (data.values, data.ignore_value) == ((0, 1, 2, 3, 4), 255)
        assert data.class_share[3] == 0
        assert open_data(root, ignore_index=-1).num_classes == 3

    def test_task_binary_merges(self, tmp_path: Path) -> None:
        data = open_data(pairs(tmp_path, *(labels(0, 1, 4) for _ in range(3))), mode="binary")
        raw = np.asarray(Image.open(data.train[0].mask))
        assert np.array_equal(data.read(data.train[0])[1].numpy(), raw > 0)

    def test_task_binary_halves_greys(self, tmp_path: Path) -> None:
        soft = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (16, 1))
        data = open_data(pairs(tmp_path, soft, soft), mode="binary")
        assert np.array_equal(data.read(data.train[0])[1].numpy(), soft >= 128)

    def test_two_classes_as_multiclass(self, tmp_path: Path) -> None:
        data = open_data(pairs(tmp_path, *binary(3)), mode="multiclass")
        assert (data.mode, data.num_classes, data.values) == ("multiclass", 2, (0, 255))

    @pytest.mark.parametrize("classes", [1, 0, 255, ["only"]])
    def test_impossible_class_counts(self, tmp_path: Path, classes: int | list[str]) -> None:
        with pytest.raises(DataError, match="--classes"):
            open_data(pairs(tmp_path, *binary(2)), classes=classes)

    def test_shares(self, tmp_path: Path) -> None:
        mask = np.zeros((10, 10), dtype=np.uint8)
        mask[0, :5], mask[1], mask[2:4] = 1, 2, 255
        data = open_data(pairs(tmp_path, mask, mask))
        assert data.void_share == pytest.approx(0.2)
        assert data.class_share == pytest.approx((65 / 80, 5 / 80, 10 / 80))


class TestImages:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
    def test_mode_and_format(self, tmp_path: Path, mode: str, suffix: str) -> None:
        source = Image.fromarray(picture())
        image = Image.fromarray(labels(0, 60000)) if mode == "I;16" else source.convert(mode)
        root = pairs(tmp_path, *binary(2))
        for path in list((root / "images").iterdir()):
            path.unlink()
            try:
                image.save(path.with_suffix(suffix))
            except OSError:
                pytest.skip(f"no {mode} in {suffix}")
        data = open_data(root)
        pixels, mask = data.read(data.train[0])
        assert pixels.shape == (3, 16, 20)
        assert pixels.dtype == torch.uint8
        assert mask.shape == (16, 20)
        if suffix in (".png", ".tif") and mode in ("L", "RGB", "RGBA"):
            expected = np.asarray(source.convert(mode).convert("RGB"))
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)

    def test_16_bit_is_scaled_alike_in_the_whole_set(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        dark = np.full((16, 20), 1000, dtype=np.uint16)
        dark[0] = 0
        light = np.full((16, 20), 4000, dtype=np.uint16)
        save(tmp_path / "images" / "f0.png", dark)
        save(tmp_path / "images" / "f1.png", light)
        data = open_data(tmp_path)
        assert data.window == (0, 4000)
        assert any("0 to 4000 become 0 to 255" in line for line in data.describe())
        values = {s.name: data.read(s)[0] for s in data.train + data.val}
        assert values["f0"][:, 1:].unique().tolist() == [64]
        assert values["f1"].unique().tolist() == [255]

    def test_16_bit_hot_pixel_does_not_darken(self, tmp_path: Path) -> None:
        mask = labels(0, 255, width=64, height=64)
        pairs(tmp_path, mask, mask)
        for i in range(2):
            image = RNG.integers(100, 600, (64, 64)).astype(np.uint16)
            image[5, 5] = 65535
            save(tmp_path / "images" / f"f{i}.png", image)
        data = open_data(tmp_path)
        assert data.window[1] < 700
        assert data.read(data.train[0])[0].float().mean() > 80

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("write", ["png", "tiff"])
    def test_16_bit_colour_keeps_the_low_byte(
        self, tmp_path: Path, write: str, channels: int
    ) -> None:
        deep = RNG.integers(0, 4000, (16, 20, channels)).astype(np.uint16)
        pairs(tmp_path, *binary(2))
        for i in range(2):
            # The content tells the format, not the suffix.
            {"png": write_png_16, "tiff": write_tiff_16}[write](
                tmp_path / "images" / f"f{i}.png", deep
            )
        deep = deep[..., :3]
        data = open_data(tmp_path)
        low, high = data.window
        expected = np.clip(np.rint((deep - low) * 255 / (high - low)), 0, 255)
        got = data.read(data.train[0])[0].permute(1, 2, 0).numpy()
        assert np.abs(got.astype(int) - expected).max() <= 1

    def test_float_tiff(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        for i in range(2):
            (tmp_path / "images" / f"f{i}.png").unlink()
            save(tmp_path / "images" / f"f{i}.tif", RNG.random((16, 20)).astype(np.float32))
        image, _ = open_data(tmp_path).read(open_data(tmp_path).train[0])
        assert image.min() < 5
        assert image.max() > 250

    @pytest.mark.parametrize("turn", range(1, 9))
    def test_orientation(self, tmp_path: Path, turn: int) -> None:
        upright = np.zeros((16, 24, 3), dtype=np.uint8)
        upright[:8, :8] = (255, 0, 0)
        upright[8:, 16:] = (0, 255, 0)
        undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]
        stored = Image.fromarray(upright)
        stored = stored if undo is None else stored.transpose(Image.Transpose(undo))
        exif = Image.Exif()
        exif[0x0112] = turn
        path = tmp_path / "images" / "f0.jpg"
        path.parent.mkdir()
        stored.save(path, exif=exif, quality=100, subsampling=0)
        got = read_image(path, size=(24, 16)).astype(int)
        assert np.abs(got - upright).max() < 12
        # A mask that was painted on the stored pixels wins over the mark.
        if stored.size != (24, 16):
            assert read_image(path, size=stored.size).shape == (24, 16, 3)
            save(tmp_path / "masks" / "f0.png", labels(0, 255, width=24, height=16))
            pairs(tmp_path, *binary(1), start=1)
            data = open_data(tmp_path)
            assert data.sizes[24, 16] == 1


def write_png_16(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    colour_type = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_tiff_16(path: Path, pixels: np.ndarray) -> None:
    """A TIFF of 16 bits per channel, uncompressed, low byte first."""
    height, width, channels = pixels.shape
    body = pixels.astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8 + len(body)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(body)),
    ]
    if channels == 4:
        entries.append((338, 3, 1, 2))
    start = 8 + len(body) + 2 * channels
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, start)
        + body
        + struct.pack(f"<{channels}H", *[16] * channels)
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", 0)
    )


def without_mask(root: Path) -> None:
    (root / "masks" / "f3.png").unlink()


def without_image(root: Path) -> None:
    (root / "images" / "f3.png").unlink()


def other_size(root: Path) -> None:
    save(root / "masks" / "f3.png", labels(0, 255, width=19))


def truncated_mask(root: Path) -> None:
    path = root / "masks" / "f3.png"
    path.write_bytes(path.read_bytes()[:-40])


def truncated_image(root: Path) -> None:
    path = root / "images" / "f3.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_picture(root: Path) -> None:
    (root / "images" / "f3.png").write_text("<html>404</html>")


def empty_file(root: Path) -> None:
    (root / "masks" / "f3.png").write_bytes(b"")


def stray_label(root: Path) -> None:
    save(root / "masks" / "f3.png", labels(0, 255, 7))


def same_stem(root: Path) -> None:
    save(root / "images" / "f3.jpg", picture())


BAD = {
    without_mask: r"images/f3\.png: has no mask .* add the mask or remove the image",
    without_image: r"masks/f3\.png: this mask has no image; add",
    other_size: r"images/f3\.png: is 20x16 but its mask .*masks/f3\.png is 19x16; make",
    truncated_mask: r"masks/f3\.png: cannot be read, damaged or truncated .* replace or remove it",
    truncated_image: r"images/f3\.png: cannot be read, damaged or truncated .* replace or",
    no_picture: r"images/f3\.png: is a page of the web, not a picture; download it again",
    empty_file: r"masks/f3\.png: is empty; replace or remove it",
    stray_label: r"masks/f3\.png: label 7 is beyond the classes, .* repair the mask",
    same_stem: r"images/f3\.jpg: f3\.png has the same name; keep one",
}


class TestBadInput:
    @pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
    def test_one_bad_file(self, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
        spoil(pairs(tmp_path, *binary(6)))
        with pytest.raises(DataError, match=BAD[spoil]) as caught:
            open_data(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere: there is no such folder"):
            open_data(tmp_path / "nowhere")

    def test_file_instead_of_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a file; give the folder"):
            open_data(save(tmp_path / "x.png", picture()))

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the folder is empty"):
            open_data(tmp_path)

    def test_images_only(self, tmp_path: Path) -> None:
        save(tmp_path / "images" / "a.png", picture())
        save(tmp_path / "other" / "b.png", picture())
        with pytest.raises(DataError, match=r"no pairs .* 1 \.png in other/.*--images"):
            open_data(tmp_path)

    def test_no_pairs(self, tmp_path: Path) -> None:
        save(tmp_path / "images" / "a.png", picture())
        save(tmp_path / "masks" / "b.png", labels(0, 255))
        with pytest.raises(DataError, match=r"no image has a mask of its name .*a\.png and b\.png"):
            open_data(tmp_path)

    def test_the_images_folder_itself(self, tmp_path: Path) -> None:
        pairs(tmp_path, *binary(2))
        with pytest.raises(DataError, match="one half of the data; give the folder above"):
            open_data(tmp_path / "images")

    def test_one_pair_cannot_be_divided(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="only one pair"):
            open_data(pairs(tmp_path, *binary(1)))

    def test_no_train_split(self, tmp_path: Path) -> None:
        pairs(tmp_path / "val", *binary(2))
        with pytest.raises(DataError, match="has no train split"):
            open_data(tmp_path)

    def test_all_masks_empty(self, tmp_path: Path) -> None:
        zero = np.zeros((16, 20), dtype=np.uint8)
        with pytest.raises(DataError, match="hold only the value 0; there is nothing to learn"):
            open_data(pairs(tmp_path, zero, zero))

    def test_all_void(self, tmp_path: Path) -> None:
        zero = np.zeros((16, 20), dtype=np.uint8)
        with pytest.raises(DataError, match=r"every pixel .* is void .* check --ignore-index"):
            open_data(pairs(tmp_path, zero, zero), ignore_index=0)

    def test_label_beyond_the_classes(self, tmp_path: Path) -> None:
        root = pairs(tmp_path, *(labels(0, 1, 2) for _ in range(5)), labels(0, 1, 2, 9))
        with pytest.raises(DataError, match=r"f5\.png: label 9 is beyond the 3 classes \(0 to 2\)"):
            open_data(root, classes=3)
        with pytest.raises(DataError, match=r"f5\.png: label 9 is beyond .* hold 0 to 2"):
            open_data(root)
        assert open_data(root, ignore_index=9).values == (0, 1, 2)
        assert open_data(root, classes=10).num_classes == 10

    def test_photographs_as_masks(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"f\d\.png: \d+ different colours .* too many"):
            open_data(pairs(tmp_path, picture(), picture()))

    def test_jpeg_index_masks(self, tmp_path: Path) -> None:
        for i in range(3):
            save(tmp_path / "images" / f"f{i}.png", picture())
            save(tmp_path / "masks" / f"f{i}.jpg", labels(0, 40, 80, 120))
        with pytest.raises(DataError, match=r"is a lossy picture .* save the masks as PNG"):
            open_data(tmp_path)

    def test_boxes(self, tmp_path: Path) -> None:
        save(tmp_path / "JPEGImages" / "a.jpg", picture())
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations" / "a.xml").write_text("<annotation/>")
        with pytest.raises(DataError, match=r"holds boxes \(xml\), not masks"):
            open_data(tmp_path)

    @pytest.mark.parametrize("part", ["image", "mask"])
    def test_a_file_that_is_spoilt_later(self, tmp_path: Path, part: str) -> None:
        data = open_data(pairs(tmp_path, *binary(3)))
        path = getattr(data.train[0], part)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
            data.read(data.train[0])
        path.unlink()
        with pytest.raises(DataError, match=f"{path.name}: the file is gone"):
            data.read(data.train[0])

    def test_a_new_label_later(self, tmp_path: Path) -> None:
        data = open_data(pairs(tmp_path, *binary(3)))
        save(data.train[0].mask, labels(0, 9))
        with pytest.raises(DataError, match="label 9 is none of the classes"):
            data.read(data.train[0])

    @pytest.mark.filterwarnings("default")
    def test_one_line_out_of_a_worker(self, tmp_path: Path) -> None:
        data = open_data(pairs(tmp_path, *binary(3)))
        path = data.train[0].image
        path.write_bytes(path.read_bytes()[:60])
        dataset = SegmentationDataset(data, data.train, size=16, train=True)
        with pytest.raises(DataError) as caught:
            list(DataLoader(dataset, num_workers=1))
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


class TestSynthetic:
    @pytest.mark.parametrize("name", ["blobs", "vessels", "classes", "void"])
    def test_scenes(self, name: str) -> None:
        data = open_data(f"synthetic:{name}?n=24")
        assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 4)
        image, mask = data.read(data.train[0])
        assert image.shape == (3, 128, 128)
        assert image.dtype == mask.dtype == torch.uint8
        known = set(range(data.num_classes)) | ({VOID} if data.ignore_value else set())
        assert set(mask.unique().tolist()) <= known
        assert all(share > 0 for share in data.class_share)
        assert (data.void_share > 0) == (name == "void")
        again = open_data(f"synthetic:{name}?n=24")
        for sample in data.train:
            assert all(map(torch.equal, data.read(sample), again.read(sample)))
        assert not torch.equal(image, data.read(data.train[1])[0])
        other = open_data(f"synthetic:{name}?n=24&seed=1")
        assert not torch.equal(image, other.read(other.train[0])[0])

    def test_default(self) -> None:
        data = open_data(None)
        assert data.source.startswith("synthetic:blobs")
        assert (len(data.train), len(data.val), len(data.test)) == (64, 16, 16)

    def test_knobs(self) -> None:
        data = open_data("synthetic:classes?n=6&size=72&noise=0&objects=3&seed=5")
        assert data.read(data.train[0])[0].shape == (3, 72, 72)
        assert "size=72" in data.source
        few, many = (open_data(f"synthetic:blobs?n=9&objects={k}") for k in (0.3, 3))
        assert many.class_share[1] > 3 * few.class_share[1]

    def test_threshold_does_not_solve_blobs(self) -> None:
        data = open_data("synthetic:blobs")
        grey, truth = [], []
        for sample in data.train:
            image, mask = data.read(sample)
            grey.append(image.float().mean(0).flatten())
            truth.append(mask.flatten() == 1)
        grey, truth = torch.cat(grey), torch.cat(truth)
        best = 0.0
        for cut in range(40, 250, 10):
            found = grey > cut
            best = max(best, float(2 * (found & truth).sum() / (found.sum() + truth.sum())))
        assert best < 0.5

    @pytest.mark.parametrize(
        ("where", "hint"),
        [
            ("synthetic:blob", "did you mean 'blobs'"),
            ("synthetic:vesels?n=3", "did you mean 'vessels'"),
            ("synthetic:blobs?sizes=3", "did you mean 'size'"),
            ("synthetic:blobs?size=a", "size=a must be a number from 32"),
            ("synthetic:blobs?n=1", "n=1 must be a number from 3"),
            ("synthetic:blobs?noise=nan", "noise=nan must be"),
            ("synthetic:", "there are no such scenes"),
        ],
    )
    def test_typing_errors(self, where: str, hint: str) -> None:
        with pytest.raises(DataError, match=hint):
            open_data(where)

    def test_overrides_that_do_not_fit(self) -> None:
        with pytest.raises(DataError, match="has 6 classes, --classes says 3"):
            open_data("synthetic:classes?n=3", classes=3)
        with pytest.raises(DataError, match="is not binary"):
            open_data("synthetic:classes?n=3", mode="binary")
        assert open_data("synthetic:blobs?n=3", mode="multiclass").mode == "multiclass"


@pytest.fixture(scope="module")
def scenes() -> SegmentationDataset:
    data = open_data("synthetic:void?n=12&size=96")
    return SegmentationDataset(data, data.train, size=64, train=True, seed=7)


class TestDataset:
    def test_training_items(self, scenes: SegmentationDataset) -> None:
        item = scenes[3]
        assert item["image"].shape == (3, 64, 64)
        assert item["image"].dtype == torch.float32
        assert item["mask"].shape == (64, 64)
        assert item["mask"].dtype == torch.int64
        assert item["index"] == 3
        assert scenes[-1]["index"] == len(scenes) - 1
        with pytest.raises(IndexError):
            scenes[len(scenes)]

    def test_whole_images_otherwise(self, scenes: SegmentationDataset) -> None:
        data = scenes.data
        dataset = SegmentationDataset(data, data.val, size=64, train=False)
        image, mask = data.read(data.val[0])
        assert torch.equal(denormalise(dataset[0]["image"]), image)
        assert torch.equal(dataset[0]["mask"], mask.long())

    def test_same_items_again_and_whatever_the_workers(self, scenes: SegmentationDataset) -> None:
        scenes.set_epoch(2)
        expected = [scenes[i] for i in range(len(scenes))]
        torch.manual_seed(123)
        again = SegmentationDataset(scenes.data, scenes.samples, size=64, train=True, seed=7)
        again.set_epoch(2)
        for workers in (0, 2):
            for item in DataLoader(again, batch_size=None, num_workers=workers):
                assert torch.equal(item["image"], expected[item["index"]]["image"])
                assert torch.equal(item["mask"], expected[item["index"]]["mask"])

    def test_number_of_threads_does_not_matter(self) -> None:
        data = open_data("synthetic:vessels?n=6&size=320")
        dataset = SegmentationDataset(data, data.train, size=288, train=True)
        threads = torch.get_num_threads()
        items = []
        try:
            for n in (1, 3):
                torch.set_num_threads(n)
                items.append([dataset[i]["image"] for i in range(4)])
        finally:
            torch.set_num_threads(threads)
        assert all(map(torch.equal, *items))

    def test_workers_that_live_on_see_the_epoch(self, scenes: SegmentationDataset) -> None:
        loader = DataLoader(scenes, batch_size=None, num_workers=1, persistent_workers=True)
        for epoch in (0, 1, 5):
            scenes.set_epoch(epoch)
            first = next(iter(list(loader)))
            assert torch.equal(first["image"], scenes[0]["image"])

    def test_epochs_seeds_and_samples_differ(self, scenes: SegmentationDataset) -> None:
        seen = []
        for seed in (0, 1):
            dataset = SegmentationDataset(
                scenes.data, scenes.samples[:1] * 3, size=64, train=True, seed=seed
            )
            for epoch in (0, 1, 2):
                dataset.set_epoch(epoch)
                seen += [dataset[i]["image"] for i in range(3)]
        assert len({tuple(x.flatten()[:50].tolist()) for x in seen}) == 18

    def test_global_random_state_is_untouched(self, scenes: SegmentationDataset) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        scenes[0]
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        height=st.integers(1, 90),
        width=st.integers(1, 90),
        size=st.sampled_from([8, 32, 64]),
        seed=st.integers(0, 2**31),
    )
    def test_any_image_fits(self, height: int, width: int, size: int, seed: int) -> None:
        mask = torch.full((height, width), 3, dtype=torch.uint8)
        mask[::2] = 200
        image = torch.zeros((3, height, width), dtype=torch.uint8)
        image[0] = mask
        generator = torch.Generator().manual_seed(seed)
        image, mask = augment(image, mask, size, generator)
        assert image.shape == (3, size, size)
        assert mask.shape == (size, size)
        # Never interpolated: nothing but the labels and, where the image is too small, void.
        assert set(mask.unique().tolist()) <= {3, 200, VOID}
        if height >= size and width >= size:
            assert not (mask == VOID).any()

    def test_padding_is_grey_and_void(self) -> None:
        image = torch.full((3, 10, 12), 255, dtype=torch.uint8)
        mask = torch.ones((10, 12), dtype=torch.uint8)
        image, mask = augment(image, mask, 32, torch.Generator().manual_seed(0))
        void = mask == VOID
        assert 0.5 < void.float().mean() < 1
        assert normalise(image)[:, void].abs().max() < 0.02
        assert (normalise(image)[:, ~void] > 1).all()

    def test_image_and_mask_stay_in_register(self) -> None:
        # The image is its mask: whatever is cropped, scaled and flipped, they must agree.
        rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
        mask = ((rows // 12 + columns // 16) % 2).to(torch.uint8)
        image = (mask * 90 + 80).expand(3, -1, -1)
        for seed in range(30):
            cut, labels = augment(image, mask, 64, torch.Generator().manual_seed(seed))
            middle = float((cut[0].float().min() + cut[0].float().max()) / 2)
            bright = cut[0].float() > middle
            assert (bright == (labels == 1)).float().mean() > 0.985

    def test_every_flip_and_scale_occurs(self) -> None:
        mask = torch.zeros((64, 64), dtype=torch.uint8)
        mask[:24, :24] = 1
        image = torch.zeros((3, 64, 64), dtype=torch.uint8)
        corners, areas = set(), set()
        for seed in range(40):
            _, labels = augment(image, mask, 64, torch.Generator().manual_seed(seed))
            quarter = [labels[:32, :32], labels[:32, 32:], labels[32:, :32], labels[32:, 32:]]
            corners.add(max(range(4), key=lambda i: int((quarter[i] == 1).sum())))
            areas.add(int((labels == 1).sum()))
        assert corners == {0, 1, 2, 3}
        assert len(areas) > 5

    def test_normalise(self) -> None:
        image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
        assert torch.equal(denormalise(normalise(image)), image)
        assert normalise(image).dtype == torch.float32

    def test_size_must_be_positive(self, scenes: SegmentationDataset) -> None:
        with pytest.raises(ValueError, match="size must be at least 1, got 0"):
            SegmentationDataset(scenes.data, scenes.samples, size=0, train=True)


def test_the_library_does_not_load_the_readers() -> None:
    code = "import sys, denseloss; assert not {'PIL', 'denseloss.data'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "mode", "counts", "share"),
    [
        ("dsb2018_nuclei", "binary", (267, 67, 0), 0.0793),
        ("nasa_ebc", "multiclass", (16, 3, 3), 0.0027),
        ("nasa_super", "multiclass", (10, 4, 4), 0.0218),
    ],
)
def test_real_data(name: str, mode: str, counts: tuple, share: float) -> None:
    data = open_data(SHARED / name)
    assert data.mode == mode
    assert (len(data.train), len(data.val), len(data.test)) == counts
    assert data.class_share[-1] == pytest.approx(share, abs=1e-4)
    assert data.warnings == ()
    image, mask = data.read(data.val[0])
    assert image.shape[1:] == mask.shape
