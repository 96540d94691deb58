"""The report as Markdown, to be read in a terminal as well."""

import re
from collections.abc import Iterable, Iterator

from denseloss.report.sections import Cell, Item, Report, Row, Section, Table, letter, with_code

_NAME = 28
_SPECIAL = re.compile(r"([\\*<>|\[\]]|(?<!\w)_|_(?!\w)|&(?=[#\w]+;))")


def markdown_text(report: Report) -> str:
    """The verdict and what can be told of every section without figures and pictures."""
    blocks = [
        f"# {_text(report.title)}",
        f"{_text(report.subtitle)} · denseloss compare",
        "## Verdict",
        *map(_text, report.verdict[:1]),
        _list(map(_text, report.verdict[1:])),
    ]
    if report.warnings:
        blocks += ["### What weakens this", _list(map(_text, report.warnings))]
    for section in report.sections:
        blocks += _section(report, section, "##")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(report: Report, section: Section, mark: str) -> Iterator[str]:
    told = (section.code, section.tables, section.instead, section.items, section.parts)
    if (section.figures or section.galleries) and not any(told):
        return
    yield f"{mark} {_text(section.name or section.title)}"
    yield from map(_text, section.text)
    if section.code:
        text = "\n".join(section.code)
        fence = "`" * max(3, 1 + _longest_run(text))
        yield f"{fence}{section.language}\n{text}\n{fence}"
    for table in (*section.tables, *section.instead):
        yield from (f"{_text(table.caption)}:", _grid(table), *map(_text, table.notes))
    yield _list(_item(report, item) for item in section.items)
    for part in section.parts:
        yield from _section(report, part, f"{mark}#")


def _item(report: Report, item: Item) -> str:
    if not item.named or item.loss is None:
        head = _text(item.head) if item.loss is None else letter(item.loss)
        return f"{head}: {_text(item.text)}" if head else _text(item.text)
    baseline = "baseline" if item.loss == 0 else ""
    about = "; ".join(filter(None, [baseline, item.text, *item.notes]))
    name = f"{letter(item.loss)}  {_code(report.losses[item.loss])}"
    return f"{name} ({_text(about)})" if about else name


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
