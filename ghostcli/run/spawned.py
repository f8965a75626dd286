"""An executor: runs several jobs at a time, each in its own process on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ghostcli import signals
from ghostcli.display import Display
from ghostcli.errors import GhostError
from ghostcli.plan import Job
from ghostcli.run.follow import EpochLines
from ghostcli.run.job import Options, reached, run_job

#: Seconds between two checks of the workers.
PAUSE = 0.2


@dataclass(frozen=True)
class Worker:
    """A process that runs one job. It sends its error through `answer`."""

    job: Job
    process: BaseProcess
    answer: Connection

    @property
    def error(self) -> GhostError | None:
        """The error of the job; None if it succeeded."""
        code = self.process.exitcode
        if code == 0:
            return None
        error = GhostError(f"ended with code {code}")
        error.exit_code = max(code or 1, 1)
        with contextlib.suppress(EOFError, OSError):
            error.args = (self.answer.recv(),)
        return error


class Spawned:
    """Up to `options.jobs` workers. Each uses its share of the cores."""

    def __init__(self, options: Options, total: int) -> None:
        self.options, self.total = options, total
        self.show = Display(options.quiet)
        self.workers: list[Worker] = []
        self.epochs = EpochLines(options.runs, self.show)
        self.stack = contextlib.ExitStack()

    ahead = False

    @property
    def free(self) -> bool:
        return len(self.workers) < self.options.jobs

    def start(self, job: Job, fresh: bool) -> None:
        context = multiprocessing.get_context("spawn")
        threads = self.options.place.cpus or max(1, (os.cpu_count() or 1) // self.options.jobs)
        answer, sender = context.Pipe(duplex=False)
        arguments = (job, replace(self.options, quiet=True), fresh, threads, sender)
        process = context.Process(target=_work, args=arguments, name=job.id)
        process.start()
        sender.close()  # only the worker keeps this end, so the pipe closes when the worker ends
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
        """Stop the workers. Each saves its state, as after a signal from the user."""
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


def _work(job: Job, options: Options, fresh: bool, threads: int, sender: Connection) -> None:
    """The body of a worker process. It ends with the exit code of its error and sends the message through `sender`."""
    import torch

    from ghostcli.engine.device import pick

    torch.set_num_threads(threads)
    try:
        with signals.handled(leave_at_second=False):
            run_job(job, options, pick(options.device), fresh)
    except GhostError as error:
        sender.send(str(error))
        sys.exit(error.exit_code)
