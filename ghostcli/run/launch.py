"""Runs a plan: in this process, or spread over workers.

Invariant: a job starts when all its teachers are done, and is done once whoever asks for it. Torch is imported
only where a job is really carried out.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ghostcli import signals
from ghostcli.display import Display, console
from ghostcli.errors import GhostError, Interrupted, UsageError, printable
from ghostcli.plan import Finished, Job, Plan
from ghostcli.recipe.digest import SEMANTICS
from ghostcli.recipe.models import DataSection
from ghostcli.records.model import RunSetup, TeacherRun, dump
from ghostcli.records.record import RUN_ID, RunRecord, RunWriter
from ghostcli.records.storage import refuse_link
from ghostcli.run import environment
from ghostcli.zoo import names, own

if TYPE_CHECKING:
    import torch

    from ghostcli.data import Data
    from ghostcli.distill.teacher import Teacher


@dataclass(frozen=True)
class Options:
    """Where and how a plan is carried out; nothing here changes a result."""

    runs: Path
    device: str = "auto"
    resume: bool = True
    jobs: int = 1
    quiet: bool = False
    command: tuple[str, ...] = ()  # the command line, as the record keeps it


def record_of(job: Job | Finished, runs: Path) -> RunRecord:
    return RunRecord(runs / job.id, job.id)


def is_done(job: Job | Finished, runs: Path) -> bool:
    return record_of(job, runs).status == "done"


@lru_cache(maxsize=2)
def load_data(section: DataSection) -> Data:
    from ghostcli import data

    return data.load(section)


def prepare(plan: Plan, options: Options) -> torch.device:
    """Everything that can be wrong before the first run is touched: device, data, class counts, widths. UsageErrors,
    and OutOfMemoryError for a width that no memory holds."""
    from ghostcli.engine.device import pick
    from ghostcli.engine.train import require_room, require_two_images

    device = pick(options.device)
    for job in plan.jobs:
        if not RUN_ID.fullmatch(job.id):
            raise UsageError(f"{printable(job.student)}: no run's folder can have this name; name a model as timm/NAME")
        refuse_link((options.runs / job.id).parent, options.runs / job.id)
        done = is_done(job, options.runs) and (options.resume or job not in plan.asked)
        if done and not job.recipe.data.name.startswith("folder:"):
            continue  # the other data sets are what their checksums say
        data = load_data(job.recipe.data)
        if done:
            _require_same_images(record_of(job, options.runs), data)
            continue
        require_room(job.student, len(data.classes), device)
        if names.is_own(job.student):
            own.check(job.student, len(data.classes), data.train.pixels.shape[1])
        require_two_images(job, data)
        for teacher in job.teachers:
            run = record_of(teacher, options.runs)
            if run.status == "done" and not run.weights.exists():
                raise UsageError(
                    f"{teacher.id}: cannot teach, its record is here but not its weights; remove it "
                    f"(ghost runs rm {teacher.id}) to have it trained again, or name another folder with --runs"
                )
            learnt = printable(run.result.data) if run.result else data.name
            if learnt != data.name and not any(name.startswith("folder:") for name in (learnt, data.name)):
                raise UsageError(
                    f"{teacher.id}: learnt {learnt}, not {data.name}; name a teacher that was trained on {data.name}"
                )
            if isinstance(teacher, Finished) and teacher.classes != len(data.classes):
                raise UsageError(
                    f"run/{teacher.id}: has {teacher.classes} classes, {data.name} has {len(data.classes)}; "
                    "name a teacher that was trained on the same classes"
                )
    return device


def _require_same_images(run: RunRecord, data: Data) -> None:
    """UsageError where a finished run was trained on what no longer lies in the folder: it is another's result."""
    if run.result is None or run.result.data_checksum != data.checksum:
        raise UsageError(
            f"{run.id}: was trained on other images than {data.name} holds now; put those back, or remove it "
            f"(ghost runs rm {run.id}) to have it trained on these"
        )


def carry_out(plan: Plan, options: Options) -> list[RunRecord]:
    """Run every job of the plan that is not done yet; returns the records of those that were asked for.

    A failure costs the jobs that rest on it and no other; it is raised when all others have been tried.
    """
    with signals.handled():
        device = prepare(plan, options)
        plan_jobs = [
            job for job in plan.jobs if not is_done(job, options.runs) or (not options.resume and job in plan.asked)
        ]
        if options.jobs > 1 and len(plan_jobs) > 1:
            _spread(plan, plan_jobs, options)
        else:
            _in_turn(plan, options, device)
    return [record_of(job, options.runs) for job in plan.asked]


