"""An executor: several jobs at a time, each in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ghostcli import signals
from ghostcli.display import Display
from ghostcli.errors import GhostError
from ghostcli.plan import Job, record_of
from ghostcli.run.job import Options, reached, run_job

#: Seconds between two looks at the workers.
PAUSE = 0.2


@dataclass(frozen=True)
class Worker:
    """A process that carries out one job; why it failed comes through `answer`."""

    job: Job
    process: BaseProcess
    answer: Connection

    @property
    def error(self) -> GhostError | None:
        """Why it failed; None where it did not."""
        code = self.process.exitcode
        if code == 0:
            return None
        error = GhostError(f"ended with code {code}")
        error.exit_code = max(code or 1, 1)
        with contextlib.suppress(EOFError, OSError):
            error.args = (self.answer.recv(),)
        return error


class Spawned:
    """Up to `options.jobs` workers, which share the cores."""

    def __init__(self, options: Options, total: int) -> None:
        self.options, self.total = options, total
        self.show = Display(options.quiet)
        self.workers: list[Worker] = []
        self.epochs = _EpochLines(options.runs, self.show)
        self.stack = contextlib.ExitStack()

    @property
    def free(self) -> bool:
        return len(self.workers) < self.options.jobs

    def start(self, job: Job, fresh: bool) -> None:
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // self.options.jobs)
        answer, tell = context.Pipe(duplex=False)
        arguments = (job, replace(self.options, quiet=True), fresh, threads, tell)
        process = context.Process(target=_work, args=arguments, name=job.id)
        process.start()
        tell.close()  # the worker holds the other end: when it is gone, so is the pipe
        self.workers.append(Worker(job, process, answer))

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        time.sleep(PAUSE)
        self.epochs.follow(worker.job for worker in self.workers)
        ended = [worker for worker in self.workers if worker.process.exitcode is not None]
        self.workers = [worker for worker in self.workers if worker not in ended]
        found = [(worker.job, worker.error) for worker in ended]
        for job, error in found:
            if error is None:
                self.show.line(reached(job, self.options.runs))
            self.show.advance()
        if signals.received():
            self._end()
            signals.raise_if_received()
        return found

    def _end(self) -> None:
        """Stop the workers: each saves what it has, as for a signal of the user's."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()

    def __enter__(self) -> Spawned:
        self.stack.enter_context(self.show)
        self.stack.enter_context(signals.polled())
        self.show.begin("runs", self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.stack.close()


def _work(job: Job, options: Options, fresh: bool, threads: int, tell: Connection) -> None:
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


class _EpochLines:
    """Shows the workers' epochs as their metrics files grow."""

    def __init__(self, runs: Path, show: Display) -> None:
        self.runs, self.show = runs, show
        self.seen: dict[str, int] = {}

    def follow(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            rows = record_of(job, self.runs).metrics()
            if len(rows) > self.seen.get(job.id, 0):
                self.seen[job.id] = len(rows)
                self.show.epoch(job.id, rows[-1], job.recipe.train.last_epoch)
