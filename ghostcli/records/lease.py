"""Leases: who works on a run or a table, on any machine that sees its folder.

Invariant: at most one process holds a lease. A lease is a folder with one file, and the name of the file is its owner.
Each step is one rename or removal that names the owner, so it succeeds for one process only:

    taken        rename a folder that holds the taker's file to NAME.lease, which succeeds if that is missing or empty
    taken over   rename the file of the owner that was found dead to one's own
    given back   remove one's own file, then the empty folder

These are atomic on network file systems too, and no clock of two machines is compared. On the owner's machine its
process tells whether it lives, even if it is frozen. Elsewhere its heartbeat does: an owner whose file has not changed
for STALE seconds of the watcher's own clock is dead. An owner that comes back later finds its file gone and stops.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ghostcli import signals
from ghostcli.errors import GhostError, printable
from ghostcli.records.storage import passing

#: Seconds between two heartbeats. An owner on another machine counts as dead after STALE seconds without one.
BEAT, STALE = 15.0, 120.0
#: Seconds by which two readings of the start time of one process may differ.
SLACK = 2.0
#: Seconds between two looks of a waiting process: the first pause, and the longest.
FIRST, LONGEST = 0.02, 1.0
#: A lease has this many bytes, so that a heartbeat replaces it in one write.
BYTES = 1024
OWNER = re.compile(r"[0-9a-f]{32}")
#: What a taker meets if another one was faster: a lease that is taken, or its own new folder swept away.
FASTER = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ESTALE}
#: The leases that this process holds. One that a signal cut off while it was taken is not among them.
_HELD: set[str] = set()


class Lost(GhostError):
    """Another process has taken the lease over."""


@cache
def machine() -> str:
    """This machine as far as numbers of processes go: its name, its boot and its process namespace."""
    parts = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(file) if file.endswith("pid") else Path(file).read_text().strip())
    return " ".join(parts)


class Lease(BaseModel):
    """`owner` is a random token of one attempt. `beats` counts heartbeats. Times are seconds since 1970, for people."""

    model_config = ConfigDict(frozen=True, strict=True)

    owner: str
    host: str
    machine: str
    pid: int
    process_started: float
    since: float
    heartbeat: float
    beats: int = 0

    @property
    def here(self) -> bool:
        """Whether the owner is a process of this machine."""
        return self.machine == machine()

    @property
    def lives(self) -> bool:
        """Whether its process exists. Only on the owner's machine."""
        if self.pid == os.getpid():
            return self.owner in _HELD
        with contextlib.suppress(psutil.Error, OverflowError, ValueError):
            process = psutil.Process(self.pid)
            born = process.create_time()
            return abs(born - self.process_started) < SLACK and process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def alive(self) -> bool:
        """What to tell people after one look. On another machine it compares clocks, so nothing may rest on it."""
        return self.lives if self.here else time.time() - self.heartbeat < STALE

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {printable(self.host)} since {since}"


def folder_of(path: Path) -> Path:
    """The folder of the lease for the work on `path`."""
    return path.with_name(path.name + ".lease")


def _read(folder: Path) -> tuple[str, bytes] | None:
    """(owner, content) of a lease; None if it is free."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            if OWNER.fullmatch(name):
                return name, (folder / name).read_bytes()
    return None


def _parse(entry: tuple[str, bytes] | None) -> Lease | None:
    """The lease, if its owner has written it. A new owner's file has the old content for a moment."""
    with contextlib.suppress(ValidationError, ValueError, OverflowError, RecursionError):
        lease = Lease.model_validate_json(entry[1]) if entry else None
        return lease if lease and lease.owner == entry[0] else None
    return None


def holder(path: Path) -> Lease | None:
    """Who works on `path`, to tell people; None if nobody does or its owner seems dead."""
    try:
        lease = _parse(_read(folder_of(path)))
    except OSError:
        return None
    return lease if lease and lease.alive else None


