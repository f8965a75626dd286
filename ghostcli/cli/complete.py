"""Completion of names by TAB. Invariant: it reads names alone, imports no torch, and says nothing where it fails."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ghostcli.errors import GhostError

#: The folder that --runs names by default; a shell asks for names before it has read the options.
RUNS = Path("runs")
WIDTHS = ("gns:0.5", "gns:1.0", "gns:1.3", "gns:1.6", "gns:2.8", "gnd:1.0")


def recipes(incomplete: str) -> list[str]:
    from ghostcli.recipe import names

    return [name for name in names() if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Ids of runs, with `run/` before them where it is typed."""
    from ghostcli.records import record

    with contextlib.suppress(GhostError, OSError):
        prefix = "run/" if incomplete.startswith("run/") else ""
        return [prefix + run.id for run in record.scan(RUNS) if (prefix + run.id).startswith(incomplete)]
    return []


def groups(incomplete: str) -> list[str]:
    """Ids of runs without their seeds."""
    return list(dict.fromkeys(run.rpartition("/")[0] for run in runs(incomplete)))


def models(incomplete: str) -> list[str]:
    """Networks by name, finished runs as run/ID, and the networks that come with ghost."""
    from ghostcli.records import trained
    from ghostcli.zoo.names import KNOWN

    known = dict.fromkeys([*WIDTHS, *(name for name in KNOWN if ":" not in name)])
    names = [name for name in (*known, *trained.shipped()) if name.startswith(incomplete)]
    return names + (runs(incomplete) if incomplete.startswith("run/") else ["run/"] * "run/".startswith(incomplete))
