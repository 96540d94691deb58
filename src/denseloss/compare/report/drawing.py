"""From a matplotlib figure to SVG that lives inside a page: its font, its colours, its ids."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = 7
"""How many colours the losses have, the first for the baseline only."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"

# Matplotlib knows no CSS variables: these colours stand for them until the SVG is written.
INK, MUTED, RULE, SOFT, PAPER, ACCENT = (
    "#010201",
    "#010202",
    "#010203",
    "#010204",
    "#010205",
    "#010206",
)
_VARIABLES: Mapping[str, str] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    SOFT: "var(--soft)",
    PAPER: "var(--paper)",
    ACCENT: "var(--accent)",
    **{f"#02030{i}": f"var(--loss-{i})" for i in range(COLOURS)},
}

FONT = 13.0
SMALL = 12.0

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "denseloss",
    "svg.image_inline": True,
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["sans-serif"],
    "font.size": SMALL,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1.0,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.labelsize": SMALL,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "path.simplify": False,
}


def colour(index: int) -> str:
    """The colour of the loss with an index; the baseline's is no other's."""
    return f"#02030{0 if index == 0 else 1 + (index - 1) % (COLOURS - 1)}"


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
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        yield figure


def frame(
    figure: Figure, *, left: float, right: float, top: float, bottom: float, grid: str = "y"
) -> Axes:
    """Axes with margins in points and only the lines that are needed."""
    width, height = 72 * figure.get_size_inches()
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    if grid:
        axes.grid(visible=True, axis="x" if grid == "x" else "y")
    axes.patch.set_visible(False)
    return axes


def svg(figure: Figure, *, name: str, label: str) -> str:
    """A figure as an `<svg>` element.

    Args:
        figure: From `canvas`.
        name: Of the figure, put before every id, so that figures of a page do not share any.
        label: What it shows, for those who do not see it.
    """
    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    for styles in [d for d in root if d.tag == f"{{{_SVG}}}defs"]:
        # Its rules would hold for the whole page; page.css says them for figures only.
        for style in styles.findall(f"{{{_SVG}}}style"):
            styles.remove(style)
    _rename(root, name)
    _flatten(root)
    root.set("class", "figure")
    root.set("role", "img")
    root.set("aria-label", label)
    text = ElementTree.tostring(_local(root), encoding="unicode")
    text = _VARIABLE.sub(lambda found: _VARIABLES[found[0]], text)
    return text.replace("<svg ", f'<svg xmlns="{_SVG}" ', 1)


_VARIABLE = re.compile("|".join(_VARIABLES))
_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_POINTER = re.compile(r"url\(#([^)]+)\)")


def _rename(root: ElementTree.Element, name: str) -> None:
    used = set()
    for element in root.iter():
        if _LINK in element.attrib:
            target = element.attrib.pop(_LINK).removeprefix("#")
            used.add(target)
            element.set("href", f"#{name}-{target}")
        for key, value in element.attrib.items():
            used.update(_POINTER.findall(value))
            element.set(key, _POINTER.sub(rf"url(#{name}-\1)", value))
    for element in root.iter():
        mark = element.attrib.pop("id", None)
        if mark in used:
            element.set("id", f"{name}-{mark}")


def _flatten(root: ElementTree.Element) -> None:
    """Shorten numbers and styles, and drop groups and paths that draw nothing."""
    for element in root.iter():
        for key, value in element.attrib.items():
            short = _LONG.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
            if key == "style":
                short = _FAMILY.sub("", short).strip()
            element.set(key, re.sub(r"\s+", " ", short).strip())
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if element.tag != f"{{{_SVG}}}text":
            element.text = None
        element.tail = None
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}path" and child.get("style") == "fill: none":
                parent.remove(child)
    _unwrap(root)


def _unwrap(parent: ElementTree.Element) -> None:
    children = []
    for child in list(parent):
        _unwrap(child)
        empty = child.tag in (f"{{{_SVG}}}g", f"{{{_SVG}}}defs") and not len(child)
        if empty:
            continue
        if child.tag == f"{{{_SVG}}}g" and not child.attrib:
            children += list(child)
        else:
            children.append(child)
    parent[:] = children


def _local(root: ElementTree.Element) -> ElementTree.Element:
    """Names without their namespace, as HTML has them."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    return root
