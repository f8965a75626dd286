"""An executor: runs several jobs at a time in this process, each in a thread and on a stream of the GPU.

A step of a small network keeps few parts of a large GPU busy; kernels of several streams may run side by side. A run's
result does not depend on the others. Processes on one GPU take turns unless NVIDIA's MPS runs, and each has a context
of its own.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from typing import TYPE_CHECKING

from ghostcli import signals
from ghostcli.errors import GhostError
from ghostcli.plan import Job
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options, run_job

if TYPE_CHECKING:
    import torch

#: Seconds between two looks at the threads.
PAUSE = 0.2
#: A run uses two of the 32 streams that PyTorch has for a GPU.
MOST = 16


class Streams(Executor):
    """Up to `options.streams` threads, each for one job."""

    def __init__(self, options: Options, total: int) -> None:
        from ghostcli.engine.turns import Turns

        super().__init__(options, total)
        self.turns = Turns()
        self.pool = futures.ThreadPoolExecutor(options.streams)
        self.running: dict[futures.Future[None], Job] = {}

    @property
    def free(self) -> bool:
        return len(self.running) < self.options.streams

    def start(self, job: Job) -> None:
        self.running[self.pool.submit(self._run, job)] = job

    def _run(self, job: Job) -> None:
        import torch

        from ghostcli.engine.device import pick

        threading.current_thread().name = job.id
        with self.turns.taking():
            device = pick(self.options.device)
            with own_stream(device):
                run_job(job, replace(self.options, quiet=True))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the next job looks at the free memory

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        futures.wait(self.running, PAUSE, futures.FIRST_COMPLETED)
        self._follow(self.running.values())
        self._end_if_told()
        ended = [one for one in self.running if one.done()]
        return [self._told(self.running.pop(one), _job_error(one.exception())) for one in ended]

    def _end(self) -> None:
        with signals.stopping("the end of the command"):
            self.pool.shutdown()
        self.running.clear()


def _job_error(error: BaseException | None) -> GhostError | None:
    """The error of a job. Any other is raised: it is a fault of ghost."""
    if error is None or isinstance(error, GhostError):
        return error
    raise error


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work of this thread goes to a new stream of a GPU, after all that the GPU was given so far.

    The first step of a network makes what the process keeps (tables of indices, say), and streams do not wait for each
    other.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield
