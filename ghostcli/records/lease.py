"""The lease of a run directory: it names the process that works on the run, which renews it.

Invariant: any machine can tell whether the owner is alive: on the owner's machine by its process, on others by the
heartbeat. A process that ends removes its lease. The lease of a killed process expires.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ghostcli.errors import GhostError, printable
from ghostcli.records.storage import write_json

FILE = "lease.json"
#: Seconds between two heartbeats. An owner on another machine counts as dead after STALE seconds without one.
BEAT, STALE = 15.0, 120.0
#: Seconds by which two readings of the start time of one process may differ.
SLACK = 2.0


class Lease(BaseModel):
    """`owner` is a random token of one attempt. Times are seconds since 1970."""

    model_config = ConfigDict(frozen=True, strict=True)

    owner: str
    host: str
    pid: int
    process_started: float
    since: float
    heartbeat: float

    @property
    def alive(self) -> bool:
        if self.host != socket.gethostname():
            return time.time() - self.heartbeat < STALE
        with contextlib.suppress(psutil.Error, OverflowError, ValueError):
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < SLACK
        return False

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {printable(self.host)} since {since}"


def holder(run: Path) -> Lease | None:
    """The lease of a run directory; None if there is none or its owner is dead."""
    try:
        lease = Lease.model_validate_json((run / FILE).read_bytes())
        return lease if lease.alive else None
    except (OSError, ValidationError, ValueError, OverflowError, RecursionError):
        return None


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lease of a run directory in this context, with a heartbeat."""
    now, pid = time.time(), os.getpid()
    started = psutil.Process(pid).create_time()
    lease = Lease(
        owner=uuid.uuid4().hex, host=socket.gethostname(), pid=pid, process_started=started, since=now, heartbeat=now
    )
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(GhostError):  # the next write of the run itself reports a disk error
                write_json(run / FILE, lease.model_copy(update={"heartbeat": time.time()}).model_dump(), "heartbeat")

    write_json(run / FILE, lease.model_dump(), "lease")
    heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        with contextlib.suppress(OSError):
            (run / FILE).unlink()
