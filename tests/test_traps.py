"""Data that looks good and is not: it is never read wrongly in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from denseloss.data import VOID, DataError
from denseloss.tasks.segmentation import SegmentationData, check_data, open_data

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 40, 30


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photo(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def blob(high: int = 255, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[4:15, 6:20] = high
    return mask


def pairs(root: Path, masks: list[np.ndarray], suffix: str = ".png", **options: object) -> Path:
    for i, mask in enumerate(masks):
        save(root / "images" / f"{i}.png", photo(mask.shape[1], mask.shape[0]))
        save(root / "masks" / f"{i}{suffix}", mask, **options)
    return root


def foreground(data: SegmentationData) -> set[int]:
    return {int((data.read(s)[1] == 1).sum()) for s in (*data.train, *data.val)}


def test_masks_of_0_and_1_mixed_with_masks_of_0_and_255(tmp_path: Path) -> None:
    data = open_data(pairs(tmp_path, [blob(255 if i % 3 else 1) for i in range(7)]))
    assert (data.mode, foreground(data)) == ("binary", {154})
    assert "3 hold 0 and 1 (such as 0.png), 4 hold 0 and 255" in data.warnings[0]
    told = open_data(tmp_path, ignore_index=255)
    assert told.ignore_value == 255
    # A file that holds both is no mixture: 255 is void.
    both = blob(1)
    both[20:, 20:] = 255
    data = open_data(pairs(tmp_path / "void", [both, blob(1), blob(1)]))
    assert (data.ignore_value, data.warnings) == (255, ())


@pytest.mark.parametrize(("suffix", "options"), [(".webp", {"quality": 60}), (".jpg", {})])
@pytest.mark.parametrize("colour", [False, True])
def test_lossy_masks(tmp_path: Path, suffix: str, options: dict, colour: bool) -> None:
    masks = [np.repeat(blob()[:, :, None], 3, axis=2) if colour else blob() for _ in range(4)]
    data = open_data(pairs(tmp_path, masks, suffix, **options))
    assert (data.mode, data.num_classes) == ("binary", 2)
    assert all(abs(n - 154) < 8 for n in foreground(data))
    assert any("greys between" in warning for warning in data.warnings)


def numbered(count: int, dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros((60, 70), dtype=dtype)
    for i in range(count):
        y, x = divmod(i, 8)
        mask[7 * y + 1 : 7 * y + 5, 8 * x + 1 : 8 * x + 6] = i + 1
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_maps_of_instances(tmp_path: Path, dtype: type) -> None:
    counts = (9, 33, 21, 14, 2, 0, 40)
    data = open_data(pairs(tmp_path, [numbered(n, dtype) for n in counts]))
    assert (data.mode, foreground(data)) == ("binary", {20 * n for n in counts})
    assert "maps of instances" in data.warnings[0]
    assert open_data(tmp_path, classes=41).num_classes == 41


def test_many_classes_are_no_instances(tmp_path: Path) -> None:
    wide = np.repeat(np.arange(12, dtype=np.uint8)[:, None], 5, axis=0).repeat(70, axis=1)
    scattered = RNG.integers(0, 15, (60, 70)).astype(np.uint8)
    for name, masks in (("wide", [wide] * 4), ("scattered", [scattered] * 4)):
        data = open_data(pairs(tmp_path / name, masks))
        assert (data.mode, data.warnings) == ("multiclass", ())


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize("suffix", [".tif", ".gif"])
def test_several_pages(tmp_path: Path, part: str, suffix: str) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / part / "1.png").unlink()
    pages = [Image.fromarray(blob(high)) for high in (0, 255, 200, 90, 30)]
    target = tmp_path / part / f"1{suffix}"
    pages[0].save(target, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=rf"1{suffix}: has 5 pages, and only single images"):
        open_data(tmp_path)


def test_overviews_of_a_tiff_are_no_pages(tmp_path: Path) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / "masks" / "1.png").unlink()
    whole = Image.fromarray(blob())
    overviews = [whole.resize((20, 15)), whole.resize((10, 7))]
    whole.save(tmp_path / "masks" / "1.tif", save_all=True, append_images=overviews)
    assert foreground(open_data(tmp_path)) == {154}


@pytest.mark.parametrize("grey", [False, True])
def test_masks_in_the_alpha_channel(tmp_path: Path, grey: bool) -> None:
    masks = []
    for high in (255, 255, 0, 255):
        white = np.full((HEIGHT, WIDTH, 1 if grey else 3), 255, dtype=np.uint8)
        masks.append(np.dstack([white, blob(high)]))
    data = open_data(pairs(tmp_path, masks))
    assert foreground(data) == {154, 0}
    assert any("alpha channel" in note for note in data.notes)


def test_transparency_beside_colours_is_no_mask(tmp_path: Path) -> None:
    colours = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    colours[:10, :, 0] = 255
    colours[..., 3] = blob()
    data = open_data(pairs(tmp_path, [colours] * 3))
    assert data.values == (0, 0xFF0000)


def test_classes_of_one_name(tmp_path: Path) -> None:
    mask = blob(1)
    mask[20:] = 2
    pairs(tmp_path, [mask] * 3)
    for names, words in (
        (["bg", "a", "a"], "--classes bg,a,a: a is there twice"),
        (["bg", "", "a"], "--classes bg,,a: a name is empty"),
    ):
        with pytest.raises(DataError, match=words):
            open_data(tmp_path, classes=names)


def test_images_that_are_in_two_splits(tmp_path: Path) -> None:
    for i in range(9):
        split = "train" if i < 6 else "val"
        save(tmp_path / "images" / split / f"{i}.png", photo())
        save(tmp_path / "masks" / split / f"{i}.png", blob())
    for copy, original in ((6, 0), (8, 5)):
        content = (tmp_path / "images" / "train" / f"{original}.png").read_bytes()
        (tmp_path / "images" / "val" / f"{copy}.png").write_bytes(content)
    (warning,) = open_data(tmp_path).warnings
    assert "2 of 3 validation images are identical to training images (such as 6 and 0)" in warning


def test_bands_beyond_colour(tmp_path: Path) -> None:
    for i in range(4):
        four = np.dstack([photo(), blob()])
        path = tmp_path / "images" / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGBX", (WIDTH, HEIGHT), four.tobytes()).save(path)
        save(tmp_path / "masks" / f"{i}.png", blob())
    assert "4 images have more bands than colour" in open_data(tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "words"),
    [(12, 8, 1, "12 bands of 8-bit unsigned"), (3, 32, 3, "3 bands of 32-bit float")],
)
def test_sound_tiffs_that_are_not_read(
    tmp_path: Path, bands: int, bits: int, kind: int, words: str
) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / "images" / "1.png").unlink()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((256, WIDTH), (257, HEIGHT), (258, (bits,) * bands), (259, 1), (262, 1)):
        tags[tag] = value
    for tag, value in ((277, bands), (278, HEIGHT), (279, 9), (339, (kind,) * bands), (273, 8)):
        tags[tag] = value
    with (tmp_path / "images" / "1.tif").open("wb") as file:
        file.write(b"II*\0\x08\0\0\0")
        tags.save(file)
        file.write(bytes(WIDTH * HEIGHT * bands * bits // 8))
    with pytest.raises(DataError, match=rf"1\.tif: is a TIFF of {words}") as caught:
        open_data(tmp_path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><p>404", "a page of the web"),
        (b"", "is empty"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, words: str) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / "images" / "1.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"images/1\.png: .*{words}"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("turn", "size", "warned"),
    [(6, (30, 30), True), (3, (40, 30), True), (6, (40, 30), False), (1, (30, 30), False)],
)
def test_turned_photographs(tmp_path: Path, turn: int, size: tuple[int, int], warned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    for i in range(4):
        save(tmp_path / "images" / f"{i}.jpg", photo(*size), exif=exif)
        save(tmp_path / "masks" / f"{i}.png", blob(255, *size))
    assert any("EXIF" in w for w in open_data(tmp_path).warnings) == warned


def test_many_images_without_masks_are_one_line(tmp_path: Path) -> None:
    pairs(tmp_path, [blob()] * 12)
    for i in range(9):
        (tmp_path / "masks" / f"{i}.png").unlink()
    (problem,) = check_data(tmp_path).problems
    assert "9 of 12 images have no mask (0.png, 1.png, 2.png, ...)" in problem
    assert "--skip-unlabelled" in problem
    data = open_data(tmp_path, skip_unlabelled=True)
    assert "9 images without a mask, left out" in data.notes
    assert len(data.train) + len(data.val) == 3


NAMES = {
    "class_names.txt": "_background_\ncat\ndog\nmouse\n",
    "labels.txt": "__ignore__\n_background_\ncat\ndog\nmouse\n",
    "classes.txt": "cat\ndog\nmouse\n",  # without a background
    "_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n2, dog\n3, mouse\n",
    "dataset.json": json.dumps({"labels": {"background": 0, "cat": 1, "dog": 2, "mouse": 3}}),
    "id2label.json": json.dumps({"0": "background", "1": "cat", "2": "dog", "3": "mouse"}),
    "data.yaml": "names: [background, cat, dog, mouse]\n",
    "label_names.txt": "\ufeff# id\r\n0: background\r\n1: cat  # grey\r\n2: dog\r\n3: mouse\r\n",
    "obj_class_to_machine_color.json": json.dumps(
        {"cat": [1, 1, 1], "dog": [2, 2, 2], "mouse": [3, 3, 3]}
    ),
}


@pytest.mark.parametrize("file", NAMES)
def test_names_beside_the_data(tmp_path: Path, file: str) -> None:
    mask = blob(1)
    mask[20:] = 3  # nothing is a dog
    pairs(tmp_path, [mask] * 3)
    (tmp_path / file).write_text(NAMES[file])
    data = open_data(tmp_path)
    assert [n.strip("_") for n in data.class_names] == ["background", "cat", "dog", "mouse"]
    assert data.read(data.train[0])[1].unique().tolist() == [0, 1, 3]
    assert f"the classes are named by {file}" in data.notes
    assert "class 2 dog occurs in no mask" in check_data(tmp_path).warnings
    assert open_data(tmp_path, classes=4).class_names[1] == "class 1"  # the user's word counts


COLOURS = [(139, 90, 43), (30, 111, 217), (192, 192, 160)]
COLOUR_NAMES = {
    "classes.json": json.dumps(
        {"classes": [{"title": "water", "color": "#1E6FD9"}, {"title": "land", "color": "#8b5a2b"}]}
    ),
    "labelmap.txt": "# label:color_rgb:parts:actions\nwater:30,111,217::\nland:139,90,43::\n",
    "class_dict.csv": "name,r,g,b\nwater,30,111,217\nland,139,90,43\n",
    "label_colors.txt": "30 111 217\twater\n139 90 43\tland\n",
    "class_colors.txt": "water 30 111 217\nland 139 90 43\n",
    "class_dict_seg.csv": "name, red, green, blue\nwater, 30, 111, 217\nland, 139, 90, 43\n",
    "colors.txt": "water: 30, 111, 217\nland: 139, 90, 43\n",
}


@pytest.mark.parametrize("file", COLOUR_NAMES)
def test_colours_are_named_in_the_order_of_the_file(tmp_path: Path, file: str) -> None:
    index = blob(1)
    pairs(tmp_path, [np.array(COLOURS, dtype=np.uint8)[index]] * 3)
    (tmp_path / file).write_text(COLOUR_NAMES[file])
    data = open_data(tmp_path)
    assert data.class_names == ("water", "land")
    assert np.array_equal(data.read(data.train[0])[1].numpy() == 0, index == 1)


def test_names_that_do_not_fit_are_not_used_and_that_is_said(tmp_path: Path) -> None:
    mask = blob(1)
    mask[20:], mask[25:] = 5, 9
    pairs(tmp_path, [mask] * 3)
    (tmp_path / "class_names.txt").write_text("a\nb\nc\n")
    data = open_data(tmp_path)
    assert data.num_classes == 4
    assert "class_names.txt names 3 classes that do not fit" in data.warnings[0]


DEEP = "[" * 100_000
BOMB = "a: &a [x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n"
    for name, after in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMBS = [f"{BOMB}names: *i\n", f"{BOMB}names: [{{name: *i}}]\n", f"{BOMB}names: {{0: *i, 1: a}}\n"]
ODD = ["", "{", "[1, 2]", "\0\0", '{"labels": 3}', "a: [b", DEEP, *BOMBS]
ODD += [
    f"name,r,g,b\n{'x' * 200_000},1,2,3\n",
    "0 a\n99999999999999999999 b\n",
    '{"names": [null, [1]]}',
    "x\n" * 20_000,
]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("file", NAMES)
def test_files_of_these_names_that_are_something_else(
    tmp_path: Path, file: str, content: str
) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / file).write_text(content)
    data = open_data(tmp_path)
    assert (data.class_names, data.ignore_value) == (("background", "foreground"), None)


def test_own_classes_in_the_folders_of_voc(tmp_path: Path) -> None:
    mask = blob(1)
    mask[20:], mask[25:] = 2, 3
    for i in range(6):
        save(tmp_path / "JPEGImages" / f"im{i}.jpg", photo())
        save(tmp_path / "SegmentationClass" / f"im{i}.png", mask)
    assert open_data(tmp_path).class_names == ("background", "class 1", "class 2", "class 3")
    (tmp_path / "class_names.txt").write_text("_background_\ncat\ndog\nmouse\n")
    assert open_data(tmp_path).class_names == ("_background_", "cat", "dog", "mouse")


def test_minus_one_is_void_beside_labels_and_doubtful_beside_0(tmp_path: Path) -> None:
    for name, values in (("three", (-1, 0, 1)), ("two", (-1, 0))):
        for i in range(3):
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
            mask[:9], mask[20:] = values[0], values[-1]
            save(tmp_path / name / "images" / f"{i}.png", photo())
            save(tmp_path / name / "masks" / f"{i}.tif", mask)
    data = open_data(tmp_path / "three")
    assert (data.values, data.ignore_value) == ((0, 1), -1)
    assert (data.read(data.train[0])[1][:9] == VOID).all()
    assert "-1 is taken as background" in open_data(tmp_path / "two").warnings[0]


DATASET = """
import numpy as np
from PIL import Image

