"""`ghost runs`: lists, shows, re-checks, copies and removes run directories. Invariant: only `rm` changes a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli import signals
from ghostcli.cli import complete
from ghostcli.cli.options import Json, Runs
from ghostcli.display import tell_json
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records import lease, record
from ghostcli.records.contents import without_places
from ghostcli.records.model import dump
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import read_json, write_bytes, write_json
from ghostcli.render.facts import overview, page
from ghostcli.run import queue

app = typer.Typer(
    no_args_is_help=True, help="Run directories: list, show, verify, remove, copy into a study, send to a tracker."
)

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A run's id, as `ghost runs list` prints it.", autocompletion=complete.runs)
]


@app.command("list")
def list_runs(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """All runs: status, epochs, accuracy and problems."""
    rows = with_queue([overview(run) for run in scanned(runs)], runs)
    if as_json:
        tell_json(rows)
    elif rows:
        _print(rows)
    else:
        typer.echo(f"{printable(runs)}: no runs yet; ghost demo makes some in minutes")


def with_queue(rows: list[dict[str, Any]], runs: Path) -> list[dict[str, Any]]:
    """The rows, and what Slurm says of runs that were submitted and are not done."""
    states = queue.told(runs)
    if not states:
        return rows
    by_run = {row["run"]: row for row in rows}
    for run, (status, phrase) in states.items():
        row = by_run.setdefault(run, queue.planned(runs, run))
        if row["status"] not in ("running", "done"):
            row |= {"status": status, "problem": phrase}
    return [by_run[run] for run in sorted(by_run)]


def scanned(runs: Path) -> list[RunRecord]:
    """The runs in a folder. UsageError if it is not a folder; only the default folder may be missing."""
    if not runs.is_dir() and (runs.exists() or runs != Path("runs")):
        what = "is a file" if runs.exists() else "does not exist"
        raise UsageError(f"--runs {printable(runs)}: {what}; name the folder that contains your runs")
    return record.scan(runs)


def _print(rows: list[dict[str, Any]]) -> None:
    """One line per run. Ids are never cut: if the terminal is too narrow, the last columns are left out."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console

    console = Console()
    most = max(16, console.width - max(len(row["run"]) for row in rows) - 12) if console.is_terminal else 60
    cells = {
        "run": [row["run"] for row in rows],
        "status": [_status(row, most) for row in rows],
        "accuracy": [f"{row['accuracy']:.2f}" if row["accuracy"] is not None else "-" for row in rows],
        "epoch": [f"{row['epoch']}/{row['epochs'] or '-'}" for row in rows],
        "teaching": [f"{row['kind']} by {', '.join(row['teachers'])}" if row["kind"] else "-" for row in rows],
        "data": [row["data"] or "-" for row in rows],
        "recipe": [row["recipe"] or "-" for row in rows],
    }
    columns = [[title, *map(printable, column)] for title, column in cells.items()]
    widths = [max(map(cell_len, column)) for column in columns]
    while console.is_terminal and len(columns) > 2 and sum(widths) + 2 * (len(widths) - 1) > console.width:
        columns.pop(), widths.pop()
    lines = ["  ".join(map(set_cell_size, line, widths)) for line in zip(*columns, strict=True)]
    if console.is_terminal:
        lines[0] = typer.style(lines[0], bold=True)
    typer.echo("\n".join(lines))


def _status(row: dict[str, Any], most: int) -> str:
    if row["status"] in ("done", "running"):
        return row["status"]
    text = f"{row['status']}: {row['problem']}"
    return text if len(text) <= most else text[: most - 3] + "..."


@app.command()
def show(run: Id, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """One run: its result, recipe and environment."""
    chosen = record.find(runs, run)
    if as_json:
        parts = {"result": chosen.result, "recipe": chosen.setup, "env": chosen.environment}
        contents = {name: dump(part) if part else None for name, part in parts.items()}
        tell_json(overview(chosen) | contents)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, pad_edge=False, show_header=False)
    view.add_column(no_wrap=True, style="bold")
    view.add_column(overflow="fold")
    for title, text in page(chosen):
        view.add_row(title, Text(printable(text)))
    console = Console(highlight=False)
    console.print(view) if console.is_terminal else Console(highlight=False, width=10_000).print(view)


