"""Diagrams as SVG that lives inside a page: its font, its colours, a marker and a line per loss."""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from denseloss.report.numbers import Estimate
from denseloss.report.sections import Tone, letter

WIDTH, SMALL_WIDTH = 420.0, 240.0
"""Of a diagram in a column of its own, and of one of many small ones, in points."""
FONT = 13.0

# Matplotlib knows no CSS variables: these colours stand for them until the SVG is written.
INK, MUTED, RULE, SOFT, PAPER, ACCENT, WARN = (f"#01020{i}" for i in range(1, 8))
_COLOURS = 7
_NAMES = ("ink", "muted", "rule", "soft", "paper", "accent", "warn")
_TONES: dict[Tone | None, str] = {
    None: INK,
    "take": ACCENT,
    "equal": ACCENT,
    "out": WARN,
    "open": INK,
}
_VARIABLES = {
    **dict(zip((INK, MUTED, RULE, SOFT, PAPER, ACCENT, WARN), _NAMES, strict=True)),
    **{f"#02030{i}": f"loss-{i}" for i in range(_COLOURS)},
}
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "<", ">", "h", "d")
_SMALL, _LINE = 12.0, 16.0  # Points: of most letters, and from a line of text to the next.
_LETTERS_PER_LINE = 52
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["sans-serif"],
    "font.size": _SMALL,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelpad": 6.0,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1.0,
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in (
        ("color", RULE), ("labelcolor", MUTED), ("labelsize", _SMALL), ("major.size", 0.0),
        ("minor.size", 0.0), ("major.pad", 5.0),
    )},
    "axes.labelsize": _SMALL,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "path.simplify": False,
}  # fmt: skip


def colour(index: int) -> str:
    """The colour of the loss with an index."""
    return f"#02030{index % _COLOURS}"


def marker(index: int) -> str:
    """The marker of the loss with an index, so that colour is never alone."""
    return _MARKERS[index % len(_MARKERS)]


def dashes(index: int) -> str:
    """The line style of the loss with an index: another one for each round of colours."""
    return ("-", "--", ":", "-.")[index // _COLOURS % 4]


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in points, in the page's style.

    It has to be written (`svg`) inside of the context: matplotlib asks for the style only then.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg(figure: Figure, *, name: str, label: str) -> str:
    """A figure as an `<svg>` element.

    Args:
        figure: From `canvas`.
        name: Of the figure; its ids are made of it, so that figures of a page do not share any.
        label: What it shows, for those who do not see it.
    """
    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style would hold for the whole page; page.css says it for figures only.
            if child.tag == f"{_SVG}style" or child.get("style") == "fill: none":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.tail = None
        if element.tag != "text":
            element.text = None
        if element.tag == "g":
            element.attrib.pop("id", None)
        element.attrib.update({key: _short(value) for key, value in element.attrib.items()})
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
    root.attrib |= {"class": "figure", "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", text)
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _short(value: str) -> str:
    """An attribute with as many digits as can be seen, and without matplotlib's font."""
    value = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    value = re.sub(r"\s*font-family:[^;]*;?", "", value)
    return re.sub(r"\s+", " ", value).strip()


def glyph(index: int) -> str:
    """The marker of a loss alone, as a `<symbol>` that is used wherever the loss is named."""
    with canvas(14, 14) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.plot([0], [0], marker=marker(index), markersize=8.5, color=colour(index))
        drawn = svg(figure, name=f"marker-{index}", label="")
    inside = drawn[drawn.index(">") + 1 : drawn.rindex("<")]
    return f'<symbol id="glyph-{index}" viewBox="0 0 14 14">{inside}</symbol>'


@dataclass(frozen=True, kw_only=True)
class Line:
    """An estimate with its interval.

    Attributes:
        loss: The index of the loss it is of.
        estimate: None leaves the line empty.
        dots: Single values, drawn small below.
        hollow: Whether the marker is not filled.
    """

    loss: int
    estimate: Estimate | None
    dots: Sequence[float] = ()
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Lines below a title; several lines are told apart by the letters of their losses.

    Attributes:
        title: It is wrapped, and cut where it is very long.
        lines: From above.
        text: It stands at the right of the title.
        tone: Of the text.
    """

    title: str
    lines: Sequence[Line]
    text: str = ""
    tone: Tone | None = None


def forest(
    groups: Sequence[Group],
    *,
    label: str,
    name: str,
    says: str,
    behind: Callable[[Axes], None] | None = None,
    title_lines: int = 3,
    ends: tuple[float, float] | None = None,
) -> str:
    """Estimates below each other with their intervals, over one axis.

    Args:
        groups: From above.
        label: Of the axis.
        name: Of the figure, see `svg`.
        says: What it shows, for those who do not see it.
        behind: Draws what lies behind.
        title_lines: A title is cut where it is longer.
        ends: Of the axis; an interval that goes on ends in an arrow. None shows all.
    """
    wide = [max(20, _LETTERS_PER_LINE - len(group.text)) for group in groups]
    titles = [
        textwrap.wrap(group.title, width, max_lines=title_lines, placeholder="…")
        for group, width in zip(groups, wide, strict=True)
    ]
    lines = sum(map(len, titles)) + sum(len(group.lines) + 0.8 for group in groups)
    ticks: dict[float, str] = {}
    with canvas(WIDTH, _LINE * lines + 46) as figure:
        axes = figure.subplots()
        axes.set_ylim(lines, 0)
        axes.margins(x=0.06)
        if ends is not None:
            axes.set_xlim(*ends)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        if behind is not None:
            behind(axes)
        across, top = axes.get_yaxis_transform(), 0.0
        for group, title in zip(groups, titles, strict=True):
            several = len(group.lines) > 1
            weight = "bold" if several else "normal"
            # No line and no band runs through the words.
            axes.axhspan(top, top + len(title) + 0.1, color=PAPER, linewidth=0, zorder=1)
            for x, align, text, paint in (
                (0, "left", "\n".join(title), INK), (1, "right", group.text, _TONES[group.tone]),
            ):  # fmt: skip
                axes.text(
                    x, top + 0.1, text, ha=align, va="top", fontsize=FONT, transform=across,
                    fontweight=weight, in_layout=False, color=paint,
                )  # fmt: skip
            top += len(title) + 0.6
            for line in group.lines:
                _draw(axes, line, top, ends or (-math.inf, math.inf))
                ticks |= {top: letter(line.loss)} if several else {}
                top += 1
            top += 0.2
        axes.set_yticks(list(ticks), list(ticks.values()), fontsize=10.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        return svg(figure, name=name, label=says)


def _draw(axes: Axes, line: Line, y: float, ends: tuple[float, float]) -> None:
    paint, found = colour(line.loss), line.estimate
    axes.plot(
        line.dots, [y + 0.5] * len(line.dots), linestyle="none", marker="o", markersize=4,
        markerfacecolor="none", markeredgecolor=paint,
    )  # fmt: skip
    if found is not None:
        low, high = max(found.low, ends[0]), min(found.high, ends[1])
        axes.plot([low, high], [y, y], color=paint, linewidth=2.0)
        for end, whole, arrow in ((low, found.low, "<"), (high, found.high, ">")):
            if end != whole and not math.isnan(whole):
                axes.plot([end], [y], color=paint, marker=arrow, markersize=6, clip_on=False)
        axes.plot(
            [found.value], [y], color=paint, marker=marker(line.loss), markersize=7.5,
            markerfacecolor=PAPER if line.hollow else paint, markeredgewidth=1.6,
        )  # fmt: skip
