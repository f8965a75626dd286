"""`--quiet` and `--verbose`: how much every command says on stderr. Results on stdout do not change.

Invariant: every verb has both flags, and they are declared once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ghostcli import display
from ghostcli.cli.options import as_command
from ghostcli.errors import UsageError

FLAGS = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors, and the result.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="More about each run: environment, every epoch.")],
}


def everywhere(app: typer.Typer) -> None:
    """Add the flags to every command of `app` and of its groups."""
    for command in app.registered_commands:
        command.callback = _with_flags(command.callback)
    for group in app.registered_groups:
        everywhere(group.typer_instance)


def choose(quiet: bool, verbose: bool) -> None:
    """Set how much this process says. UsageError if both flags are given."""
    if quiet and verbose:
        raise UsageError("--quiet --verbose: are opposites; use one of them")
    display.volume = display.QUIET if quiet else display.VERBOSE if verbose else display.NORMAL


def _with_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    for name, hint in FLAGS.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hint))

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        choose(*(kwargs.pop(name) for name in FLAGS))
        return function(*args, **kwargs)

    return as_command(command, parameters)
