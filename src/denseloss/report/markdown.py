"""The report as Markdown, to be read in a terminal as well."""

import re
from collections.abc import Iterable, Iterator

from denseloss.report.sections import Cell, Item, Report, Section, Table, letter

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
        yield f"{fence}sh\n{text}\n{fence}"
    for table in (*section.tables, *section.instead):
        yield from (f"{_text(table.caption)}:", _grid(table), *map(_text, table.notes))
    yield _list(_item(report, item) for item in section.items)
    for part in section.parts:
        yield from _section(report, part, f"{mark}#")


def _item(report: Report, item: Item) -> str:
    if not item.named or item.loss is None:
        head = letter(item.loss) if item.loss is not None else _text(item.head)
        return f"{head}: {_text(item.text)}" if head else _text(item.text)
    baseline = "baseline" if item.loss == 0 else ""
    about = "; ".join(filter(None, [baseline, item.text, *item.notes]))
    name = f"{letter(item.loss)}  {_code(report.losses[item.loss])}"
    return f"{name} ({_text(about)})" if about else name


def _grid(table: Table) -> str:
    """A table whose columns also stand below each other where Markdown is not rendered."""
    lines = [(table.corner, *table.columns)]
    for row in table.rows:
        head = _text(row.head) if row.loss is None else _named(row.loss, row.head)
        lines.append((head, *(_text(_cell(cell)) for cell in row.cells)))
    lines[0] = tuple(_text(name) for name in lines[0])
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    left = [True, *(table.prose for _ in table.columns)]
    rule = [
        "-" * w if to_left else f"{'-' * (w - 1)}:" for w, to_left in zip(widths, left, strict=True)
    ]
    shown = [
        [
            text.ljust(w) if to_left else text.rjust(w)
            for text, w, to_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (shown[0], rule, *shown[1:]))


def _named(index: int, loss: str) -> str:
    """A loss within a table: cut, as its letter says which one it is and lines must stay short."""
    shown = loss if len(loss) <= _NAME else f"{loss[: _NAME - 1]}…"
    return f"{letter(index)} {_code(shown)}"


def _cell(cell: Cell) -> str:
    marks = ["best"] if cell.best else []
    if cell.verdict:
        marks.append(cell.verdict)
    inside = f"({cell.interval})" if cell.interval else ""
    return " ".join(filter(None, [cell.text, inside, ", ".join(marks)]))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _text(text: str) -> str:
    """Prose whose letters mean nothing to Markdown, except for what is set as code."""
    text = " ".join(text.split())
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _SPECIAL.sub(r"\\\1", text).replace("`", "\\`")
    return "".join(
        _code(part) if i % 2 else _SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts)
    )


def _code(text: str) -> str:
    # A bar ends the cell of a table even within code, unless it is escaped.
    text = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + _longest_run(text))
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
