"""SIGINT and SIGTERM: save and leave with code 75; a second one leaves at once.

Invariant: inside `polled()` a signal only sets a flag, which the loop asks for between two whole steps; outside
it raises `Interrupted` where it strikes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ghostcli.errors import Interrupted

_asked: str | None = None
_depth = 0
_taken = False
_leave_at_second = True


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        if _leave_at_second:
            os._exit(Interrupted.exit_code)  # every write is atomic: leaving at any instant is safe
        return
    _asked = signal.Signals(number).name
    if _depth == 0:
        raise _interrupted()


def _interrupted() -> Interrupted:
    return Interrupted(f"stopped by {_asked}. What is done is saved, and the same command goes on from there")


@contextlib.contextmanager
def handled(leave_at_second: bool = True) -> Iterator[None]:
    """Take over SIGINT and SIGTERM for the duration (in the main thread, and where nobody has yet).

    A worker is told twice, by its parent and by the terminal or the scheduler that stops the whole group: for it
    a second signal is no reason to leave without saving.
    """
    global _asked, _taken, _leave_at_second
    if _taken or threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _taken, _leave_at_second = None, True, leave_at_second
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _taken = False


@contextlib.contextmanager
def polled() -> Iterator[None]:
    """Defer signals to `asked()`: the body calls it where stopping is clean."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def asked() -> str | None:
    """The name of the signal that asked to stop, or None."""
    return _asked


def stop_if_asked() -> None:
    """Raise Interrupted where a signal came."""
    if _asked is not None:
        raise _interrupted()
