"""The report of a comparison: one valid page that needs nothing else, and the same as text."""

import base64
import contextlib
import dataclasses
import io
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denseloss.compare import figures, text
from denseloss.compare import score_tables as tables
from denseloss.compare.contents import contents
from denseloss.compare.results import Needed, Results
from denseloss.data.errors import InputError
from denseloss.report import numbers, page
from denseloss.report import write_report as write
from denseloss.report.sections import (
    Cell,
    Figure,
    Gallery,
    Item,
    Picture,
    Row,
    Section,
    Table,
    letter,
)
from denseloss.tasks.segmentation import pictures
from denseloss.tasks.segmentation.sections import how_to_read
from denseloss.tasks.segmentation.sections import sections as task_sections
from tests import comparison_example as example

VOID_TAGS = {"meta", "link", "img", "br", "input", "wbr"}
MADE = {
    "binary": example.binary_results,
    "multiclass": example.multiclass_results,
    "large": example.large_results,
}
SECTIONS = {
    "binary": example.binary_sections,
    "multiclass": example.multiclass_sections,
    "large": example.large_sections,
}


def write_report(results: Results, shown: Iterable[Section], folder: Path) -> Path:
    return write(contents(results, shown), folder)


class Page(HTMLParser):
    """What a page holds, and whether every tag that is opened is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> says an attribute twice: {names}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, kept = tmp_path_factory.mktemp("reports"), tmp_path_factory.mktemp("kept")
    made = {}
    for name, make in MADE.items():
        (kept / name).mkdir()
        made[name] = write_report(make(), SECTIONS[name](kept / name), root / name)
    return made


@pytest.fixture(scope="module")
def pages(reports: dict[str, Path]) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in reports.items()}


names = pytest.mark.parametrize("name", MADE)


@names
def test_page_is_whole_valid_and_small(name: str, reports: dict[str, Path]) -> None:
    path = reports[name]
    assert path.name == "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.md"]
    assert path.stat().st_size < 3_000_000
    found = Page(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in found.tags[:2]] == ["html", "head"]
    assert found.all("html")[0]["lang"] == "en"


@names
def test_ids_are_unique_and_every_pointer_has_its_target(name: str, pages: dict[str, str]) -> None:
    found = Page(pages[name])
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointers = []
    for tag, attributes in found.tags:
        if attributes.get("href", "").startswith("#"):
            pointers.append(attributes["href"][1:])
        assert tag != "use" or attributes["href"].startswith("#")
        pointers += attributes.get("aria-labelledby", "").split()
        for value in attributes.values():
            pointers += re.findall(r"url\(#([^)]+)\)", value)
    assert len(pointers) > 20
    assert set(pointers) <= set(ids)


@names
def test_page_loads_nothing_from_elsewhere(name: str, pages: dict[str, str]) -> None:
    found = Page(pages[name])
    for tag, attributes in found.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster", "style"):
            value = attributes.get(key, "")
            assert "//" not in value or value.startswith("data:image/jpeg;base64,"), (tag, value)
    assert "@import" not in pages[name]
    assert "@font-face" not in pages[name]
    namespace = "http://www.w3.org/2000/svg"
    assert "http" not in pages[name].replace(namespace, "")


@names
def test_all_losses_metrics_and_words_are_there(name: str, pages: dict[str, str]) -> None:
    results = MADE[name]()
    found = Page(pages[name])
    text = " ".join(found.text.split())
    for loss in results.losses:
        assert " ".join(loss.loss.split()) in text
    for metric in results.metrics:
        assert metric.definition in text
        assert {"value": metric.key} in found.all("option")
    for sentence in (*results.verdict, *results.warnings):
        assert sentence.replace("`", "") in text
    for command in results.commands:
        assert command in found.text
    for failure in (failure for loss in results.losses for failure in loss.failures):
        assert failure.error in text
        assert failure.log in text
    for key, version in results.versions.items():
        assert key in text
        assert version in text


@names
def test_every_score_stands_in_the_page_with_its_interval(name: str, pages: dict[str, str]) -> None:
    results = MADE[name]()
    text = Page(pages[name]).text
    seen = 0
    for loss in results.losses:
        for (key, _), found in loss.scores.items():
            decimals = 2 if key == "hd95" else 3
            assert f"{found.value:.{decimals}f}" in text
            if not math.isnan(found.low):
                assert f"{found.low:.{decimals}f}–{found.high:.{decimals}f}" in text
                seen += 1
    assert seen or name == "multiclass"
    assert "nan" not in text.lower().replace("became nan", "").replace("nanometre", "")


def test_order_is_verdict_warnings_then_evidence(pages: dict[str, str]) -> None:
    results = example.binary_results()
    order = [
        "Three of five losses beat",
        "1 planned trial is not finished yet",
        results.warnings[2],
        "Every loss, against the baseline",
        "All losses, all metrics",
        'id="learning"',
        'id="rates"',
        'id="sizes"',
        'id="calibration"',
        'id="cost"',
        'id="cases"',
        'id="gradients"',
        'id="failures"',
        'id="how"',
        'id="repeat"',
    ]
    places = [pages["binary"].index(words) for words in order]
    assert places == sorted(places)
    assert 'id="parts"' not in pages["binary"]  # the only class is the whole
    order[7:8] = ['id="parts"', 'id="sizes"']
    places = [pages["large"].index(words) for words in order[3:13]]
    assert places == sorted(places)


@names
def test_page_can_be_used_without_eyes_or_mouse(name: str, pages: dict[str, str]) -> None:
    found = Page(pages[name])
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(head["scope"] in ("row", "col") for head in found.all("th"))
    drawings = [svg for svg in found.all("svg") if svg.get("role") == "img"]
    assert len(drawings) >= 10
    assert all(len(svg["aria-label"]) > 20 for svg in drawings)
    assert all(svg.get("aria-hidden") == "true" for svg in found.all("svg") if "role" not in svg)
    images = [image for image in found.all("img") if image["src"] != "data:,"]
    assert images
    assert all(image["alt"] for image in images)
    assert len(found.all("caption")) == len(found.all("table"))


def test_what_users_wrote_is_text_and_never_markup(pages: dict[str, str]) -> None:
    html = pages["multiclass"]
    assert "<b>" not in html
    assert "<alloy>" not in html
    assert "<wide>" not in html
    assert "&lt;alloy&gt; &amp; “more”" in html
    found = Page(html)
    assert "RuntimeError: <shape> [2, 4] & [2, 3] do not match" in found.text
    assert any('the "other" |one|' in svg.get("aria-label", "") for svg in found.all("svg"))


def test_same_results_give_the_same_bytes(reports: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    shown = example.multiclass_sections(kept)
    again = write_report(example.multiclass_results(), shown, tmp_path)
    before = reports["multiclass"]
    assert again.read_bytes() == before.read_bytes()
    assert (tmp_path / "report.md").read_bytes() == before.with_name("report.md").read_bytes()


def test_report_is_replaced_whole_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = example.multiclass_results()
    path = write_report(results, (), tmp_path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("denseloss.data.files.os.fsync", full)
    with pytest.raises((OSError, InputError)):
        write_report(dataclasses.replace(results, name="other"), (), tmp_path)
    assert path.read_bytes() == before


def test_verdict_is_told_only_where_the_test_says_so(pages: dict[str, str]) -> None:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", pages["binary"])
    tversky = [row for row in rows if "tversky" in row]
    assert len(tversky) > 10
    assert not any('class="tag better"' in row or 'class="tag worse"' in row for row in tversky)
    focal = [row for row in rows if ">D</span>" in row and 'class="tag worse"' in row]
    assert focal
    assert not any('class="tag better"' in row for row in rows if ">D</span>" in row)
    assert not any('class="tag better"' in row for row in rows if ">A</span>" in row)


def test_the_best_of_a_distance_is_the_lowest() -> None:
    table = tables.scores(example.binary_results(), "image")
    assert table is not None
    column = table.columns.index("HD95 (px) ↓")
    cells = [row.cells[column] for row in table.rows]
    assert [cell.best for cell in cells] == [
        cell.order == min(c.order for c in cells) for cell in cells
    ]
    assert sum(cell.best for cell in cells) == 1
    assert tables.scores(dataclasses.replace(example.binary_results(), losses=()), "image") is None


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.5, "0.50"), (0.0123, "0.012"), (0.00041, "0.00041"), (1e-7, "< 0.0001"), (1.0, "1.00")],
)
def test_p_values_have_two_digits(p: float, text: str) -> None:
    assert numbers.probability(p) == text
    assert numbers.probability(math.nan) == numbers.NOTHING


def test_numbers_are_told_as_people_write_them() -> None:
    assert numbers.number(-0.0214, signed=True) == "−0.021"
    assert numbers.number(-0.0001) == "0.000"
    assert numbers.number(0.0, signed=True) == "0.000"
    assert numbers.number(math.inf) == "∞"
    assert [numbers.duration(s) for s in (3.14, 59.4, 200, 3590, 7500)] == [
        "3.1 s",
        "59 s",
        "3 min 20 s",
        "59 min 50 s",
        "2 h 05 min",
    ]
    assert numbers.plain({"a": [1, 2.50], "b": None, "c": True}) == "a=1, 2.5, b=none, c=yes"
    assert [letter(i) for i in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]
    negative = numbers.Estimate(value=0, low=-0.1, high=0.2, standard_error=0.1, freedom=4)
    assert numbers.interval(negative, 2) == "−0.10 to 0.20"


def test_labels_at_the_ends_of_lines_keep_apart() -> None:
    wanted = [1.0, 2.0, 3.0, 50.0, 99.0, 99.5]
    placed = figures.spread(wanted, gap=14, low=0, high=100)
    assert placed == sorted(placed)
    assert min(np.diff(placed)) >= 14 - 0.1
    assert min(placed) >= 0
    assert max(placed) <= 100
    many = figures.spread([5.0] * 40, gap=14, low=0, high=100)
    assert many == pytest.approx(list(np.linspace(0, 100, 40)))
    assert figures.spread([50.0], gap=14, low=0, high=100) == [50.0]


def sizes_of(results: Results, folder: Path) -> str:
    found = example.evidence(results, folder, example.BINARY_NAMES, count=1, size=20)
    shown = task_sections(found, [loss.details for loss in results.losses])
    return next(section for section in shown if section.anchor == "sizes").figures[0].svg


def drawn_figures(folder: Path) -> dict[str, str]:
    results = example.binary_results()
    dice = results.metrics[0]
    # The ends of the axis are those of the values; a little wider and narrower moves the ticks.
    made = {}
    for i, far in enumerate((0.0, 0.004, 0.009, 0.013, 0.018, 0.022)):
        losses = [example.one_loss(0, "a", 0.0, example.BINARY_NAMES, True)]
        losses.append(example.one_loss(1, "b", far, example.BINARY_NAMES, True))
        both = dataclasses.replace(results, losses=tuple(losses))
        for kind, drawn in (
            ("values", figures.values(both, dice, "image")),
            ("differences", figures.differences(both, dice, "image")),
            ("sizes", sizes_of(both, folder)),
            ("steps", figures.losses_over_steps(both, 1)),
        ):
            assert drawn is not None
            made[f"{kind} {i}"] = drawn
    return made


def test_no_label_of_an_axis_is_cut_off_at_the_side(tmp_path: Path) -> None:
    ticks = 0
    beside = []
    for name, drawn in drawn_figures(tmp_path).items():
        box = re.search(r'viewBox="0 0 ([\d.]+) ', drawn)
        assert box is not None
        texts = re.findall(r"<text ([^>]*)>([^<]*)</text>", drawn)
        for style, tick in texts:
            if not re.fullmatch(r"[−\d.]+", tick):
                continue
            across = re.search(r' x="([\d.-]+)"', f" {style}")
            assert across is not None
            # A digit of 12 px is at most 0.6 of that wide in the usual fonts.
            width, left = 7.2 * len(tick), float(across[1])
            anchor = re.search(r"text-anchor: (\w+)", style)
            assert anchor is not None or "middle" not in style
            kind = anchor[1] if anchor else "start"
            left -= {"start": 0.0, "middle": width / 2, "end": width}[kind]
            assert left >= 0, (name, tick)
            assert left + width <= float(box[1]), (name, tick)
            ticks += 1
            beside.append(kind)
    assert ticks > 60
    assert "end" in beside


def test_pooled_scores_have_dashes_where_the_numbers_are_of_single_images() -> None:
    results = example.binary_results()
    dice = results.metrics[0]
    for pooling, dashes in (("image", False), ("pooled", True)):
        table = tables.comparison(results, dice, pooling)
        for name in ("Probability of improvement", "Effect size"):
            column = table.columns.index(name)
            cells = [row.cells[column] for row in table.rows[1:]]
            assert [cell.text == numbers.NOTHING for cell in cells] == [dashes] * 5
            assert [cell.interval for cell in cells if dashes] == [""] * 5 * dashes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "9 seeds or 140 images"),
        ({"needed": Needed(effect=0.01, seeds=4741, images=None)}, "> 100 seeds"),
        ({"needed": Needed(effect=0.01, seeds=None, images=None)}, "seeds and images"),
        ({"needed": Needed(effect=0.01, seeds=None, images=None), "seeds": 1}, "2 seeds first"),
        ({"needed": Needed(effect=0.01, seeds=None, images=None), "images": 1}, "2 images first"),
        ({"needed": Needed(effect=0.01, seeds=None, images=None), "seeds": 0}, numbers.NOTHING),
        (
            {
                "needed": Needed(effect=0.01, seeds=None, images=None),
                "difference": numbers.Estimate(
                    value=0.0, low=0.0, high=0.0, standard_error=0.0, freedom=4.0
                ),
            },
            numbers.NOTHING,
        ),
    ],
)
def test_what_more_is_needed_is_told_only_where_it_is_known(
    changes: dict[str, Any], text: str
) -> None:
    results = example.binary_results()
    dice = results.metrics[0]
    second = results.losses[1]
    key = (dice.key, results.pooling)
    found = dataclasses.replace(second.comparisons[key], **changes)
    second = dataclasses.replace(second, comparisons={**second.comparisons, key: found})
    results = dataclasses.replace(results, losses=(results.losses[0], second))
    table = tables.comparison(results, dice, results.pooling)
    assert table.rows[1].cells[-1].text == text


def test_reliability_is_read_by_what_its_probability_is_of(pages: dict[str, str]) -> None:
    names = example.BINARY_NAMES
    said = how_to_read(example.calibration(0, names[1:], binary=True), binary=True)
    assert said.startswith("Across: probability of nucleus; up: how often the pixel was foreground")
    assert "the foreground is rarer than the probability says, above it more frequent" in said
    assert "surer" not in said
    assert said in pages["binary"]
    names = example.MULTICLASS_NAMES
    said = how_to_read(example.calibration(0, names, binary=False), binary=False)
    assert said.startswith("Across: confidence of the predicted class; up: how often it was right")
    assert "surer than it should be" in said
    assert "foreground" not in said
    assert said in pages["large"]
    assert 'id="calibration"' not in pages["multiclass"]


def test_intervals_are_said_to_be_of_what_they_are_of() -> None:
    def said(results: Results, held_out: int) -> str:
        counted = dataclasses.replace(results, counts={**results.counts, "held out": held_out})
        return text.statistics(counted)[2]

    many, one = example.binary_results(), example.multiclass_results()
    whole = "what another training, scored on other images of the same kind, would give"
    assert whole in said(many, 67)
    assert "not corrected for the number of losses" in said(many, 67)
    assert "single finished seed" not in said(many, 67)
    lone = dataclasses.replace(many.losses[1], seeds=(0,))
    mixed = dataclasses.replace(many, losses=(many.losses[0], lone))
    assert "a single finished seed are over the images alone" in said(mixed, 67)
    for results, images, words_of_it in (
        (one, 4, "say nothing about another training"),
        (many, 1, "say nothing about other images"),
        (one, 1, "there are no confidence intervals"),
    ):
        assert whole not in said(results, images)
        assert words_of_it in said(results, images)
    assert "no p value" in said(one, 4)
    assert "permutation" not in said(one, 4)


def test_adding_seeds_until_a_verdict_comes_is_warned_of() -> None:
    said = text.statistics(example.binary_results())[3]
    assert "raises the rate of false positives" in said
    assert "from 3.1 % to 6.0 %" in said
    assert "plan the number of seeds beforehand" in said


def decoded(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image)


def test_overlay_tells_right_missed_and_false() -> None:
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    truth, predicted = np.zeros((2, 64, 64), dtype=np.uint8)
    truth[8:40, 8:24] = 1
    predicted[24:56, 8:24] = 1
    truth[:, 60:] = 255
    drawn = pictures.errors(image, truth, predicted, side=64).astype(int)
    assert (drawn[0, 30] == drawn[50, 40]).all()

    def nearest(part: np.ndarray) -> int:
        tint = part.reshape(-1, 3).mean(0) - 90
        colours = np.array([paint.colour for paint in pictures.ERROR_PAINTS]) - 90
        return int(np.argmax(colours @ tint / np.linalg.norm(colours, axis=1)))

    assert nearest(drawn[25:39, 10:22]) == 0
    assert nearest(drawn[9:23, 10:22]) == 1
    assert nearest(drawn[41:55, 10:22]) == 2
    # Told apart without colour, too: only what is missed is striped.
    inside = [drawn[26:38, 11:21], drawn[11:22, 11:21], drawn[43:54, 11:21]]
    assert [part.std(axis=(0, 1)).max() > 5 for part in inside] == [False, True, False]
    assert drawn[:, 60:].std() > 50


def test_one_class_taken_for_another_is_an_error_of_its_own() -> None:
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    truth, predicted = np.zeros((2, 40, 60), dtype=np.uint8)
    truth[:, 20:] = 1
    predicted[:, 20:40], predicted[:, 40:] = 1, 2
    drawn = pictures.errors(image, truth, predicted, side=60).astype(int)
    assert (drawn[:, :19] == 90).all()
    for part, paint in (
        (drawn[:, 22:38], pictures.ERROR_PAINTS[0]),
        (drawn[:, 42:58], pictures.CONFUSED_PAINT),
    ):
        tint = part.reshape(-1, 3).mean(0) - 90
        colour = np.array(paint.colour) - 90
        assert colour @ tint / np.linalg.norm(colour) / np.linalg.norm(tint) > 0.95


def test_samples_of_odd_names_and_sizes_are_drawn(tmp_path: Path) -> None:
    data: Any = SimpleNamespace(
        class_names=("_background_", *(f"_{i}_ of $40$ with quite a long name" for i in range(39))),
        num_classes=40,
        mode="multiclass",
        ignore_value=None,
    )
    rng = np.random.default_rng(0)
    shown = [
        pictures.Sampled(
            name=f"a/folder/with/a/very/long/name/größe_$x$_{i}.png",
            image=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
            truth=rng.integers(0, 40, shape, dtype=np.uint8),
            prediction=rng.integers(0, 40, shape, dtype=np.uint8),
            score=math.nan,
        )
        for i, shape in enumerate([(20, 180), (200, 31), (3, 1)])
    ]
    path = tmp_path / "samples.png"
    pictures.draw_samples(shown, data, count_of=9, path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]
    with Image.open(path) as image:
        assert min(image.size) > 500


def test_thin_truth_does_not_vanish_when_the_image_is_made_smaller() -> None:
    image = np.full((1000, 1000, 3), 50, dtype=np.uint8)
    truth = np.zeros((1000, 1000), dtype=np.uint8)
    truth[500:503] = 1
    drawn = pictures.errors(image, truth, np.zeros_like(truth), side=320)
    assert drawn.shape == (320, 320, 3)
    assert (np.ptp(drawn.astype(int), axis=2) > 40).any(axis=0).all()


def test_maps_are_white_at_zero_and_striped_where_nothing_is_known() -> None:
    values = np.array([[-5.0, 0.0], [5.0, np.nan]], dtype=np.float32)
    drawn = pictures.diverging(values, 5.0, side=2).astype(int)
    assert drawn[0, 0, 2] > drawn[0, 0, 0] + 50
    assert drawn[1, 0, 0] > drawn[1, 0, 2] + 50
    assert (drawn[0, 1] > 240).all()
    assert len(set(drawn[1, 1])) == 1
    weights = np.array([[0.1, 1.0, 10.0]], dtype=np.float32)
    low, middle, high = pictures.logarithmic(weights, 0.1, 10.0, side=3)[0].astype(int)
    assert low.sum() < middle.sum() < high.sum()


def pictures_of(title: str, *, count: int, side: int = 200) -> Section:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    one = Picture(pixels=noise, alt=f"of {title}", caption="noise")
    galleries = [Gallery(name=f"{title} {i}", rows=(("", (one,)),)) for i in range(count)]
    return Section(title=title, anchor=title, galleries=tuple(galleries))


def test_a_picture_keeps_to_its_size_and_a_page_to_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    assert decoded(page.data_uri(noise, side=320)).shape == (320, 240, 3)
    assert decoded(page.data_uri(noise[:60, :50], side=320)).shape == (60, 50, 3)
    results = example.multiclass_results()
    shown = [pictures_of("noise", count=12), pictures_of("looks", count=2)]
    bare = len(page.html_page(contents(results, ())).encode())
    monkeypatch.setattr(page, "MOST_BYTES", bare + 150_000)
    html = page.html_page(contents(results, shown[:1]))
    assert len(html.encode()) < bare + 150_000
    left_out = re.search(r"(\d+) more would make the page larger than 3 MB", html)
    assert left_out is not None
    kept = html.count("<h3>noise ")
    assert kept >= 1
    assert kept + int(left_out[1]) == 12

    # Without room for any picture, too, the page says what is missing.
    monkeypatch.setattr(page, "MOST_BYTES", bare + 3000)
    html = page.html_page(contents(results, shown))
    counts = re.findall(r"(\d+) more would make the page larger than 3 MB", html)
    assert [int(count) for count in counts] == [12, 2]
    assert '<section id="looks"' in html


def test_every_section_with_pictures_keeps_its_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    results = example.multiclass_results()
    bare = page.html_page(contents(results, ()))
    both = [pictures_of("first", count=6, side=100), pictures_of("second", count=6, side=100)]
    monkeypatch.setattr(page, "MOST_BYTES", len(bare.encode()) + 120_000)
    html = page.html_page(contents(results, both))
    kept = re.findall("<h3>((?:first|second) \\d+)</h3>", html)
    shown = [[name for name in kept if name.startswith(title)] for title in ("first", "second")]
    assert abs(len(shown[0]) - len(shown[1])) <= 1
    assert 1 < len(kept) < 12
    left_out = re.findall(r"(\d+) more would make the page larger than 3 MB", html)
    assert [int(count) for count in left_out] == [6 - len(names) for names in shown]


def test_a_task_adds_sections_that_page_and_markdown_show(tmp_path: Path) -> None:
    results = example.multiclass_results()
    counted = Section(
        title="Counts <per> image",
        text=("How many `cells` there are.",),
        hint="Sort it.",
        about_figures="Read from left to right.",
        figures=(Figure(svg="<svg role='img' aria-label='A count of each loss'></svg>", loss=1),),
        tables=(
            Table(
                caption="Counts",
                corner="Loss",
                columns=("Count",),
                rows=(Row(head="", loss=1, cells=(Cell(text="17", order=17),)),),
                notes=("Small ones, too.",),
            ),
        ),
        parts=(Section(title="Terms", items=(Item(head="cell", text="What is counted."),)),),
    )
    drawn = Picture(pixels=np.zeros((4, 4, 3), np.uint8), alt="Nothing at all", caption="nothing")
    seen = Section(title="Seen", galleries=(Gallery(name="dark", rows=(("", (drawn,)),)),))
    path = write_report(results, [seen, counted], tmp_path)
    found = Page(path.read_text(encoding="utf-8"))
    for told in (
        "Counts <per> image",
        "How many cells there are.",
        "Sort it.",
        "Read from left to right.",
        "17",
        "Small ones, too.",
        "Terms",
        "What is counted.",
        "dark",
    ):
        assert told in found.text
    assert "Nothing at all" in [image.get("alt") for image in found.all("img")]
    titles = [attributes["aria-labelledby"] for attributes in found.all("section")]
    assert len(titles) == len(set(titles))
    # Numbers come before pictures, and both before how it was measured.
    places = [found.text.rindex(title) for title in ("Counts <per>", "Cost", "Seen", "How it was")]
    assert places == sorted(places)

    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    table = "Counts:\n\n| Loss"
    for told in ("## Counts \\<per\\> image", "How many `cells`", table, "Small ones", "### Terms"):
        assert told in text
    assert "- cell: What is counted." in text
    # What speaks of pictures only, or of the page, is not told without them.
    for untold in ("Sort it", "Read from left", "## Seen"):
        assert untold not in text


def test_a_comparison_without_any_finished_trial_has_a_report(tmp_path: Path) -> None:
    results = example.multiclass_results()
    failed = results.losses[2]
    nothing = dataclasses.replace(
        results, losses=(dataclasses.replace(failed, searched={}),), warnings=()
    )
    found = example.evidence(nothing, tmp_path, example.MULTICLASS_NAMES, count=1)
    html = write_report(nothing, example.shown(nothing, found), tmp_path).read_text(
        encoding="utf-8"
    )
    Page(html)
    assert "No trial has finished" in html
    assert "No trial has finished" in (tmp_path / "report.md").read_text(encoding="utf-8")


@names
def test_markdown_says_the_same(name: str, reports: dict[str, Path]) -> None:
    results = MADE[name]()
    text = reports[name].with_name("report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# Which loss suits ")
    assert (
        lines.index("## Verdict") < lines.index("### What weakens this") < lines.index("## Scores")
    )
    for loss in results.losses:
        assert loss.loss.replace("|", "\\|") in text
    for command in results.commands:
        assert command in lines
    for metric in results.metrics:
        assert metric.name in text
    for i, line in enumerate(lines):
        if line.startswith("|") and not lines[i - 1].startswith("|"):
            table = [row for row in lines[i:] if row.startswith("|")]
            count = len(re.findall(r"(?<!\\)\|", line))
            block = lines[i : i + next(
                (j for j, row in enumerate(lines[i:]) if not row.startswith("|")), len(table)
            )]  # fmt: skip
            assert {len(re.findall(r"(?<!\\)\|", row)) for row in block} == {count}
            assert len({len(row) for row in block}) == 1


def test_markdown_escapes_what_would_be_markup(reports: dict[str, Path]) -> None:
    text = reports["multiclass"].with_name("report.md").read_text(encoding="utf-8")
    assert "# Which loss suits super \\<alloy\\> & “more”?" in text
    assert 'the "other" \\|one\\|' in text


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    programs = [shutil.which(program) for program in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium and chromedriver are not both on the path")
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        # No smooth scrolling, which would move what is about to be clicked.
        "--force-prefers-reduced-motion",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = programs[0]
    driver = webdriver.Chrome(options=options, service=service.Service(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def sized(driver: Any, width: int) -> None:
    # The window itself cannot be narrower than 500 pixels.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def opened(driver: Any, page: Path | None = None) -> None:
    """Load ``page``, or this one again."""
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    # The mark goes with the page it is on: the driver may answer for the page before. A page
    # loaded again scrolls to where it was once it is there, under a click that comes too early.
    driver.execute_script("window.isOld = true; history.scrollRestoration = 'manual'")
    if page is None:
        driver.refresh()
    else:
        driver.get(page.as_uri())
    ready = "return !window.isOld && document.readyState === 'complete'"
    wait(driver, 60, 0.05).until(lambda driver: driver.execute_script(ready))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("name", ["binary", "multiclass"])
def test_page_fits_a_desk_and_a_phone(name: str, driver: Any, reports: dict[str, Path]) -> None:
    opened(driver, reports[name])
    for width in (1200, 360):
        sized(driver, width)
        assert driver.execute_script("return innerWidth") == width
        wide = driver.execute_script(
            "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
        )
        assert max(wide) <= width
        assert driver.execute_script("scrollTo(500, 0); return scrollX") == 0
    loaded = driver.execute_script(
        "return [...document.images].filter(i => i.src !== 'data:,').map(i => i.naturalWidth)"
    )
    assert loaded
    assert min(loaded) > 0
    urls = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in urls if not url.startswith("data:")] == []
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [1200, 360])
def test_page_answers_to_mouse_and_keyboard(
    width: int, driver: Any, reports: dict[str, Path]
) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    select = pytest.importorskip("selenium.webdriver.support.ui").Select
    sized(driver, width)
    opened(driver, reports["binary"])

    def find(query: str) -> Any:
        return driver.find_element("css selector", query)

    def click(query: str) -> None:
        driver.execute_script(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', "
            "inline: 'center', behavior: 'instant'})",
            query,
        )
        find(query).click()

    def shown() -> list[str]:
        return driver.execute_script(
            "return [...document.querySelectorAll('#scores .panel')].filter(p => "
            "p.offsetParent).map(p => p.dataset.metric + ' ' + p.dataset.pooling)"
        )

    # The metric and the pooling.
    assert shown() == ["dice image"]
    if width > 600:
        click("#scores .radios label:nth-child(2)")
    else:
        find("#scores input[value=pooled]").send_keys(keys.SPACE)
    assert shown() == ["dice pooled"]
    select(find("#scores select")).select_by_visible_text("HD95")
    assert shown() == ["hd95 image"]
    assert not find("#scores input[value=pooled]").is_enabled()
    select(find("#scores select")).select_by_visible_text("Dice")
    assert shown() == ["dice image"]

    # Light and dark, remembered.
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(paper)
    click("#theme")
    after = driver.execute_script(paper)
    assert before != after
    inks = driver.execute_script(
        "return [...document.querySelectorAll('#scores svg.figure text')]"
        ".map(t => getComputedStyle(t).fill)"
    )
    assert driver.execute_script("return getComputedStyle(document.body).color") in inks
    opened(driver)
    assert driver.execute_script(paper) == after
    click("#theme")
    assert driver.execute_script(paper) == before

    # A table, by a column.
    column = "#all table thead th:nth-child(2)"
    values = (
        "return [...document.querySelectorAll('#all table')][0].tBodies[0].rows.length && "
        "[...document.querySelectorAll('#all table')[0].tBodies[0].rows]"
        ".map(r => parseFloat(r.cells[1].dataset.order))"
    )
    click(f"{column} button")
    assert find(column).get_attribute("aria-sort") == "descending"
    falling = driver.execute_script(values)
    assert falling == sorted(falling, reverse=True)
    find(f"{column} button").send_keys(keys.ENTER)
    assert find(column).get_attribute("aria-sort") == "ascending"
    assert driver.execute_script(values) == falling[::-1]

    # A picture.
    is_open = "return document.getElementById('viewer').open"
    picture = "return document.querySelector('#viewer img').alt"
    click("#cases .gallery figure:nth-child(3) .thumb")
    assert driver.execute_script(is_open)
    first = driver.execute_script(picture)
    assert "binary_cross_entropy" in first
    driver.switch_to.active_element.send_keys(keys.ARROW_RIGHT)
    assert driver.execute_script(picture) != first
    driver.switch_to.active_element.send_keys(keys.ESCAPE)
    assert not driver.execute_script(is_open)
    thumb = find("#gradients .thumb")
    thumb.send_keys(keys.ENTER)
    assert driver.execute_script(is_open)
    driver.switch_to.active_element.send_keys(keys.ESCAPE)
    assert not driver.execute_script(is_open)

    # The commands.
    click("[data-copy]")
    driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert find("[data-copy]").text in ("Copied", "Selected")
    assert driver.get_log("browser") == []


def test_page_prints_in_light_colours(driver: Any, reports: dict[str, Path]) -> None:
    sized(driver, 1200)
    opened(driver, reports["binary"])
    dark = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    buttons = driver.execute_script(
        "return [...document.querySelectorAll('#theme, [data-copy], .switch')]"
        ".filter(b => b.offsetParent).length"
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert paper == "rgb(255, 255, 255)"
    assert buttons == 0
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF")
    assert len(content) > 50_000
    assert driver.get_log("browser") == []


def test_results_of_the_example_are_results() -> None:
    for make in MADE.values():
        assert isinstance(make(), Results)
