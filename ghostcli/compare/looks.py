"""How many runs each comparison had when somebody read a table of it.

Adding seeds until a verdict comes is wrong more often than the 5 % that a verdict promises. So every reading is
written down beside the runs, and a row says where seeds were added since.

Invariant: `.looks.json` in the runs folder only grows. Where it cannot be written, tables are shown all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ghostcli.compare.rows import Row, Table
from ghostcli.errors import GhostError
from ghostcli.records.storage import read_json, write_json

FILE = ".looks.json"


def noted(tables: Sequence[Table], runs: Path) -> tuple[Table, ...]:
    """The tables with each row's earlier `looks`. The present numbers of runs are written down as one more."""
    if not runs.is_dir():
        return tuple(tables)
    known = _read(runs / FILE)
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
    if known != _read(runs / FILE):
        with contextlib.suppress(GhostError, OSError):
            write_json(runs / FILE, known, "looks")
    return tuple(found)


def _counts(row: Row) -> tuple[int, int] | None:
    """Runs of the row and of its baseline; None where no verdict was possible."""
    if row.delta is None or row.verdict is None or row.delta.of_two_networks:
        return None
    return len(row.group.runs), len(row.baseline.runs)


def _key(row: Row) -> str:
    return f"{row.group.about.of_group} {row.baseline.about.protocol}"


def _read(file: Path) -> dict[str, list[tuple[int, int]]]:
    """{} where it is absent or not what was written."""
    with contextlib.suppress(GhostError, TypeError, ValueError, AttributeError):
        value: Any = read_json(file) if file.exists() else {}
        return {str(key): [(int(n), int(m)) for n, m in looks] for key, looks in value.items()}
    return {}
