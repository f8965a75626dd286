"""Records how many runs each comparison had when its table was read.

If seeds are added until there is a verdict, more than 5 % of verdicts are wrong. So each reading is recorded in the
runs folder, and a row says if seeds were added since.

Invariant: `.looks.json` in the runs folder only grows, whoever reads tables at once. If it cannot be written or is
damaged, it stays as it is, and tables are still shown.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ghostcli.compare.rows import Row, Table
from ghostcli.errors import GhostError, printable
from ghostcli.records import lease
from ghostcli.records.storage import read_or_empty, write_json

FILE = ".looks.json"
#: Row -> the numbers of runs at each look.
Looks = dict[str, list[tuple[int, int]]]


def noted(tables: Sequence[Table], runs: Path) -> tuple[Table, ...]:
    """The tables with the earlier `looks` of each row. Records the present numbers of runs."""
    if not runs.is_dir():
        return tuple(tables)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a folder that is read-only
            stack.enter_context(lease.held(runs / FILE))
        return _noted(tables, runs / FILE)


def _noted(tables: Sequence[Table], file: Path) -> tuple[Table, ...]:
    known = read_or_empty(file, Looks)
    sound = bool(known) or not file.exists()
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
    if not sound:
        print(f"ghost: {printable(file)}: is damaged; delete it to record readings again", file=sys.stderr)
    elif known != read_or_empty(file, Looks):
        with contextlib.suppress(GhostError, OSError):
            write_json(file, known, "looks")
    return tuple(found)


def _counts(row: Row) -> tuple[int, int] | None:
    """Runs of the row and of its baseline; None if nothing was tested."""
    if row.delta is None or row.verdict is None or row.delta.of_two_networks:
        return None
    return len(row.group.runs), len(row.baseline.runs)


def _key(row: Row) -> str:
    return f"{row.group.about.of_group} {row.baseline.about.protocol}"
