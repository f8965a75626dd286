"""Records how many runs each comparison had when its table was read.

If seeds are added until there is a verdict, more than 5 % of verdicts are wrong. So each reading is recorded in the
runs folder, and a row says if seeds were added since.

Invariant: `.looks.json` in the runs folder only grows. If it cannot be written, tables are still shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ghostcli.compare.rows import Row, Table
from ghostcli.errors import GhostError
from ghostcli.records.storage import read_or_empty, write_json

FILE = ".looks.json"
#: Row -> the numbers of runs at each look.
Looks = dict[str, list[tuple[int, int]]]


def noted(tables: Sequence[Table], runs: Path) -> tuple[Table, ...]:
    """The tables with the earlier `looks` of each row. Records the present numbers of runs."""
    if not runs.is_dir():
        return tuple(tables)
    known = read_or_empty(runs / FILE, Looks)
    found = []
    for table in tables:
        rows = []
        for row in table.rows:
            counts = _counts(row)
            if counts is not None:
                seen = known.setdefault(_key(row), [])
                row = replace(row, looks=tuple(look for look in seen if sum(look) < sum(counts)))
                seen += [counts] * (counts not in seen)
            rows.append(row)
        found.append(replace(table, rows=tuple(rows)))
    if known != read_or_empty(runs / FILE, Looks):
        with contextlib.suppress(GhostError, OSError):
            write_json(runs / FILE, known, "looks")
    return tuple(found)


def _counts(row: Row) -> tuple[int, int] | None:
    """Runs of the row and of its baseline; None if no verdict was possible."""
    if row.delta is None or row.verdict is None or row.delta.of_two_networks:
        return None
    return len(row.group.runs), len(row.baseline.runs)


def _key(row: Row) -> str:
    return f"{row.group.about.of_group} {row.baseline.about.protocol}"
