"""Masks out of annotation files: COCO, YOLO, labelme, and what Datumaro reads."""

import base64
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denseloss.data import VOID, DataError
from denseloss.data.annotations.outlines import Object, Outlined
from denseloss.tasks.segmentation import SegmentationData, check_data, open_data

WIDTH, HEIGHT = 31, 22
SQUARE = [2, 3, 9, 3, 9, 11, 2, 11]  # columns 2 to 8, rows 3 to 10
BAR = [14, 5, 29, 5, 29, 8, 14, 8]  # columns 14 to 28, rows 5 to 7
RNG = np.random.default_rng(0)


def truth() -> np.ndarray:
    """The classes of every image: a square of class 1, and a bar of class 2."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:11, 2:9], mask[5:8, 14:29] = 1, 2
    return mask


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def coco(root: Path, *, run_lengths: bool = False) -> dict[str, dict]:
    documents = {}
    for split, ids in (("train", (5, 9, 30)), ("val", (2, 7))):
        entries, objects = [], []
        for i in ids:
            image(root / f"{split}2017" / f"{i:04d}.png")
            entries.append({"id": i, "file_name": f"{i:04d}.png", "width": WIDTH, "height": HEIGHT})
            for category, outline in ((17, SQUARE), (4, BAR)):
                shape: object = [outline]
                if run_lengths:
                    mask = (truth() == (1 if category == 17 else 2)).T.reshape(-1)
                    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
                    counts = np.diff([0, *edges, mask.size]).tolist()
                    shape = {"size": [HEIGHT, WIDTH], "counts": counts}
                objects.append({"id": len(objects), "image_id": i, "category_id": category})
                objects[-1] |= {"segmentation": shape, "bbox": [0, 0, 5, 5], "iscrowd": 0}
        documents[split] = {
            "images": entries,
            "annotations": objects,
            "categories": [{"id": 17, "name": "square"}, {"id": 4, "name": "bar"}],
        }
        write(root / "annotations" / f"instances_{split}2017.json", documents[split])
    return documents


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def yolo(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            image(root / "images" / split / f"{i}.png")
            lines = []
            for label, outline in enumerate((SQUARE, BAR)):
                shares = [v / (HEIGHT if j % 2 else WIDTH) for j, v in enumerate(outline)]
                lines.append(" ".join(map(str, (label, *shares))))
            write(root / "labels" / split / f"{i}.txt", "\n".join(lines) + "\n")
    write(
        root / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: square\n  1: bar\n"
    )


def labelme(root: Path) -> None:
    for i in range(5):
        image(root / f"{i}.png")
        points = [SQUARE[j : j + 2] for j in range(0, 8, 2)]
        part = io.BytesIO()
        Image.fromarray(np.full((3, 15), 255, np.uint8)).save(part, "PNG")
        bar = {"shape_type": "mask", "points": [[14, 5], [28, 7]]}
        bar["mask"] = base64.b64encode(part.getvalue()).decode()
        if i % 2:
            bar = {"shape_type": "rectangle", "points": [[29, 8], [14, 5]]}
        shapes = [
            {"label": "square", "shape_type": "polygon", "points": points},
            {"label": "bar", **bar},
            {"label": "bar", "shape_type": "line", "points": [[0, 0], [9, 9]]},
        ]
        said = {"version": "5", "imagePath": f"{i}.png", "shapes": shapes}
        write(root / f"{i}.json", said | {"imageWidth": WIDTH, "imageHeight": HEIGHT})


def check_all(data: SegmentationData, names: tuple[str, ...]) -> None:
    assert data.class_names == names
    order = np.array([names.index(name) for name in ("background", "square", "bar")])
    for sample in (*data.train, *data.val):
        assert np.array_equal(data.read(sample)[1].numpy(), order[truth()]), sample


@pytest.mark.parametrize("run_lengths", [False, True])
def test_coco(tmp_path: Path, run_lengths: bool) -> None:
    coco(tmp_path, run_lengths=run_lengths)
    data = open_data(tmp_path)
    check_all(data, ("background", "bar", "square"))  # in the order of their ids
    assert (len(data.train), len(data.val)) == (3, 2)


def test_yolo(tmp_path: Path) -> None:
    yolo(tmp_path)
    data = open_data(tmp_path)
    check_all(data, ("background", "square", "bar"))
    assert (len(data.train), len(data.val)) == (3, 2)


def test_labelme(tmp_path: Path) -> None:
    labelme(tmp_path)
    data = open_data(tmp_path)
    check_all(data, ("background", "bar", "square"))
    assert "5 of 15 objects have a box or a line and no area: they are not drawn" in data.warnings


def paired(shape: list) -> list:
    return [[shape[0][i : i + 2] for i in range(0, len(shape[0]), 2)]]


@pytest.mark.parametrize("form", [paired, lambda shape: shape[0]], ids=["pairs", "flat"])
def test_other_forms_of_polygons(tmp_path: Path, form: Callable[[list], list]) -> None:
    for split, document in coco(tmp_path).items():
        for item in document["annotations"]:
            item["segmentation"] = form(item["segmentation"])
        write(tmp_path / "annotations" / f"instances_{split}2017.json", document)
    check_all(open_data(tmp_path), ("background", "bar", "square"))


@pytest.mark.parametrize(
    "form",
    ["..\\\\upload\\\\{}", "https://example.org/a%20b/{}?token=1", "/data/local-files/{}", "{}"],
)
def test_names_of_files_from_elsewhere(tmp_path: Path, form: str) -> None:
    for split, document in coco(tmp_path).items():
        for entry in document["images"]:
            entry["file_name"] = form.format(entry["file_name"]).replace("\\\\", "\\")
            entry.pop("width")
        file = tmp_path / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(document), encoding="utf-8-sig")
    image(tmp_path / "train2017" / "more.png")
    data = open_data(tmp_path)
    check_all(data, ("background", "bar", "square"))
    assert "1 images that no json names, left out" in data.notes


def test_two_files_for_the_same_images(tmp_path: Path) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    write(tmp_path / "annotations" / "instances_val2017_more.json", json.loads(file.read_text()))
    first, *_ = check_data(tmp_path).problems
    assert "val2017_more.json: 2 images are there twice (such as 0002.png), with objects" in first


def test_labelme_in_a_folder_of_its_own(tmp_path: Path) -> None:
    labelme(tmp_path / "json")
    (tmp_path / "photos").mkdir()
    for file in (tmp_path / "json").glob("*.png"):
        file.rename(tmp_path / "photos" / file.name)
    check_all(open_data(tmp_path), ("background", "bar", "square"))


def test_a_vocabulary_of_which_little_is_used(tmp_path: Path) -> None:
    for split, document in coco(tmp_path).items():
        document["categories"] += [{"id": 100 + i, "name": f"thing {i}"} for i in range(300)]
        write(tmp_path / "annotations" / f"instances_{split}2017.json", document)
    check_all(open_data(tmp_path), ("background", "bar", "square"))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("{1: square, 2: bar}", ("square", "bar")),
        ("{2: bar, 1: square, 7: more}", ("square", "bar", "more")),
    ],
)
def test_ids_of_yolo_need_not_begin_at_0(
    tmp_path: Path, names: str, classes: tuple[str, ...]
) -> None:
    yolo(tmp_path)
    for file in (tmp_path / "labels").rglob("*.txt"):
        lines = file.read_text().splitlines()
        write(file, "\n".join(f"{int(line[0]) + 1}{line[1:]}" for line in lines))
    write(tmp_path / "data.yaml", f"names: {names}\n")
    data = open_data(tmp_path)
    check_all(data, ("background", *classes))
    assert "the classes are named by data.yaml" in data.notes


STRANGERS = {
    "ann/0.png.json": ('{"objects": [{"classTitle": "cat"}]}', "Supervisely's json"),
    "via.json": ('{"a.jpg1": {"regions": [{"region_attributes": {}}]}}', "VIA's json"),
    "v7/0.json": ('{"item": {"slots": []}, "annotations": []}', r"V7's json \(Darwin\)"),
    "project.json": ('[{"result": [{"from_name": "a", "to_name": "b"}]}]', "Label Studio's json"),
    "export.ndjson": ('{"data_row": {"id": 3}}\n', "Labelbox's json"),
    "a.geojson": ('{"type": "FeatureCollection"}', "GeoJSON"),
    "train.csv": ("ImageId,EncodedPixels\n0.png,1 3\n", "run lengths in a table"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    content, what = STRANGERS[name]
    for i in range(3):
        image(tmp_path / "img" / f"{i}.png")
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name}: is {what}.*, which is not read; \w+") as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_roboflow_names_the_project_as_category_0(tmp_path: Path) -> None:
    for split, document in coco(tmp_path / "old").items():
        for entry in document["images"]:
            image(tmp_path / "new" / split / entry["file_name"])
        categories = [{**c, "supercategory": "things"} for c in document["categories"]]
        project = {"id": 0, "name": "things", "supercategory": "none"}
        document["categories"] = [project, *categories]
        write(tmp_path / "new" / split / "_annotations.coco.json", document)
    check_all(open_data(tmp_path / "new"), ("background", "bar", "square"))


def test_a_class_called_background_is_the_background(tmp_path: Path) -> None:
    for split, document in coco(tmp_path).items():
        document["categories"].append({"id": 1, "name": "background"})
        hole = {"id": 99, "image_id": document["images"][0]["id"], "category_id": 1}
        hole |= {"segmentation": [[2, 3, 4, 3, 4, 5, 2, 5]], "bbox": [2, 3, 2, 2], "iscrowd": 0}
        document["annotations"].append(hole)
        write(tmp_path / "annotations" / f"instances_{split}2017.json", document)
    data = open_data(tmp_path)
    assert data.class_names == ("background", "bar", "square")
    first = next(s for s in data.train if s.name.endswith("0005"))
    classes = data.read(first)[1]
    assert (classes[3:5, 2:4] == 0).all()
    assert classes[6, 5] == 2


def test_small_objects_lie_on_large_ones_and_void_is_void() -> None:
    large, small = Object(0, (SQUARE,)), Object(1, ([4, 5, 6, 5, 6, 7, 4, 7],))
    out = Object(2, ([-9, -9, 3, -9, 3, 2, -9, 2],))  # most of it outside
    mask = Outlined(Path("a.json"), (WIDTH, HEIGHT), (large, small, out)).read()
    assert (mask[3, 2], mask[5, 4], mask[0, 2], mask[1, 3]) == (1, 2, 3, 0)
    void = Outlined(Path("a.json"), (WIDTH, HEIGHT), (large, Object(-1, (BAR,)))).read()
    assert (void == VOID).sum() == 45


SPOILT: dict[Callable[[Path], None], tuple[Callable[[Path], object], str]] = {}


def spoils(make: Callable[[Path], object], words: str) -> Callable:
    def register(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        SPOILT[spoil] = make, words
        return spoil

    return register


@spoils(
    coco, r"instances_train2017\.json: 1 of the images that it names are not there \(0005\.png\)"
)
def missing_image(root: Path) -> None:
    (root / "train2017" / "0005.png").unlink()


@spoils(
    coco, r"instances_train2017\.json: 0005\.png: annotation 0 has the category 99, which is none"
)
def unknown_category(root: Path) -> None:
    file = root / "annotations" / "instances_train2017.json"
    said = json.loads(file.read_text())
    said["annotations"][0]["category_id"] = 99
    write(file, said)


@spoils(coco, r"instances_val2017\.json: looks like COCO's json, but cannot be read")
def truncated(root: Path) -> None:
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:-200] + '"categories"')


@spoils(yolo, r"labels/train/1\.txt: line 2: class 7 is none of the 2 classes \(0 to 1\)")
def class_out_of_range(root: Path) -> None:
    file = root / "labels" / "train" / "1.txt"
    first, second = file.read_text().splitlines()
    write(file, f"{first}\n7{second[1:]}\n")


@spoils(yolo, r"labels/val/0\.txt: line 1: 'leaf 0\.1' is no class with a box or a polygon")
def no_numbers(root: Path) -> None:
    write(root / "labels" / "val" / "0.txt", "leaf 0.1\n")


@spoils(labelme, r"2\.json: cannot be read .* repair or remove it")
def no_json(root: Path) -> None:
    write(root / "2.json", '{"shapes": [')


@spoils(labelme, r"3\.json: a rectangle of bar cannot be read")
def one_corner(root: Path) -> None:
    said = json.loads((root / "3.json").read_text())
    said["shapes"][1]["points"] = [[1]]
    write(root / "3.json", said)


def spoil_coco(words: str, change: Callable[[dict], object]) -> None:
    """Register a change of one COCO file that is a problem of one line."""

    def spoil(root: Path) -> None:
        file = root / "annotations" / "instances_train2017.json"
        said = json.loads(file.read_text())
        change(said)
        write(file, said)

    spoil.__name__ = words[:30]
    spoils(coco, rf"instances_train2017\.json:? {words}")(spoil)


def outline(shape: object) -> Callable[[dict], object]:
    return lambda said: said["annotations"][0].update(segmentation=shape)


def size(width: object, height: object) -> Callable[[dict], object]:
    return lambda said: said["images"][0].update(width=width, height=height)


spoil_coco(
    "0005.png: annotation 0 cannot be drawn .a polygon of 7", outline([[1, 2, 3, 4, 5, 6, 7]])
)
spoil_coco("0005.png: .*a corner lies nowhere near", outline([[0, 0, 1e12, 0, 5, 5]]))
spoil_coco("0005.png: annotation 0 cannot .* nowhere", outline([[0, 0, float("nan"), 0, 5, 5]]))
spoil_coco("an outline in 0005.png .*its size is", outline({"size": [10**6, 10**6], "counts": [0]}))
spoil_coco(
    "an outline in 0005.png .*its run lengths are no",
    outline({"size": [22, 31], "counts": [-5, 9]}),
)
spoil_coco("an outline in 0005.png cannot", outline({"size": [22, 31], "counts": "~~~!"}))
spoil_coco("says 200000x200000", size(200000, 200000))
spoil_coco("0005.png: its size is -3 x 22", size(-3, 22))
spoil_coco("looks like COCO's json, but an entry has no", lambda said: said["images"][0].pop("id"))
spoil_coco(
    "0005.png is there twice", lambda said: said["images"].append(said["images"][0] | {"id": 1})
)


@spoils(coco, "instances_train2017.json: looks like COCO's json, but cannot be read .Recursion")
def deep_json(root: Path) -> None:
    file = root / "annotations" / "instances_train2017.json"
    deep = "[" * 100_000 + "]" * 100_000
    file.write_text(f'{file.read_text()[:-1]}, "x": {deep}}}')


@spoils(labelme, r"0\.json: cannot be read .RecursionError")
def deep_json_of_labelme(root: Path) -> None:
    write(root / "0.json", "[" * 100_000)


@spoils(labelme, r"2\.json says 1000000x1000000; annotate this image")
def huge_size(root: Path) -> None:
    said = json.loads((root / "2.json").read_text())
    write(root / "2.json", said | {"imageWidth": 10**6, "imageHeight": 10**6})


@spoils(labelme, r"has 300 classes .*, and at most 253 can be read")
def a_name_for_each_object(root: Path) -> None:
    said = json.loads((root / "2.json").read_text())
    said["shapes"] = [said["shapes"][0] | {"label": f"cell {i}"} for i in range(298)]
    write(root / "2.json", said)


@spoils(yolo, r"labels/val/0\.txt: line 1: '0 120 30 .*' has numbers far from 0 to 1")
def pixels_for_shares(root: Path) -> None:
    write(root / "labels" / "val" / "0.txt", "0 120 30 200 30 200 90\n")


@spoils(yolo, r"labels/val/0\.txt: line 1: a polygon of 7 numbers")
def odd_numbers(root: Path) -> None:
    write(root / "labels" / "val" / "0.txt", "0 .1 .1 .5 .1 .5 .5 .4\n")


@spoils(yolo, r"labels/val/0\.txt: line 1: class 999999999999 is none of the classes")
def huge_class(root: Path) -> None:
    (root / "data.yaml").unlink()
    write(root / "labels" / "val" / "0.txt", "999999999999 .1 .1 .5 .1 .5 .5\n")


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_spoilt_annotations(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    make, words = SPOILT[spoil]
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        open_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_boxes_are_no_masks(tmp_path: Path) -> None:
    yolo(tmp_path)
    for file in (tmp_path / "labels").rglob("*.txt"):
        write(file, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"holds boxes, not masks \(YOLO's texts"):
        open_data(tmp_path)


def test_names_that_point_elsewhere_open_nothing(tmp_path: Path) -> None:
    image(tmp_path / "outside.png")
    for split, document in coco(tmp_path / "data").items():
        document["images"][0]["file_name"] = "../outside.png"
        write(tmp_path / "data" / "annotations" / f"instances_{split}2017.json", document)
    report = check_data(tmp_path / "data")
    assert any("are not there" in problem for problem in report.problems)
    assert not any("outside" in s.name for s in (*report.data.train, *report.data.val))


@pytest.mark.skipif(importlib.util.find_spec("datumaro") is None, reason="comes with an extra")
@pytest.mark.parametrize("kind", ["cvat", "label_me", "datumaro"])
def test_formats_of_datumaro(tmp_path: Path, kind: str) -> None:
    import datumaro
    from datumaro.components.media import Image as Media

    items = []
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            pixels = RNG.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            shapes = [
                datumaro.Polygon([float(v) for v in outline], label=label, id=label, group=label)
                for label, outline in ((1, SQUARE), (2, BAR))
            ]
            media = Media.from_numpy(data=pixels)
            items.append(
                datumaro.DatasetItem(f"{split}_{i}", subset=split, media=media, annotations=shapes)
            )
    made = datumaro.Dataset.from_iterable(items, categories=["background", "square", "bar"])
    made.export(str(tmp_path), kind, save_media=True)
    data = open_data(tmp_path)
    assert "read by Datumaro" in data.source
    assert (len(data.train), len(data.val)) == (3, 2)
    assert set(data.class_names) == {"background", "square", "bar"}
    check_all(data, data.class_names)
