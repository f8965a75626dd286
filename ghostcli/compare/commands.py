"""The commands that make what a table lacks. Invariant: the runs of a command join those that the table shows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghostcli.compare.groups import Cohort, RunGroup
from ghostcli.compare.rows import RUNS
from ghostcli.errors import UsageError
from ghostcli.paper import PaperRow
from ghostcli.recipe.diff import config_diff, flat, untaught
from ghostcli.recipe.models import Recipe

FLAGS = {"train.epochs": "--epochs", "data.name": "--data"}


def of_row(row: PaperRow, family: str, cohort: Cohort | None, runs: Path = RUNS) -> str:
    """`ghost ...` for a printed row: the family's recipe and, where the cohort differs from it, its settings."""
    words = row.arguments(family)
    if cohort is not None and not cohort.mixed:
        words += _settings(row.published if family == "published" else family, cohort.about.recipe)
    return _line(*words, runs=runs)


def of_table(table: str, family: str, runs: Path = RUNS) -> str:
    """`ghost reproduce ...` for all rows of a table."""
    return _line("reproduce", table, "--family", family, runs=runs)


def of_baseline(group: RunGroup, epochs: int, runs: Path = RUNS) -> str:
    """`ghost train-teacher ...` for untaught runs of `epochs`, one for each seed of `group`."""
    changed = {"train.epochs": epochs} if epochs != group.about.epochs else {}
    settings = _settings(group.about.recipe_name, group.recipe, changed)
    return _line("train-teacher", group.student, *_recipe(group), *settings, *_seeds(group), runs=runs)


def of_control(group: RunGroup, runs: Path = RUNS) -> str:
    """The command of a taught group again, with image-blind teachers."""
    about = group.about
    by_id = any(word.startswith("run/") for word in about.command)
    teachers = tuple(f"run/{teacher.run}" for teacher in about.teachers) if by_id else group.teachers
    together = about.strategy in ("ensemble", "adaptive")
    verb = "ensemble" if together else "distill" if len(teachers) == 1 else "assist-chain"
    recipe, shared = group.recipe, _teacher_seeds(group)
    if shared:  # what the flag says is not said again
        recipe = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"teacher_seed": 0})})
    settings = (*_settings(about.recipe_name, recipe, {"distill.blind": True}, taught=True), *shared)
    words = (verb, *teachers, "--student", group.student, *_recipe(group), *settings, *_seeds(group))
    return _line(*words, runs=runs)


def _teacher_seeds(group: RunGroup) -> tuple[str, ...]:
    """The flag that shares a group's seeds out among its teachers; nothing where it has one, or shares otherwise."""
    count = group.teacher_count
    numbers = [(run.result.seed, run.result.recipe.distill.teacher_seed) for run in group.runs]
    if count > 1 and all(seed % count == number for seed, number in numbers):
        return ("--teacher-seeds", str(count))
    return ()


def _line(*words: str, runs: Path) -> str:
    """The command, with the flag that puts its runs where the table looks for them."""
    return shlex.join(("ghost", *words, *(() if runs == RUNS else ("--runs", str(runs)))))


def _recipe(group: RunGroup) -> tuple[str, ...]:
    name = group.about.recipe_name
    return () if name == "paper" else ("--recipe", name)


def _seeds(group: RunGroup) -> Sequence[str]:
    seeds = list(dict.fromkeys(run.result.seed for run in group.runs))
    return () if seeds == [0] else [word for seed in seeds for word in ("--seed", str(seed))]


def _settings(
    name: str, recipe: Recipe, changed: dict[str, Any] | None = None, taught: bool = False
) -> tuple[str, ...]:
    """The flags that turn the shipped recipe `name` into `recipe`, with the values of `changed`.

    Keys that only teaching reads are left out unless `taught`. A user's recipe file that is gone counts as equal.
    """
    from ghostcli.recipe.load import load

    try:
        diff = config_diff(load(name).recipe, recipe)
    except UsageError:
        diff = {}
    known, kept = flat(recipe), diff.keys() if taught else untaught(diff)
    values = {key: known[key] for key in diff if key in kept and key in known} | (changed or {})
    words: list[str] = []
    for key, value in values.items():
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        words += [FLAGS[key], text] if key in FLAGS else ["-s", f"{key}={text}"]
    return tuple(words)
