"""What a report is made of: plain values that the page and the Markdown both loop over.

A section is a title and what it holds. Both writers set it in the order of its fields, and know
nothing else about it. So a new section is a new value: no writer changes. A loss is told by its
index everywhere; the writers add its letter, its marker and its name.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tone = Literal["take", "equal", "open", "out"]
"""How good news of a loss is: what is said of it is coloured so."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value.

    Attributes:
        text: As it is read.
        interval: Its confidence interval, empty where there is none.
        order: What it is sorted by; NaN comes last.
        best: Whether no other value of its column is better.
        verdict: `"better"` or `"worse"` where that is clear, else empty.
        tone: Of the text.
        share: Of the column's highest value, for a bar; None for no bar.
    """

    text: str
    interval: str = ""
    order: float = math.nan
    best: bool = False
    verdict: str = ""
    tone: Tone | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: its name or the loss whose line it is, and a cell per column."""

    head: str
    cells: tuple[Cell, ...]
    loss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a name per column and per row.

    Attributes:
        caption: What it shows.
        corner: What the rows are.
        columns: Names of the columns. The page sorts by them, except for prose.
        rows: Its lines.
        notes: How it is read.
        prose: Whether the cells are words, which are set to the left and wrapped.
    """

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    prose: bool = False


@dataclass(frozen=True, kw_only=True)
class Item:
    """A line of a list or of a legend.

    Attributes:
        text: Of the line; what stands between backticks is code.
        head: A term that the text explains.
        loss: The loss it is about.
        named: Whether the loss is told by its name, too, not by its letter alone.
        notes: What is said below, in smaller letters.
        swatch: CSS of a small field of colour before it.
    """

    text: str = ""
    head: str = ""
    loss: int | None = None
    named: bool = False
    notes: tuple[str, ...] = ()
    swatch: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A diagram: an `<svg>` element (see `drawing.svg`) with its caption.

    Attributes:
        svg: The element.
        title: First words of the caption.
        caption: The others.
        loss: The loss that a small diagram is of; a section's diagrams are small, or none is.
    """

    svg: str
    title: str = ""
    caption: str = ""
    loss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image: uint8[h, w, 3], with what it shows in words, a caption and the loss it is of."""

    pixels: NDArray[np.uint8]
    alt: str
    caption: str
    loss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The colour bar of a map: colours in CSS and texts, both from the lowest to the highest."""

    name: str
    ramp: str
    ticks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures that belong together: rows with a name each, and how their colours are read."""

    name: str
    about: str = ""
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    scales: tuple[Scale, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The metric and the pooling that a part is of: the page shows one of such parts at a time."""

    metric: str
    metric_name: str
    pooling: str
    pooling_name: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        title: Of the section.
        name: The title in short, for the contents and the Markdown; empty where they are equal.
        anchor: Its id on the page; one is made up if it is empty.
        text: Paragraphs.
        hint: What a reader of the page can do there; on paper it is not said.
        code: Commands to be copied, or code of another language.
        language: Of the code.
        about_figures: How the figures are read; said only where they are shown.
        figures: Diagrams.
        legend: Of the figures and galleries; said only where they are shown.
        tables: Tables.
        items: A list.
        galleries: Pictures, the most important ones first: a page has room for so many.
        parts: Sections within this one; these have no parts of their own.
        choice: For a part that is one of several choices; the Markdown has the first one only.
        page_only: Whether the Markdown leaves it out, as it is short.
    """

    title: str
    name: str = ""
    anchor: str = ""
    text: tuple[str, ...] = ()
    hint: str = ""
    code: tuple[str, ...] = ()
    language: str = "sh"
    about_figures: str = ""
    figures: tuple[Figure, ...] = ()
    legend: tuple[Item, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[Item, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    parts: tuple["Section", ...] = ()
    choice: Choice | None = None
    page_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Where a loss stands, in a few words such as `ruled out`."""

    loss: int
    words: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report. What comes before the sections fits on the first screen.

    Attributes:
        title: What it is about.
        subtitle: How much was compared.
        losses: Their names.
        take: The loss that is recommended, which is marked wherever it is named; None for none.
        answer: What to take in one sentence, then the others.
        chips: Every loss, the best ones first.
        next: What would tell more and what it costs; empty where nothing would.
        command: That does it; empty where no command does.
        figure: That shows why.
        warnings: What weakens the answer.
        sections: Everything else.
    """

    title: str
    subtitle: str
    losses: tuple[str, ...]
    take: int | None
    answer: tuple[str, ...]
    chips: tuple[Chip, ...]
    next: str = ""
    command: str = ""
    figure: Figure | None = None
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def drawn(svg: str | None, title: str = "", caption: str = "") -> tuple[Figure, ...]:
    """A diagram with its caption, none where there was nothing to draw."""
    return () if svg is None else (Figure(svg=svg, title=title, caption=caption),)


def letter(index: int) -> str:
    """The short name of the loss with an index: A to Z, then AA, AB and so on."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def with_code(text: str) -> list[tuple[bool, str]]:
    """A sentence in pieces, and whether each is code: what stands between backticks is."""
    parts = text.split("`")
    # Where one backtick is alone, all are letters.
    return [(i % 2 == 1, part) for i, part in enumerate(parts if len(parts) % 2 else [text])]
