"""The names of trained networks: `run/ID`, a finished run, and `pretrained/NAME`, which comes with ghost.

A network that comes with ghost is the record of a run with its weights in float16, in a folder of the package. So it
may stand wherever a finished run may: it teaches, starts a student, is measured, exported and asked.
"""

from __future__ import annotations

from pathlib import Path

from ghostcli.errors import GhostError, UsageError, nearest, printable
from ghostcli.records import record
from ghostcli.records.record import RunRecord, file_digest

RUN, PRETRAINED = "run/", "pretrained/"
FOLDER = Path(__file__).parents[1] / "pretrained"


def is_trained(name: str) -> bool:
    """Whether a name is one of a trained network, and not of a model."""
    return name.startswith((RUN, PRETRAINED))


def shipped() -> list[str]:
    """The names of the networks that come with ghost: `pretrained/gns-0.25`, ..."""
    return sorted(PRETRAINED + file.parent.name for file in FOLDER.glob("*/result.json"))


def find(runs: Path, name: str) -> RunRecord:
    """The record that a name stands for; ids of runs need no `run/`.

    UsageError if there is none. GhostError if the files of a network that comes with ghost have changed.
    """
    if not name:
        raise UsageError('"" names no network; is a variable empty?')
    if not name.startswith(PRETRAINED):
        return record.find(runs, name)
    known = shipped()
    if name.rstrip("/") not in known:
        raise UsageError(f"{printable(name)}: is no network that comes with ghost{nearest(name, known)}")
    run = at(runs, name.rstrip("/"))
    result = run.result
    if result is None or not run.weights.exists():
        raise GhostError(f"{run.id}: its files are damaged ({run.problem}); install ghost again")
    if file_digest(run.weights) != result.files.get(run.weights.name):
        raise GhostError(f"{run.id}: its weights are not those that ghost came with; install ghost again")
    return run


def at(runs: Path, run_id: str) -> RunRecord:
    """The record of an id, which may not exist yet."""
    if run_id.startswith(PRETRAINED):
        return RunRecord(FOLDER / run_id.removeprefix(PRETRAINED), run_id)
    return RunRecord(runs / run_id, run_id)


def named(run_id: str) -> str:
    """An id as a command takes it."""
    return run_id if run_id.startswith(PRETRAINED) else RUN + run_id
