"""What ghost asks Slurm: submit, look, cancel. Each is one call of Slurm's own commands.

Invariant: the answer of a command that fails is passed on in its own words.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.plan import Job
from ghostcli.records import record
from ghostcli.records.storage import read_json, write_json
from ghostcli.run import spec
from ghostcli.run.place import Place

#: Seconds before the time limit at which a job is told to save. Slurm may tell it up to a minute earlier.
GRACE = 30
#: Reasons of Slurm for a job that it will never start.
NEVER = {
    *("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "DependencyNeverSatisfied"),
    *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "ReqNodeNotAvail_Gres"),
    *("launch_failed_requeued_held", "JobHeldAdmin"),
}


class Silent(GhostError):
    """Slurm does not answer now. It may later."""


@dataclass(frozen=True)
class Queued:
    """A job in Slurm's queue. `name`: the run's id."""

    state: str
    reason: str
    name: str

    @property
    def never(self) -> bool:
        return self.state == "PENDING" and self.reason in NEVER


def ask(*words: str, stdin: str | None = None) -> str:
    """The output of a command of Slurm. UsageError if it is not installed, GhostError with its words if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=stdin)
    except FileNotFoundError as error:
        raise UsageError(
            f"--on slurm: the command {words[0]} was not found; give this command on a machine of the cluster"
        ) from error
    if done.returncode:
        text = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or f"code {done.returncode}"
        kind = Silent if words[0] == "squeue" else GhostError
        raise kind(f"{words[0]}: {printable(text.removeprefix(words[0] + ': '))}")
    return done.stdout


def states() -> dict[str, Queued]:
    """Slurm's number of a job -> the job, for all of this user's jobs in the queue."""
    jobs = {}
    for line in ask("squeue", "--me", "--noheader", "--format=%i|%T|%r|%j").splitlines():
        number, state, reason, name = line.split("|", 3)
        jobs[number] = Queued(state, reason, name)
    return jobs


def cancel(numbers: Sequence[str]) -> None:
    """Cancel jobs. Those that run get SIGTERM, save, and end."""
    if numbers:
        ask("scancel", *numbers)


def ended(number: str) -> str:
    """Slurm's own words about a job that is no longer in the queue, as far as it remembers."""
    try:
        words = dict(w.split("=", 1) for w in ask("scontrol", "show", "job", number).split() if "=" in w)
    except (GhostError, ValueError):
        return "gone"
    state, reason, code = (words.get(key, "") for key in ("JobState", "Reason", "ExitCode"))
    return ", ".join(word for word in (state, reason if reason != "None" else "", f"exit code {code}") if word)


def script(job: Job, runs: Path, place: Place) -> str:
    """The script of a job. Its dependencies are given to sbatch, since they are known only then."""
    options: dict[str, str | None] = {
        "job-name": job.id,
        "output": str(spec.path(runs, job.id, "log")).replace("\\", "\\\\").replace("%", "%%"),
        "open-mode": "append",
        "cpus-per-task": str(place.threads),
        "signal": f"B:USR1@{GRACE}",
        "requeue": None,
        **dict(place.slurm),
    }
    lines = [f"#SBATCH --{key}" + ("" if value is None else f"={_word(value)}") for key, value in options.items()]
    file = spec.path(runs, job.id)
    command = " ".join(shlex.quote(word) for word in spec.argv(file))
    unseen = (
        f'{shlex.quote(f"ghost: {runs} is not mounted on ")}"$(hostname): mount it at the same path on all machines"'
    )
    check = f"[ -r {shlex.quote(str(file))} ] || {{ echo {unseen} >&2; exit 2; }}"
    return "\n".join(["#!/bin/bash", *lines, check, "trap '' USR1  # until ghost listens to it", f"exec {command}", ""])


def _word(text: str) -> str:
    """A value in a line of sbatch: quoted if it needs it."""
    return text if not any(c in text for c in " \t\"'\\#") else '"' + text.replace('"', '\\"') + '"'


def submit(job: Job, runs: Path, place: Place, after: Iterable[str]) -> str:
    """Submit a job whose spec is written. `after`: the numbers of the jobs that must end well before. Returns its own.

    UsageError in Slurm's own words if the queue refuses it.
    """
    file = spec.path(runs, job.id, "sh")
    file.write_text(script(job, runs, place))
    waits = ":".join(after)
    words = [f"--dependency=afterok:{waits}", "--kill-on-invalid-dep=yes"] if waits else []
    try:
        number = ask("sbatch", "--parsable", *words, str(file)).strip().partition(";")[0]
    except UsageError:
        raise
    except GhostError as error:
        raise UsageError(f"{job.id}: {error}") from error
    write_json(spec.path(runs, job.id, "slurm.json"), {"job": number, "submitted": time.time()}, "queue")
    return number


def number_of(runs: Path, run: str) -> str | None:
    """Slurm's number of the last job that was submitted for a run."""
    try:
        content: Any = read_json(spec.path(runs, run, "slurm.json"))
        return str(content["job"])
    except (GhostError, LookupError, TypeError):
        return None


def submitted(runs: Path) -> dict[str, str]:
    """Run id -> Slurm's number, for all runs that were ever submitted from this folder."""
    numbers = {}
    for file in sorted((runs / spec.FOLDER).glob("*/*.slurm.json")):
        run = f"{file.parent.name}/{file.name.removesuffix('.slurm.json')}"
        if record.RUN_ID.fullmatch(run) and (number := number_of(runs, run)):
            numbers[run] = number
    return numbers


def told(runs: Path) -> dict[str, tuple[str, str]]:
    """Run id -> (queued | running | lost, a phrase), for submitted runs that are not finished.

    All are `submitted` if Slurm does not answer.
    """
    numbers = {run: number for run, number in submitted(runs).items() if spec.outcome(runs, run) is False}
    numbers = {run: number for run, number in numbers.items() if record.RunRecord(runs / run, run).status != "done"}
    if not numbers:
        return {}
    try:
        there = states()
    except GhostError as error:
        return {run: ("submitted", f"Slurm job {number}; {error}") for run, number in numbers.items()}
    reports = {}
    for run, number in numbers.items():
        queued = there.get(number)
        if queued is None or queued.name != run or queued.never:
            why = ended(number) if queued is None else queued.reason
            reports[run] = "lost", f"Slurm job {number}: {why}; give its command again"
        elif queued.state == "PENDING":
            reports[run] = "queued", f"Slurm job {number}: {queued.reason}"
        else:
            reports[run] = "running", f"Slurm job {number}: {queued.state.lower()}"
    return reports


def planned(runs: Path, run: str) -> dict[str, Any]:
    """The row of `ghost runs list` for a run that was submitted and has not begun."""
    row: dict[str, Any] = {"run": run, "status": "absent", "epoch": 0, "epochs": None, "accuracy": None}
    row |= {"recipe": None, "data": None, "teachers": None, "kind": None, "problem": None}
    try:
        job = spec.read(spec.path(runs, run)).job
    except GhostError:
        return row
    about = {"recipe": job.recipe_name, "data": job.data, "teachers": list(job.path), "kind": job.kind}
    return row | about | {"epochs": job.recipe.train.last_epoch}
