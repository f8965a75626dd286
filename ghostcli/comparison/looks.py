"""Records how many runs each comparison had when its table was read.

If seeds are added until there is a verdict, more than 5 % of verdicts are wrong. So each reading is recorded in the
runs folder, and a row says if seeds were added since.

Invariant: `.looks.json` in the runs folder only grows, whoever reads tables at once. If it cannot be written or is
damaged, it stays as it is, and tables are still shown.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ghostcli.comparison.rows import Row, Table
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
        return _record_looks(tables, runs / FILE)


def _record_looks(tables: Sequence[Table], file: Path) -> tuple[Table, ...]:
    before = read_or_empty(file, Looks)
    known = copy.deepcopy(before)

    def with_looks(row: Row) -> Row:
        if row.verdict is None or row.delta.of_two_networks:  # nothing was tested
            return row
        counts = len(row.group.runs), len(row.baseline.runs)
        baseline = row.baseline.about
        key = baseline.of_group if row.baseline.teachers else baseline.protocol
        start = f" {row.group.about.start}" if row.group.elsewhere else ""
        seen = known.setdefault(f"{row.group.about.of_group} {key}{start}", [])
        earlier = tuple(look for look in seen if sum(look) < sum(counts))
        if counts not in seen:
            seen.append(counts)
        return replace(row, looks=earlier)

    annotated = tuple(replace(table, rows=tuple(map(with_looks, table.rows))) for table in tables)
    if file.exists() and not before:
        print(f"ghost: {printable(file)}: is damaged; delete it to record readings again", file=sys.stderr)
    elif known != before:
        with contextlib.suppress(GhostError, OSError):
            write_json(file, known, "looks")
    return annotated
