"""Fits a table to the width of a terminal: less space, fewer columns, cells on more lines.

Invariant: accuracies, differences and verdicts are never cut. Wider terminals and other formats show what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from rich.cells import cell_len

from ghostcli.paper import FAMILIES
from ghostcli.render.text_table import EMPTY, Column, TextTable

#: The longest word of a cell in a table that is too wide otherwise.
LONGEST = 16
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
    widths = [natural(table, column) for column in table.columns]
    floors = [least(table, column) for column in table.columns]
    for _ in range(sum(widths) + space * (len(widths) - 1) - width):
        widest = max(range(len(widths)), key=lambda i: (widths[i] > floors[i], widths[i]))
        widths[widest] -= widths[widest] > floors[widest]
    return widths


def least_width(table: TextTable, space: int) -> int:
    """The minimum width of the table, with `space` between columns and all columns wrapped as far as allowed."""
    return sum(least(table, column) for column in table.columns) + space * (len(table.columns) - 1)


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
    cells = [column.heading, *(row.get(column.key, "") for row in table.rows)]
    return [line for cell in cells for line in cell.split("\n")]


def _break_cells(key: str, old: str, new: str) -> Step:
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


def _without_long_words(table: TextTable) -> TextTable:
    """Break words that are longer than LONGEST, such as paths, in the columns that may wrap."""

    def broken(cell: str) -> str:
        return re.sub(rf"\S{{{LONGEST}}}(?=\S)", r"\g<0>\n", cell)

    wrapping = {column.key for column in table.columns if column.wrap or column.justify == "left"}
    rows = ({key: broken(cell) if key in wrapping else cell for key, cell in row.items()} for row in table.rows)
    return replace(table, rows=tuple(rows))


def _under(key: str, into: str, sign: str = "") -> Step:
    """Move the cells of one column below those of another."""

    def merged(row: dict[str, str]) -> dict[str, str]:
        above, below = row.get(into, ""), row.get(key, "")
        return row if below in ("", EMPTY) else {**row, into: f"{above}\n{sign}{below}".lstrip("\n")}

    def step(table: TextTable) -> TextTable:
        if not {key, into} <= {column.key for column in table.columns}:
            return table
        return _without(key)(replace(table, rows=tuple(map(merged, table.rows))))

    return step


#: The steps in order. Each is used only if the steps before it are not enough.
STEPS: tuple[Step, ...] = (
    _break_cells("verdict", "not distinguished", "not\ndistinguished"),
    _under("finds", "delta", "finds "),
    _without("parameters"),
    _without("printed_delta"),
    _break_cells("ours", " ±", "\n±"),
    _break_cells("delta", " \\[", "\n["),
    _under("verdict", "delta"),
    _under("strategy", "student"),
    _under("teachers", "student", "< "),
    _without("trainings"),
    _break_cells("protocol", r"(?<=[a-z])\.(?=[a-z])", ".\n"),  # a key after its section
    _break_cells("student", " <", "\n<"),
    *(_break_cells(family, r" \[", "\n[") for family in FAMILIES),
    _without_empty,
    _under("printed", "student", "printed "),
    _without_long_words,
)
