"""The progress of runs that other processes train, read from their metrics files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ghostcli import display
from ghostcli.display import Display
from ghostcli.plan import Job, record_of


class EpochLines:
    """Prints the epochs of jobs, each once."""

    def __init__(self, runs: Path, show: Display) -> None:
        self.runs, self.show = runs, show
        self.seen: dict[str, int] = {}

    def follow(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            rows = record_of(job, self.runs).metrics()
            new = rows[self.seen.get(job.id, 0) :]
            self.seen[job.id] = len(rows)
            for row in new if display.volume == display.VERBOSE else new[-1:]:
                self.show.epoch(job.id, row, job.recipe.train.last_epoch)
