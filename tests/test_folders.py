"""Folders as people have them: which image goes with which mask, in which split."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denseloss.data import DataError
from denseloss.data.paths import meaning, stem_of
from denseloss.tasks.segmentation import SegmentationData, check_data, open_data

RNG = np.random.default_rng(0)
SIZES = ((32, 24), (24, 32), (30, 26))


def image(path: Path, number: int) -> None:
    """An image whose size tells most of those that are not its mask's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[number % 3]
    pixels = RNG.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[0, 0] = number  # which one it is
    Image.fromarray(pixels).save(path)


def mask(path: Path, number: int, *, high: int = 255, area: int = 30) -> None:
    """A mask whose first pixels count its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[number % 3]
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels.reshape(-1)[-area - number :] = high
    Image.fromarray(pixels).save(path)


def numbers(data: SegmentationData) -> dict[str, list[int]]:
    """Which images each split has, after checking that each has its own mask."""
    found: dict[str, list[int]] = {}
    for split in ("train", "val", "test"):
        for sample in getattr(data, split):
            pixels, classes = data.read(sample)
            number = int(pixels[0, 0, 0])
            assert int((classes > 0).sum()) == 30 + number, sample
            found.setdefault(split, []).append(number)
    return {split: sorted(group) for split, group in found.items()}


IMAGES = ["images", "img", "imgs", "JPEGImages", "frames", "inputs", "x", "photos", "rgb"]
IMAGES += ["Original_images", "image_dir", "imgs_png"]
MASKS = ["masks", "mask", "labels", "label", "GT", "annotations", "annots", "targets", "y"]
MASKS += [
    "ground_truth",
    "GroundTruth",
    "seg",
    "Segmentations",
    "SegmentationClass",
    "binary_masks",
]
MASKS += ["mask_png", "labels_dir", "manual"]


@pytest.mark.parametrize(
    ("images", "masks"), [*zip(IMAGES, MASKS, strict=False), *(("images", m) for m in MASKS[12:])]
)
def test_words_of_folders(tmp_path: Path, images: str, masks: str) -> None:
    for i in range(4):
        image(tmp_path / images / f"p{i}.png", i)
        mask(tmp_path / masks / f"p{i}.png", i)
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 4


@pytest.mark.parametrize(
    "place",
    [
        *("{split}/{role}", "{role}/{split}", "{split}_{role}", "{role}_{split}", "{split}{role}"),
        *("{role}{Split}", "{Split}/{Role}", "set/{split}/{role}", "{role}/set/{split}"),
        *("{split}/town/{role}", "{split}-{role}", "{role}_prepped_{split}", "{split}2017/{role}"),
    ],
)
@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img", "annot")])
def test_the_split_before_after_or_between(
    tmp_path: Path, place: str, images: str, masks: str
) -> None:
    number = 0
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for _ in range(count):
            for role, draw in ((images, image), (masks, mask)):
                words = {"split": split, "Split": split.title(), "role": role, "Role": role.title()}
                draw(tmp_path / place.format(**words) / f"{split}{number}.png", number)
            number += 1
    data = open_data(tmp_path)
    assert numbers(data) == {"train": [0, 1, 2], "val": [3, 4], "test": [5]}
    assert data.split_note == "as in the folder"


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        *(("{}", f"{{}}{end}") for end in ("_mask", "-mask", "_GT", ".mask", "_seg", "Mask")),
        *(("{}", f"{{}}{end}") for end in (" labels", "_ground_truth", "_manual1", "_L", "_anno")),
        *(("{}", "mask_{}"), ("image_{}", "mask_{}"), ("IMG_{}", "img_{}_mask")),
        *(("{}_img", "{}_mask"), ("{}_sat", "{}_mask"), ("{}_rgb", "{}_gt"), ("{}", "{}_seg_mask")),
    ],
)
@pytest.mark.parametrize("folders", [("images", "masks"), (".", ".")])
def test_words_in_the_names_of_files(
    tmp_path: Path, images: str, masks: str, folders: tuple[str, str]
) -> None:
    for i in range(4):
        image(tmp_path / folders[0] / f"{images.format(f'c{i}')}.png", i)
        mask(tmp_path / folders[1] / f"{masks.format(f'c{i}')}.png", i)
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 4


def test_what_all_names_of_a_side_share_is_taken_off(tmp_path: Path) -> None:
    for i in range(8, 12):
        image(tmp_path / "images" / f"frame_{i:03d}.png", i)
        mask(tmp_path / "masks" / f"final-{i:03d}-v2.png", i)
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 4


def test_equal_names_in_many_folders_are_kept_apart(tmp_path: Path) -> None:
    for i, (town, part) in enumerate(itertools.product(("Tile 1", "Tile 2", "north"), range(2))):
        image(tmp_path / town / "images" / f"{part}.png", i)
        mask(tmp_path / town / "masks" / f"{part}.png", i)
    data = open_data(tmp_path)
    assert sorted(s.name for s in (*data.train, *data.val))[:2] == ["Tile 1/0", "Tile 1/1"]
    assert sum(map(len, numbers(data).values())) == 6


@pytest.mark.parametrize("names", [("image", "label"), ("img", "mask"), ("scan", "segmentation")])
def test_a_folder_for_each_image(tmp_path: Path, names: tuple[str, str]) -> None:
    for i in range(4):
        image(tmp_path / f"patient_{i}" / f"{names[0]}.png", i)
        mask(tmp_path / f"patient_{i}" / f"{names[1]}.png", i)
        mask(tmp_path / f"patient_{i}" / f"{names[1]}_viz.png", i, high=7)
    data = open_data(tmp_path)
    assert sorted(s.name for s in (*data.train, *data.val)) == [f"patient_{i}" for i in range(4)]
    assert data.values == (0, 255)  # of the masks, not of what is drawn for the eye


def test_a_mask_for_each_object_is_joined(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / f"id{i}" / "images" / f"id{i}.png", i)
        for part in range(3):
            width, height = SIZES[i % 3]
            one = np.zeros((height, width), dtype=np.uint8)
            one.reshape(-1)[10 * part : 10 * part + 10] = 255
            path = tmp_path / f"id{i}" / "masks" / f"{i}{'abc'[part] * 8}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(one).save(path)
    data = open_data(tmp_path)
    assert data.notes == ("3 images have 3 mask files each: their union is the mask",)
    for sample in (*data.train, *data.val):
        assert data.class_pixels(sample)[1] == 30


def test_parts_of_a_mask_that_are_no_black_and_white(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / f"id{i}" / "images" / f"id{i}.png", i)
        mask(tmp_path / f"id{i}" / "masks" / "a.png", i)
        mask(tmp_path / f"id{i}" / "masks" / "b.png", i)
    path = tmp_path / "id1" / "masks" / "b.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, :2] = 1, 2
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=r"b\.png: is one of 2 masks of an image and holds more"):
        open_data(tmp_path)


def test_numbered_masks_of_one_image_are_joined_and_observers_are_not(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / "a" / f"b ({i}).png", i)
        mask(tmp_path / "a" / f"b ({i})_mask.png", i)
        mask(tmp_path / "a" / f"b ({i})_mask_1.png", i)
        image(tmp_path / "o" / f"{i}.png", i)
        mask(tmp_path / "o" / f"{i}_1stHO.png", i)
        mask(tmp_path / "o" / f"{i}_2ndHO.png", i, area=60)
    assert "2 mask files each" in open_data(tmp_path / "a").notes[0]
    data = open_data(tmp_path / "o")
    assert sum(map(len, numbers(data).values())) == 3
    assert "not taken: *_2ndHO (a later observer)" in data.notes[0]


def view(path: Path, number: int) -> None:
    width, height = SIZES[number % 3]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((x * x + y * y < 1) * 255).astype(np.uint8)).save(path)


@pytest.mark.parametrize("name", ["mask", "masks", "label"])
def test_a_field_of_view_is_not_taken_for_the_truth(tmp_path: Path, name: str) -> None:
    for i in range(5):
        image(tmp_path / "images" / f"{i}.png", i)
        view(tmp_path / name / f"{i}.png", i)
        mask(tmp_path / "1st_manual" / f"{i}_manual1.png", i)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 5
    assert f"not taken: {name}/ (a camera's field of view, by its shape)" in data.notes[0]


def test_a_field_of_view_alone_is_warned_of(tmp_path: Path) -> None:
    for i in range(5):
        image(tmp_path / "images" / f"{i}.png", i)
        view(tmp_path / "masks" / f"{i}.png", i)
    assert "as a camera's field of view" in open_data(tmp_path).warnings[0]


def test_two_folders_that_could_be_the_masks(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png", i)
        mask(tmp_path / "labels" / f"{i}.png", i, area=90)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 4
    assert "masks/ and labels/ could both be the masks; masks/ was taken" in data.warnings[0]
    other = open_data(tmp_path, images="images", masks="labels")
    assert other.class_share[1] > data.class_share[1]


def test_a_folder_with_the_images_names_is_taken_and_that_is_said(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "vessels" / f"{i}.png", i)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 4
    assert any("vessels/ is taken for the masks" in note for note in data.notes)


def told(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / "raw" / f"scan-{i}-photo.png", i)
        mask(tmp_path / "result" / f"{i}" / "final.png", i)
        mask(tmp_path / "result" / f"{i}" / "draft.png", i, area=99)


def test_what_cannot_be_found_by_looking_is_told(tmp_path: Path) -> None:
    told(tmp_path)
    with pytest.raises(DataError, match=r"4 \.png in raw/.*say where they are with --images"):
        open_data(tmp_path)
    data = open_data(tmp_path, images="raw/scan-*-photo.png", masks="result/*/final.png")
    assert sum(map(len, numbers(data).values())) == 4
    whole = open_data(
        tmp_path,
        images=str(tmp_path / "raw" / "scan-*-photo.png"),
        masks=str(tmp_path / "result" / "*" / "final.png"),
    )
    assert [s.name for s in whole.train] == [s.name for s in data.train]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": "raw"}, "--images and --masks go together"),
        ({"images": "nowhere", "masks": "raw"}, "--images nowhere: there is no such folder"),
        ({"images": "raw/*.jpg", "masks": "raw"}, r"--images raw/\*\.jpg: no file is called so"),
        ({"images": "*/*.png", "masks": "raw"}, r"--images \*/\*\.png: write a folder, or a glob"),
        ({"images": "raw", "masks": "result"}, "no image has a mask of its name; write a"),
        ({"images": "raw/*.png", "masks": "result/*/final.png"}, "no image has a mask of its name"),
    ],
)
def test_what_is_told_wrongly(tmp_path: Path, options: dict[str, str], words: str) -> None:
    told(tmp_path)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path, **options)


def test_folders_that_are_told_may_have_splits(tmp_path: Path) -> None:
    for i in range(5):
        split = "train" if i < 3 else "val"
        image(tmp_path / "A" / split / f"{i}.png", i)
        mask(tmp_path / "B" / split / f"{i}.png", i)
    assert numbers(open_data(tmp_path, images="A", masks="B")) == {
        "train": [0, 1, 2],
        "val": [3, 4],
    }


def test_a_split_without_masks_is_left_out(tmp_path: Path) -> None:
    for i in range(8):
        image(tmp_path / ("train" if i < 5 else "val") / "images" / f"{i}.png", i)
        if i < 5:
            mask(tmp_path / "train" / "masks" / f"{i}.png", i)
    report = check_data(tmp_path)
    assert report.ok
    assert "val: 3 images without masks, left out" in report.data.notes
    assert report.counts == {"train": 4, "val": 1, "test": 0}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("entry", ["{}", "{}.png", "images/{}.png masks/{}.png", "{} 1"])
@pytest.mark.parametrize("where", ["ImageSets/Segmentation", "splits", "."])
def test_lists_of_splits(tmp_path: Path, where: str, entry: str, encoding: str) -> None:
    for i in range(6):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png", i)
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    for split, group in (("train", (0, 2, 4)), ("val", (1, 5))):
        text = "\r\n".join(entry.format(i, i) for i in group)
        (tmp_path / where / f"{split}.txt").write_text(text, encoding=encoding)
    assert numbers(open_data(tmp_path)) == {"train": [0, 2, 4], "val": [1, 5]}


TRAIN, VAL = (0, 2, 4), (1, 5)


def listed(root: Path, name: str = "s {}") -> None:
    """Six pairs in two towns, with the same file names in each."""
    for i in range(6):
        town, file = "north" if i < 3 else "south", name.format(i % 3)
        image(root / town / "images" / f"{file}.png", i)
        mask(root / town / "masks" / f"{file}.png", i)


LISTS = {
    "Windows": lambda town, file: f"C:\\data\\{town}\\images\\{file}.png\r\n",
    "elsewhere": lambda town, file: f"/home/bob/data/{town}/images/{file}.png\n",
    "masks first": lambda town, file: f"{town}/masks/{file}.png,{town}/images/{file}.png\n",
    "quoted": lambda town, file: f'"{town}/{file}"\t1\n',
}


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize(
    "where", ["train.txt", "lists/train_list.txt", "train.csv", "annotations/train.lst"]
)
def test_lists_of_paths_as_other_machines_write_them(tmp_path: Path, where: str, form: str) -> None:
    listed(tmp_path)
    for split, group in (("train", TRAIN), ("val", VAL)):
        file = tmp_path / where.replace("train", split)
        file.parent.mkdir(exist_ok=True)
        lines = [LISTS[form]("north" if i < 3 else "south", f"s {i % 3}") for i in group]
        head = "image,mask\n" if file.suffix == ".csv" else "# made by hand\n"
        file.write_bytes((head + "".join(lines)).encode())
    data = open_data(tmp_path)
    assert numbers(data) == {"train": [*TRAIN], "val": [*VAL]}
    assert "1 pairs are in no list, left out" in data.notes


def test_a_table_with_a_column_for_the_split(tmp_path: Path) -> None:
    listed(tmp_path)
    rows = [("north" if i < 3 else "south", i % 3, i in VAL) for i in (*TRAIN, *VAL)]
    lines = [f"{town}/images/s {i}.png,3,{'valid' if val else 'Train'}" for town, i, val in rows]
    (tmp_path / "folds.csv").write_text("\n".join(["file,age,fold", *lines]))
    data = open_data(tmp_path)
    assert numbers(data) == {"train": [*TRAIN], "val": [*VAL]}
    assert "the splits are those of folds.csv" in data.notes


def test_a_table_with_a_class_called_train(tmp_path: Path) -> None:
    listed(tmp_path)
    rows = [f"south/images/s {i}.png,{name}" for i, name in enumerate(("train", "bus", "train"))]
    (tmp_path / "vehicles.csv").write_text("\n".join(["file,vehicle", *rows]))
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 6


@pytest.mark.parametrize("content", ["[" * 100_000, '["train"]', '{"train": 3}', "x" * 200_000, ""])
@pytest.mark.parametrize("name", ["splits.json", "folds.csv", "train.txt"])
def test_lists_that_are_something_else(tmp_path: Path, name: str, content: str) -> None:
    listed(tmp_path)
    (tmp_path / name).write_text(content)
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 6


def test_splits_in_json(tmp_path: Path) -> None:
    listed(tmp_path)
    of = {"train": TRAIN, "validation": VAL}
    said = {s: [f"{'north' if i < 3 else 'south'}/s {i % 3}" for i in g] for s, g in of.items()}
    (tmp_path / "splits.json").write_text(json.dumps(said))
    assert numbers(open_data(tmp_path)) == {"train": [*TRAIN], "val": [*VAL]}


def test_trainval_beside_test(tmp_path: Path) -> None:
    listed(tmp_path)
    (tmp_path / "annotations").mkdir()
    for name, group in (("trainval", (0, 1, 2, 3)), ("test", (4, 5))):
        lines = [f"{'north' if i < 3 else 'south'}/s {i % 3}\n" for i in group]
        (tmp_path / "annotations" / f"{name}.txt").write_text("".join(lines))
    data = open_data(tmp_path)
    assert numbers(data)["test"] == [4, 5]
    assert len(data.train) + len(data.val) == 4


def test_a_list_of_other_files_is_named_and_not_used(tmp_path: Path) -> None:
    listed(tmp_path)
    (tmp_path / "train.txt").write_text("the cat\nthe dog\n")
    data = open_data(tmp_path)
    assert "train.txt is no list of these images (it names the cat)" in data.notes
    assert sum(map(len, numbers(data).values())) == 6


def test_a_list_that_names_what_several_folders_have_is_not_guessed(tmp_path: Path) -> None:
    listed(tmp_path)
    (tmp_path / "train.txt").write_text("s 0.png\ns 1.png\n")
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 6


CITY = {"road": 7, "car": 26, "other": 4}


@pytest.mark.parametrize("flat", [False, True])
def test_cityscapes(tmp_path: Path, flat: bool) -> None:
    for i in range(4):
        name = f"aachen_{i:06d}_000019"
        image_folder = Path("images" if flat else "leftImg8bit/train/aachen")
        mask_folder = Path("masks" if flat else "gtFine/train/aachen")
        image(tmp_path / image_folder / f"{name}_leftImg8bit.png", i)
        width, height = SIZES[i % 3]
        ids = np.full((height, width), CITY["road"], dtype=np.uint8)
        ids[:4], ids[4:9] = CITY["car"], CITY["other"]
        for kind, values in (("labelIds", ids), ("instanceIds", ids + 1), ("color", ids * 9)):
            path = tmp_path / mask_folder / f"{name}_gtFine_{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    data = open_data(tmp_path)
    assert data.num_classes == 19
    assert any("19 classes" in note for note in data.notes)
    sample = data.train[0]
    _, classes = data.read(sample)
    assert (classes[:4] == 13).all()  # car
    assert (classes[4:9] == 255).all()
    assert (classes[9:] == 0).all()


def test_the_first_channel_of_many_is_read(tmp_path: Path) -> None:
    for i in range(4):
        for channel in range(2):
            image(tmp_path / "imagesTr" / f"case_{i:03d}_{channel:04d}.png", i)
        mask(tmp_path / "labelsTr" / f"case_{i:03d}.png", i)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 4
    assert any("channel" in warning for warning in data.warnings)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: np.save(path.with_suffix(".npy"), np.zeros((4, 4))), "numpy arrays"),
        (lambda path: path.with_suffix(".nii.gz").write_bytes(b"x"), "medical volumes"),
        (lambda path: path.with_suffix(".mat").write_bytes(b"x"), "Matlab's arrays"),
    ],
)
def test_formats_that_are_not_read_are_named(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            make(tmp_path / folder / f"{i}")
    with pytest.raises(DataError, match=f"holds {words}.*, which are not read .* in images/"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "role", "split"),
    [
        *(
            ("imagesTr", "image", "train"),
            ("trainannot", "mask", "train"),
            ("gtFine", "mask", None),
        ),
        *(("leftImg8bit", "image", None), ("val2017", None, "val"), ("Tile 1", None, None)),
        *(("stage1_test", None, "test"), ("aachen", None, None), ("contest", None, None)),
        *(("SegmentationClassPNG", "mask", None), ("pretraining", None, None), ("y", "mask", None)),
    ],
)
def test_what_a_name_says(name: str, role: str | None, split: str | None) -> None:
    assert (meaning(name).role, meaning(name).split) == (role, split)


@pytest.mark.parametrize("name", ["final", "2007_000032", "scan", "P", "left", "1"])
def test_names_that_are_left_as_they_are(name: str) -> None:
    assert name.lower() in stem_of(name).keys
    assert stem_of(name).role in (None, "image")


KNOWN = {
    "Carvana": ("train/{}_01.jpg", "train_masks/{}_01_mask.gif"),
    "ISIC": (
        "ISIC_Task1_Training_Input/I_{}.jpg",
        "ISIC_Task1_Training_GroundTruth/I_{}_segmentation.png",
    ),
    "STARE": ("stare-images/im000{}.ppm", "labels-ah/im000{}.ah.ppm", "labels-vk/im000{}.vk.ppm"),
    "Potsdam": ("2_Ortho_RGB/top_2_1{}_RGB.tif", "5_Labels_all/top_2_1{}_label.tif"),
    "Mapillary": ("training/images/{}.png", *(f"training/v{v}/labels/{{}}.png" for v in (1, 2))),
    "ACDC": (
        "rgb_anon/fog/train/G1/a_{}_rgb_anon.png",
        "gt/fog/train/G1/a_{}_gt_semantic.png",
        "gt/fog/train/G1/a_{}_gt_labelColor.png",
    ),
    "DUTS": ("DUTS-TR/DUTS-TR-Image/{}.jpg", "DUTS-TR/DUTS-TR-Mask/{}.png"),
    "LIP": ("TrainVal_images/train_images/{}.jpg", "TrainVal_annotations/train_segs/{}.png"),
    "BDD100K": ("images/10k/train/{}.jpg", "labels/sem_seg/masks/train/{}.png"),
    "Lyft": ("dataA/CameraRGB/{}.png", "dataA/CameraSeg/{}.png"),
    "LGG": ("kaggle/TCGA_1/T_{}.tif", "kaggle/TCGA_1/T_{}_mask.tif"),
    "U-Net tutorial": ("data/membrane/train/image/{}.png", "data/membrane/train/label/{}.png"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_layouts_of_known_sets(tmp_path: Path, name: str) -> None:
    images, masks, *others = KNOWN[name]
    for i in range(4):
        image(tmp_path / images.format(i), i)
        mask(tmp_path / masks.format(i), i)
        for other in others:
            mask(tmp_path / other.format(i), i, area=88)
    data = open_data(tmp_path)
    pixels = {sum(data.class_pixels(s)[1:]) for s in (*data.train, *data.val)}
    assert pixels == {30, 31, 32, 33}
    assert bool(others) == any("not taken" in note for note in data.notes)


def test_sequences_with_masks_in_folders_of_their_numbers(tmp_path: Path) -> None:
    for i, sequence in enumerate(("01", "02", "03")):
        for frame in range(2):
            image(tmp_path / sequence / f"t{frame:03d}.tif", 2 * i + frame)
            mask(tmp_path / f"{sequence}_GT" / "SEG" / f"man_seg{frame:03d}.tif", 2 * i + frame)
    data = open_data(tmp_path)
    pixels = sorted(data.class_pixels(s)[1] for s in (*data.train, *data.val))
    assert pixels == list(range(30, 36))


def one_class(path: Path, number: int, first: int, rows: int = 4, high: int = 255) -> None:
    """A mask of some rows of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZES[number % 3]
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[first : first + rows] = high
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        *(("images/{i}", "masks/{c}/{i}"), ("images/{i}", "{c}_masks/{i}")),
        *(
            ("images/{i}", "masks/{i}_{c}"),
            ("{i}", "{i}_{c}_mask"),
            ("images/{i}", "masks/{c}_{i}"),
        ),
        *(("case {i}/image", "case {i}/masks/{c}"), ("train/images/{i}", "train/masks/{c}/{i}")),
        ("1. Images/a. Training Set/{i}", "2. Groundtruths/a. Training Set/1. {c}/{i}_{c}"),
        ("CXR/images/{i}", "CXR/{c}Mask/{i}"),
    ],
)
def test_masks_in_a_file_for_each_class(tmp_path: Path, images: str, masks: str) -> None:
    classes = {"bone": 2, "liver": 7, "vein": 15}
    for i in range(5):
        image(tmp_path / f"{images.format(i=f'p{i}')}.png", i)
        for name, first in classes.items():
            if (i, name) != (3, "liver"):  # where a class is not, there may be no file
                one_class(tmp_path / f"{masks.format(i=f'p{i}', c=name)}.png", i, first)
    data = open_data(tmp_path)
    assert data.class_names == ("background", *classes)
    assert any("each class has masks of its own: bone, liver, vein" in n for n in data.notes)
    seen = 0
    for sample in (*data.train, *data.val):
        pixels, truth = data.read(sample)
        number = int(pixels[0, 0, 0])
        for label, (name, first) in enumerate(classes.items(), start=1):
            there = truth[first : first + 4] == label
            assert there.all() if (number, name) != (3, "liver") else not there.any()
        seen += 1
    assert seen == 5