def _in_turn(plan: Plan, options: Options, device: torch.device) -> None:
    """Run the plan's jobs in this process. What fails is told at once where others are still to be tried."""
    waiting = list(plan.jobs)
    failed: list[GhostError] = []
    while waiting:
        signals.stop_if_asked()
        job = waiting.pop(0)
        try:
            run_job(job, options, device, fresh=not options.resume and job in plan.asked)
        except (Interrupted, UsageError):
            raise
        except GhostError as error:
            lost = {job.id}
            for other in waiting:
                if lost & {teacher.id for teacher in other.teachers}:
                    lost.add(other.id)
            waiting = [other for other in waiting if other.id not in lost]
            failed.append(error)
            if not waiting and len(failed) == 1:
                raise
            console.print(Text(_named(job, str(error)), style="yellow"))
    if failed:
        raise _together(failed, len(plan.jobs))


def _named(job: Job, text: str) -> str:
    """`text` as a line about `job`, whose id it may begin with already."""
    return printable(f"{job.id}: {text.removeprefix(f'{job.id}: ')}")


def _together(failed: list[GhostError], of: int) -> GhostError:
    """One error, with the first one's exit code, for failures that have each been told."""
    error = GhostError(f"{len(failed)} of {of} runs failed; the lines above say why")
    error.exit_code = failed[0].exit_code
    return error


def run_job(job: Job, options: Options, device: torch.device, fresh: bool = False) -> None:
    """Carry out one job, or find that it is done. Whatever happens is written into the run's status."""
    with Display(options.quiet) as show:
        if not fresh and is_done(job, options.runs):
            show.line(_reached(job, options.runs, "found, finished earlier"))
            result = record_of(job, options.runs).result
            for note in result.notes if result else ():
                show.warn(f"{job.id}: {note}")
            return
        run = RunWriter(options.runs, job.id)
        with run.locked(show.line):
            if not fresh and is_done(job, options.runs):  # another process made it while this one waited
                show.line(_reached(job, options.runs, "found, finished meanwhile"))
                return
            if fresh and (aside := run.set_aside()):
                show.line(f"{job.id}: the earlier run now lies in {aside}")
            run.open()
            try:
                with signals.polled():
                    run.set_status("running")
                    run.write("recipe.json", dump(setup := setup_of(job, options.command)))
                    _train(job, setup, run, options, device, show)
            except BaseException as error:
                raise _note(error, job, run, fresh) from error


def setup_of(job: Job, command: Sequence[str]) -> RunSetup:
    """recipe.json: the resolved recipe with every default, who takes part, and the command line that began it."""
    return RunSetup(
        semantics=SEMANTICS,
        run=job.id,
        student=job.student,
        seed=job.seed,
        strategy=job.strategy,
        teachers=tuple(TeacherRun(run=t.id, network=t.student, seed=t.seed, path=t.lineage[:-1]) for t in job.teachers),
        recipe_name=job.recipe_name,
        digest=job.digest,
        protocol=job.protocol,
        command=tuple(command),
        recipe=job.recipe,
    )


