"""The page: one HTML file that needs nothing else."""

import base64
import io
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from denseloss.report.drawing import glyph
from denseloss.report.sections import Gallery, Picture, Report, letter, with_code

MOST_BYTES = 3_000_000
"""No page is larger."""

_SIDES, _QUALITY = (320, 240), 75


def html_page(report: Report) -> str:
    """The report as HTML.

    Raises:
        ValueError: It would be larger than 3 MB even without pictures.
    """
    galleries = [gallery for section in report.sections for gallery in section.galleries]
    pictures = [picture for gallery in galleries for picture in _pictures(gallery)]
    bare = len(_render(report, galleries, {id(p): "" for p in pictures}).encode())
    for side in _SIDES:
        uris = {id(p): data_uri(p.pixels, side=side) for p in pictures}
        if bare + sum(map(len, uris.values())) < MOST_BYTES:
            break
    kept, size = [], bare
    # The first gallery of each section, then the second of each, as far as there is room.
    for round_ in itertools.zip_longest(*(section.galleries for section in report.sections)):
        for gallery in filter(None, round_):
            size += sum(len(uris[id(p)]) for p in _pictures(gallery))
            if size < MOST_BYTES:
                kept.append(gallery)
    text = _render(report, kept, uris)
    if (length := len(text.encode())) >= MOST_BYTES:
        raise ValueError(f"the report would be {length:,} bytes; compare fewer losses at once")
    return text


def _pictures(gallery: Gallery) -> list[Picture]:
    return [picture for _, row in gallery.rows for picture in row]


def _render(report: Report, kept: list[Gallery], uris: Mapping[int, str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"words": _marked, "breakable": _breakable, "lines": _lines}
    places = set(map(id, kept))
    text = environment.get_template("page.html.jinja").render(
        report=report,
        sections=[(s.anchor or f"section-{i}", s) for i, s in enumerate(report.sections)],
        glyphs=[Markup(glyph(i)) for i in range(len(report.losses))],
        letter=letter,
        shown=lambda section: [one for one in section.galleries if id(one) in places],
        uri=lambda picture: uris[id(picture)],
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _marked(text: str) -> Markup:
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if code else escape(part)
        for code, part in with_code(text)
    )


def _breakable(expression: str) -> Markup:
    """An expression that may go on in the next line behind a mark, not within a word."""
    pieces = re.split(r"(?<=[_(,+*/])", expression)
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def _lines(code: tuple[str, ...]) -> Markup:
    """Code whose empty lines stay: those of the page itself do not."""
    text = "\n".join(code)
    return Markup("\n").join(escape(line) or Markup("&#32;") for line in text.splitlines())


def data_uri(picture: NDArray[np.uint8], *, side: int) -> str:
    """A picture, uint8[h, w, 3], as a data URI; its longer side is made `side` pixels at most."""
    image, stream = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    # Without subsampling: thin coloured outlines must keep their colour.
    image.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