@pytest.mark.parametrize("masks", ["masks/{a}/{i}", "masks/{i}_{a}", "case {i}/masks/{a}"])
def test_several_annotators_are_no_classes(tmp_path: Path, masks: str) -> None:
    for i in range(4):
        place = "images/{i}" if "case" not in masks else "case {i}/image"
        image(tmp_path / f"{place.format(i=i)}.png", i)
        for first, annotator in enumerate(("ann1", "ann2", "ann3")):
            one_class(tmp_path / f"{masks.format(i=i, a=annotator)}.png", i, 5 + first, rows=9)
    data = open_data(tmp_path)
    assert data.class_names == ("background", "foreground")
    assert any("could both be" in w or "several annotators" in w for w in data.warnings)


def test_a_file_for_each_town_is_no_file_for_each_class(tmp_path: Path) -> None:
    for i in range(6):
        image(tmp_path / "images" / f"{i}.png", i)
        one_class(tmp_path / "masks" / ("north" if i < 3 else "south") / f"{i}.png", i, 2 * i)
    assert open_data(tmp_path).class_names == ("background", "foreground")


def test_masks_of_a_network_are_not_the_truth(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "labels" / f"{i}.png", i)
        mask(tmp_path / "pred_masks" / f"{i}.png", i, area=90)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 4
    assert "not taken: pred_masks/ (a network's, by their name)" in data.notes[0]
    assert data.warnings == ()


