"""`ghost run-job SPEC`: one job in a process of its own, on any machine.

Invariant: it may be called any number of times, anywhere, at once: it finds its run done, goes on from its checkpoint,
or begins it. Its outcome is written last. In a Slurm job the time limit, or SIGUSR1 before it, saves and requeues it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ghostcli import signals
from ghostcli.errors import GhostError, Interrupted, UsageError, printable
from ghostcli.plan import Finished, Job, Plan, is_done, record_of
from ghostcli.records.record import RunRecord, file_digest
from ghostcli.run import spec
from ghostcli.run.job import Options, reached, run_job
from ghostcli.run.place import Place
from ghostcli.run.prepare import prepare
from ghostcli.run.spec import Spec

#: Seconds for which a teacher's files may be on their way from another machine.
PATIENCE = 60.0
#: The same for a file that is there, with other bytes than its record says.
SETTLES = 3.0
#: Restarts after which an attempt that saves nothing is the last.
FRUITLESS = 3
#: Seconds until Slurm has taken a requeued job away.
TAKEN_AWAY = 120.0


def run(file: Path, with_parent: bool = False) -> None:
    """Carry out a spec. `with_parent`: save and end when the process that started this one ends."""
    if with_parent:
        signals.end_with_parent()
    signals.stay()  # Slurm and Ray can send a signal several times
    request = spec.read(file)
    runs, run = Path(request.runs), request.run
    if not file.samefile(spec.path(runs, run)):
        raise UsageError(f"{printable(file)}: is not the job of {run} in {printable(runs)}; give its command again")
    with _outcome(runs, run), _requeue_at_limit(runs, run):
        host = socket.gethostname()
        spec.require_seen(runs, request.seen, host)
        spec.refuse_other_versions(request.versions, host)
        _stand_where_the_command_stood(request)
        job = request.job
        spec.trust(job)
        if job.id != run:
            raise UsageError(f"{printable(file)}: gives {job.id} on {host}, not {run}: the sources of ghost differ")
        seeds, place = {job.group: request.planned}, Place(cpus=request.threads)
        options = Options(runs, request.device, command=request.command, seeds=seeds, place=place)
        if is_done(job, runs):
            print(reached(job, runs, "found"), file=sys.stderr)
            return
        for teacher in job.teachers:
            _require_teacher(teacher, runs)
        os.environ["OMP_NUM_THREADS"] = str(request.threads)  # torch is imported below
        prepare(Plan((job,), (job,)), options)
        run_job(job, options)


@contextlib.contextmanager
def _requeue_at_limit(runs: Path, run: str) -> Iterator[None]:
    """In a Slurm job at its time limit, or shortly before it: run it again. Not for ever without progress."""
    before = RunRecord(runs / run, run).saved
    try:
        yield
    except Interrupted:
        if "SLURM_JOB_ID" not in os.environ or not (signals.received() == "SIGUSR1" or _at_limit()):
            raise
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        if restarts >= FRUITLESS and RunRecord(runs / run, run).saved == before:
            raise GhostError(f"{run}: saved nothing within its time limit; give a longer --time") from None
        _requeue()


def _at_limit() -> bool:
    """Whether Slurm ends this job because of its time limit. SIGUSR1 may have come before this process listened."""
    return "Reason=TimeLimit" in _scontrol("show", "job", os.environ["SLURM_JOB_ID"]).stdout.split()


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True)


def _requeue() -> None:
    """Ask Slurm to run this job again. It ends this process, and jobs that depend on it go on waiting."""
    # Slurm may send SIGTERM before scontrol has answered. There is no outcome then: it is not over.
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(Interrupted.exit_code))
    answer = _scontrol("requeue", os.environ["SLURM_JOB_ID"])
    if answer.returncode > 0:
        signal.signal(signal.SIGTERM, before)
        raise GhostError(f"scontrol requeue: {answer.stderr.strip()}; give the command again, and it goes on")
    time.sleep(TAKEN_AWAY)  # below 0: Slurm ended scontrol too, so it has heard the question
    os._exit(Interrupted.exit_code)


@contextlib.contextmanager
def _outcome(runs: Path, run: str) -> Iterator[None]:
    """Write how the context ended. A bug is an outcome too: its traceback is in the log."""
    known: GhostError | Interrupted | None = None
    try:
        yield
    except BaseException as error:
        ours = isinstance(error, (GhostError, Interrupted))
        known = error if ours else GhostError(f"{type(error).__name__}: {error}")
        raise
    finally:
        with contextlib.suppress(GhostError):
            spec.note(runs, run, known)


def _require_teacher(teacher: Job | Finished, runs: Path) -> None:
    """Look again at a teacher's files. GhostError if they are not those of its record."""
    end = time.monotonic() + PATIENCE
    while True:
        signals.raise_if_received()
        run = record_of(teacher, runs)
        if run.result is not None and run.status == "done" and run.weights.exists():
            if file_digest(run.weights) == run.result.files.get(run.weights.name):
                return
            problem, end = "its weights have changed since it was trained", min(end, time.monotonic() + SETTLES)
        else:
            problem = run.problem or "its weights are missing"
        if time.monotonic() >= end or run.status in ("failed", "broken"):
            raise GhostError(f"not started, its teacher {teacher.id} cannot teach ({problem})")
        time.sleep(1)


def _stand_where_the_command_stood(request: Spec) -> None:
    try:
        os.chdir(request.folder)
    except OSError as error:
        raise UsageError(
            f"{printable(request.folder)}: {socket.gethostname()} does not see the folder of the command "
            f"({error.strerror}); mount it at the same path on all machines"
        ) from error
    os.environ["GHOST_DATA"] = request.data
