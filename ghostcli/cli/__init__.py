"""The `ghost` command: verbs assembled, errors turned into the contract's exit codes.

Invariant: nothing here, and no verb that only reads, imports torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ghostcli import __version__, signals
from ghostcli.cli import bench, data, demo, doctor, export, plot, recipe, reproduce, runs, table, train
from ghostcli.errors import GhostError, printable

app = typer.Typer(
    name="ghost",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train small image classifiers, distil into them, and learn whether it helped.\n\n"
        "Start with [bold]ghost demo[/]: the whole story in two minutes on a CPU. Then "
        "[bold]ghost distill resnet18 --student gns:1.0[/] and [bold]ghost table[/]."
    ),
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ghost {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


TRAIN, READ, PREPARE = "Train", "Read", "Prepare and look after"

train.register(app, TRAIN)
app.command(rich_help_panel=TRAIN)(reproduce.reproduce)
app.command(rich_help_panel=TRAIN)(demo.demo)
app.add_typer(train.check_app, name="check", rich_help_panel=TRAIN)
app.add_typer(train.teach_app, name="teach", rich_help_panel=TRAIN)
app.command(rich_help_panel=READ)(table.table)
app.command(rich_help_panel=READ)(plot.plot)
app.command(rich_help_panel=READ)(bench.bench)
app.add_typer(runs.app, name="runs", rich_help_panel=READ)
app.add_typer(recipe.app, name="recipe", rich_help_panel=PREPARE)
app.add_typer(data.app, name="data", rich_help_panel=PREPARE)
app.command(rich_help_panel=PREPARE)(export.export)
app.command(rich_help_panel=PREPARE)(doctor.doctor)


def main() -> None:
    """The entry point. Results on stdout, everything else on stderr, exit codes as the contract has them."""
    try:
        with signals.handled():
            app()
    except GhostError as error:
        print("ghost:", "\n".join(printable(line) for line in str(error).split("\n")), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
