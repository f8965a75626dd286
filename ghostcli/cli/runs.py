"""`ghost runs`: look at, re-check and remove run directories. Invariant: nothing but `rm` changes a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.display import clock
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records import record
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import read_json

app = typer.Typer(no_args_is_help=True, help="Run directories: list, show, verify, remove.")

Id = Annotated[str, typer.Argument(metavar="ID", help="A run's id, as `ghost runs list` prints it.")]


def overview(run: RunRecord) -> dict[str, Any]:
    rows = run.metrics()
    last = rows[-1] if rows else None
    total = run.recipe.get("recipe", {}).get("train", {}).get("epochs")
    return {
        "run": run.id,
        "status": run.status,
        "epoch": last["epoch"] if last else 0,
        "epochs": total,
        "accuracy": (run.result or {}).get("accuracy", {}).get("selected", last["test"]["accuracy"] if last else None),
        "recipe": run.recipe.get("recipe_name"),
        "data": run.recipe.get("recipe", {}).get("data", {}).get("name"),
        "problem": run.problem,
    }


@app.command("list")
def list_runs(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Every run: how far it is, how good, and what is wrong with it."""
    rows = [overview(run) for run in scanned(runs)]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        _print(rows)
    else:
        typer.echo(f"{printable(runs)}: no runs yet; ghost demo makes some in two minutes")


def scanned(runs: Path) -> list[RunRecord]:
    """The runs in a folder; UsageError where it was named and is none. The default one may not be there yet."""
    if not runs.is_dir() and (runs.exists() or runs != Path("runs")):
        what = "is a file" if runs.exists() else "is not there"
        raise UsageError(f"--runs {printable(runs)}: {what}; name the folder that holds your runs")
    return record.scan(runs)