class Scenes:
    def __init__(self, count, first):
        self.ids = [f"scene-{first + i}" for i in range(count)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        mask = np.zeros((30, 40), dtype=np.int64)
        mask[4:10, 5 : 8 + i] = 1
        image = np.full((30, 40, 3), 50, dtype=np.uint8)
        image[mask > 0] = 200
        return FORM

def make():
    return {"train": Scenes(5, 0), "val": Scenes(2, 5)}

def whole():
    return Scenes(6, 0)

def broken():
    raise OSError("no such disk")

def nothing():
    return 3

def strange():
    return {"training": Scenes(3, 0)}
"""


@pytest.mark.parametrize(
    "form",
    [
        "image, mask",
        "Image.fromarray(image), Image.fromarray(mask.astype(np.uint8))",
        "{'image': image, 'mask': mask[None]}",
        "__import__('torch').from_numpy(image).permute(2, 0, 1) / 255, mask",
    ],
)
def test_a_data_set_of_the_users_own(tmp_path: Path, form: str) -> None:
    (tmp_path / "my_data.py").write_text(DATASET.replace("FORM", form))
    data = open_data(f"{tmp_path}/my_data.py:make")
    assert [s.name for s in data.val] == ["scene-5", "scene-6"]
    image, mask = data.read(data.train[2])
    assert tuple(image.shape) == (3, 30, 40)
    assert {*image[:, mask == 1].unique().tolist()} == {200}
    assert int((mask == 1).sum()) == 30
    assert len(open_data(f"{tmp_path}/my_data.py:whole").train) == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "fails: OSError: no such disk"),
        ("nothing", "gives a int; expected a data set"),
        ("strange", "'training' is no split; expected train, val, test"),
        ("missing", "has no missing; it has Scenes, make, whole"),
    ],
)
def test_a_data_set_that_is_none(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "my_data.py").write_text(DATASET.replace("FORM", "image, mask"))
    with pytest.raises(DataError, match=words):
        open_data(f"{tmp_path}/my_data.py:{name}")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("image", "sample scene-0 is a ndarray; expected a pair"),
        ("image, mask[:9]", r"mask of sample scene-0 has the shape \(9, 40\)"),
        ("image, mask / 2", "mask of sample scene-0 .* float64; expected whole numbers"),
        ("image / 7, mask", "the image of sample scene-0 is a ndarray of shape"),
        ("image[9][99], mask", "sample scene-0 fails: IndexError"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, form: str, words: str) -> None:
    (tmp_path / "my_data.py").write_text(DATASET.replace("FORM", form))
    with pytest.raises(DataError, match=words):
        open_data(f"{tmp_path}/my_data.py:make")


@pytest.mark.parametrize("void", [-9999, -128])
def test_what_maps_have_where_there_is_no_data_is_void(tmp_path: Path, void: int) -> None:
    masks = []
    for i in range(4):
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
        mask[0, : 2 + i], mask[20:, :9] = void, 1
        masks.append(mask)
    pairs(tmp_path, [blob()] * 4)
    for i, mask in enumerate(masks):
        (tmp_path / "masks" / f"{i}.png").unlink()
        save(tmp_path / "masks" / f"{i}.tif", mask)
    data = open_data(tmp_path)
    assert (data.values, data.ignore_value) == ((0, 1), void)
    assert data.warnings == ()  # no field of view either
    assert f"value {void} beside other labels is taken as void" in data.notes


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "holds nan, as maps do where there is no data; save"),
        (-3.4e38, r"holds -3\.4e\+38, as maps do where there is no data; save"),
        (0.5, r"holds fractions \(0 to 1\), not labels; save"),
    ],
)
def test_floats_that_are_no_labels(tmp_path: Path, value: float, words: str) -> None:
    pairs(tmp_path, [blob()] * 3)
    (tmp_path / "masks" / "1.png").unlink()
    mask = blob(1).astype(np.float32)
    mask[0, 0] = value
    save(tmp_path / "masks" / "1.tif", mask)
    with pytest.raises(DataError, match=rf"masks/1\.tif: {words}"):
        open_data(tmp_path)


def painted(mask: np.ndarray, palette: list[int]) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette(palette + [0] * (768 - len(palette)))
    return picture


RED, GREEN, BLACK, WHITE = [200, 0, 0], [0, 200, 0], [0, 0, 0], [255, 255, 255]


def palette_masks(root: Path, *orders: tuple[list[int], list[int]]) -> Path:
    for i, (first, last) in enumerate(orders):
        save(root / "images" / f"{i}.png", photo())
        (root / "masks").mkdir(exist_ok=True)
        painted(blob(1), first + last).save(root / "masks" / f"{i}.png")
    return root


def test_one_colour_at_two_palette_entries(tmp_path: Path) -> None:
    palette_masks(tmp_path, (RED, GREEN), (RED, GREEN), (GREEN, RED))
    words = r"2\.png: the colour #00c800 is palette entry 0, and entry 1 in 0\.png; .* one palette"
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)
    data = open_data(tmp_path, classes=2)
    assert "2 different palettes" in data.warnings[0]


def test_a_palette_that_begins_with_white(tmp_path: Path) -> None:
    (warning,) = open_data(palette_masks(tmp_path / "w", *[(WHITE, BLACK)] * 3)).warnings
    assert "palette entry 0 is white and 1 is black: 1 is taken as foreground" in warning
    assert open_data(palette_masks(tmp_path / "b", *[(BLACK, WHITE)] * 3)).warnings == ()


THREE = {0: (0, 0, 0), 1: (220, 60, 50), 2: (60, 200, 70)}


def three_colours(i: int, *, smooth: bool, large: int = 4) -> Image.Image:
    colours = np.zeros((HEIGHT * large, WIDTH * large, 3), dtype=np.uint8)
    colours[8 + i : 60 + i, 10:70] = THREE[1]
    colours[70:110, 30 + i : 90 + i] = THREE[2]
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    picture = Image.fromarray(colours)
    return picture.rotate(20).resize((WIDTH, HEIGHT), how)


def test_soft_edges_of_colours_are_no_classes(tmp_path: Path) -> None:
    pairs(tmp_path, [np.asarray(three_colours(i, smooth=True)) for i in range(3)])
    words = r"masks/\d\.png: 3 colours \(#000000, #3cc846, #dc3c32\) fill .* without smoothing"
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)
    hard = [np.asarray(three_colours(i, smooth=False)) for i in range(3)]
    assert open_data(pairs(tmp_path / "hard", hard)).num_classes == 3


def test_soft_edges_of_greys_are_no_classes(tmp_path: Path) -> None:
    pictures = [three_colours(i, smooth=False).convert("L") for i in range(3)]
    levels = [p.point(lambda v: 0 if v == 0 else 255 if v > 120 else 128) for p in pictures]
    soft = [p.resize((91, 67), Image.Resampling.BICUBIC).resize((WIDTH, HEIGHT)) for p in levels]
    pairs(tmp_path, [np.asarray(p) for p in soft])
    with pytest.raises(DataError, match=r"3 values \(0, 128, 255\) fill .* without smoothing"):
        open_data(tmp_path)


def test_colours_of_pascal_voc_are_classes_though_some_are_mixtures_of_others(
    tmp_path: Path,
) -> None:
    colours = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    colours += [(128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0)]
    colours += [(64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0)]
    colours += [(128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)]
    mask = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i, colour in enumerate(colours):
        mask[i, : 3 + i] = colour
    data = open_data(pairs(tmp_path, [mask] * 3))
    assert data.num_classes == 21
    assert data.warnings == ()


def test_a_stray_colour_next_to_a_frequent_one_is_warned_of(tmp_path: Path) -> None:
    mask = np.asarray(three_colours(0, smooth=False)).copy()
    mask[0, 0] = (0, 1, 0)
    (warning,) = open_data(pairs(tmp_path, [mask] * 3)).warnings
    assert "colour #000100 is rare and nearly #000000" in warning


def test_the_only_class_in_a_list_is_the_foreground(tmp_path: Path) -> None:
    for high in (1, 255):
        root = pairs(tmp_path / str(high), [blob(high)] * 3)
        (root / "classes.txt").write_text("car\n")
        assert open_data(root).class_names == ("background", "car")


def test_pictures_with_colours_laid_over_are_for_the_eye(tmp_path: Path) -> None:
    pairs(tmp_path, [blob(1)] * 4)
    for i in range(4):
        blend = photo() // 2 + np.dstack([blob(100)] * 3)
        save(tmp_path / "labels_human" / f"{i}.png", blend)
    data = open_data(tmp_path)
    assert data.values == (0, 1)
    assert any("not taken: labels_human/ (drawn for the eye)" in note for note in data.notes)


def test_ids_of_objects_with_gaps(tmp_path: Path) -> None:
    masks = []
    for i in range(4):
        ids = np.zeros((60, 80), dtype=np.uint16)
        for n in range(12):
            top, left = 15 * (n // 4) + i, 20 * (n % 4)
            ids[top : top + 8, left : left + 9] = 300 + 411 * n
        masks.append(ids)
    data = open_data(pairs(tmp_path, masks))
    assert data.class_names == ("background", "foreground")
    assert "the masks number their objects" in data.warnings[0]


def test_masks_that_are_nearly_all_foreground_are_warned_of(tmp_path: Path) -> None:
    report = check_data(pairs(tmp_path, [255 - blob()] * 3))
    assert any("foreground fills 87.2 % of the pixels" in w for w in report.warnings)


def test_many_rare_classes_are_one_warning(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), dtype=np.uint8)
    for i in range(12):
        mask[3 * i, : 2 + i % 3], mask[40 + i, 5 * i] = i + 1, (i * 7) % 12 + 1
    report = check_data(pairs(tmp_path, [mask] * 3))
    assert sum("rare" in w for w in report.warnings) == 1
    assert any(
        "class 1 class 1 is rare (" in w and "and so are 11 more" in w for w in report.warnings
    )


def test_a_file_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path, [blob()] * 3)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"0\.png: cannot be read \(Permission denied\); let this"):
        open_data(tmp_path)


def test_boxes_beside_maps_of_instances_do_not_hide_them(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "images" / f"{i}.png", photo(70, 60))
        save(tmp_path / "instances" / f"{i}.png", numbered(12 + i))
    entries = [{"id": i, "file_name": f"{i}.png", "width": 70, "height": 60} for i in range(4)]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 4], "iscrowd": 0}
    table = {"images": entries, "annotations": [box], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    data = open_data(tmp_path)
    assert foreground(data) == {20 * n for n in (12, 13, 14, 15)}
