"""Writes files atomically: no reader sees a partly written file, even after a crash or with a full disk.

Invariant: a path given to `write_bytes` has its old content or its new content at any time, always complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ghostcli.errors import GhostError, UsageError, printable

Kind = TypeVar("Kind")


def passing(point: str) -> None:
    """Announce a stage of a write, as an event of `sys.audit`. The crash tests kill the program there."""
    sys.audit("ghost.write", point)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, if the system can sync folders."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes | memoryview, what: str = "file") -> None:
    """Replace `path` atomically: write and sync a temporary file beside it, rename it, sync the folder.

    GhostError with the file's name if this fails (full disk, read-only or missing folder). The old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        passing(f"{what}:before")
        with open(temporary, "wb") as out:
            half = len(content) // 2
            out.write(content[:half])
            passing(f"{what}:half")
            out.write(content[half:])
            out.flush()
            os.fsync(out.fileno())
        passing(f"{what}:written")
        os.replace(temporary, path)
        passing(f"{what}:renamed")
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise GhostError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """The message for a `path` that could not be written."""
    kept = "; its old content is intact" if os.path.exists(path) else ""
    why = f"{printable(path)}: could not be written ({error.strerror or error}){kept}"
    return f"{why}. Remove the cause and give the same command again"


def write_json(path: Path, value: Any, what: str = "json") -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode(), what)


def read_json(path: Path) -> Any:
    """The value in a JSON file. GhostError with the file's name if it is missing or not JSON."""
    try:
        return from_json(path.read_bytes())  # a sweep has thousands of files; json is slower
    except OSError as error:
        raise GhostError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise GhostError(f"{printable(path)}: is not JSON ({error})") from error


#: To make a reader takes longer than to read.
_reader = cache(TypeAdapter)


def read_or_empty(path: Path, kind: type[Kind]) -> Kind:
    """The value of a kind, as `dict[str, int]`, in a JSON file. An empty one if the file is missing or damaged."""
    with contextlib.suppress(GhostError, ValidationError):
        return _reader(kind).validate_python(read_json(path))
    return kind()


def refuse_link(*paths: Path) -> None:
    """UsageError if one of these paths is a link. So the files of a run are really in its folder."""
    for path in paths:
        if path.is_symlink():
            raise UsageError(
                f"{printable(path)}: is a link, and ghost does not write runs through links; move it away, or name the "
                "folder of the link's target with --runs"
            )


def sweep(folder: Path) -> None:
    """Remove temporary files of killed writers from `folder`. Call it only while holding the lock."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()
