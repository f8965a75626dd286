"""Makes a grid fit a narrow terminal: spaces first, then what matters least, then cells in more lines.

Invariant: accuracies, deltas and verdicts stay, whole; what is left out is in wider terminals and all other formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from rich.cells import cell_len

from ghostcli.paper import FAMILIES
from ghostcli.render.text_table import EMPTY, Grid

#: Text columns that may wrap, and the width below which they ask for tighter columns elsewhere.
WRAPPING = {"Teachers": 14, "Protocol": 16, "Strategy": 8, "Agrees with (%)": 20, "Run": 30}
DELTA = "Δ ours [95 %]"


def fitted(made: Grid, width: int) -> tuple[Grid, int, list[int]]:
    """The grid, how many spaces are to stand right of each column's own one, and the columns' widths."""
    if least_width(made, 2) <= width:
        return made, 1, _widths(made, width, 2)
    for step in STEPS:
        made = step(made)
        if least_width(made, 1) <= width:
            break
    return made, 0, _widths(made, width, 1)


def _widths(made: Grid, width: int, space: int) -> list[int]:
    """Of each column: what its longest line takes, less what the widest that may wrap must give up."""
    found = [natural(made, i) for i in range(len(made.columns))]
    floors = [least(made, i) for i in range(len(made.columns))]
    for _ in range(sum(found) + space * (len(found) - 1) - width):
        widest = max(range(len(found)), key=lambda i: (found[i] > floors[i], found[i]))
        found[widest] -= found[widest] > floors[widest]
    return found


def least_width(made: Grid, space: int) -> int:
    """Columns that the table needs with `space` between its own, text wrapped as far as it may be."""
    widths = [least(made, i) for i in range(len(made.columns))]
    return sum(widths) + space * (len(widths) - 1)


def least(made: Grid, column: int) -> int:
    """The width below which a column of the grid would be broken where it should not be."""
    head = made.columns[column][0]
    if head not in WRAPPING:
        return natural(made, column)
    word = max((cell_len(word) for line in _lines(made, column) for word in line.split()), default=0)
    return min(natural(made, column), max(word, WRAPPING[head]))


def natural(made: Grid, column: int) -> int:
    """The width of a column's longest line."""
    return max(map(cell_len, _lines(made, column)))


def _lines(made: Grid, column: int) -> list[str]:
    return [
        line for cell in (made.columns[column][0], *(row[column] for row in made.rows)) for line in cell.split("\n")
    ]


def _broken(head: str, old: str, new: str) -> Callable[[Grid], Grid]:
    """Cells of the columns that begin with `head` in more lines: each match of `old` becomes `new`."""

    def step(made: Grid) -> Grid:
        chosen = {i for i, (name, _) in enumerate(made.columns) if name.startswith(head)}
        rows = (tuple(re.sub(old, new, c) if i in chosen else c for i, c in enumerate(row)) for row in made.rows)
        return replace(made, rows=tuple(rows))

    return step


def _without(head: str) -> Callable[[Grid], Grid]:
    def step(made: Grid) -> Grid:
        kept = [i for i, (name, _) in enumerate(made.columns) if name != head]
        return _only(made, kept)

    return step


def _without_empty(made: Grid) -> Grid:
    """Without the columns that say nothing in any row."""
    kept = [i for i in range(len(made.columns)) if any(row[i] not in ("", EMPTY) for row in made.rows)]
    return _only(made, kept) if kept else made


def _only(made: Grid, kept: list[int]) -> Grid:
    rows = tuple(tuple(row[i] for i in kept) for row in made.rows)
    return replace(made, columns=tuple(made.columns[i] for i in kept), rows=rows)


def _under(head: str, into: str, sign: str = "") -> Callable[[Grid], Grid]:
    """The cells of one column below those of another."""

    def step(made: Grid) -> Grid:
        heads = [name for name, _ in made.columns]
        if head not in heads or into not in heads:
            return made
        a, b = heads.index(head), heads.index(into)

        def cell(row: tuple[str, ...], i: int) -> str:
            said = "" if row[a] == EMPTY else row[a]
            return "\n".join(filter(None, (row[b], sign * bool(said) + said))) if i == b else row[i]

        rows = tuple(tuple(cell(row, i) for i in range(len(row))) for row in made.rows)
        return _without(head)(replace(made, rows=rows))

    return step


#: In the order in which they are taken, each only where those before it were not enough.
STEPS: tuple[Callable[[Grid], Grid], ...] = (
    _broken("Verdict", "not distinguished", "not\ndistinguished"),
    _without("M par."),
    _without("Δ"),
    _broken("Ours", " ±", "\n±"),
    _broken("Δ ours", " \\[", "\n["),
    _under("Verdict", DELTA),
    _under("Strategy", "Student"),
    _under("Teachers", "Student", "< "),
    _without("Trainings"),
    _broken("Protocol", r"(?<=[a-z])\.(?=[a-z])", ".\n"),  # a key after its section
    _broken("Student", " <", "\n<"),
    *(_broken(family, r" \[", "\n[") for family in FAMILIES),
    _without_empty,
    _under("Printed", "Student", "printed "),
)
