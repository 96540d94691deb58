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
from denseloss.compare.results import Results
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
    answer = results.answer
    following = () if answer.next is None else (answer.next.words,)
    standings = [loss.standing.words for loss in results.losses if loss.comparisons]
    for sentence in (*answer.words, *following, *answer.trades, *standings, *results.warnings):
        assert sentence.replace("`", "") in text
    if answer.next is not None:
        assert answer.next.command in found.text
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


def test_order_is_answer_warnings_then_evidence(pages: dict[str, str]) -> None:
    results = example.binary_results()
    order = [
        '<p class="sum">Take <code>binary_cross_entropy + binary_dice</code>',
        "practically equal",
        "6 more seeds of B and C",
        "--seeds 11",
        "Dice: how far from B.",
        "1 planned trial is not finished yet",
        results.warnings[2],
        'id="trades"',
        'id="scores"',
        'id="all"',
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
    order = ['id="scores"', 'id="learning"', 'id="parts"', 'id="sizes"', 'id="cost"', 'id="how"']
    places = [pages["large"].index(words) for words in order]
    assert places == sorted(places)


def first_screen(html: str) -> str:
    """What stands before the warnings."""
    return html[html.index("<h1>") : html.index('<nav class="contents"')].split("What weakens")[0]


def test_first_screen_says_what_to_take_where_all_stand_and_what_is_next(
    pages: dict[str, str],
) -> None:
    shown = first_screen(pages["binary"])
    chips = re.findall(r'<li class="chip (\w+)">(.*?)</li>', shown)
    told = [(tone, " ".join(Page(words).text.split())) for tone, words in chips]
    name = "binary_dice(beta=2, smooth=1) + 0.5*binary_focal(gamma=2)"
    assert [(tone, words.replace(name, "")) for tone, words in told] == [
        ("take", "Bbinary_cross_entropy + binary_dicetake this"),
        ("equal", "Fstructurepractically equal"),
        ("open", "Copen: 6 more seeds would tell"),
        (
            "open",
            "Ebinary_tversky(alpha=0.3, beta=0.7)may be best, not better by more than 0.005",
        ),
        ("out", "Abinary_cross_entropyruled out, worse by at least 0.010"),
        ("out", "Dbinary_focal(gamma=2)ruled out, worse by at least 0.028"),
    ]
    assert shown.count("data-copy") == 1
    assert shown.count('class="figure"') == 1
    assert "a difference of 0.011 Dice (probability 80 %)" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"standing": "ruled out", "worse_by": 0.0004}, "ruled out"),
        ({"standing": "ruled out", "worse_by": 0.0006}, "ruled out, worse by at least 0.001"),
        ({"standing": "open", "more_seeds": None}, "open"),
        ({"standing": "open", "more_seeds": 1}, "open: 1 more seed would tell"),
    ],
)
def test_a_chip_says_no_more_than_is_known(changes: dict[str, Any], words: str) -> None:
    results = example.binary_results()
    loss = results.losses[0]
    changed = dataclasses.replace(loss, standing=dataclasses.replace(loss.standing, **changes))
    assert tables.chip(results, changed)[1] == words
    assert tables.chip(results, dataclasses.replace(changed, seeds=())) == (
        "open",
        "no finished trial",
    )


def test_a_distance_is_told_with_its_unit_and_the_shortest_is_the_best() -> None:
    results = example.binary_results()
    far = next(metric for metric in results.metrics if metric.key == "hd95")
    others = tuple(metric for metric in results.metrics if metric != far)
    results = dataclasses.replace(results, metrics=(far, *others), pooling="image", effect=0.5)
    report = contents(results, ())
    words = {chip.loss: chip.words for chip in report.chips}
    assert words[4] == "may be best, not better by more than 0.5 px"
    assert words[0] == "ruled out, worse by at least 0.01 px"
    # In pixels D is further off than A, so it comes last.
    assert [chip.loss for chip in report.chips][-2:] == [0, 3]
    assert "difference of 0.01 px (probability 80 %)" in report.subtitle
    assert report.figure is not None
    said = re.search(r'aria-label="([^"]*)"', report.figure.svg)
    assert said is not None
    order = [
        loss.loss
        for loss in sorted(results.losses, key=lambda loss: loss.scores["hd95", "image"].value)
    ]
    places = [
        said[1].index(f"{loss} {value}")
        for loss, value in zip(order, ("take", "+0", "+0", "+0", "+2", "+4"), strict=True)
    ]
    assert places == sorted(places)


