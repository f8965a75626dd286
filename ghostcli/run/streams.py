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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ghostcli import signals
from ghostcli.errors import GhostError
from ghostcli.plan import Job
from ghostcli.run.elsewhere import Elsewhere
from ghostcli.run.job import Options, run_job

if TYPE_CHECKING:
    import torch

#: Seconds between two looks at the threads.
PAUSE = 0.2
#: A run uses two of the 32 streams that PyTorch has for a GPU.
MOST = 16


@dataclass(eq=False)
class Running:
    """A job in its thread. `error`: how it ended, if not well."""

    job: Job
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None


class Streams(Elsewhere):
    """Up to `options.streams` threads, each for one job."""

    def __init__(self, options: Options, total: int) -> None:
        from ghostcli.engine.turns import Turns

        super().__init__(options, total)
        self.turns = Turns()
        self.running: list[Running] = []

    @property
    def free(self) -> bool:
        return len(self.running) < self.options.streams

    def start(self, job: Job, fresh: bool) -> None:
        one = Running(job)
        one.thread = threading.Thread(target=self._run, args=(one, fresh), name=job.id)
        self.running.append(one)
        one.thread.start()

    def _run(self, one: Running, fresh: bool) -> None:
        import torch

        from ghostcli.engine.device import pick

        try:
            with self.turns.taking():
                device = pick(self.options.device)
                if self.options.place.cpus:
                    torch.set_num_threads(self.options.place.cpus)
                with own_stream(device):
                    run_job(one.job, replace(self.options, quiet=True), device, fresh)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # the next job looks at the free memory
        except BaseException as error:  # it is raised in the main thread
            one.error = error

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        self.running[0].thread.join(PAUSE)
        self._follow(one.job for one in self.running)
        self._end_if_told()
        ended = [one for one in self.running if not one.thread.is_alive()]
        self.running = [one for one in self.running if one not in ended]
        return [self._told(one.job, _known(one.error)) for one in ended]

    def _end(self) -> None:
        with signals.stopping("the end of the command"):
            for one in self.running:
                one.thread.join()
        self.running.clear()


def _known(error: BaseException | None) -> GhostError | None:
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
