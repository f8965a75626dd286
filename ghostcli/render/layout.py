"""Fits a table to the width of a terminal: less space, fewer columns, cells on more lines.

Invariant: accuracies, differences and verdicts are never cut. Wider terminals and other formats show what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from rich.cells import cell_len

from ghostcli.paper import FAMILIES
from ghostcli.render.text_table import (
    DELTA,
    EMPTY,
    FINDS,
    OURS,
    PARAMETERS,
    PRINTED,
    PRINTED_DELTA,
    PROTOCOL,
    STRATEGY,
    STUDENT,
    TEACHERS,
    VERDICT,
    Column,
    TextTable,
)

Step = Callable[[TextTable], TextTable]


def fitted(table: TextTable, width: int) -> tuple[TextTable, int, list[int]]:
    """The table, the extra spaces right of each column, and the widths of the columns."""
    if least_width(table, 2) <= width:
        return table, 1, _widths(table, width, 2)
    for step in STEPS:
        table = step(table)
        if least_width(table, 1) <= width:
            break
    return table, 0, _widths(table, width, 1)


def _widths(table: TextTable, width: int, space: int) -> list[int]:
    """The width of each column: its longest line. If that is too wide in total, the widest columns that wrap shrink."""
    found = [natural(table, column) for column in table.columns]
    floors = [least(table, column) for column in table.columns]
    for _ in range(sum(found) + space * (len(found) - 1) - width):
        widest = max(range(len(found)), key=lambda i: (found[i] > floors[i], found[i]))
        found[widest] -= found[widest] > floors[widest]
    return found


def least_width(table: TextTable, space: int) -> int:
    """The minimum width of the table, with `space` between columns and all columns wrapped as far as allowed."""
    widths = [least(table, column) for column in table.columns]
    return sum(widths) + space * (len(widths) - 1)


def least(table: TextTable, column: Column) -> int:
    """The minimum width of a column without broken words or numbers."""
    if not column.wrap:
        return natural(table, column)
    word = max((cell_len(word) for line in _lines(table, column) for word in line.split()), default=0)
    return min(natural(table, column), max(word, column.wrap))


def natural(table: TextTable, column: Column) -> int:
    """The width of a column's longest line."""
    return max(map(cell_len, _lines(table, column)))


def _lines(table: TextTable, column: Column) -> list[str]:
    return [
        line for cell in (column.heading, *(row.get(column.key, "") for row in table.rows)) for line in cell.split("\n")
    ]


def _broken(key: str, old: str, new: str) -> Step:
    """Break the cells of a column into lines: each match of `old` becomes `new`."""

    def step(table: TextTable) -> TextTable:
        rows = ({**row, key: re.sub(old, new, row[key])} if key in row else row for row in table.rows)
        return replace(table, rows=tuple(rows))

    return step


def _without(*keys: str) -> Step:
    return lambda table: replace(table, columns=tuple(c for c in table.columns if c.key not in keys))


def _without_empty(table: TextTable) -> TextTable:
    """Remove the columns that are blank in every row."""
    blank = [c.key for c in table.columns if all(row.get(c.key, "") in ("", EMPTY) for row in table.rows)]
    return table if len(blank) == len(table.columns) else _without(*blank)(table)


def _under(key: str, into: str, sign: str = "") -> Step:
    """Move the cells of one column below those of another."""

    def step(table: TextTable) -> TextTable:
        if not {key, into} <= {column.key for column in table.columns}:
            return table

        def merged(row: dict[str, str]) -> dict[str, str]:
            below = "" if row.get(key, "") == EMPTY else row.get(key, "")
            return {**row, into: "\n".join(filter(None, (row.get(into, ""), below and sign + below)))}

        return _without(key)(replace(table, rows=tuple(map(merged, table.rows))))

    return step


#: The steps in order. Each is used only if the steps before it are not enough.
STEPS: tuple[Step, ...] = (
    _broken(VERDICT.key, "not distinguished", "not\ndistinguished"),
    _under(FINDS.key, DELTA.key, "finds "),
    _without(PARAMETERS.key),
    _without(PRINTED_DELTA.key),
    _broken(OURS.key, " ±", "\n±"),
    _broken(DELTA.key, " \\[", "\n["),
    _under(VERDICT.key, DELTA.key),
    _under(STRATEGY.key, STUDENT.key),
    _under(TEACHERS.key, STUDENT.key, "< "),
    _without("trainings"),
    _broken(PROTOCOL.key, r"(?<=[a-z])\.(?=[a-z])", ".\n"),  # a key after its section
    _broken(STUDENT.key, " <", "\n<"),
    *(_broken(family, r" \[", "\n[") for family in FAMILIES),
    _without_empty,
    _under(PRINTED.key, STUDENT.key, "printed "),
)
