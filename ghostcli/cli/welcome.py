"""`ghost` alone: what to do first, or, where runs are, what to do with them."""

from __future__ import annotations

from pathlib import Path

import typer

from ghostcli.errors import printable
from ghostcli.records import record
from ghostcli.records.record import RunRecord

#: Where runs lie if nothing else was said: those of the training verbs, and those of the demo.
PLACES = (Path("runs"), Path("runs/demo"))
NEW = (
    ("ghost demo", "a small study of handwritten digits, from the first image to the verdict"),
    ("ghost distill resnet18 --student gns:1.0 --recipe smoke", "two networks on a little of CIFAR-10"),
    ("ghost data inspect folder:PATH", "a look at your own images"),
)


def welcome() -> None:
    """Print the next commands for this folder."""
    typer.echo("ghost trains small networks that recognise images, and measures whether a large one can teach them.\n")
    runs_by_place = {place: runs for place in PLACES if (runs := record.scan(place))}
    for place, runs in runs_by_place.items():
        typer.echo(f"{printable(place)}: {_count_states(runs)}")
    if runs_by_place:
        _commands(_next(runs_by_place))
    else:
        typer.echo("No runs are here yet. Begin with one of these:\n")
        _commands(NEW)
    typer.echo("\nghost --help lists every command. ghost COMMAND -h says what it takes.")


def _count_states(runs: list[RunRecord]) -> str:
    states = [run.status for run in runs]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    return f"{len(runs)} run{'s' * (len(runs) != 1)} ({', '.join(counts)})"


def _next(runs_by_place: dict[Path, list[RunRecord]]) -> list[tuple[str, str]]:
    """Commands for the folder with runs. The first place counts."""
    place, runs = next(iter(runs_by_place.items()))
    where = "" if place == PLACES[0] else f" --runs {printable(place)}"
    rows = [
        (f"ghost report{where} --open", "a page with every curve, table and verdict"),
        (f"ghost runs list{where}", "the ids of the runs"),
    ]
    trainings = list(dict.fromkeys(run.id.rpartition("/")[0] for run in runs if run.status == "done"))
    if len(trainings) > 1:
        rows.append(
            (f"ghost compare {' '.join(trainings[:2])}{where}", "what differs, by how much, and how sure that is")
        )
    done = next((run for run in runs if run.status == "done" and run.weights.exists()), None)
    if done is not None:
        rows.append((f"ghost predict run/{done.id} IMAGE{where}", "what a network says of a picture"))
    return rows


def _commands(rows: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> None:
    for command, what in rows:
        typer.echo(f"  {command}\n      {what}")
