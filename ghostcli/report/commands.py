"""The command that fills an empty cell. Invariant: what it makes joins the runs that the table shows."""

from __future__ import annotations

import shlex
from typing import Any

from ghostcli.errors import UsageError
from ghostcli.report.arms import Arm, Group, flat
from ghostcli.report.paper import PaperRow

FLAGS = {"train.epochs": "--epochs", "data.name": "--data"}


def fills(row: PaperRow, family: str, group: Group | None) -> str:
    """`ghost ...` for a printed row: the family's recipe and, where the group departs from it, its settings."""
    alone = group is None or group.mixed
    settings = () if alone else _settings(row.published if family == "published" else family, flat(group.recipe))
    return shlex.join(("ghost", *row.arguments(family), *settings))


def baseline_of(arm: Arm, epochs: int, changed: dict[str, Any] | None = None) -> str:
    """`ghost train-teacher ...` for the untaught run of `epochs` that a taught arm is to be compared with.

    `changed` holds keys, by their whole names, that are to be otherwise than in the arm's recipe.
    """
    name = str(arm.about.get("recipe") or arm.about["family"])
    recipe = () if name == "paper" else ("--recipe", name)
    wanted = arm.recipe
    wanted = wanted | {"train": wanted.get("train", {}) | {"epochs": epochs}}
    settings = _settings(name, flat(wanted) | (changed or {}))
    return shlex.join(("ghost", "train-teacher", arm.student, *recipe, *settings))


def _settings(name: str, recipe: dict[str, Any]) -> tuple[str, ...]:
    """The flags that turn the shipped recipe `name` into the flat `recipe`, but for what teaching alone reads."""
    from ghostcli.recipe.load import load

    try:
        shipped = flat(load(name).recipe.model_dump(mode="json"))
    except UsageError:
        return ()  # a file of the user's own that is gone
    flags: list[str] = []
    for key, value in recipe.items():
        section, _, rest = key.partition(".")
        if rest and section != "distill" and key in shipped and value != shipped[key]:
            text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            flags += [FLAGS[key], text] if key in FLAGS else ["-s", f"{key}={text}"]
    return tuple(flags)
