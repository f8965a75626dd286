"""An executor: runs one job after the other in this process."""

from __future__ import annotations

from ghostcli import display, signals
from ghostcli.errors import GhostError
from ghostcli.plan import Job
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options, run_job


class InProcess(Executor):
    """`start` stores a job; `wait` runs it, with a display and signals of its own."""

    def __init__(self, options: Options) -> None:
        super().__init__(options, total=1)
        self.next: Job | None = None

    @property
    def free(self) -> bool:
        return self.next is None

    def start(self, job: Job) -> None:
        self.next = job

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        if self.next is None:
            return []
        job, self.next = self.next, None
        signals.raise_if_received()
        try:
            with display.apart():
                run_job(job, self.options)
        except GhostError as error:
            return [(job, error)]
        return [(job, None)]

    def __enter__(self) -> InProcess:
        return self

    def _end(self) -> None:
        self.next = None
