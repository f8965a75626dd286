"""The command that an unfinished run goes on with, put together from what the run wrote down.

Invariant: a command is only given after planning it has led to that very run, so that it never starts another.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghostcli import plan
from ghostcli.errors import UsageError
from ghostcli.recipe import Recipe, load
from ghostcli.recipe.diff import flat
from ghostcli.records.record import RUN_ID, RunRecord

FLAGS = {"train.epochs": "--epochs", "data.name": "--data"}
MOST_SETTINGS = 6  # beyond so many overrides the run's own recipe.json is the clearer name


def command_of(run: RunRecord, runs: Path) -> str | None:
    """`ghost ...` for a run that a training verb began; None where nothing leads back to it."""
    told = run.recipe
    try:
        student, seed = str(told["student"]), int(told["seed"])
        teachers = [str(teacher) for teacher in told["teachers"]]
        recipe = Recipe.model_validate(told["recipe"])
        for name, settings in _sources(run, recipe, taught=bool(teachers)):
            for verb, models, dense in _ways(run, runs, teachers):
                if _leads_to(run.id, verb, models, student, seed, name, settings, runs):
                    arguments = ["ghost", verb, *models] + (["--student", student] if teachers else [student])
                    arguments += [] if name == "paper" else ["--recipe", name]
                    arguments += _typed(settings, dense) + (["--seed", str(seed)] if seed else [])
                    return shlex.join(arguments + ([] if runs == Path("runs") else ["--runs", str(runs)]))
    except (KeyError, TypeError, ValueError, RecursionError):  # a recipe.json that is damaged or of another version
        pass
    return None


def _sources(run: RunRecord, recipe: Recipe, taught: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """(recipe, overrides) that give back the run's recipe: the shipped one it came from, then its own file."""
    name = str(run.recipe["recipe_name"])
    try:
        shipped = flat(load(name).recipe.model_dump(mode="json"))
    except UsageError:
        shipped = {}
    own = flat(recipe.model_dump(mode="json"))
    settings = {
        key: _toml(value)
        for key, value in own.items()
        if "." in key and value != shipped.get(key) and (taught or not key.startswith("distill."))
    }
    if shipped and len(settings) <= MOST_SETTINGS:
        yield name, settings
    yield str(run.path / "recipe.json"), {}


def _toml(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _ways(run: RunRecord, runs: Path, teachers: Sequence[str]) -> Iterator[tuple[str, list[str], bool]]:
    """(verb, teachers, dense) that may have begun it: teachers by their models' names, then as finished runs."""
    if not teachers:
        yield "train-teacher", [], False
        return
    students = [str(_told(teacher, runs)["student"]) for teacher in teachers]
    ids = [f"run/{teacher}" for teacher in teachers]
    if len(teachers) == 1:
        path = _path(teachers[0], runs)
        yield ("assist-chain" if len(path) > 1 else "distill"), path, False
        yield "distill", ids, False
    elif run.recipe["recipe"]["distill"]["dense"]:
        yield "assist-chain", students, True
        yield "assist-chain", [ids[0], *students[1:]], True
    else:
        yield "ensemble", students, False
        yield "ensemble", ids, False


def _told(run_id: str, runs: Path) -> dict[str, Any]:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id} is no run's id")
    return RunRecord(runs / run_id, run_id).recipe


def _path(run_id: str, runs: Path) -> list[str]:
    """A teacher's line, first to last: each taught by the one before, itself at the end."""
    told = _told(run_id, runs)
    above = told["teachers"]
    return [*(_path(str(above[0]), runs) if len(above) == 1 else []), str(told["student"])]


def _leads_to(
    run_id: str,
    verb: str,
    models: Sequence[str],
    student: str,
    seed: int,
    name: str,
    settings: dict[str, str],
    runs: Path,
) -> bool:
    """Whether planning the command gives this run."""
    try:
        found = load(name, [f"{key}={_quoted(key, value)}" for key, value in settings.items()])
        match verb:
            case "train-teacher":
                job = plan.plain(student, seed, found.recipe, found.name)
            case "ensemble":
                job = plan.ensemble(models, student, seed, found.recipe, found.name, runs)
            case _:
                job = plan.chain(models, student, seed, found.recipe, found.name, runs)
    except UsageError:
        return False
    return job.id == run_id


def _quoted(key: str, value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if key == "data.name" else value


def _typed(settings: dict[str, str], dense: bool) -> list[str]:
    arguments: list[str] = []
    for key, value in settings.items():
        if key == "distill.dense" and dense:
            arguments.append("--dense")
        else:
            arguments += [FLAGS[key], value] if key in FLAGS else ["-s", f"{key}={value}"]
    return arguments