@app.command()
def verify(
    run: Annotated[str | None, typer.Argument(metavar="ID", help="One run only.", show_default="all")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Re-check the files of all runs: checksums, accuracy against predictions and epochs, recipe against id."""
    from ghostcli.comparison.admission import contradictions
    from ghostcli.records.verify import verify_run

    known = scanned(runs)
    chosen = [record.find(runs, run)] if run else known
    against_others = contradictions(known)
    rows = []
    for one in chosen:
        problems = [*verify_run(one), *filter(None, (against_others.get(one.id),))]
        rows.append({"run": one.id, "status": one.status, "problems": list(dict.fromkeys(problems))})
    broken = [row for row in rows if row["problems"]]
    if as_json:
        tell_json(rows)
    else:
        if not rows:
            typer.echo(f"{printable(runs)}: no runs")
        for row in rows:
            typer.echo(printable(f"{row['run']}: {'; '.join(row['problems']) or 'whole'} ({row['status']})"))
    if broken:
        raise GhostError(f"{len(broken)} of {len(rows)} runs are damaged or contradict others; the lines above say why")


@app.command("study")
def study(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Finished runs; an id without a seed: all of its seeds.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The study's folder: runs/studies/NAME.")],
    runs: Runs = Path("runs"),
) -> None:
    """Copy the records of finished runs to a study's folder: only what tables and curves need.

    Of an absolute path in a run's command only the last part is kept: a study may be published.
    """
    from ghostcli.cli.plot import named

    known = scanned(runs)
    chosen = [run for name in ids for run in named(name, known, runs)]
    for run in chosen:
        if run.status != "done":
            raise UsageError(f"{run.id}: cannot be part of a study ({run.problem}); finish it first")
    if out.resolve() == runs.resolve():
        raise UsageError(f"--out {printable(out)}: is the folder of the runs; name another, as runs/studies/NAME")
    for run in chosen:
        folder = out / run.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {printable(out)}: not writable ({error.strerror}); name another folder") from error
        write_bytes(folder / "metrics.jsonl", (run.path / "metrics.jsonl").read_bytes())
        write_json(folder / "result.json", without_places(read_json(run.path / "result.json")))
        write_json(folder / "status.json", {"status": "done"})
    typer.echo(f"{len(chosen)} record{'s' * (len(chosen) != 1)} in {printable(out)}")


@app.command("sync")
def sync_runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Runs.", show_default="all", autocompletion=complete.runs),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="TRACKER", help="tensorboard, wandb or trackio.")] = "tensorboard",
    runs: Runs = Path("runs"),
    folder: Annotated[
        Path | None, typer.Option("--logdir", metavar="DIR", help="Of TensorBoard.", show_default="RUNS/tensorboard")
    ] = None,
    project: Annotated[str, typer.Option("--project", metavar="NAME", help="Of wandb and trackio.")] = "ghost",
    follow: Annotated[bool, typer.Option("--follow", help="Go on while runs go on, until Ctrl-C.")] = False,
) -> None:
    """Copy the metrics of runs into a tracker: what it does not have yet. The record stays the truth.

    ghost runs sync --follow        ghost runs sync --to wandb --project cifar
    """
    import time

    from ghostcli.display import console
    from ghostcli.errors import Interrupted
    from ghostcli.share import track

    if to not in track.TRACKERS:
        raise UsageError(f"--to '{printable(to)}' does not exist; choose {', '.join(track.TRACKERS)}")
    place = track.Place(to, folder or runs / "tensorboard", project)
    try:
        while True:
            chosen = [record.find(runs, name) for name in names] if names else scanned(runs)
            try:
                for run, count in track.sync(runs, chosen, place):
                    typer.echo(f"{run}: {count} epoch{'s' * (count != 1)} to {place.key}")
            except UsageError:
                raise
            except GhostError as error:
                if not follow:
                    raise
                console.print(printable(error), style="yellow", markup=False)
            if not follow:
                return
            signals.raise_if_received()  # a tracker may have caught whatever was raised
            time.sleep(2)
    except Interrupted:
        if not follow:
            raise


@app.command("rm")
def remove(
    run: Id,
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run directory."""
    chosen = record.find(runs, run)
    if chosen.status == "running":
        raise UsageError(f"{chosen.id}: {chosen.owner or 'another process'} is working on it; stop it first")
    if not yes and not typer.confirm(f"Delete {chosen.path} with all its files?"):
        raise typer.Exit
    with lease.held(chosen.path, lambda who: typer.echo(f"{chosen.id}: {who} may work on it; waiting", err=True)):
        shutil.rmtree(chosen.path)
        chosen.path.with_name(chosen.path.name + ".lock").unlink(missing_ok=True)  # of an older version
    if not any(chosen.path.parent.iterdir()):
        chosen.path.parent.rmdir()
    typer.echo(f"{chosen.id}: removed")
