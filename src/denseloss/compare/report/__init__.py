"""The report of a comparison: one page that needs nothing else, and the same facts as Markdown."""

from collections.abc import Iterable
from pathlib import Path

from denseloss.compare.report.contents import contents
from denseloss.compare.report.markdown import markdown_text
from denseloss.compare.report.page import html_page
from denseloss.compare.report.sections import Section
from denseloss.compare.results import Results
from denseloss.train.folder import write_whole

__all__ = ["write_report"]


def write_report(results: Results, sections: Iterable[Section], folder: Path) -> Path:
    """Write `report.html` and `report.md` into a folder, which is made if need be.

    The same results give the same bytes. Each file is seen whole or not at all.

    Args:
        results: Of the comparison.
        sections: What its task shows besides the scores.
        folder: Where the files go.

    Returns:
        The path of `report.html`.

    Raises:
        OSError: The folder or a file cannot be written.
        ValueError: The page would be larger than 3 MB even without pictures.
    """
    report = contents(results, sections)
    html, text = html_page(report), markdown_text(report)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_whole(folder / "report.md", text)
    write_whole(path, html)
    return path
