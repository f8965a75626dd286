"""The command that fills an empty cell. Invariant: what it makes joins the runs that the table shows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ghostcli.compare.groups import Arm, Group
from ghostcli.errors import UsageError
from ghostcli.paper import PaperRow
from ghostcli.recipe.diff import flat

FLAGS = {"train.epochs": "--epochs", "data.name": "--data"}
#: Where commands put their runs unless they are told otherwise.
RUNS = Path("runs")


def fills(row: PaperRow, family: str, group: Group | None, runs: Path = RUNS) -> str:
    """`ghost ...` for a printed row: the family's recipe and, where the group departs from it, its settings."""
    alone = group is None or group.mixed
    settings = () if alone else _settings(row.published if family == "published" else family, flat(group.recipe))
    return shlex.join(("ghost", *row.arguments(family), *settings, *into(runs)))


def reproduces(table: str, family: str, runs: Path = RUNS) -> str:
    """`ghost reproduce ...` for all rows of a table."""
    return shlex.join(("ghost", "reproduce", table, "--family", family, *into(runs)))


def into(runs: Path) -> tuple[str, ...]:
    """The flag that has a command's runs lie where the table looks for them."""
    return () if runs == RUNS else ("--runs", str(runs))


def baseline_of(arm: Arm, epochs: int, changed: dict[str, Any] | None = None, runs: Path = RUNS) -> str:
    """`ghost train-teacher ...` for the untaught runs of `epochs`, a seed each of `arm`'s, to compare with.

    `changed` holds keys, by their whole names, that are to be otherwise than in the arm's recipe.
    """
    name = arm.about.recipe_name or arm.about.family
    recipe = () if name == "paper" else ("--recipe", name)
    longer = {"train.epochs": epochs} if epochs != arm.about.epochs else {}
    settings = _settings(name, flat(arm.recipe), longer | (changed or {}))
    seeds = list(dict.fromkeys(run.result.seed for run in arm.runs))
    every = [word for seed in seeds for word in ("--seed", str(seed))] if seeds != [0] else []
    return shlex.join(("ghost", "train-teacher", arm.student, *recipe, *settings, *every, *into(runs)))


def _settings(name: str, recipe: dict[str, Any], changed: dict[str, Any] | None = None) -> tuple[str, ...]:
    """The flags that turn the shipped recipe `name` into the flat `recipe`, but for what teaching alone reads.

    `changed` is asked for in any case. A file of the user's own that is gone counts as holding all the rest.
    """
    from ghostcli.recipe.load import load

    try:
        shipped = flat(load(name).recipe.model_dump(mode="json"))
    except UsageError:
        shipped = {}
    departs = {key: value for key, value in recipe.items() if key in shipped and value != shipped[key]}
    flags: list[str] = []
    for key, value in (departs | (changed or {})).items():
        section, _, rest = key.partition(".")
        if rest and section != "distill":
            text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            flags += [FLAGS[key], text] if key in FLAGS else ["-s", f"{key}={text}"]
    return tuple(flags)
