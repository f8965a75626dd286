"""The facts of one run, as text and as data. Invariant: it only reads the record."""

from __future__ import annotations

import json
from typing import Any

from ghostcli.display import clock
from ghostcli.errors import UsageError
from ghostcli.plan import commands
from ghostcli.recipe.diff import config_diff
from ghostcli.records.model import RunSetup
from ghostcli.records.record import RunRecord


def overview(run: RunRecord) -> dict[str, Any]:
    setup, result = run.setup, run.result
    rows = run.metrics() if result is None else []
    last = rows[-1] if rows else None
    return {
        "run": run.id,
        "status": run.status,
        "epoch": result.epochs if result else last["epoch"] if last else 0,
        "epochs": setup.recipe.train.last_epoch if setup else None,
        "accuracy": result.accuracy.selected if result else last["test"]["accuracy"] if last else None,
        "recipe": setup.recipe_name if setup else None,
        "data": setup.data if setup else None,
        "teachers": list(setup.path) if setup else None,
        "kind": setup.kind if setup else None,
        "problem": run.problem,
    }


def page(run: RunRecord) -> list[tuple[str, str]]:
    """The lines of `ghost runs show`: (title, text)."""
    setup, result, env, seen = run.setup, run.result, run.environment, overview(run)
    lines = [("run", run.id), ("status", f"{run.status}: {run.problem}" if run.problem else run.status)]
    if setup:
        weights = f", {result.parameters:,} parameters, {result.start} start" if result else ""
        lines.append(("network", f"{setup.student}{weights}, seed {setup.seed}"))
        lines += [("taught by", teacher.run) for teacher in setup.teachers] or [("taught by", "no teacher")]
        parts = ("train", "validation", "test") if result else ()
        counts = [f"{count:,} {part}" for part in parts if (count := getattr(result, f"{part}_images"))]
        lines.append(("data", f"{setup.data}: {', '.join(counts)} images" if counts else setup.data))
        lines.append(("recipe", f"{setup.recipe_name}, {seen['epoch']} of {seen['epochs']} epochs done"))
        lines += [("", text) for text in changes(setup)]
    if result:
        scores = result.accuracy
        others = f"(last {scores.last:.2f}, best {scores.best:.2f})"
        lines.append(("test accuracy", f"{scores.selected:.2f} % {others}"))
        shares = [(teacher, share) for teacher, share in result.agreement.items() if share is not None]
        lines += [("agreement", f"{share:.2f} % with {teacher}") for teacher, share in shares]
        lines.append(("time", f"{clock(result.seconds)}, on {result.environment.device}"))
    elif seen["accuracy"] is not None:
        lines.append(("test accuracy", f"{seen['accuracy']:.2f} % so far"))
    if env:
        versions = f"ghost {env.ghost}, python {env.python}, torch {env.torch}, kernel {env.kernel}"
        lines.append(("made with", versions))
    if result:
        lines += [("check", f"{finding.level}: {finding.message}") for finding in result.check]
        lines += [("note", note) for note in result.notes]
    if setup and setup.command:
        lines.append(("command", commands.line(*setup.command)))
    files = sorted(path.name for path in run.path.iterdir() if path.is_file() and not path.name.startswith("."))
    return [*lines, ("in", str(run.path)), ("files", ", ".join(files))]


def changes(setup: RunSetup) -> list[str]:
    """`key = value (original)` for each key of a run's recipe that differs from the recipe that it names."""
    from ghostcli.recipe import load

    try:
        named = load(setup.recipe_name).recipe
    except UsageError:
        return [f"the recipe {setup.recipe_name} is not found here; --json prints every key"]
    diff = config_diff(setup.recipe, named)
    shown = [key for key in diff if setup.teachers or not key.startswith("distill.")]
    return [f"{key} = {json.dumps(diff[key][0])} ({json.dumps(diff[key][1])})" for key in shown]
