"""`ghost push` and `ghost pull`: finished runs on a model hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostcli.cli import complete
from ghostcli.cli.options import Runs
from ghostcli.errors import printable

Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")]


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.", autocompletion=complete.runs)],
    repository: Repository,
    onnx: Annotated[
        list[Path] | None,
        typer.Option(
            "--onnx", metavar="FILE", help="Exported .onnx files to send too; repeatable. Those of an earlier push go."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Publish a record that names folders of this machine, as folder:/home/...")
    ] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Upload a finished run to a model hub: weights, record, and a model card written from the record.

    ghost push run/gns-1.0-kd-1a2b3c4d/s0 ada/small-cifar
    """
    from ghostcli.records import record
    from ghostcli.share import hub

    typer.echo(printable(hub.push(record.find(runs, run), repository, onnx or (), private, paths)))


def pull(repository: Repository, runs: Runs = Path("runs")) -> None:
    """Download a run from a model hub. Its record is re-checked before it is kept.

    ghost pull ada/small-cifar
    """
    from ghostcli.share import hub

    run = hub.pull(repository, runs)
    typer.echo(
        f"{run.id}: {run.result.accuracy.selected:.2f} % on {printable(run.result.data)}, in {printable(run.path)}"
    )
