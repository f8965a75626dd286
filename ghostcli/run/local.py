"""An executor: runs one job after the other in this process."""

from __future__ import annotations

from ghostcli import signals
from ghostcli.display import Display
from ghostcli.errors import GhostError
from ghostcli.plan import Job
from ghostcli.run.job import Options, run_job


class InProcess:
    """`start` stores a job; `wait` runs it."""

    ahead = False  # a job starts only when its teachers are done

    def __init__(self, options: Options) -> None:
        self.options = options
        self.show = Display(options.quiet)
        self.next: tuple[Job, bool] | None = None

    @property
    def free(self) -> bool:
        return self.next is None

    def start(self, job: Job, fresh: bool) -> None:
        self.next = job, fresh

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        if self.next is None:
            return []
        (job, fresh), self.next = self.next, None
        signals.raise_if_received()
        try:
            run_job(job, self.options, fresh)
        except GhostError as error:
            return [(job, error)]
        return [(job, None)]

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass
