"""SIGINT, SIGTERM and SIGUSR1: save, then exit with code 75. A second signal exits at once.

Invariant: inside `polled()` a signal only sets a flag, and the loop reads the flag between two whole steps. Outside
`polled()` the signal raises `Interrupted` at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ghostcli.errors import Interrupted

#: Slurm sends SIGUSR1 before the time limit of a job. A system may lack it.
STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

_received: str | None = None
_depth = 0
_saves = False  # whether what is stopped has saved something
_taken = False
_leave_at_second = True


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None:
        if _leave_at_second:
            os._exit(Interrupted.exit_code)  # every write is atomic, so an exit is safe at any time
        return
    _received = signal.Signals(number).name
    if _depth == 0:
        raise _interruption()


def _interruption() -> Interrupted:
    rest = ". Finished work is saved, and the same command goes on from there" if _saves else ""
    return Interrupted(f"stopped by {_received}{rest}")


def end_with_parent() -> None:
    """On Linux: SIGTERM when the parent ends, however it ends. Elsewhere its caller must send it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def stay() -> None:
    """Ignore a second signal until the end of `handled`, so that the process still saves.

    For processes that get each signal several times: from their parent or a scheduler, and from the terminal.
    """
    global _leave_at_second
    _leave_at_second = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle these signals in this context. Does nothing in other threads and in a nested call."""
    global _received, _taken, _leave_at_second, _saves
    if _taken or threading.current_thread() is not threading.main_thread():
        yield
        return
    _received, _taken, _leave_at_second = None, True, True
    before = {number: signal.signal(number, _handle) for number in STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _taken, _saves = None, False, False


@contextlib.contextmanager
def polled() -> Iterator[None]:
    """Only record signals in this context. The body calls `received()` where it can stop, and has saved then."""
    global _depth, _saves
    _depth += 1
    _saves = True
    try:
        yield
    finally:
        _depth -= 1


@contextlib.contextmanager
def stopping(why: str) -> Iterator[None]:
    """Stop what is polled by other threads, as a signal does. `why`: what stopped it."""
    global _received
    before = _received
    _received = before or why
    try:
        yield
    finally:
        _received = before


def received() -> str | None:
    """The name of the received signal, or None."""
    return _received


def raise_if_received() -> None:
    """Raise Interrupted if a signal was received."""
    if _received is not None:
        raise _interruption()