def test_first_figure_has_the_best_first_and_a_ring_per_seed() -> None:
    results = example.binary_results()
    drawn = figures.standings(results)
    assert drawn is not None
    said = re.search(r'aria-label="([^"]*)"', drawn)
    assert said is not None
    told = re.sub("\u2002", " ", said[1].partition(": ")[2]).split("; ")
    assert told == [
        "binary_cross_entropy + binary_dice take this",
        "structure −0.001 equal",
        "binary_dice(beta=2, smooth=1) + 0.5*binary_focal(gamma=2) −0.007 open",
        "binary_tversky(alpha=0.3, beta=0.7) −0.008 not better",
        "binary_cross_entropy −0.021 ruled out",
        "binary_focal(gamma=2) −0.039 ruled out",
    ]

    few = figures.standings(example.two_seeds())
    assert few is not None
    # 5 losses with 5 seeds each, or with 2.
    assert drawn.count("<use ") - few.count("<use ") == 5 * 3


def test_a_very_wide_interval_ends_in_arrows_and_leaves_room_for_the_others() -> None:
    results = example.binary_results()
    loss, key = results.losses[2], (results.metrics[0].key, "image")

    def with_half(half: float) -> str:
        far = dataclasses.replace(loss.comparisons[key], difference=example.estimate(-0.007, half))
        other = dataclasses.replace(loss, comparisons={**loss.comparisons, key: far})
        losses = (*results.losses[:2], other, *results.losses[3:])
        drawn = figures.standings(dataclasses.replace(results, losses=losses))
        assert drawn is not None
        return drawn

    def ticks(drawn: str) -> list[float]:
        found = re.findall(r"<text [^>]*>([−\d.]+)</text>", drawn)
        return [float(tick.replace("−", "-")) for tick in found]

    usual, wide, wider = (with_half(half) for half in (0.012, 5.0, math.inf))
    assert max(map(abs, ticks(usual))) < 0.05
    assert max(map(abs, ticks(wide))) < 0.1
    assert ticks(wide) == ticks(wider)
    # An arrow at each end.
    for drawn in (wide, wider):
        assert drawn.count("<use ") - usual.count("<use ") == 2


ODD = {
    "two seeds": example.two_seeds,
    "one loss": example.lone_loss,
    "one left": example.one_left,
    "nothing": example.nothing_finished,
}


@pytest.mark.parametrize("name", ODD)
def test_every_end_of_a_comparison_has_its_first_screen(name: str, tmp_path: Path) -> None:
    results = ODD[name]()
    html = write_report(results, (), tmp_path).read_text(encoding="utf-8")
    found, shown = Page(html), first_screen(html)
    text = " ".join(found.text.split())
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for sentence in results.answer.words:
        assert sentence.replace("`", "") in text
        assert sentence in markdown
    assert shown.count('class="chip ') == len(results.losses)
    finished = name != "nothing"
    assert shown.count('<span class="tag">take this</span>') == finished
    assert shown.count('class="figure"') == finished
    assert ("data-copy" in shown) == (name == "two seeds")
    assert ('class="next"' in shown) == (name == "two seeds")
    # Where no risk can be given, no column of dashes says so.
    assert ("Probability to be within" in text) == (name == "one left")
    assert ("Difference from" in text) == (name in ("two seeds", "one left"))
    assert ('id="rates"' in html) == (name in ("two seeds", "one loss"))
    assert "nan" not in re.sub("became nan", "", text.lower())
    assert "nan" not in markdown.lower().replace("became nan", "")


