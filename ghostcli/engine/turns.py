"""Several runs in one process, each in a thread of its own. One thread at a time prepares work for the device.

Invariant: a thread works only while it has the turn, and passes it on between two steps or while it waits. So no run
sees another's step half done. What PyTorch keeps for the whole process is kept for each thread and goes with the turn.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from ghostcli.engine.device import Settings

_of_this_thread = threading.local()


class Turns:
    """The turn of a group of threads. It goes to the thread that has waited longest."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self.waiting: deque[threading.Lock] = deque()
        self._first = Settings.now()

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Take part with this thread: the body has the turn. The thread starts with the settings of the process."""
        self._take()
        _of_this_thread.turns = self
        try:
            self._first.apply()
            yield
        finally:
            _of_this_thread.turns = None
            self._give()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The body runs without the turn: it waits for a device, and touches nothing that threads share."""
        settings = Settings.now()
        self._give()
        try:
            yield
        finally:
            self._take()
            settings.apply()

    def _take(self) -> None:
        mine = threading.Lock()
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine.acquire()
            self.waiting.append(mine)
        mine.acquire()  # until the turn comes

    def _give(self) -> None:
        with self._guard:
            if self.waiting:
                self.waiting.popleft().release()
            else:
                self._taken = False


def shared() -> bool:
    """Whether other runs may be under way in this process."""
    return _turns() is not None


def capture_mode() -> str:
    """Whose calls a capture as a CUDA graph forbids: other threads may wait for the device meanwhile."""
    return "thread_local" if shared() else "global"


def pass_on() -> None:
    """Let the others go first, if any wait."""
    turns = _turns()
    if turns is not None and turns.waiting:
        with turns.away():
            pass


def away() -> contextlib.AbstractContextManager[None]:
    """See `Turns.away`. Alone in its process a run goes on as usual."""
    turns = _turns()
    return turns.away() if turns is not None else contextlib.nullcontext()


def _turns() -> Turns | None:
    return getattr(_of_this_thread, "turns", None)