def _print(rows: list[dict[str, Any]]) -> None:
    """One line a run. Ids are whole at any width: on a narrow terminal the last columns are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    most = max(16, console.width - max(len(row["run"]) for row in rows) - 12) if console.is_terminal else 60
    cells = {
        "run": [row["run"] for row in rows],
        "status": [_status(row, most) for row in rows],
        "accuracy": [f"{row['accuracy']:.2f}" if row["accuracy"] is not None else "-" for row in rows],
        "epoch": [f"{row['epoch']}/{row['epochs']}" for row in rows],
        "data": [row["data"] or "-" for row in rows],
        "recipe": [row["recipe"] or "-" for row in rows],
    }
    while True:
        view = Table(box=None, pad_edge=False)
        for title in cells:
            view.add_column(title, no_wrap=True)
        for line in zip(*cells.values(), strict=True):
            view.add_row(*(Text(printable(cell)) for cell in line))
        width = console.measure(view, options=console.options.update(max_width=10_000)).maximum
        if not console.is_terminal or width <= console.width or len(cells) == 2:
            break
        cells.popitem()
    Console(highlight=False, width=width, soft_wrap=True).print(view)


def _status(row: dict[str, Any], most: int) -> str:
    if row["status"] in ("done", "running"):
        return row["status"]
    text = f"{row['status']}: {row['problem']}"
    return text if len(text) <= most else text[: most - 3] + "..."


@app.command()
def show(run: Id, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """One run: its result, its recipe and where it was made."""
    chosen = record.find(runs, run)
    everything: dict[str, Any] = {**overview(chosen), "result": chosen.result, "recipe": chosen.recipe}
    everything["env"] = read_json(chosen.path / "env.json") if (chosen.path / "env.json").exists() else None
    if as_json:
        typer.echo(json.dumps(everything, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, pad_edge=False, show_header=False)
    view.add_column(no_wrap=True, style="bold")
    view.add_column(overflow="fold")
    for title, text in page(chosen, everything["env"] or {}):
        view.add_row(title, Text(printable(text)))
    console = Console(highlight=False)
    console.print(view) if console.is_terminal else Console(highlight=False, width=10_000).print(view)


def page(run: RunRecord, env: dict[str, Any]) -> list[tuple[str, str]]:
    """A run as a person reads it: titles and texts, a line each."""
    result, recipe, seen = run.result or {}, run.recipe.get("recipe", {}), overview(run)
    lines = [("run", run.id), ("status", f"{run.status}" + (f": {run.problem}" if run.problem else ""))]
    weights = f", {result['parameters']:,} parameters" if "parameters" in result else ""
    lines.append(("network", f"{run.recipe.get('student', '?')}{weights}, seed {run.recipe.get('seed', '?')}"))
    lines += [("taught by", teacher) for teacher in run.recipe.get("teachers", ())] or [("taught by", "nobody")]
    counts = [f"{result[key]:,} {key.removesuffix('_images')}" for key in IMAGES if result.get(key)]
    lines.append(("data", f"{seen['data']}" + (f": {', '.join(counts)} images" if counts else "")))
    lines.append(("recipe", f"{seen['recipe']}, {seen['epoch']} of {seen['epochs']} epochs done"))
    lines += [("", text) for text in departures(str(seen["recipe"]), recipe)]
    if result:
        scores = result["accuracy"]
        text = f"{scores['selected']:.2f} % (last {scores['last']:.2f}, best {scores['best']:.2f})"
        lines.append(("test accuracy", text))
        agreement = result.get("agreement") or {}
        lines += [("agreement", f"{share:.2f} % with {teacher}") for teacher, share in agreement.items()]
    elif seen["accuracy"] is not None:
        lines.append(("test accuracy", f"{seen['accuracy']:.2f} % so far"))
    if "seconds" in result:
        lines.append(("time", f"{clock(result['seconds'])}, on {env.get('device', result.get('device'))}"))
    if env:
        made = ", ".join(f"{key} {env[key]}" for key in ("ghost", "python", "torch", "kernel") if key in env)
        lines.append(("made with", made))
    lines += [("check", f"{found['level']}: {found['message']}") for found in result.get("check", ())]
    lines += [("note", str(note)) for note in result.get("notes", ())]
    files = sorted(path.name for path in run.path.iterdir() if path.is_file() and not path.name.startswith("."))
    return [*lines, ("in", str(run.path)), ("files", ", ".join(files))]


IMAGES = ("train_images", "validation_images", "test_images")


def departures(name: str, mine: dict[str, Any]) -> list[str]:
    """`key = value (theirs)` for each key of a run's recipe that is not as the recipe it was made from has it."""
    from ghostcli.recipe import load

    try:
        named = load(name).recipe.model_dump(mode="json")
    except UsageError:
        return [f"{name} is not to be had here; --json has every key"]
    found = []
    for section, keys in mine.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            theirs = named.get(section, {}).get(key)
            if value != theirs:
                found.append(f"{section}.{key} = {json.dumps(value)} ({json.dumps(theirs)})")
    return found


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(metavar="[ID]", help="One run only.", show_default="all")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Re-check every run's files: checksums of weights and checkpoints, predictions against the recorded accuracy."""
    from ghostcli.records.verify import verify_run

    chosen = [record.find(runs, run)] if run else scanned(runs)
    rows = [{"run": one.id, "status": one.status, "problems": verify_run(one)} for one in chosen]
    broken = [row for row in rows if row["problems"]]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        if not rows:
            typer.echo(f"{printable(runs)}: no runs")
        for row in rows:
            typer.echo(printable(f"{row['run']}: {'; '.join(row['problems']) or 'whole'} ({row['status']})"))
    if broken:
        raise GhostError(f"{len(broken)} of {len(rows)} runs have damaged files; the lines above name them")


@app.command("rm")
def remove(
    run: Id,
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run directory for good."""
    chosen = record.find(runs, run)
    if chosen.status == "running":
        raise UsageError(f"{chosen.id}: process {chosen.state.get('pid')} is working on it; stop that first")
    if not yes and not typer.confirm(f"Remove {chosen.path} and all in it?"):
        raise typer.Exit
    shutil.rmtree(chosen.path)
    chosen.path.with_name(chosen.path.name + ".lock").unlink(missing_ok=True)
    if not any(chosen.path.parent.iterdir()):
        chosen.path.parent.rmdir()
    typer.echo(f"{chosen.id}: removed")