def _note(error: BaseException, job: Job, run: RunWriter, fresh: bool) -> BaseException:
    """Write down why a run ended, as far as the disk still lets us, and give back what to raise."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("stopped by SIGINT")
    status = "interrupted" if isinstance(error, Interrupted) else "failed"
    try:
        run.set_status(status, error=str(error).partition("\n")[0] or type(error).__name__)
        if isinstance(error, UsageError):
            run.discard_if_empty()
    except GhostError:
        pass  # the disk is what failed: the first error is the one to hear about
    if isinstance(error, Interrupted):
        return Interrupted(f"{job.id}: {error}{', without --no-resume' if fresh else ''}")
    if isinstance(error, OSError) and not isinstance(error, GhostError):
        return GhostError(f"{job.id}: {error}. Mend the cause and give the same command again")
    return error


def _train(job: Job, setup: RunSetup, run: RunWriter, options: Options, device: torch.device, show: Display) -> None:
    from ghostcli.distill import teacher
    from ghostcli.engine.device import memory_errors
    from ghostcli.engine.train import train
    from ghostcli.run import results
    from ghostcli.zoo import weights

    with memory_errors(job.recipe.train.batch_size):
        data = load_data(job.recipe.data)
        surroundings, notes = environment.note(run, environment.now(device, data.checksum), show)
        teachers = [teacher.load(t.id, options.runs / t.id, len(data.classes), device) for t in job.teachers]
        findings = _check(job, data, teachers, device, show)
        # A Ctrl-C reaches the compiler too: no step is made with what stands in for kernels it could not build.
        signals.stop_if_asked()
        show.training(job.id, job.recipe.train.stop or job.recipe.train.epochs, len(data.train))
        state, test_logits, norm = train(job, data, teachers, run, device, show)
        model, chosen = results.final(state, test_logits)
        files = {
            "model.safetensors": weights.encode(model, norm),
            "predictions.npz": results.predictions(chosen, data.test.labels),
        }
    for name, content in files.items():
        run.write_file(name, content)
    agreement = results.agreements(record_of(job, options.runs).predictions(), job.teachers, options.runs)
    content = results.result(setup, data, state, model, run, surroundings, agreement, findings, notes, files)
    run.write("result.json", content)
    run.set_status("done")
    show.line(_reached(job, options.runs))


def _reached(job: Job, runs: Path, how: str = "done") -> str:
    """A finished run in one line: how good it is, and where it lies."""
    run = record_of(job, runs)
    if run.result is None:
        return f"{job.id}: {how}: its record is gone, in {run.path}"
    accuracy = run.result.accuracy
    chosen = "chosen on validation" if accuracy.selected_by == "validation" else "last epoch"
    return f"{job.id}: {how}: test accuracy {accuracy.selected:.2f} % ({chosen}), in {run.path}"


def _check(job: Job, data: Data, teachers: list[Teacher], device: torch.device, show: Display) -> list[dict[str, Any]]:
    """The teaching check of a taught run, shown and to be recorded; nothing for a run alone."""
    if not teachers:
        return []
    from ghostcli.check.findings import inspect

    findings = inspect(job, data, teachers, device)
    for finding in findings:
        if finding.level == "warn":
            show.warn(f"check: {finding.message}")
    return [finding.as_dict() for finding in findings]


def _worker(job: Job, options: Options, fresh: bool, threads: int, tell: Connection) -> None:
    """The body of a worker process; its exit code is the contract's, and why it failed goes through `tell`."""
    import torch

    from ghostcli.engine.device import pick

    torch.set_num_threads(threads)
    try:
        with signals.handled(leave_at_second=False):
            run_job(job, options, pick(options.device), fresh)
    except GhostError as error:
        tell.send(str(error))
        sys.exit(error.exit_code)


def _spread(plan: Plan, waiting: list[Job], options: Options) -> None:
    """Run jobs `options.jobs` at a time, each in a process of its own, teachers before students."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    quiet = replace(options, quiet=True)
    open_ids = {job.id for job in waiting}
    alive: dict[Job, BaseProcess] = {}
    told: dict[Job, Connection] = {}
    failed: list[GhostError] = []
    lost: set[str] = set()

    def start(job: Job) -> None:
        fresh = not options.resume and job in plan.asked
        told[job], tell = context.Pipe(duplex=False)
        alive[job] = context.Process(target=_worker, args=(job, quiet, fresh, threads, tell), name=job.id)
        alive[job].start()
        tell.close()  # the worker holds the other end: when it is gone, so is the pipe

    with Display(options.quiet) as show, signals.polled():
        show.begin("runs", len(waiting))
        epochs = _EpochLines(options.runs, show)
        while waiting or alive:
            for job in list(waiting):
                needs = {t.id for t in job.teachers}
                if needs & lost:
                    lost.add(job.id)
                    waiting.remove(job)
                    show.warn(f"{job.id}: not started, its teacher failed")
                elif not needs & open_ids and len(alive) < options.jobs and not signals.asked():
                    waiting.remove(job)
                    start(job)
            time.sleep(0.2)
            epochs.follow(alive)
            for job, process in list(alive.items()):
                if process.exitcode is None:
                    continue
                del alive[job]
                if process.exitcode == 0:
                    open_ids.discard(job.id)
                    show.line(_reached(job, options.runs))
                else:
                    error = GhostError(f"ended with code {process.exitcode}")
                    error.exit_code = max(process.exitcode, 1)
                    with contextlib.suppress(EOFError, OSError):
                        error.args = (told[job].recv(),)
                    failed.append(error)
                    lost.add(job.id)
                    show.warn(_named(job, str(error)))
                show.advance()
            if signals.asked():
                waiting.clear()
                for process in alive.values():
                    process.terminate()
                for process in alive.values():
                    process.join()
                signals.stop_if_asked()
    if failed:
        raise _together(failed, len(plan.jobs))


class _EpochLines:
    """Shows the workers' epochs as their metrics files grow."""

    def __init__(self, runs: Path, show: Display) -> None:
        self.runs, self.show = runs, show
        self.seen: dict[str, int] = {}

    def follow(self, alive: dict[Job, Any]) -> None:
        for job in alive:
            rows = record_of(job, self.runs).metrics()
            if len(rows) > self.seen.get(job.id, 0):
                self.seen[job.id] = len(rows)
                self.show.epoch(job.id, rows[-1], job.recipe.train.stop or job.recipe.train.epochs)
