"""The interface of all executors, and what most share: a display, and progress that is read from metrics files."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

from ghostcli import display, signals
from ghostcli.display import Display
from ghostcli.errors import GhostError, printable
from ghostcli.plan import Job, record_of
from ghostcli.records.record import RunWriter
from ghostcli.run.job import Options, reached


class Executor(ABC):
    """Runs jobs somewhere. It is a context manager; its exit stops the jobs that still run.

    `total`: the number of jobs that are not done yet.
    """

    #: Whether jobs may be started before their teachers are done: it holds them until then.
    ahead = False

    def __init__(self, options: Options, total: int) -> None:
        self.options, self.total = options, total
        self.show = Display(options.quiet)
        self.printed: dict[str, int] = {}  # run -> its epochs that were printed
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Show the progress and only record signals, until the exit."""
        self.stack.enter_context(self.show)
        self.stack.enter_context(signals.polled())
        self.show.begin("runs", self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.stack.close()

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether another job can start now."""

    def forget(self, jobs: Sequence[Job]) -> None:
        """Rename the earlier runs of jobs, which then begin anew.

        It is done before the first job starts. So after a stop the same command without --no-resume trains all of them,
        and finds none of the earlier ones.
        """
        for job in jobs:
            signals.raise_if_received()
            run = RunWriter(self.options.runs, job.id)
            if run.path.exists():
                with run.locked(self.show.line):
                    if aside := run.set_aside():
                        self.show.line(f"{job.id}: the earlier run was renamed to {printable(aside)}")

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a job whose teachers are done, or were started. It goes on where an earlier attempt ended."""

    @abstractmethod
    def wait(self) -> list[tuple[Job, GhostError | None]]:
        """The jobs that ended since the last call, each with its error. Returns after a short time, even without any.

        After a signal: raises Interrupted when all jobs have saved and ended.
        """

    @abstractmethod
    def _end(self) -> None:
        """Stop the jobs that still run. Each saves its state."""

    def _end_if_told(self) -> None:
        """After a signal: Interrupted, when all jobs have saved and ended."""
        if signals.received():
            self._end()
            signals.raise_if_received()

    def _follow(self, jobs: Iterable[Job]) -> None:
        """Print the new epochs of jobs."""
        for job in jobs:
            rows = record_of(job, self.options.runs).metrics()
            new = rows[self.printed.get(job.id, 0) :]
            self.printed[job.id] = len(rows)
            for row in new if display.volume == display.VERBOSE else new[-1:]:
                self.show.epoch(job.id, row, job.recipe.train.last_epoch)

    def _told(self, job: Job, error: GhostError | None) -> tuple[Job, GhostError | None]:
        """A job that ended, with its error: if it went well, its last epoch and result are printed. It is counted."""
        if error is None:
            self._follow([job])  # it may have ended between two looks
            self.show.line(reached(job, self.options.runs))
        self.show.advance()
        return job, error
