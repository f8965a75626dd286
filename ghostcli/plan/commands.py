"""The spelling of commands: the line that a user types to train something.

Invariant: no other module spells a verb and its flags. The run of a printed command has the id that it was printed for.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostcli.errors import UsageError
from ghostcli.recipe import load
from ghostcli.recipe.diff import config_diff, flat, untaught
from ghostcli.recipe.models import Recipe

#: The default runs folder.
RUNS = Path("runs")
#: Keys that have a flag of their own.
FLAGS = {"train.epochs": "--epochs", "data.name": "--data", "model.start": "--from"}


def line(*words: str, runs: Path = RUNS) -> str:
    """`ghost WORDS`, with --runs if it is not the default folder. Words are quoted for a shell."""
    return shlex.join(("ghost", *words, *(() if runs == RUNS else ("--runs", str(runs)))))


def training(
    student: str,
    strategy: str = "plain",
    teachers: Sequence[str] = (),
    recipe: str = "paper",
    flags: Sequence[str] = (),
    seeds: Iterable[int] = (0,),
    runs: Path = RUNS,
) -> str:
    """The command that trains `student`. `flags`: see `settings`."""
    networks = (*teachers, "--student", student) if teachers else (student,)
    named = () if recipe == "paper" else ("--recipe", recipe)
    seeds = list(seeds)
    chosen = [] if seeds == [0] else [word for seed in seeds for word in ("--seed", str(seed))]
    return line(_verb(strategy, len(teachers)), *networks, *named, *flags, *chosen, runs=runs)


def _verb(strategy: str, teachers: int) -> str:
    if not teachers:
        return "train-teacher"
    if strategy in ("ensemble", "adaptive"):
        return "ensemble"
    return "distill" if teachers == 1 else "assist-chain"


def source(name: str, recipe: Recipe) -> str:
    """The name of the recipe that a command begins with: `name`, or the family's where that file is not here."""
    try:
        load(name)
    except UsageError:
        return recipe.family
    return name


def settings(name: str, recipe: Recipe, taught: bool, changed: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The flags that turn the recipe `name` (see `source`) into `recipe` with the values of `changed`.

    Keys of [distill] are left out unless `taught`.
    """
    diff = config_diff(recipe, load(name).recipe)
    known, keys = flat(recipe), set(diff) if taught else untaught(diff)
    if "model.start_sha256" in keys:  # --from sets both
        keys = keys - {"model.start_sha256"} | {"model.start"}
    return flags_of({key: known[key] for key in diff if key in keys and key in known} | dict(changed or {}))


def flags_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The flags that set these keys of a recipe."""
    words: list[str] = []
    for key, value in values.items():
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        words += [FLAGS[key], text] if key in FLAGS else ["-s", f"{key}={text}"]
    return tuple(words)
