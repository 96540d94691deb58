"""The page: one HTML file that needs nothing else."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from denseloss.compare.report import figures
from denseloss.compare.report.sections import Gallery, Picture, Report, Section, letter

MOST_BYTES = 3_000_000
"""No page is larger."""

_ROOM = 60_000
_MOST_PER_PICTURE = 26_000
_LADDER = ((320, 88), (300, 82), (280, 76), (256, 72), (224, 68), (192, 62), (160, 55), (128, 45))


def html_page(report: Report) -> str:
    """The report as HTML.

    Raises:
        ValueError: It would be larger than 3 MB even without pictures.
    """
    everything = [g for section in report.sections for g in section.galleries]
    size = len(_render(report, everything, lambda _: "").encode())
    pictures = [p for gallery in everything for p in _pictures(gallery)]
    # Three bytes are four letters of a data URI.
    share = int(0.74 * (MOST_BYTES - _ROOM - size) / max(1, len(pictures)))
    limit = max(1, min(_MOST_PER_PICTURE, share))
    uris = {id(p): data_uri(p.pixels, limit=limit) for p in pictures}
    kept = []
    # The first gallery of each section, then the second of each, as far as there is room.
    firsts = [pair for s in report.sections for pair in enumerate(s.galleries)]
    for _, gallery in sorted(firsts, key=lambda pair: pair[0]):
        size += sum(len(uris[id(p)]) for p in _pictures(gallery))
        if size < MOST_BYTES:
            kept.append(gallery)
    text = _render(report, kept, lambda p: uris[id(p)])
    if len(text.encode()) >= MOST_BYTES:
        raise ValueError(
            f"the report would be {len(text.encode()):,} bytes; compare fewer losses at once"
        )
    return text


def _pictures(gallery: Gallery) -> list[Picture]:
    return [picture for _, row in gallery.rows for picture in row]


def _render(report: Report, kept: list[Gallery], uri: Callable[[Picture], str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=False,
    )
    environment.filters["words"] = _marked
    environment.filters["breakable"] = _breakable
    places = {id(gallery) for gallery in kept}

    def shown(section: Section) -> list[Gallery]:
        return [gallery for gallery in section.galleries if id(gallery) in places]

    text = environment.get_template("page.html.jinja").render(
        report=report,
        sections=[(s.anchor or f"section-{i}", s) for i, s in enumerate(report.sections)],
        glyphs=[Markup(figures.glyph(i)) for i in range(len(report.losses))],
        letter=letter,
        shown=shown,
        uri=uri,
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _marked(text: str) -> Markup:
    """A sentence in which what stands between backticks is set as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def _breakable(expression: str) -> Markup:
    """An expression that may go on in the next line behind a mark, not within a word."""
    pieces = re.split(r"(?<=[_(,+*/])", expression)
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def data_uri(picture: NDArray[np.uint8], *, limit: int) -> str:
    """A picture as a data URI of at most about `limit` bytes, made smaller and coarser if needed.

    Args:
        picture: uint8[h, w, 3].
        limit: In bytes of the encoded picture; the smallest version is taken if none fits.
    """
    image, content = Image.fromarray(picture), b""
    for side, quality in _LADDER:
        smaller = image.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        # Without subsampling: thin coloured outlines must keep their colour. Not
        # optimised: Pillow's buffer is too small for that where an image is all noise: it fails.
        smaller.save(stream, "JPEG", quality=quality, subsampling=0)
        content = stream.getvalue()
        if len(content) <= limit:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
