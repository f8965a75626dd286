"""Who works on a run: a lease in its directory, which its owner renews while it works.

Invariant: a lease tells of a living owner without asking its machine: elsewhere by its heartbeat, on this machine by
its process. An owner that ends gives its lease back; that of a killed one runs out.
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
#: Seconds between two heartbeats, and after how many without one an owner elsewhere counts as gone.
BEAT, STALE = 15.0, 120.0
#: Seconds by which two readings of a process's start may differ.
SLACK = 2.0


class Lease(BaseModel):
    """`owner` is a token of this very attempt; times are seconds since 1970."""

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
    """The lease of a run directory whose owner is alive; None where there is none."""
    try:
        lease = Lease.model_validate_json((run / FILE).read_bytes())
        return lease if lease.alive else None
    except (OSError, ValidationError, ValueError, OverflowError, RecursionError):
        return None


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lease of a run directory, with a heartbeat, for as long as the body works."""
    now, pid = time.time(), os.getpid()
    started = psutil.Process(pid).create_time()
    lease = Lease(
        owner=uuid.uuid4().hex, host=socket.gethostname(), pid=pid, process_started=started, since=now, heartbeat=now
    )
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(GhostError):  # the next write of the run itself tells what is wrong with the disk
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
