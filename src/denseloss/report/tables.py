"""Tables with a row per loss, made of columns."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from denseloss.report.numbers import NOTHING, Estimate, interval, number
from denseloss.report.sections import Cell, Row, Table

EMPTY = Cell(text=NOTHING)
"""A cell without a value."""


def by_loss(
    losses: Sequence[str], caption: str, columns: Iterable[tuple[str, Sequence[Cell]]], *notes: str
) -> Table:
    """A table with a row per loss, from its columns: their names and a cell per loss."""
    names, cells = zip(*columns, strict=True)
    rows = [
        Row(head=loss, loss=i, cells=tuple(column[i] for column in cells))
        for i, loss in enumerate(losses)
    ]
    return Table(caption=caption, corner="Loss", columns=names, rows=tuple(rows), notes=notes)


def estimated(found: Estimate, decimals: int, *, signed: bool = False) -> Cell:
    """A value with its interval."""
    return Cell(
        text=number(found.value, decimals, signed=signed),
        interval=interval(found, decimals, signed=signed),
        order=found.value,
    )


def column(
    estimates: Sequence[Estimate | None],
    *,
    decimals: int,
    higher: bool,
    verdicts: Sequence[str] = (),
) -> list[Cell]:
    """A column of values with their intervals, in which the best one is marked.

    Args:
        estimates: Of each loss, None where there is none.
        decimals: How many are shown.
        higher: Whether higher is better.
        verdicts: Of each loss; `"better"` and `"worse"` are shown.
    """
    values = [e.value for e in estimates if e is not None and not math.isnan(e.value)]
    best = (max(values) if higher else min(values)) if len(values) > 1 else math.nan
    return [
        EMPTY
        if found is None
        else replace(
            estimated(found, decimals),
            best=found.value == best,
            verdict=verdict if verdict in ("better", "worse") else "",
        )
        for found, verdict in zip(estimates, verdicts or [""] * len(estimates), strict=True)
    ]
