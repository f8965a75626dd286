"""An executor: one Slurm job for each job of the plan, submitted at once with its dependencies.

Invariant: a run has at most one job in the queue. A job that is queued or running there is waited for, not submitted
again, also by a command that was killed and is given again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ghostcli import signals
from ghostcli.errors import GhostError, UsageError
from ghostcli.plan import Job, is_done
from ghostcli.run import queue, spec
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options
from ghostcli.run.queue import Queued

#: Seconds between two looks at the outcomes, and between two questions to Slurm.
PAUSE, ASK = 0.5, 3.0
#: Seconds until a file that another machine wrote last is seen here.
ARRIVES = 15.0
#: Seconds until a job that was cancelled has saved.
SAVES = 60.0


class Slurm(Executor):
    """All jobs are accepted before their teachers are done (`ahead`): Slurm holds them until then."""

    ahead = True
    free = True

    def __init__(self, options: Options, total: int) -> None:
        super().__init__(replace(options, runs=options.runs.absolute()), total)
        self.numbers: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self.gone: dict[str, float] = {}
        self.failed: dict[str, GhostError] = {}
        self.there: dict[str, Queued] = {}
        self.asked = 0.0
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Slurm:
        self.there = queue.states()
        self.seen = spec.mark(self.options.runs)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self.stack.close()  # what is in the queue stays there

    def forget(self, jobs: Sequence[Job]) -> None:
        """Also cancel them in the queue, and wait for their outcomes, which else could pass for those of the next."""
        numbers = {job.id: queue.number_of(self.options.runs, job.id) or "" for job in jobs}
        with contextlib.suppress(GhostError):  # one that has ended since the queue was asked
            self._cancel({n for run, n in numbers.items() if n in self.there and self.there[n].name == run})
        super().forget(jobs)
        for run in numbers:
            for kind in ("slurm.json", "outcome.json"):
                spec.path(self.options.runs, run, kind).unlink(missing_ok=True)

    def start(self, job: Job) -> None:
        """Submit a job, or find it in the queue. Its teachers were started before."""
        runs = self.options.runs
        signals.raise_if_received()
        number = queue.number_of(runs, job.id)
        there = self.there.get(number or "")
        if there is not None and there.name == job.id and not there.never:
            if spec.outcome(runs, job.id) is False:
                self._accept(job, number or "", "queued" if there.state == "PENDING" else "running")
                return
        elif there is not None and there.name == job.id:
            queue.cancel([number or ""])
        lost = number is not None and spec.outcome(runs, job.id) is False
        after = [self.numbers[teacher.id] for teacher in job.teachers if teacher.id in self.numbers]
        try:
            spec.write(job, self.options, self.seen)
            number = queue.submit(job, runs, self.options.place, after)
        except UsageError as error:
            if not self.jobs:
                raise
            left = f"{jobs(len(self.jobs))} submitted before; the same command submits the others"
            raise UsageError(f"{error} ({left})") from error
        self._accept(job, number, "lost before, submitted again" if lost else "submitted")

    def _accept(self, job: Job, number: str, how: str) -> None:
        self.numbers[job.id], self.jobs[job.id] = number, job
        self.counts[how] += 1

    def tell(self) -> None:
        """One line about what was submitted and what was there."""
        if self.counts:
            counts = ", ".join(f"{count} {how}" for how, count in self.counts.items())
            numbers = sorted(map(int, self.numbers.values()))
            span = f"{numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")
            self.show.line(f"Slurm: {counts} (numbers {span})")
            self.counts.clear()

    def refuse_stuck(self) -> None:
        """UsageError for jobs that Slurm will never start. They are cancelled."""
        time.sleep(PAUSE)
        there = queue.states()
        mine = self.numbers.values()
        stuck = {one: there[one].reason for one in mine if one in there and there[one].never}
        if stuck:
            number, reason = next(iter(stuck.items()))
            time.sleep(ASK)  # Slurm names the exact limit when it has looked at the job again
            reason = queue.states().get(number, there[number]).reason
            queue.cancel(list(stuck))
            raise UsageError(f"Slurm will never start {jobs(len(stuck))} (number {number}: {reason}); cancelled")

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        self.tell()
        time.sleep(PAUSE)
        self._end_if_told()
        self._look()
        ended = []
        for job in list(self.jobs.values()):
            error = self._error_of(job)
            if error is False:
                continue
            del self.jobs[job.id]
            if error is not None:
                self.failed[job.id] = error
            ended.append(self._told(job, error))
        self._follow(job for job in self.jobs.values() if self._runs(job))
        return ended

    def _look(self) -> None:
        if time.monotonic() - self.asked < ASK:
            return
        with contextlib.suppress(queue.Silent):  # Slurm may be restarted; its jobs go on
            self.there = queue.states()
            self.asked = time.monotonic()
            queue.cancel([self.numbers[run] for run in self.jobs if (queued := self._queued(run)) and queued.never])

    def _queued(self, run: str) -> Queued | None:
        return self.there.get(self.numbers[run])

    def _runs(self, job: Job) -> bool:
        queued = self._queued(job.id)
        return queued is not None and queued.state != "PENDING"

    def _error_of(self, job: Job) -> GhostError | Literal[False] | None:
        """The error of a job that ended; None if it is done; False while it goes on."""
        runs, number, queued = self.options.runs, self.numbers[job.id], self._queued(job.id)
        outcome = spec.outcome(runs, job.id)
        if outcome is None and is_done(job, runs):
            return None
        if isinstance(outcome, GhostError) and (queued is None or queued.state != "PENDING"):
            if outcome.exit_code == 75:  # Slurm stopped it, and not at its time limit
                return GhostError(f"stopped in Slurm (job {number}); it is saved, and the same command goes on", 75)
            return outcome
        if queued is not None and queued.never:
            if queued.reason != "DependencyNeverSatisfied":
                return GhostError(f"Slurm will never start job {number}: {queued.reason}; it was cancelled", 2)
        elif queued is not None or not self.asked:
            self.gone.pop(job.id, None)
            return False
        if lost := next((t.id for t in job.teachers if t.id in self.failed), None):
            return GhostError(f"not started, its teacher {lost} failed", self.failed[lost].exit_code)
        if time.monotonic() - self.gone.setdefault(job.id, time.monotonic()) < ARRIVES:
            return False
        if is_done(job, runs):
            return None
        what = queue.ended(number)
        if "DependencyNeverSatisfied" in what and all(is_done(teacher, runs) for teacher in job.teachers):
            del self.gone[job.id]  # a teacher was cancelled when it was done already
            self.numbers[job.id] = queue.submit(job, runs, self.options.place, ())
            self.asked = 0.0
            return False
        message = f"Slurm job {number} ended without a result ({what})"
        if "CANCELLED" in what:
            return GhostError(f"{message}; the same command submits it again", 75)
        log = spec.path(runs, job.id, "log")
        unseen = f"it wrote nothing: is {runs} mounted at this path on its node?"
        return GhostError(f"{message}; {f'see {log}' if log.exists() else unseen}")

    def _end(self) -> None:
        """Cancel the jobs of this plan and wait until those that ran have saved."""
        self._cancel({self.numbers[run] for run in self.jobs})

    def _cancel(self, numbers: set[str]) -> None:
        """Cancel jobs and wait until those that ran have saved."""
        if not numbers:
            return
        self.show.line(f"Slurm: cancelling {jobs(len(numbers))}; what runs is saved first")
        queue.cancel(sorted(numbers))
        end = time.monotonic() + SAVES
        with contextlib.suppress(queue.Silent):
            while numbers & queue.states().keys() and time.monotonic() < end:
                time.sleep(PAUSE)


def jobs(count: int) -> str:
    return f"{count} job{'s' * (count != 1)}"


def scripts(jobs: list[Job], options: Options) -> str:
    """What --dry-run prints: the script of each job, and how it is submitted."""
    runs, ids = options.runs.absolute(), {job.id for job in jobs}
    parts = []
    for job in jobs:
        after = [t.id for t in job.teachers if t.id in ids]
        waits = f" --dependency=afterok:{':'.join(f'<job of {one}>' for one in after)}" if after else ""
        head = f"# sbatch{waits} {spec.path(runs, job.id, 'sh')}\n"
        parts.append(head + queue.script(job, runs, options.place))
    return "\n".join(parts)
