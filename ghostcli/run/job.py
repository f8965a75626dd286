"""Runs one job: starts its run, continues it, or finds it finished.

Invariant: a job has one run, for any number of calls and processes. The run's status says how it ended.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ghostcli import signals
from ghostcli.display import Display
from ghostcli.errors import GhostError, Interrupted, UsageError, printable
from ghostcli.plan import Finished, Job, Plan, is_done, record_of
from ghostcli.recipe.digest import SEMANTICS
from ghostcli.recipe.models import DataSection
from ghostcli.records import record, trained
from ghostcli.records.model import Finding, RunSetup, TeacherRun, dump
from ghostcli.records.record import RunWriter
from ghostcli.run import environment
from ghostcli.run.place import HERE, Place

if TYPE_CHECKING:
    import torch

    from ghostcli.data import Data
    from ghostcli.distill.teacher import Teacher
    from ghostcli.zoo.weights import Loaded


#: The number of runs at a time is measured.
AUTO = -1


@dataclass(frozen=True)
class Options:
    """Where and how a plan is run. Nothing here changes a result."""

    runs: Path
    device: str = "auto"
    resume: bool = True
    jobs: int = 1  # at a time; AUTO: as many as are fastest here; on a cluster 0: as many as it holds
    streams: int = 1  # at a time, each in a thread of this process
    quiet: bool = False
    command: tuple[str, ...] = ()  # the command line, for the record
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # run group -> the seeds planned together
    place: Place = HERE


def is_fresh(job: Job, plan: Plan, options: Options) -> bool:
    """Whether an earlier attempt is set aside: --no-resume trains the requested jobs again."""
    return not options.resume and job in plan.requested


def left(plan: Plan, options: Options) -> list[Job]:
    """The jobs of a plan that are to be trained: those that are not done, and fresh ones."""
    return [job for job in plan.jobs if is_fresh(job, plan, options) or not is_done(job, options.runs)]


@lru_cache(maxsize=2)
def load_data(section: DataSection) -> Data:
    from ghostcli import data

    return data.load(section)


def run_job(job: Job, options: Options) -> None:
    """Run one job, unless another process has finished it. The run's status records how it ended."""
    import torch

    from ghostcli.engine import turns
    from ghostcli.engine.device import memory_errors, pick

    if options.place.cpus:
        torch.set_num_threads(options.place.cpus)
    device = pick(options.device)
    with Display(options.quiet) as show:
        run = RunWriter(options.runs, job.id)
        with contextlib.ExitStack() as ours:
            with turns.away():  # another process may work on it for long
                ours.enter_context(run.locked(show.line))
            if is_done(job, options.runs):  # another process finished it while this one waited
                show.line(reached(job, options.runs, "finished by another process"))
                return
            run.open()
            try:
                with memory_errors(job.recipe.train.batch_size), signals.polled():
                    run.set_status("running")
                    run.write("recipe.json", dump(setup := setup_of(job, options, record_of(job, options.runs).setup)))
                    _train(job, setup, run, options, device, show)
            except BaseException as error:
                noted = _note(error, job, run, options.resume)
                if noted is error:
                    raise
                raise noted from error


def setup_of(job: Job, options: Options, begun: RunSetup | None = None) -> RunSetup:
    """recipe.json: the recipe with all values, student, teachers, and the command line that began the run.

    `begun`: recipe.json of an earlier attempt. Its command and planned seeds are kept. So the record of a run does not
    depend on interruptions, or on the command that continued it.
    """
    same = begun is not None and begun.run == job.id
    return RunSetup(
        semantics=SEMANTICS,
        run=job.id,
        student=job.student,
        source=job.content.get("source"),
        seed=job.seed,
        strategy=job.strategy,
        teachers=tuple(_teacher_run(teacher, options.runs) for teacher in job.teachers),
        recipe_name=job.recipe_name,
        digest=job.digest,
        protocol=job.protocol,
        group=job.group,
        planned=begun.planned if same else options.seeds.get(job.group, ()),
        command=begun.command if same else tuple(options.command),
        recipe=job.recipe,
    )


def _teacher_run(teacher: Job | Finished, runs: Path) -> TeacherRun:
    done = record_of(teacher, runs).result
    return TeacherRun(
        run=teacher.id,
        network=teacher.student,
        seed=teacher.seed,
        path=teacher.lineage[:-1],
        weights=done.files.get("model.safetensors", "") if done else "",
    )


def _note(error: BaseException, job: Job, run: RunWriter, resume: bool) -> BaseException:
    """Record why a run ended, if the disk allows it. Returns the error to raise.

    A fault, of ghost or of a user's own network, is an error of this job alone. Its traceback is printed.
    """
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("stopped by SIGINT")
    status = "interrupted" if isinstance(error, Interrupted) else "failed"
    message = str(error).partition("\n")[0] or type(error).__name__
    fault = isinstance(error, Exception) and not isinstance(error, GhostError | OSError)
    if fault:
        traceback.print_exception(error)
        message = f"{type(error).__name__}: {message}"
    try:
        run.set_status(status, error=message, exit_code=getattr(error, "exit_code", GhostError.exit_code))
        if isinstance(error, UsageError):
            run.discard_if_empty()
    except GhostError:
        pass  # the disk failed; the user gets the first error
    if isinstance(error, Interrupted):
        return Interrupted(f"{job.id}: {error}{'' if resume else ', without --no-resume'}")
    if isinstance(error, OSError) and not isinstance(error, GhostError):
        return GhostError(f"{job.id}: {error}. Remove the cause and give the same command again")
    return GhostError(f"{job.id}: {message}") if fault else error


