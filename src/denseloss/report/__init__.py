"""Reports: sections of plain values, written as one page and as Markdown."""

from pathlib import Path

from denseloss.data.files import write_whole
from denseloss.report.markdown import markdown_text
from denseloss.report.page import html_page
from denseloss.report.sections import Report

__all__ = ["write_report"]


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` and `report.md` into a folder, which is made if need be.

    The same report gives the same bytes. Each file is seen whole or not at all.

    Args:
        report: What it says.
        folder: Where the files go.

    Returns:
        The path of `report.html`.

    Raises:
        OSError: The folder or a file cannot be written.
        ValueError: The page would be larger than 3 MB even without pictures.
    """
    html, text = html_page(report), markdown_text(report)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_whole(folder / "report.md", text)
    write_whole(path, html)
    return path
