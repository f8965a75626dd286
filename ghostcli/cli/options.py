"""The options of all training verbs, declared once.

Invariant: a verb's function has its own parameters and `common: Common`. `with_common` adds the common flags.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli import plan
from ghostcli.cli import complete
from ghostcli.errors import UsageError, printable
from ghostcli.recipe.load import Resolved, load


def folder(text: str | Path) -> Path:
    """The folder of --runs. UsageError for empty text (e.g. from an unset variable), which Path reads as `.`."""
    if not str(text).strip():
        raise UsageError("--runs: is empty; name a folder, as in --runs runs (the default) or --runs . (this folder)")
    return Path(text)


Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run directories.", parser=folder)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Recipe = Annotated[
    str,
    typer.Option(
        *("--recipe", "-r"),
        metavar="NAME|FILE",
        help="See [bold]ghost recipe list[/]; or your own file.",
        autocompletion=complete.recipes,
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, as in train.batch_size=128."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME", help="cifar10, cifar100, digits or folder:PATH.", show_default="the recipe's"
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, metavar="N", help="Epochs.", show_default="the recipe's")
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="run/ID",
        help="Start from the weights of a finished run, with a new last layer.",
        show_default="new weights",
        autocompletion=complete.models,
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, metavar="K", help="Number of runs at a time, each in its own process.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and reused, and exit.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Continue an unfinished run, or start over (the old run is renamed and kept)."
    ),
]


@dataclass(frozen=True)
class Common:
    """The flags of every training verb."""

    recipe: Recipe = "paper"
    overrides: Set = ()  # type: ignore[assignment]
    data: Data = None
    epochs: Epochs = None
    start: Start = None
    seed: Annotated[
        list[int], typer.Option("--seed", min=0, max=2**63 - 1, metavar="S", help="Repeatable: one run per seed.")
    ] = (0,)  # type: ignore[assignment]
    jobs: Jobs = 1
    runs: Runs = Path("runs")
    device: Device = "auto"
    dry_run: DryRun = False
    resume: Resume = True
    json: Json = False

    def resolve(self, *more: tuple[str, str]) -> Resolved:
        """The recipe with all overrides: common flags, then `more` (flags of the verb), then --set."""
        flags = [("--data", f"data.name={quoted(self.data)}")] if self.data is not None else []
        flags += [("--epochs", f"train.epochs={self.epochs}")] if self.epochs is not None else []
        flags += [("--from", f"model.start={quoted(self.start)}")] if self.start is not None else []
        found = load(self.recipe, list(self.overrides), [*flags, *more])
        return replace(found, recipe=plan.started(found.recipe, self.runs))

    @property
    def seeds(self) -> list[int]:
        if len(set(self.seed)) < len(self.seed):
            raise UsageError(f"--seed: {max(self.seed, key=list(self.seed).count)} is given twice; name each seed once")
        return list(self.seed)


def words() -> tuple[str, ...]:
    """The command line for the record, without --no-resume, so it continues the run."""
    return tuple(word for word in sys.argv[1:] if word != "--no-resume")


def quoted(value: str) -> str:
    """`value` as a TOML string, so no character of a user's path is read as TOML syntax."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise UsageError(f"{printable(value)}: contains control characters; rename the folder")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def with_common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the common flags to a verb: `function(..., common)` becomes a command with its own and these parameters."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "common"]
    hints = inspect.get_annotations(Common, eval_str=True)
    flags = []
    for field in fields(Common):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        flags.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        chosen = {flag.name: kwargs.pop(flag.name) for flag in flags}
        return function(*args, common=Common(**chosen), **kwargs)

    command.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    del command.__wrapped__  # typer must see the new signature, not the old one
    return command
