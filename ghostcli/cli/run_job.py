"""`ghost run-job SPEC`: what Ray and Slurm start. Hidden: a person gives the training verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run_job(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A file in RUNS/.jobs.")],
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Save and end when the process that started this one ends.")
    ] = False,
) -> None:
    """Carry out one job of a plan: find its run done, go on with it, or begin it."""
    from ghostcli.run import carry

    carry.run(spec, with_parent)
