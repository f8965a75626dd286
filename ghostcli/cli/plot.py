"""`ghost plot`: figures from run records.

Invariant: it reads run records and writes only the file of --out. Only `disagree` shows images and opens the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ghostcli.cli.options import Runs
from ghostcli.cli.table import Family
from ghostcli.errors import one_of
from ghostcli.paper import FAMILIES
from ghostcli.records import record
from ghostcli.records.record import RunRecord

COSTS = ("parameters", "hours")


def plot(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="curves, width, front, forest, confusion, reliability or disagree.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Run ids, with or without the seed. Default: all suitable runs."),
    ] = None,
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A .png, .pdf or .svg file.", show_default="KIND.png"),
    ] = None,
    family: Family = None,
    cost: Annotated[
        str, typer.Option("--cost", metavar="C", help="The x axis of `front`: parameters, or hours of training.")
    ] = "parameters",
) -> None:
    """Draw learning curves, accuracy against width or cost, differences, or the errors of one run."""
    from ghostcli.render.figures import require_suffix, save
    from ghostcli.render.plots import KINDS, Asked

    out = out or Path(f"{kind}.png")
    one_of("plot", kind, tuple(KINDS))
    one_of("--cost", cost, COSTS)
    one_of("--family", family or "paper", FAMILIES)
    require_suffix(out, "--out ")
    records = record.scan(runs)
    chosen = [run for name in names or () for run in named(name, records, runs)]
    figure = KINDS[kind](Asked(records, chosen, family, cost == "hours"))
    typer.echo(str(save(figure, out)))


def named(name: str, records: Sequence[RunRecord], runs: Path) -> list[RunRecord]:
    """The runs of an id: one seed, or all seeds of a job."""
    wanted = record.id_of(name, runs)
    return [run for run in records if wanted in (run.id, run.id.rpartition("/")[0])] or [record.find(runs, name)]
