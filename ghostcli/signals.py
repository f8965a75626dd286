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


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        os._exit(Interrupted.exit_code)  # every write is atomic: leaving at any instant is safe
    _asked = signal.Signals(number).name
    if _depth == 0:
        raise Interrupted(f"stopped by {_asked}")


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Take over SIGINT and SIGTERM for the duration (in the main thread; elsewhere nothing happens)."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = None
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        raise Interrupted(f"stopped by {_asked}")
