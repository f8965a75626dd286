"""The `ghost` command: registers the verbs and maps errors to exit codes.

Invariant: this module imports no torch. A verb that only reads records imports none either.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from ghostcli import __version__, signals
from ghostcli.cli import (
    bench,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    hub,
    plan_seeds,
    plot,
    predict,
    recipe,
    report,
    reproduce,
    runs,
    table,
    teach,
    train,
    volume,
    welcome,
)
from ghostcli.errors import GhostError, Interrupted, meant, nearest, printable
from ghostcli.run import carry

#: What typer raises for a wrong command, flag or argument.
WrongUsage = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Verbs(typer.core.TyperGroup):
    """The commands. The error for an unknown name suggests the nearest ones."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        word = args[0]
        if word not in self.commands and not word.startswith("-"):
            visible = [name for name, command in self.commands.items() if not command.hidden]
            near = [name for name in visible if word and name.startswith(word)]
            ctx.fail(f"no such command '{word}'{meant(near) if near else nearest(word, visible)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs,
    name="ghost",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train small image classifiers with teachers, and measure whether distillation helps.\n\n"
        "Start with [bold]ghost demo[/], which takes a few minutes on two CPU cores. Then "
        "[bold]ghost distill resnet18 --student gns:1.0[/] and [bold]ghost table[/]."
    ),
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ghost {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        welcome.welcome()


TRAIN, READ, PREPARE = "Train", "Read", "Set up and maintain"

train.register(app, TRAIN)
app.command(rich_help_panel=TRAIN)(reproduce.reproduce)
app.command(rich_help_panel=TRAIN)(demo.demo)
app.add_typer(train.check_app, name="check", rich_help_panel=TRAIN)
app.add_typer(teach.app, name="teach", rich_help_panel=TRAIN)
app.command(rich_help_panel=READ)(table.table)
app.command(rich_help_panel=READ)(compare.compare)
app.command(name="plan-seeds", rich_help_panel=READ)(plan_seeds.plan_seeds)
app.command(rich_help_panel=READ)(plot.plot)
app.command(rich_help_panel=READ)(report.report)
app.command(rich_help_panel=READ)(predict.predict)
app.command(rich_help_panel=READ)(evaluate.evaluate)
app.command(rich_help_panel=READ)(bench.bench)
app.add_typer(runs.app, name="runs", rich_help_panel=READ)
app.add_typer(recipe.app, name="recipe", rich_help_panel=PREPARE)
app.add_typer(data.app, name="data", rich_help_panel=PREPARE)
app.command(rich_help_panel=PREPARE)(export.export)
app.command(rich_help_panel=PREPARE)(hub.push)
app.command(rich_help_panel=PREPARE)(hub.pull)
app.command(rich_help_panel=PREPARE)(doctor.doctor)
app.command(name="run-job", hidden=True)(carry.run)
volume.everywhere(app)


def main() -> None:
    """The entry point. Results go to stdout, everything else to stderr. docs/recipes.md lists the exit codes."""
    try:
        with signals.handled():
            try:
                code = app(standalone_mode=False)
            finally:
                stopped = signals.received()
    except (GhostError, Interrupted) as error:
        _leave(str(error), error.exit_code)
    except BrokenPipeError:
        _unplug()
        sys.exit(0)
    except OSError as error:
        _unplug()
        _leave(f"{error.filename or 'the output cannot be written'}: {error.strerror or error}", GhostError.exit_code)
    except WrongUsage as error:
        _wrong_usage(error)
    except typer.Abort:
        _leave("stopped, nothing was done", GhostError.exit_code)
    except Exception:
        if stopped is None:
            raise
        _leave(f"stopped by {stopped}", Interrupted.exit_code)  # a signal during an import can surface as another error
    else:
        if isinstance(code, int) and code:
            sys.exit(code)


def _leave(message: str, code: int) -> NoReturn:
    """Print the message on stderr (one line; several for a recipe's mistakes) and exit with `code`."""
    print("ghost:", "\n".join(printable(line) for line in message.split("\n")), file=sys.stderr)
    sys.exit(code)


def _wrong_usage(error: Any) -> NoReturn:
    """Print typer's message in our format, with a pointer to --help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    where = f" ({context.command_path} --help shows what it takes)" if context else ""
    _leave(error.format_message().replace("\n", " ") + where, error.exit_code)


def _unplug() -> None:
    """Redirect standard output to nowhere, so the interpreter's last flush does not fail either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
