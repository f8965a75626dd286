"""The options that every training verb takes, declared once.

Invariant: a verb's function names its own parameters and a `common: Common`; `with_common` adds the flags.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.errors import UsageError, printable
from ghostcli.recipe.load import Resolved, load


def folder(text: str | Path) -> Path:
    """What --runs names: an empty word, as of a variable that is not set, is not the folder one is in."""
    if not str(text).strip():
        raise UsageError("--runs: names no folder; type one, as in --runs runs (the default), or . for this one")
    return Path(text)


Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories live.", parser=folder)]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else there.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Recipe = Annotated[
    str, typer.Option("--recipe", "-r", metavar="NAME|FILE", help="See [bold]ghost recipe list[/]; or a file of yours.")
]
Set = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a recipe's key, as in train.batch_size=128."),
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
Jobs = Annotated[int, typer.Option("--jobs", min=1, metavar="K", help="Runs at a time, each a process of its own.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and reused, and leave.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Go on with an unfinished run, or start over (the old one is kept aside)."
    ),
]


@dataclass(frozen=True)
class Common:
    """The flags of every training verb."""

    recipe: Recipe = "paper"
    overrides: Set = ()  # type: ignore[assignment]
    data: Data = None
    epochs: Epochs = None
    seed: Annotated[
        list[int], typer.Option("--seed", min=0, max=2**63 - 1, metavar="S", help="Repeatable: one run a seed.")
    ] = (0,)  # type: ignore[assignment]
    jobs: Jobs = 1
    runs: Runs = Path("runs")
    device: Device = "auto"
    dry_run: DryRun = False
    resume: Resume = True
    json: Json = False

    def resolve(self, *more: tuple[str, str]) -> Resolved:
        """The recipe with every override applied: the flags', then `more` (the verb's own), then --set's."""
        flags = [("--data", f"data.name={quoted(self.data)}")] if self.data is not None else []
        flags += [("--epochs", f"train.epochs={self.epochs}")] if self.epochs is not None else []
        return load(self.recipe, list(self.overrides), [*flags, *more])

    @property
    def seeds(self) -> list[int]:
        if len(set(self.seed)) < len(self.seed):
            raise UsageError(f"--seed: {max(self.seed, key=list(self.seed).count)} is given twice; name each seed once")
        return list(self.seed)


def words() -> tuple[str, ...]:
    """The command line, as the record keeps it for whoever goes on: without what would start the run over."""
    return tuple(word for word in sys.argv[1:] if word != "--no-resume")


def quoted(value: str) -> str:
    """A TOML string holding `value`, so that no character of a user's path is taken for syntax."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise UsageError(f"{printable(value)}: holds control characters; rename the folder")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def with_common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the common flags: `function(..., common)` becomes a command with its own and these parameters."""
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
