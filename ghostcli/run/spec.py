"""A job as a file, and its outcome as another: all that passes between the command and a process elsewhere.

Invariant: a job that is read back has the id that it was written with, on a machine with the same versions, or it is
refused. The run directory is the only truth about results; these files say only what to run and how an attempt ended.

    RUNS/.jobs/NAME-STRATEGY-DIGEST/s0.json            what `ghost run-job` reads
                                    s0.outcome.json    exit code and message of the last attempt
                                    s0.log             what it printed
                                    s0.sh, s0.slurm.json    the script for sbatch and the number of its job
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ghostcli import __version__
from ghostcli.errors import GhostError, Interrupted, UsageError, printable
from ghostcli.plan import Finished, Job
from ghostcli.recipe.digest import SEMANTICS
from ghostcli.records.model import SCHEMA
from ghostcli.records.storage import read_json, write_json
from ghostcli.run.job import Options
from ghostcli.zoo import names, own

FOLDER = ".jobs"


class Spec(BaseModel):
    """What `ghost run-job` reads. Paths are absolute. `seen`: a file that every machine must see in RUNS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    job: Job
    runs: str
    folder: str
    data: str
    seen: str
    device: str
    threads: int
    command: tuple[str, ...]
    planned: tuple[int, ...]
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """What must be equal on all machines. Torch is not imported."""
    return {"ghost": __version__, "torch": metadata.version("torch"), "recipe schema": f"{SEMANTICS}.{SCHEMA}"}


def refuse_other_versions(theirs: dict[str, str], host: str) -> None:
    """UsageError if a version on this machine, `host`, is not that of the command's machine."""
    ours = versions()
    wrong = [f"{name} {ours.get(name)} and not {value}" for name, value in theirs.items() if ours.get(name) != value]
    if wrong:
        raise UsageError(f"{host} has {', '.join(wrong)}: install the same versions on all machines")


def trust(job: Job | Finished) -> None:
    """Allow the users' own networks of a job. Its id, which is compared next, covers their sources."""
    if names.is_own(job.student):
        own.trust(job.student)
    for teacher in job.teachers:
        trust(teacher)


def path(runs: Path, run: str, kind: str = "json") -> Path:
    """A file of a job: `json` (the spec), `outcome.json`, `log`, `sh` or `slurm.json`."""
    return runs / FOLDER / f"{run}.{kind}"


def write(job: Job, options: Options, seen: str) -> Path:
    """Write the spec of a job and forget the outcome of an earlier attempt. Returns the spec's path.

    The folder of the runs is absolute here and below.
    """
    file = path(options.runs, job.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    path(options.runs, job.id, "outcome.json").unlink(missing_ok=True)
    text = Spec(
        run=job.id,
        job=job,
        runs=str(options.runs),
        folder=os.getcwd(),
        data=os.path.abspath(os.environ.get("GHOST_DATA") or "data"),
        seen=seen,
        device=options.device,
        threads=options.place.threads,
        command=options.command,
        planned=options.seeds.get(job.group, ()),
        versions=versions(),
    )
    write_json(file, text.model_dump(mode="json"), "spec")
    return file


def mark(runs: Path) -> str:
    """Write a file that other machines must see under `runs`. Returns its name and content as one word."""
    token = uuid.uuid4().hex
    folder = runs / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seen-*"):
            if time.time() - old.stat().st_mtime > 7 * 86_400:
                old.unlink(missing_ok=True)
        (folder / f"seen-{token}").write_text(token)
    except OSError as error:
        raise UsageError(f"--runs {printable(runs)}: not writable ({error.strerror}); name another folder") from error
    return token


def require_seen(runs: Path, token: str, host: str) -> float:
    """UsageError if this machine, `host`, does not see the file of `mark`. Returns the file's time."""
    file = runs / FOLDER / f"seen-{token}"
    try:
        if file.read_text() == token:
            return file.stat().st_mtime
    except OSError:
        pass
    raise UsageError(
        f"{printable(runs)}: {host} does not see what was written there; mount the same file system at this path on "
        "all machines, or name a shared folder with --runs"
    )


def read(file: Path) -> Spec:
    try:
        return Spec.model_validate(read_json(file))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UsageError(
            f"{printable(file)}: is not a job of this version of ghost (at {printable(where)}); give the command that "
            "wrote it again"
        ) from error
    except GhostError as error:
        raise UsageError(f"{error}; mount the folder of the runs at the same path on all machines") from error


def outcome(runs: Path, run: str) -> GhostError | Literal[False] | None:
    """How the last attempt ended: None if well, its error, or False if there is no outcome (yet)."""
    try:
        content: Any = read_json(path(runs, run, "outcome.json"))
        code, error = int(content["code"]), str(content["error"])
    except (GhostError, LookupError, TypeError, ValueError):
        return False
    return GhostError(error, code) if code else None


def note(runs: Path, run: str, error: GhostError | Interrupted | None) -> None:
    """Write the outcome of an attempt."""
    content = {"code": error.exit_code if error else 0, "error": str(error) if error else None}
    write_json(path(runs, run, "outcome.json"), content, "outcome")


def argv(file: Path) -> list[str]:
    """The words that carry out a spec."""
    return [sys.executable, "-m", "ghostcli", "run-job", str(file)]
