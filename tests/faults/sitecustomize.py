"""Python imports this at its start, where this folder is on its path: so worker processes fail as planned, too.

GHOST_FAULT=POINT[@N]=kill|term|enospc|eacces ends the process, or raises, at the Nth time that a write passes a stage.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def arm() -> None:
    """Add an audit hook that does what GHOST_FAULT says. Without that variable: nothing."""
    planned = os.environ.get("GHOST_FAULT")
    if not planned:
        return
    point, _, action = planned.partition("=")
    name, _, nth = point.partition("@")
    left = int(nth or 1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != "ghost.write" or arguments != (name,):
            return
        left -= 1
        if left:
            return
        if action == "enospc":
            raise OSError(28, "No space left on device")
        if action == "eacces":
            raise PermissionError(13, "Permission denied")
        os.kill(os.getpid(), signal.SIGTERM if action == "term" else signal.SIGKILL)

    sys.addaudithook(hook)


arm()