def _train(job: Job, setup: RunSetup, run: RunWriter, options: Options, device: torch.device, show: Display) -> None:
    from ghostcli.distill import teacher
    from ghostcli.engine import selfcheck
    from ghostcli.engine.device import slow_precision
    from ghostcli.engine.train import train
    from ghostcli.run import results
    from ghostcli.zoo import kernels, weights
    from ghostcli.zoo.names import is_ghost

    data = load_data(job.recipe.data)
    if job.recipe.engine.branches == "folded" and is_ghost(job.student) and kernels.unbuilt(device.type):
        show.line("compiling the kernels for this processor; they are kept for the next time")
    verdict = selfcheck.verdict_for(job.student, job.recipe.engine.branches, device)
    slow = slow_precision(job.recipe.engine, device, verdict is not None and "kernels" in verdict.tried)
    for warning in (*(verdict.warnings if verdict else ()), *([slow] if slow else [])):
        show.warn(f"{job.id}: {warning}")
    if verdict is not None and "kernels" not in verdict.tried:
        _say_why_plain(device.type, show)
    now = environment.now(device, data.checksum, verdict.record if verdict else None)
    surroundings, notes = environment.note(run, now, show)
    show.detail(f"{job.id}: {environment.described(now)}")
    show.detail(f"{job.id}: {described(data)}")
    teachers = [teacher.load(t.id, options.runs, len(data.classes), device) for t in job.teachers]
    start = _start(job, options.runs, device)
    findings = _check(job, data, teachers, device, show)
    # Ctrl-C also stops the compiler of the kernels. So end here: no step must use the slow kernels because of it.
    signals.raise_if_received()
    show.training(job.id, job.recipe.train.last_epoch, len(data.train))
    state, test_logits, norm = train(job, data, teachers, run, device, show, start)
    model, chosen = results.final(state, test_logits)
    files = {
        "model.safetensors": weights.encode(model, norm),
        "predictions.npz": results.predictions(chosen, data.test.labels),
    }
    for name, content in files.items():
        run.write_file(name, content)
    run.write("result.json", results.result(job, setup, data, state, model, run, surroundings, findings, notes, files))
    run.set_status("done")
    show.line(reached(job, options.runs))


#: Kinds of device of which `_say_why_plain` has spoken in this process.
_TOLD: set[str] = set()


def _say_why_plain(device: str, show: Display) -> None:
    """Once: why steps run in plain PyTorch, which is slower, where kernels could run."""
    from ghostcli.zoo import kernels

    if kernels.choice() != "pytorch" and device in ("cpu", "cuda") and device not in _TOLD:
        _TOLD.add(device)
        show.warn(f"trains slower than it could, in plain PyTorch: {kernels.status(device)['why']}")


def _start(job: Job, runs: Path, device: torch.device) -> Loaded | None:
    """The network that the student starts from. UsageError if its weights have changed since the run was planned."""
    from ghostcli.zoo import weights

    name = job.recipe.model.start
    if name is None:
        return None
    file = trained.find(runs, name).weights
    if record.file_digest(file) != job.recipe.model.start_sha256:
        raise UsageError(f"--from {name}: its weights have changed since its training; restore {printable(file)}")
    return weights.load(file, model=job.student)


def described(data: Data) -> str:
    """The images of a run in a line, for --verbose."""
    held_out = f" and {len(data.validation):,} validation" if data.validation else ""
    counts = f"{len(data.train):,} training{held_out} and {len(data.test):,} test images"
    return f"{data.name}: {counts} of {len(data.classes)} classes, checksum {data.checksum[:16]}"


def reached(job: Job, runs: Path, how: str = "done") -> str:
    """One line about a finished run: its accuracy and folder."""
    run = record_of(job, runs)
    if run.result is None:
        return f"{job.id}: {how}: its record is missing in {run.path}"
    accuracy = run.result.accuracy
    chosen = "chosen on validation" if accuracy.selected_by == "validation" else "last epoch"
    return f"{job.id}: {how}: test accuracy {accuracy.selected:.2f} % ({chosen}), in {run.path}"


def _check(job: Job, data: Data, teachers: list[Teacher], device: torch.device, show: Display) -> list[Finding]:
    """Findings of the teaching check, for the record. Warnings are printed. Empty for a run without teachers."""
    if not teachers:
        return []
    from ghostcli.check.findings import inspect

    findings = inspect(job, data, teachers, device)
    for finding in findings:
        if finding.level == "warn":
            show.warn(f"check: {finding.message}")
    return findings
