"""`ghost runs`: look at, re-check and remove run directories. Invariant: nothing but `rm` changes a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli import record
from ghostcli.cli.options import Json, Runs
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.record import RunRecord
from ghostcli.storage import read_json

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
    rows = [overview(run) for run in record.scan(runs)]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo(f"{printable(runs)}: no runs yet; ghost demo makes some in two minutes")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table("run", "status", "epoch", "accuracy", "recipe", "data", box=None, pad_edge=False)
    for row in rows:
        accuracy = f"{row['accuracy']:.2f}" if row["accuracy"] is not None else "-"
        status = row["status"] if row["status"] in ("done", "running") else f"{row['status']}: {row['problem']}"
        cells = (
            row["run"],
            status,
            f"{row['epoch']}/{row['epochs']}",
            accuracy,
            row["recipe"] or "-",
            row["data"] or "-",
        )
        view.add_row(*(Text(printable(cell)) for cell in cells))
    Console(soft_wrap=True).print(view)


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
    from rich.pretty import Pretty

    Console().print(Pretty(everything, expand_all=True))


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(metavar="[ID]", help="One run only.", show_default="all")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Re-check every run's files: checksums of weights and checkpoints, predictions against the recorded accuracy."""
    from ghostcli.engine.verify import verify_run

    chosen = [record.find(runs, run)] if run else record.scan(runs)
    rows = [{"run": one.id, "status": one.status, "problems": verify_run(one)} for one in chosen]
    broken = [row for row in rows if row["problems"]]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
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