def test_learning_rates_are_said_to_be_of_the_seeds_that_tried_them() -> None:
    results = example.binary_results()
    for seeds, told in ((0, ""), (1, ", seed 0 alone"), (3, ", mean over seeds 0 to 2")):
        table = tables.rates(dataclasses.replace(results, rate_seeds=seeds))
        assert table is not None
        assert table.caption == f"Validation Dice by learning rate{told}"


@names
def test_words_of_the_old_verdict_are_gone(name: str, reports: dict[str, Path]) -> None:
    found = Page(reports[name].read_text(encoding="utf-8"))
    labels = [svg.get("aria-label", "") for svg in found.all("svg")]
    markdown = reports[name].with_name("report.md").read_text(encoding="utf-8")
    for said in (found.text, *labels, markdown):
        for word in ("undecided", "baseline", "detectable", "permutation", "holm", "effect size"):
            assert word not in said.lower()


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


def test_better_and_worse_stand_only_where_that_is_clear(pages: dict[str, str]) -> None:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", pages["binary"])
    tagged = {}
    for letter_of in "ABCDEF":
        own = [row for row in rows if f">{letter_of}</span>" in row]
        assert len(own) > 10
        tagged[letter_of] = {
            word for row in own for word in re.findall('class="tag (better|worse)"', row)
        }
    clear: set[str] = {"worse"}
    assert tagged == {"A": clear, "B": set(), "C": set(), "D": clear, "E": set(), "F": set()}


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
    [
        (0.5, "50 %"),
        (0.954, "95 %"),
        (0.003, "< 1 %"),
        (0.997, "> 99 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
    ],
)
def test_chances_are_whole_percents(p: float, text: str) -> None:
    assert numbers.chance(p) == text
    assert numbers.chance(math.nan) == numbers.NOTHING


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


def test_risk_stands_beside_the_score_that_the_answer_rests_on_and_nowhere_else() -> None:
    results = example.binary_results()
    dice, iou = results.metrics[:2]
    main = tables.comparison(results, dice, "image")
    risk = (
        "Probability to be within 0.005 of the best",
        "Expected loss of score",
        "More seeds to tell",
    )
    assert main.columns == ("Dice", "Difference from B", "Standing", *risk)
    assert [cell.text for cell in main.rows[2].cells[2:]] == ["open", "31 %", "0.008", "6"]
    assert [cell.text for cell in main.rows[1].cells[1:3]] == [numbers.NOTHING, "take this"]
    for metric, pooling in ((dice, "pooled"), (iou, "image")):
        other = tables.comparison(results, metric, pooling)
        assert other.columns == (metric.name, "Difference from B", "Verdict")
        said = [cell.verdict or cell.text for cell in (row.cells[2] for row in other.rows)]
        clear = numbers.NOTHING
        assert said == ["worse", clear, "not clear", "worse", "not clear", "not clear"]


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


def said_of(results: Results, held_out: int = 67) -> dict[str, str]:
    counted = dataclasses.replace(results, counts={**results.counts, "held out": held_out})
    return {item.head: item.text for item in text.method(counted)}


def test_intervals_are_said_to_be_of_what_they_are_of() -> None:
    many, one = example.binary_results(), example.multiclass_results()
    whole = "what another training, scored on other images of the same kind, would give"
    assert whole in said_of(many)["Intervals"]
    assert "single finished seed" not in said_of(many)["Intervals"]
    lone = dataclasses.replace(many.losses[1], seeds=(0,))
    mixed = dataclasses.replace(many, losses=(many.losses[0], lone))
    assert "a single finished seed are over the images alone" in said_of(mixed)["Intervals"]
    for results, images, words_of_it in (
        (one, 4, "say nothing about another training"),
        (many, 1, "say nothing about other images"),
        (one, 1, "there are no confidence intervals"),
    ):
        assert whole not in said_of(results, images)["Intervals"]
        assert words_of_it in said_of(results, images)["Intervals"]


