"""`python -m ghostcli` and the `ghost` command. A signal during the imports gives one line too, not a traceback.

Invariant: this module imports almost nothing. All other imports follow after the signal handlers are set.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"ghost: stopped by {signal.Signals(number).name}, before anything was started\n".encode())
    os._exit(75)  # errors.Interrupted's


def main() -> None:
    """The entry point."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed, as under some daemons
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 it is open to the end
    gc.set_threshold(50_000, 20, 100)  # imports make many objects that stay: seldom look for garbage
    from ghostcli.cli import main as command

    command()


if __name__ == "__main__":
    main()
