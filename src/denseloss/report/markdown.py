"""The report as Markdown, to be read in a terminal as well."""

import re
from collections.abc import Iterable, Iterator

from denseloss.report.sections import (
    Cell,
    Chip,
    Item,
    Report,
    Row,
    Section,
    Table,
    letter,
    with_code,
)

_NAME = 28
_SPECIAL = re.compile(r"([\\*<>|\[\]]|(?<!\w)_|_(?!\w)|&(?=[#\w]+;))")


def markdown_text(report: Report) -> str:
    """The answer, and the numbers of the sections that are not for the page only."""
    blocks = [
        f"# {_text(report.title)}",
        f"{_text(report.subtitle)} · denseloss compare",
        "## Answer",
        " ".join(map(_text, report.answer)),
        _list(_chip(report, chip) for chip in report.chips),
    ]
    if report.next:
        blocks.append(f"Next: {_text(report.next)}")
    if report.command:
        blocks.append(_fenced((report.command,), "sh"))
    if report.warnings:
        blocks += ["### What weakens this", _list(map(_text, report.warnings))]
    for section in report.sections:
        blocks += _section(report, section, "##")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _chip(report: Report, chip: Chip) -> str:
    return f"{letter(chip.loss)}  {_code(report.losses[chip.loss])}: {_text(chip.words)}"


def _section(report: Report, section: Section, mark: str) -> Iterator[str]:
    if section.page_only:
        return
    told = (section.code, section.tables, section.items, section.parts)
    if (section.figures or section.galleries) and not any(told):
        return
    yield f"{mark} {_text(section.name or section.title)}"
    yield from map(_text, section.text)
    if section.code:
        yield _fenced(section.code, section.language)
    for table in section.tables:
        caption = "" if table.caption == section.title else f"{_text(table.caption)}:"
        yield from (caption, _grid(table), *map(_text, table.notes))
    yield _list(_item(report, item) for item in section.items)
    choices = [part for part in section.parts if part.choice is not None]
    for part in section.parts:
        if part not in choices[1:]:
            yield from _section(report, part, f"{mark}#")


def _fenced(code: tuple[str, ...], language: str) -> str:
    text = "\n".join(code)
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _item(report: Report, item: Item) -> str:
    if not item.named or item.loss is None:
        head = _text(item.head) if item.loss is None else letter(item.loss)
        return f"{head}: {_text(item.text)}" if head else _text(item.text)
    about = " · ".join(filter(None, [item.text, *item.notes]))
    name = f"{letter(item.loss)}  {_code(report.losses[item.loss])}"
    return f"{name}: {_text(about)}" if about else name


def _grid(table: Table) -> str:
    """A table whose columns also stand below each other where Markdown is not rendered."""
    lines = [[_text(name) for name in (table.corner, *table.columns)]]
    lines += [[_head(row), *(_text(_cell(cell)) for cell in row.cells)] for row in table.rows]
    columns = []
    for i, column in enumerate(zip(*lines, strict=True)):
        width, left = max(3, *map(len, column)), i == 0 or table.prose
        name, *cells = [text.ljust(width) if left else text.rjust(width) for text in column]
        columns.append([name, "-" * width if left else f"{'-' * (width - 1)}:", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _head(row: Row) -> str:
    """A loss is cut: its letter says which one it is, and lines must stay short."""
    if row.loss is None:
        return _text(row.head)
    name = row.head if len(row.head) <= _NAME else f"{row.head[: _NAME - 1]}…"
    return f"{letter(row.loss)} {_code(name)}"


def _cell(cell: Cell) -> str:
    marks = ", ".join(filter(None, ["best" if cell.best else "", cell.verdict]))
    inside = f"({cell.interval})" if cell.interval else ""
    return " ".join(filter(None, [cell.text, inside, marks]))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _text(text: str) -> str:
    """Prose whose letters mean nothing to Markdown, except for what is set as code."""
    parts = with_code(" ".join(text.split()))
    return "".join(
        _code(part) if code else _SPECIAL.sub(r"\\\1", part).replace("`", "\\`")
        for code, part in parts
    )


def _code(text: str) -> str:
    # A bar ends the cell of a table even within code, unless it is escaped.
    text = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + _longest_run(text))
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