@pytest.mark.parametrize("name", ["masks_overlay", "mask_preds"])
def test_doubtful_masks_alone_are_warned_of(tmp_path: Path, name: str) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / name / f"{i}.png", i)
    (warning,) = open_data(tmp_path).warnings
    assert f"{name}/ is taken, and these masks are " in warning


def test_pictures_of_superpixels_beside_the_images(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / "Training_Data" / f"ISIC_{i}.jpg", i)
        image(tmp_path / "Training_Data" / f"ISIC_{i}_superpixels.png", i + 50)
        mask(tmp_path / "Training_GroundTruth" / f"ISIC_{i}_segmentation.png", i)
    assert check_data(tmp_path).counts == {"train": 3, "val": 1, "test": 0}


@pytest.mark.parametrize(("one", "other"), [("train", "train_hq"), ("train/A", "train/B")])
def test_two_folders_of_images_for_one_folder_of_masks(
    tmp_path: Path, one: str, other: str
) -> None:
    for i in range(4):
        image(tmp_path / one / f"{i}.png", i)
        image(tmp_path / other / f"{i}.png", i + 50)
        mask(tmp_path / (f"{one}/../label" if "/" in one else "train_masks") / f"{i}.png", i)
    data = open_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 4
    assert "have images for the same masks" in data.warnings[0]


def test_zeros_that_numbers_begin_with(tmp_path: Path) -> None:
    for i in range(8, 12):
        image(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i:04d}.png", i)
    assert sum(map(len, numbers(open_data(tmp_path)).values())) == 4


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("images.zip", "holds archives .*; unpack them first"),
        ("data/train-00000.parquet", r"holds tables of samples, .* Python \(denseloss check"),
        ("masks/1.svg", "holds SVG drawings, which are not read"),
        ("images/1.heic", "holds HEIC photographs, which are not read"),
    ],
)
def test_other_files_that_are_not_read_are_named(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)


def test_masks_without_images(tmp_path: Path) -> None:
    for i in range(3):
        mask(tmp_path / "SegmentationClass" / f"{i}.png", i)
        mask(tmp_path / "SegmentationObject" / f"{i}.png", i)
    words = rf"SegmentationClass: holds masks \(0\.png, .*\), {tmp_path} has no images; put"
    with pytest.raises(DataError, match=words):
        open_data(tmp_path)
