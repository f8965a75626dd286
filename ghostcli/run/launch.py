"""The scheduler: runs a plan through an executor and yields the outcome of each job.

Invariant: a job starts when all its teachers are done. Failures, messages and signals have the same effect with every
executor.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter

from rich.text import Text

from ghostcli import display, signals
from ghostcli.display import Display, console
from ghostcli.errors import GhostError, printable
from ghostcli.plan import Job, Plan, is_done, record_of
from ghostcli.records.record import RunRecord
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options, left, reached
from ghostcli.run.local import InProcess
from ghostcli.run.on_slurm import Slurm
from ghostcli.run.place import RAY, SLURM
from ghostcli.run.prepare import prepare
from ghostcli.run.spawned import Spawned
from ghostcli.run.streams import Streams


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job. `error` says why it failed; None if it is done."""

    job: Job
    error: GhostError | None = None


def executor_for(plan: Plan, options: Options) -> Executor:
    """The cluster that was named. Here: worker processes or threads if several runs are requested at a time and more
    than one is left; otherwise this process."""
    count = len(left(plan, options))
    if options.place.on == SLURM and count:
        return Slurm(options, count)
    if options.place.on == RAY and count:
        from ghostcli.run.on_ray import Ray

        return Ray(options, count)
    if options.streams > 1 and count > 1:
        return Streams(options, count)
    return Spawned(options, count) if options.jobs > 1 and count > 1 else InProcess(options)


def run(plan: Plan, options: Options, executor: Executor | None = None) -> Iterator[Outcome]:
    """Run a plan. Yields the outcome of each job when it ends.

    After a failure of any kind, jobs that need the failed job are not started, and all others are. Interrupted ends
    everything, and so does a UsageError found before the first job starts.
    """
    options = replace(options, seeds=plan.seeds)
    prepare(plan, options)
    number = {job.id: place for place, job in enumerate(plan.jobs)}
    failed: dict[str, GhostError] = {}
    ready: list[int] = []  # a heap of places in the plan
    with executor or executor_for(plan, options) as place:
        if not options.resume:
            place.forget(plan.requested)
        graph = TopologicalSorter[str]()
        for job in plan.jobs:
            graph.add(job.id, *(t.id for t in job.teachers if t.id in number and not place.ahead))
        graph.prepare()
        while graph.is_active():
            ended: list[tuple[Job, GhostError | None]] = []
            for name in graph.get_ready():
                job = plan.jobs[number[name]]
                lost = next((teacher.id for teacher in job.teachers if teacher.id in failed), None)
                if lost is not None:
                    ended.append((job, GhostError(f"{NOT_STARTED} {lost} failed", failed[lost].exit_code)))
                elif is_done(job, options.runs):
                    _say_found(job, options, place.show)
                    ended.append((job, None))
                else:
                    heapq.heappush(ready, number[name])
            if not ended:
                while ready and place.free:
                    signals.raise_if_received()
                    place.start(plan.jobs[heapq.heappop(ready)])
                ended = place.wait()
            for job, error in ended:
                if error is not None:
                    failed[job.id] = error
                graph.done(job.id)
                yield Outcome(job, error)


def detach(plan: Plan, options: Options) -> int:
    """Submit all jobs of a plan that are not done to Slurm, and leave. Returns how many there are."""
    options = replace(options, seeds=plan.seeds)
    prepare(plan, options)
    jobs = left(plan, options)
    if jobs:
        with signals.handled(), Slurm(options, len(jobs)) as place:
            if not options.resume:
                place.forget(plan.requested)
            for job in jobs:
                place.start(job)
            place.tell()
            place.refuse_stuck()
    return len(jobs)


def _say_found(job: Job, options: Options, show: Display) -> None:
    show.line(reached(job, options.runs, "found, finished earlier"))
    result = record_of(job, options.runs).result
    for note in result.notes if result else ():
        show.warn(f"{job.id}: {note}")


def carry_out(plan: Plan, options: Options) -> list[RunRecord]:
    """Run all jobs of the plan that are not done. Returns the records of the requested jobs.

    Failures are printed when they happen, and raised as one error at the end. If only the last job failed, its own
    error is raised.
    """
    failed: list[Outcome] = []
    with display.apart(), signals.handled():
        for count, outcome in enumerate(run(plan, options), 1):
            if outcome.error is None:
                continue
            failed.append(outcome)
            if count == len(plan.jobs) and len(failed) == 1:
                raise outcome.error
            warn(outcome, len(failed))
    if failed:
        raise together(failed, len(plan.jobs))
    return [record_of(job, options.runs) for job in plan.requested]


#: Failures that get a line of their own. The others are told together at the end.
NAMED = 10
NOT_STARTED = "not started, its teacher"
#: Exit code -> the failure in a few words.
KINDS = {2: "wrong usage or data", 3: "non-finite", 4: "out of memory", 75: "stopped"}


def warn(outcome: Outcome, number: int = 1) -> None:
    """Print one line about a failed job, the failure `number`, if it is among the first."""
    if number <= NAMED:
        text = str(outcome.error).removeprefix(f"{outcome.job.id}: ")  # it may already begin with the job's id
        console.print(Text(printable(f"{outcome.job.id}: {text}"), style="yellow"))


def together(failed: Sequence[Outcome], of: int) -> GhostError:
    """One error for several failures, with the exit code of the first and the numbers of those without a line."""
    if len(failed) <= NAMED:
        hint = "the lines above say why"
    else:
        kinds = Counter(map(_kind, failed[NAMED:]))
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        hint = f"the lines above name the first {NAMED}, ghost runs list those that began (the others: {counts})"
    return GhostError(f"{len(failed)} of {of} runs failed; {hint}", failed[0].error.exit_code if failed[0].error else 1)


def _kind(outcome: Outcome) -> str:
    if str(outcome.error).startswith(NOT_STARTED):
        return "not started"
    return KINDS.get(outcome.error.exit_code if outcome.error else 1, "failed")
