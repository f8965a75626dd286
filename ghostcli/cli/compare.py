"""`ghost compare`: run groups of the user's choice, each compared with the first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ghostcli.cli import complete
from ghostcli.cli.options import Runs
from ghostcli.cli.table import AsJson, Form, Margin, checked, uncollected, write_text
from ghostcli.display import tell_json
from ghostcli.errors import UsageError


def compare(
    chosen: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two or more trainings, each by its id without a seed. The others are compared with the first.",
            show_default=False,
            autocompletion=complete.groups,
        ),
    ],
    runs: Runs = Path("runs"),
    form: Form = "text",
    as_json: AsJson = False,
    margin: Margin = 0.3,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the differences with their intervals.")
    ] = None,
) -> None:
    """Compare trainings of your choice with the first one: any two settings, losses, networks or budgets.

    Each row says what differs from the first, by how many points the accuracy differs, and how sure that is.
    All seeds of a training are used. The statistics are those of ghost table.
    """
    from ghostcli.comparison import against, tables
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.looks import noted
    from ghostcli.comparison.rows import Options
    from ghostcli.records import record
    from ghostcli.render import data, figures, text_table

    form = checked(form, as_json, margin, plot)
    if len(chosen) < 2:
        raise UsageError(f"compare {chosen[0]}: name at least two trainings; `ghost runs list` shows yours")
    with uncollected():
        comparison = against.table(chosen, admit(record.scan(runs)), Options(margin=margin, runs=runs))
        [table] = noted(tables.judged([comparison]), runs)
    if form == "csv":
        sys.stdout.write(data.comma_separated([data.objects(table)]))
    elif form == "json":
        tell_json(data.objects(table))
    else:
        write_text([text_table.results(table)], form)
    if plot is not None:
        figures.save(figures.forest([table]), plot)
