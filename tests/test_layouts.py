"""Layouts of real data sets in miniature, where the shared data is there: what is read of each."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denseloss.tasks.segmentation import SegmentationData, SegmentationReport, check_data

SHARED = Path(__file__).parents[2] / "shared" / "data"
SCRIPT, EXPECTED = SHARED / "layouts.py", SHARED / "layouts_expected.json"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the shared data is not here")


def cases() -> Iterator[Any]:
    layouts = json.loads(EXPECTED.read_text())["layouts"] if EXPECTED.exists() else {}
    for name, expected in layouts.items():
        if expected.get("task") != "detection" and name != "yolo_bad_id":
            yield pytest.param(name, expected, id=name)
            if "then" in expected:
                yield pytest.param(name, expected["then"], id=f"{name}-then")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("layouts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("layouts")
    module.main([str(out / "all")])
    return out / "all"


def options(words: list[str], root: Path) -> dict[str, Any]:
    """The words of a command as the keywords of `check_data`."""
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        key = word.removeprefix("--").replace("-", "_")
        value: Any = True if key == "skip_unlabelled" else next(rest).format(data=root)
        given[key] = value.split(",") if key == "classes" else value
    return given


@pytest.mark.parametrize(("name", "expected"), list(cases()))
def test_layout(made: Path, name: str, expected: dict[str, Any]) -> None:
    root = made / name
    report = check_data(root, **options(expected.get("options", []), root))
    text = "\n".join(report.lines()).replace(str(root), "").lower()
    verdict = "read" if report.ok else "refuse"
    good = [expected["verdict"], expected.get("also_good", expected["verdict"])]
    assert verdict in {each.partition("_")[0] for each in good}, text
    if verdict == expected["verdict"].partition("_")[0]:
        for words in expected["note_mentions"]:
            assert any(word.lower() in text for word in words.split("|")), (words, text)
    for words in expected.get("never", []):
        assert words not in text
    naming = sum(".png" in line for line in text.splitlines())
    assert naming <= expected.get("most_lines_naming_files", naming)
    if report.ok:
        compare(report, expected, root)


def compare(report: SegmentationReport, expected: dict[str, Any], root: Path) -> None:
    data = report.data
    counts = dict(report.counts)
    if "train+val" in expected["images"]:
        counts["train+val"] = counts.pop("train") + counts.pop("val")
    assert {split: n for split, n in counts.items() if n} == expected["images"]
    if isinstance(expected["classes"], int):
        assert data.num_classes == expected["classes"]
    else:
        assert data.num_classes == len(expected["classes"])
        for place, names in enumerate(expected["classes"]):
            index = index_of(data, names)
            assert index is not None
            assert index == place or not expected.get("ordered")
    tolerance = expected.get("share_tolerance", 1e-6)
    for names, share in expected["class_share"].items():
        assert abs(data.class_share[index_of(data, names)] - share) <= 1.01 * tolerance
    if "sample" in expected:
        wanted = root / expected["sample"]["image"]
        samples = (*data.train, *data.val, *data.test)
        (sample,) = [s for s in samples if s.image == wanted]
        _, mask = data.read(sample)
        for names, centre in expected["sample"]["centres"].items():
            found = np.argwhere(mask.numpy() == index_of(data, names)).mean(0)
            assert np.abs(found - centre).max() < (0.011 if tolerance < 1e-3 else 0.6), names


def index_of(data: SegmentationData, names: str) -> int | None:
    known = [i for i, name in enumerate(data.class_names) if name in names.split("|")]
    return known[0] if known else int(names) if names.isdecimal() else None