class Held:
    """A lease that this process holds. A thread renews it."""

    def __init__(self, path: Path, lease: Lease) -> None:
        self.path, self.lease = path, lease
        self.file = folder_of(path) / lease.owner
        self.over = threading.Event()
        self.heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def require(self) -> None:
        """Lost if another process has taken this lease over. To be called before every write."""
        try:
            os.close(os.open(self.file, os.O_RDONLY))  # a network file system looks again when a file is opened
        except FileNotFoundError:
            who = holder(self.path) or "another process"
            raise Lost(
                f"{printable(self.path)}: {who} has taken this over, because this process did not respond for "
                f"{STALE:.0f} s; nothing more was written here"
            ) from None

    def _beat(self) -> None:
        beats = 0
        while not self.over.wait(BEAT):
            beats += 1
            with contextlib.suppress(OSError):  # the next write of the work itself reports a disk error
                _write(self.file, self.lease.model_copy(update={"heartbeat": time.time(), "beats": beats}))

    def give_back(self) -> None:
        _HELD.discard(self.lease.owner)
        self.over.set()
        if self.heart.is_alive():
            self.heart.join()
        with contextlib.suppress(OSError):
            self.file.unlink()
            self.file.parent.rmdir()


def _write(file: Path, lease: Lease, create: bool = False) -> None:
    """Replace the content of a lease in one write. Only `create` makes the file: one that was taken over stays so."""
    handle = os.open(file, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
    try:
        os.pwrite(handle, lease.model_dump_json().encode().ljust(BYTES), 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def take(path: Path, say: Callable[[str], None] = lambda who: None) -> Held:
    """Take the lease for the work on `path`. Wait for a living owner, of whom `say` is told once."""
    now, pid = time.time(), os.getpid()
    started = psutil.Process(pid).create_time()
    mine = Lease(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=machine(),
        pid=pid,
        process_started=started,
        since=now,
        heartbeat=now,
    )
    folder, pause, announced = folder_of(path), FIRST, False
    seen: tuple[str, bytes] | None = None
    since = time.monotonic()
    while True:
        entry = _read(folder)
        if entry is None:
            if _make(folder, mine):
                break
        else:
            if entry != seen:
                seen, since = entry, time.monotonic()
            lease = _parse(entry)
            if lease is not None and lease.here:
                dead = not lease.lives
            else:
                dead = time.monotonic() - since > STALE
            if dead and _take_over(folder, entry[0], mine):
                break
            if not dead and not announced:
                announced = True
                say(str(lease or "another process"))
        if announced or entry is None:
            signals.raise_if_received()
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of takers that were killed
        if OWNER.fullmatch(left.name[-32:]):
            shutil.rmtree(left, ignore_errors=True)
    _HELD.add(mine.owner)
    handle = Held(path, mine)
    handle.heart.start()
    return handle


def _make(folder: Path, mine: Lease) -> bool:
    """Take a free lease. False if another process was faster. OSError if none can be made, as on a full disk."""
    fresh = folder.with_name(f".{folder.name}.{mine.owner}")
    try:
        fresh.mkdir(parents=True, exist_ok=True)
        passing(f"{folder.name}:before")
        _write(fresh / mine.owner, mine, create=True)
        os.rename(fresh, folder)
        return True
    except OSError as error:
        taken = (folder / mine.owner).exists()  # an answer of the server was lost, but not the question
        shutil.rmtree(fresh, ignore_errors=True)
        if not taken and (error.errno not in FASTER or not folder.parent.is_dir()):
            raise
        return taken


def _take_over(folder: Path, owner: str, mine: Lease) -> bool:
    """Take the lease of a dead owner. False if another process was faster, or the owner gave it back."""
    try:
        os.rename(folder / owner, folder / mine.owner)
    except FileNotFoundError:
        if not (folder / mine.owner).exists():
            return False
    _write(folder / mine.owner, mine)
    return True


@contextlib.contextmanager
def held(path: Path, say: Callable[[str], None] = lambda who: None) -> Iterator[Held]:
    """Hold the lease for the work on `path` in this context."""
    lease = take(path, say)
    try:
        yield lease
    finally:
        lease.give_back()
