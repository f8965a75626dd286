"""An executor: runs several jobs at a time, in worker processes on this machine.

Invariant: a worker runs one job at a time. A job's result does not depend on the jobs that its worker ran before.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ghostcli import signals
from ghostcli.errors import GhostError, Interrupted
from ghostcli.machine import cores
from ghostcli.plan import Job
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options, run_job

#: Seconds between two checks of the workers.
PAUSE = 0.2


@dataclass(eq=False)
class Worker:
    """A process that runs jobs, one after the other. `job`: the one it runs now, or None.

    No two living workers have one `number`.
    """

    number: int
    process: BaseProcess
    line: Connection
    job: Job | None = None

    def answer(self) -> tuple[Job, GhostError | None] | None:
        """Its job and the job's error, if the job has ended. None while it runs."""
        if self.job is None or not (self.line.poll() or self.process.exitcode is not None):
            return None
        job, self.job = self.job, None
        try:
            code, text = self.line.recv()
        except (EOFError, OSError):  # it died without a word
            self.process.join()
            code, text = max(self.process.exitcode or 1, 1), f"ended with code {self.process.exitcode}"
        if code == 0:
            return job, None
        self.process.join()  # a worker leaves after an error
        return job, GhostError(text, code)


class Spawned(Executor):
    """Up to `options.jobs` workers. Each uses its share of the cores, and takes the next job when it is done.

    Where the machine has several GPUs the workers get them in turn.
    """

    def __init__(self, options: Options, total: int) -> None:
        super().__init__(options, total)
        self.workers: list[Worker] = []

    @property
    def busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.job is not None]

    @property
    def free(self) -> bool:
        return len(self.busy) < self.options.jobs

    def start(self, job: Job) -> None:
        idle = (worker for worker in self.workers if worker.job is None and worker.process.is_alive())
        worker = next(idle, None) or self._hire()
        worker.line.send((job, replace(self.options, quiet=True)))
        worker.job = job

    def _hire(self) -> Worker:
        from ghostcli.engine.device import dealt

        taken = {worker.number for worker in self.workers}
        number = next(number for number in itertools.count() if number not in taken)
        context = multiprocessing.get_context("spawn")
        threads = self.options.place.cpus or max(1, cores() // self.options.jobs)
        line, theirs = context.Pipe()
        process = context.Process(target=_work, args=(threads, dealt(self.options.device, number), theirs))
        process.start()
        theirs.close()  # only the worker keeps this end, so the pipe closes when the worker ends
        self.workers.append(Worker(number, process, line))
        return self.workers[-1]

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        time.sleep(PAUSE)
        self._follow(worker.job for worker in self.busy)
        outcomes = [self._told(*answer) for worker in self.busy if (answer := worker.answer())]
        # One that ended in the meantime with a job has an answer that is not read yet.
        self.workers = [one for one in self.workers if one.job is not None or one.process.exitcode is None]
        self._end_if_told()
        return outcomes

    def _end(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()


def _work(threads: int, environment: dict[str, str], line: Connection) -> None:
    """The body of a worker process: it runs the jobs that come through `line`, and answers each (exit code, message).

    `environment` says which GPU it sees, and is set before any is asked for. The worker ends with the code of the first
    error, or with its parent: then it saves first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between jobs; the parent ends its workers itself
    signals.end_with_parent()
    os.environ |= environment
    sys.stdout = sys.stderr  # code of one's own may print; standard output is for results
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job, options = line.recv()
            try:
                with signals.handled():
                    signals.stay()
                    run_job(job, options)
            except (GhostError, Interrupted) as error:
                line.send((error.exit_code, str(error)))
                sys.exit(error.exit_code)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # the next job looks at the free memory
            line.send((0, ""))
