"""Writing files so that a reader, a crash or a full disk never meets half of one.

Invariant: a path handed to `write_bytes` holds, at every instant, either its old content or its new, whole.
Each stage of a write is a named fault point, so that the tests can kill the program exactly there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from ghostcli.errors import GhostError, UsageError, printable


def fault(point: str) -> None:
    """Die or fail here when the environment arms this point: GHOST_FAULT=POINT[@N]=kill|enospc|eacces|term.

    N counts the passes (1 is the first). It exists for the crash tests: a promise about kill -9 at a given
    write is worth what it was tried with.
    """
    armed = os.environ.get("GHOST_FAULT")
    if not armed:
        return
    name, _, action = armed.partition("=")
    name, _, nth = name.partition("@")
    if name != point:
        return
    fault.passes += 1  # type: ignore[attr-defined]
    if fault.passes != int(nth or 1):  # type: ignore[attr-defined]
        return
    if action == "enospc":
        raise OSError(28, "No space left on device")
    if action == "eacces":
        raise PermissionError(13, "Permission denied")
    os.kill(os.getpid(), signal.SIGTERM if action == "term" else signal.SIGKILL)


fault.passes = 0  # type: ignore[attr-defined]


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (where the system lets a folder be synced)."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes | memoryview, what: str = "file") -> None:
    """Replace `path` atomically: temporary file beside it, flushed, synced, renamed, folder synced.

    Raises GhostError with the file's name for a full disk, a read-only or vanished folder; the old content
    stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fault(f"{what}:before")
        with open(temporary, "wb") as out:
            half = len(content) // 2
            out.write(content[:half])
            fault(f"{what}:half")
            out.write(content[half:])
            out.flush()
            os.fsync(out.fileno())
        fault(f"{what}:written")
        os.replace(temporary, path)
        fault(f"{what}:renamed")
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise GhostError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """The one line a person gets when `path` could not be written."""
    return (
        f"{printable(str(path))}: could not be written ({error.strerror or error}); "
        "what was there before is intact. Mend the cause and give the same command again"
    )


def write_json(path: Path, value: Any, what: str = "json") -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode(), what)


def read_json(path: Path) -> Any:
    """The file's value; GhostError naming the file where it is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise GhostError(f"{printable(str(path))}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise GhostError(f"{printable(str(path))}: is no JSON ({error})") from error


def refuse_link(*paths: Path) -> None:
    """UsageError where one of these is a link: what is written to a run lies where it seems to lie."""
    for path in paths:
        if path.is_symlink():
            raise UsageError(
                f"{printable(path)}: is a link, and a run is never written through one; move it away, or give --runs "
                "the folder that holds what it points to"
            )


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`. Call only while holding its lock."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()
