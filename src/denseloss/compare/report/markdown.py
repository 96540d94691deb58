"""The report as Markdown, to be read in a terminal as well."""

import re
from collections.abc import Sequence

from denseloss.compare.report import tables, words
from denseloss.compare.report.tables import Cell, Table
from denseloss.compare.results import Results

_NAME = 28
_SPECIAL = re.compile(r"([\\*<>|\[\]]|(?<!\w)_|_(?!\w)|&(?=[#\w]+;))")


def markdown_text(results: Results) -> str:
    """The verdict, all tables and what it takes to repeat it."""
    blocks = [
        f"# {_text(words.title(results))}",
        f"{words.subtitle(results)} · denseloss compare",
        "## Verdict",
        *(_text(sentence) for sentence in results.verdict[:1]),
        _list(results.verdict[1:]),
        *_warnings(results),
        *_scores(results),
        *_tables(results),
        *_how(results),
        *_repeat(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _warnings(results: Results) -> list[str]:
    warnings = (words.unfinished(results), words.failed(results), *results.warnings)
    text = _list([warning for warning in warnings if warning])
    return ["### What weakens this", text] if text else []


def _scores(results: Results) -> list[str]:
    blocks = ["## The losses", _losses(results), "## Scores"]
    for metric, pooling in tables.measured(results):
        better = "Higher" if metric.higher_is_better else "Lower"
        blocks += [
            f"### {_text(metric.name)}, {tables.POOLING_WORDS[pooling]}",
            f"{better} is better. {tables.POOLING_WORDS[pooling].capitalize()}: "
            f"{tables.POOLING_MEANING[pooling]}. In brackets: {tables.level(results)} confidence "
            "intervals.",
            _grid(tables.comparison(results, metric, pooling)),
        ]
        key = (metric.key, pooling)
        blocks.append(
            _list(
                [
                    f"{tables.letter(i)}: {loss.comparisons[key].words}"
                    for i, loss in enumerate(results.losses)
                    if key in loss.comparisons
                ]
            )
        )
    if len(blocks) == 3:
        blocks.append("No trial has finished, so there is no score.")
    return blocks


def _losses(results: Results) -> str:
    lines = []
    for i, loss in enumerate(results.losses):
        marks = [
            text
            for text, here in (("baseline", i == 0), ("no finished trial", not loss.seeds))
            if here
        ]
        about = "; ".join([*marks, *filter(None, [loss.reason]), *loss.notes])
        lines.append(
            f"- {tables.letter(i)}  {_code(loss.loss)}" + (f" ({_text(about)})" if about else "")
        )
    return "\n".join(lines)


def _tables(results: Results) -> list[str]:
    blocks = ["## Learning", *_titled(tables.learning(results)), *_titled(tables.rates(results))]
    parts: list[str] = []
    for metric, pooling in tables.measured(results):
        table = tables.per_class(results, metric, pooling)
        if table is not None and len(table.columns) > 1:
            parts += _titled(table)
    parts += _titled(tables.recall(results))
    if parts:
        blocks += ["## Classes and sizes", *parts]
    for title, table in (
        ("Calibration and threshold", tables.calibration(results)),
        ("Cost", tables.cost(results)),
        ("Failures", tables.failures(results)),
    ):
        if table is not None:
            blocks += [f"## {title}", *_titled(table)]
    if results.cases:
        blocks += ["## Images on which the losses differ most", _grid(_cases(results))]
    return blocks


def _cases(results: Results) -> Table:
    return Table(
        caption="Dice of each image, mean over the seeds",
        corner="Image",
        columns=tuple(tables.letter(i) for i in range(len(results.losses))),
        rows=tuple(
            tables.Row(
                head=case.name,
                cells=tuple(
                    Cell(text=tables.number(case.scores.get(loss.loss, float("nan"))))
                    for loss in results.losses
                ),
            )
            for case in results.cases
        ),
    )


def _how(results: Results) -> list[str]:
    counts = ", ".join(f"{name}: {count}" for name, count in results.counts.items())
    classes = f"Classes: {', '.join(results.class_names)}"
    return [
        "## How it was measured",
        *map(_text, words.statistics(results)),
        "### The data",
        _list([*results.data_lines, counts, classes]),
        "### The metrics",
        _list([f"{tables.metric_name(m)}: {m.definition}" for m in results.metrics]),
    ]


def _repeat(results: Results) -> list[str]:
    blocks = ["## To repeat it"]
    if results.commands:
        text = "\n".join(results.commands)
        fence = "`" * max(3, 1 + _longest_run(text))
        blocks.append(f"{fence}sh\n{text}\n{fence}")
    for caption, column, values in (
        ("What all trials had in common", "Value", results.settings),
        ("Versions", "Version", results.versions),
    ):
        if values:
            blocks += _titled(tables.pairs(caption, "Name", column, values))
    return blocks


def _titled(table: Table | None) -> list[str]:
    if table is None:
        return []
    return [f"{_text(table.caption)}:", _grid(table), *map(_text, table.notes)]


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
    return f"{tables.letter(index)} {_code(shown)}"


def _cell(cell: Cell) -> str:
    marks = ["best"] if cell.best else []
    if cell.verdict:
        marks.append(cell.verdict)
    inside = f"({cell.interval})" if cell.interval else ""
    return " ".join(filter(None, [cell.text, inside, ", ".join(marks)]))


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_text(sentence)}" for sentence in sentences)


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
