"""The one scheduler: it carries a plan out through an executor, and yields what became of each job.

Invariant: a job starts when all its teachers are done. What a failure costs, what is said about it and how a signal
ends the work is the same for every executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rich.text import Text

from ghostcli import signals
from ghostcli.display import Display, console
from ghostcli.errors import GhostError, printable
from ghostcli.plan import Job, Plan, is_done, record_of
from ghostcli.records.record import RunRecord
from ghostcli.run.job import Options, reached
from ghostcli.run.local import InProcess
from ghostcli.run.prepare import prepare
from ghostcli.run.spawned import Spawned


@dataclass(frozen=True)
class Outcome:
    """A job that was carried out, was found done, or could not be: `error` says why."""

    job: Job
    error: GhostError | None = None


class Executor(Protocol):
    """Where jobs are carried out. It is used as a context manager; leaving it ends what still runs."""

    show: Display

    @property
    def free(self) -> bool:
        """Whether another job can start now."""

    def start(self, job: Job, fresh: bool) -> None:
        """Begin a job whose teachers are done; `fresh`: do not go on with an earlier attempt."""

    def wait(self) -> Sequence[tuple[Job, GhostError | None]]:
        """The jobs that ended since the last call, each with its error; after a short while, perhaps none.

        Raises Interrupted, when all that runs has saved and ended, where a signal came.
        """

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...


def executor_for(plan: Plan, options: Options) -> Executor:
    """Processes of their own where several runs are wanted at a time and are still to be made."""
    left = sum(not _is_found(job, plan, options) for job in plan.jobs)
    return Spawned(options, left) if options.jobs > 1 and left > 1 else InProcess(options)


def run(plan: Plan, options: Options, executor: Executor | None = None) -> Iterator[Outcome]:
    """Carry out a plan; an outcome for each of its jobs, as it comes.

    A failure, of whatever kind, costs the jobs that rest on it and no other. Interrupted ends everything, and so does
    a UsageError that can be seen before the first job starts.
    """
    options = replace(options, seeds=plan.seeds)
    prepare(plan, options)
    waiting, pending = list(plan.jobs), {job.id for job in plan.jobs}
    failed: dict[str, GhostError] = {}
    with executor or executor_for(plan, options) as place:
        while pending:
            for job in list(waiting):
                lost = next((teacher.id for teacher in job.teachers if teacher.id in failed), None)
                ready = not any(teacher.id in pending for teacher in job.teachers)
                if lost is not None:
                    ended = [(job, _not_started(lost, failed[lost]))]
                elif ready and _is_found(job, plan, options):
                    _say_found(job, options, place.show)
                    ended = [(job, None)]
                elif ready and place.free:
                    signals.raise_if_received()
                    place.start(job, not options.resume and job in plan.asked)
                    ended = []
                else:
                    continue
                waiting.remove(job)
                yield from _note(ended, pending, failed)
            if pending:
                yield from _note(place.wait(), pending, failed)


def _note(
    ended: Sequence[tuple[Job, GhostError | None]], pending: set[str], failed: dict[str, GhostError]
) -> Iterator[Outcome]:
    for job, error in ended:
        pending.discard(job.id)
        if error is not None:
            failed[job.id] = error
        yield Outcome(job, error)


def _not_started(teacher: str, why: GhostError) -> GhostError:
    error = GhostError(f"not started, its teacher {teacher} failed")
    error.exit_code = why.exit_code
    return error


def _is_found(job: Job, plan: Plan, options: Options) -> bool:
    return is_done(job, options.runs) and (options.resume or job not in plan.asked)


def _say_found(job: Job, options: Options, show: Display) -> None:
    show.line(reached(job, options.runs, "found, finished earlier"))
    result = record_of(job, options.runs).result
    for note in result.notes if result else ():
        show.warn(f"{job.id}: {note}")


def carry_out(plan: Plan, options: Options) -> list[RunRecord]:
    """Run every job of the plan that is not done yet; returns the records of those that were asked for.

    Failures are printed as they come, and raised as one error when all other jobs have been tried. A failure of the
    only job, or of the last, is raised as it is.
    """
    failed: list[Outcome] = []
    with signals.handled():
        for count, outcome in enumerate(run(plan, options), 1):
            if outcome.error is None:
                continue
            failed.append(outcome)
            if count == len(plan.jobs) and len(failed) == 1:
                raise outcome.error
            warn(outcome)
    if failed:
        raise together(failed, len(plan.jobs))
    return [record_of(job, options.runs) for job in plan.asked]


def warn(outcome: Outcome) -> None:
    """A failure as a line about its job, whose id the error's text may begin with already."""
    text = str(outcome.error).removeprefix(f"{outcome.job.id}: ")
    console.print(Text(printable(f"{outcome.job.id}: {text}"), style="yellow"))


def together(failed: Sequence[Outcome], of: int) -> GhostError:
    """One error, with the first one's exit code, for failures that have each been printed."""
    error = GhostError(f"{len(failed)} of {of} runs failed; the lines above say why")
    error.exit_code = failed[0].error.exit_code if failed[0].error else GhostError.exit_code
    return error