def test_method_says_only_what_was_done() -> None:
    many = said_of(example.binary_results())
    assert (
        "95 % confidence, for all losses at once (Hsu 1984)" in many["Which loss may be the best"]
    )
    assert "smaller than 0.005" in many["Practically equal"]
    assert "within 0.005 of the best" in many["The recommendation"]
    assert "With 2 seeds no risk" in said_of(example.two_seeds())["The recommendation"]
    for results, images, why in (
        (example.multiclass_results(), 4, "With one seed no loss can be ruled out"),
        (example.binary_results(), 1, "With one held-out image no loss can be ruled out"),
    ):
        found = said_of(results, images)
        assert why in found["Which loss may be the best"]
        assert "The recommendation" not in found
    assert "Which loss may be the best" not in said_of(example.lone_loss())


def test_counts_of_the_subtitle_are_those_of_the_losses() -> None:
    results = example.binary_results()
    fewer = dataclasses.replace(results.losses[3], seeds=(0, 1, 2))
    none = dataclasses.replace(results.losses[4], seeds=())
    mixed = dataclasses.replace(results, losses=(*results.losses[:3], fewer, none))
    assert text.subtitle(mixed).startswith("5 losses, 3 to 5 seeds each, 67 held-out images: ")
    assert text.subtitle(example.lone_loss()) == "1 loss, 5 seeds, 67 held-out images"


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
    nothing = example.nothing_finished()
    found = example.evidence(nothing, tmp_path, example.MULTICLASS_NAMES, count=1)
    html = write_report(nothing, example.shown(nothing, found), tmp_path).read_text(
        encoding="utf-8"
    )
    Page(html)
    assert "No trial has finished" in html
    assert "No trial has finished" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_markdown_of_three_losses_is_short(tmp_path: Path) -> None:
    full = example.binary_results()
    kept = tuple(dataclasses.replace(loss, failures=()) for loss in full.losses[:3])
    results = dataclasses.replace(full, losses=kept)
    found = example.evidence(results, tmp_path, example.BINARY_NAMES, count=2, size=40)
    write_report(results, example.shown(results, found), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert 60 <= len(text.splitlines()) <= 92
    titles = re.findall("^#+ (.*)$", text, re.MULTILINE)
    assert titles == [
        "Which loss suits dsb2018_nuclei?",
        "Answer",
        "What weakens this",
        "What each loss buys",
        "Scores",
        "Dice, per image",
        "All metrics",
        "Cost",
        "How it was measured",
        "The data",
        "To repeat it",
    ]


@names
def test_markdown_says_the_same(name: str, reports: dict[str, Path]) -> None:
    results = MADE[name]()
    text = reports[name].with_name("report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# Which loss suits ")
    assert (
        lines.index("## Answer") < lines.index("### What weakens this") < lines.index("## Scores")
    )
    assert results.answer.next is not None
    assert f"Next: {results.answer.next.words}" in lines
    assert not results.answer.next.command or results.answer.next.command in lines
    for loss in results.losses:
        assert loss.loss.replace("|", "\\|") in text
    for command in results.commands:
        assert command in lines
    for metric in results.metrics:
        assert metric.name in text
    chips = [line for line in lines if re.match(r"- [A-Z]  `", line)][: len(results.losses)]
    assert chips[0].endswith(": take this")
    assert len(chips) == len(results.losses)
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

    # On a desk, all of the answer is on the first screen; on a phone, all but the figure.
    ends = driver.execute_script(
        "return ['.sum', '.chips', '.next', '.answer .command', '.first figure'].map("
        "q => document.querySelector(q).getBoundingClientRect().bottom)"
    )
    assert max(ends if width > 600 else ends[:-1]) <= 800

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
