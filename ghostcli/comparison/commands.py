"""The commands for the missing runs of a table. Invariant: the runs of a command join those that the table shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ghostcli.comparison.groups import Cohort, RunGroup
from ghostcli.paper import PaperRow
from ghostcli.plan.commands import RUNS, settings, source, training
from ghostcli.records import trained


def of_row(row: PaperRow, family: str, cohort: Cohort | None, runs: Path = RUNS) -> str:
    """The command for a printed row: the family's recipe, and the settings of the cohort that differ from it."""
    recipe, flags = row.recipe(family), ()
    if cohort is not None:
        flags = settings(recipe, cohort.about.recipe, taught=False)
    return training(row.student, row.strategy, row.teachers, recipe, flags, runs=runs)


def of_baseline(group: RunGroup, epochs: int, runs: Path = RUNS) -> str:
    """The command for the baseline of `group`, with `epochs` and the same seeds."""
    changed: dict[str, int | None] = {"train.epochs": epochs} if epochs != group.about.epochs else {}
    if changed and group.recipe.train.stop is not None:
        changed["train.stop"] = None
    recipe = source(group.about.recipe_name, group.recipe)
    flags = settings(recipe, group.recipe, taught=False, changed=changed)
    return training(group.student, recipe=recipe, flags=flags, seeds=dict.fromkeys(group.seeds), runs=runs)


def of_control(group: RunGroup, runs: Path = RUNS) -> str:
    """The command for the control of a taught group: the same training with image-blind teachers."""
    about = group.about
    teachers = group.teachers
    if _named_by_id(about.command):  # in a dense chain only the first may be; the others are trained
        ids = [trained.named(teacher.run) for teacher in about.teachers]
        teachers = (ids[0], *teachers[1:]) if about.strategy == "dense" else tuple(ids)
    recipe, shared = group.recipe, _teacher_seeds(group)
    if shared:  # the flag sets this key
        recipe = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"teacher_seed": 0})})
    name = source(about.recipe_name, recipe)
    flags = (*settings(name, recipe, taught=True, changed={"distill.blind": True}), *shared)
    return training(group.student, about.strategy, teachers, name, flags, dict.fromkeys(group.seeds), runs)


def _named_by_id(command: Sequence[str]) -> bool:
    """Whether a teacher of this command is a trained network. The value of --from is none."""
    return any(trained.is_trained(word) and before != "--from" for before, word in pairwise(("", *command)))


def _teacher_seeds(group: RunGroup) -> tuple[str, ...]:
    """The flag that divides a group's seeds among its teachers; empty if it has one teacher or another division."""
    count = group.teacher_count
    numbers = [(run.result.seed, run.result.recipe.distill.teacher_seed) for run in group.runs]
    if count > 1 and all(seed % count == number for seed, number in numbers):
        return ("--teacher-seeds", str(count))
    return ()
