"""Remembers which records were found free of contradictions, so that a table of a sweep reads each of them once.

Invariant: a record counts as checked only while its files have the size and time that they had then, its teachers'
records give the same digests, and this version of ghost checks it. `ghost runs verify` remembers nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

from ghostcli import __version__
from ghostcli.errors import GhostError
from ghostcli.recipe.digest import SEMANTICS
from ghostcli.records.model import SCHEMA, RunSetup
from ghostcli.records.record import PARTS, RunRecord
from ghostcli.records.storage import read_or_empty, write_json
from ghostcli.zoo.own import cache_folder

#: Fewer records are checked again each time; fewer by one process.
LEAST, MANY = 200, 1000
FILES = tuple(name for name in PARTS if name not in ("env.json", "model.safetensors"))

Check = Callable[[RunRecord], list[str]]
_shared: list[Any] = []


def problems(records: Sequence[RunRecord], setups: dict[str, RunSetup], check: Check) -> dict[str, str]:
    """Run id -> the first problem that `check` finds in a record, for those that have one."""
    if len(records) < LEAST:
        return _check_all(records, check)
    place = str(records[0].path.parent.parent.resolve())
    file = cache_folder() / "checked" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    known, marks = read_or_empty(file, dict[str, str]), {run.id: _mark(run, setups) for run in records}
    first_problems = _check_all([run for run in records if known.get(run.id) != marks[run.id]], check)
    whole = {run: mark for run, mark in marks.items() if run not in first_problems}
    if whole != known:
        with contextlib.suppress(OSError, GhostError):  # then they are checked again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, whole, "checked")
    return first_problems


def _check_all(records: Sequence[RunRecord], check: Check) -> dict[str, str]:
    """`problems` of these records. Many are checked on all cores, by forked processes that have what was read."""
    alone = sys.platform != "linux" or threading.active_count() > 1
    cores = 1 if alone or len(records) < MANY else len(os.sched_getaffinity(0))
    if cores == 1:
        return {run.id: faults[0] for run in records if (faults := check(run))}
    with get_context("fork").Pool(cores, _share, (records, check)) as pool:
        firsts = pool.map(_first, range(len(records)), chunksize=max(1, len(records) // (8 * cores)))
        pool.close()
        pool.join()
    return {run.id: first for run, first in zip(records, firsts, strict=True) if first}


def _share(*values: Any) -> None:
    """In a forked process: keep what `_first` needs. Ctrl-C is the parent's, which ends this one by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _shared[:] = values


def _first(number: int) -> str | None:
    records, check = _shared
    return next(iter(check(records[number])), None)


def _mark(run: RunRecord, setups: dict[str, RunSetup]) -> str:
    """A fingerprint of everything that the checks of a record read."""
    seen: list[object] = [__version__, SEMANTICS, SCHEMA, str(run.path)]
    for name in FILES:
        try:
            stat = os.stat(f"{run.path}/{name}")
            seen.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
        except OSError:
            seen.append(None)
    for teacher in run.result.teachers:
        one = setups.get(teacher.run)
        seen.append((one.digest, one.of_group) if one else None)
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=12).hexdigest()
