"""The run directory: locking, writing and reading.

Invariant: a run with status `done` is complete, because its result is written before its status. A reader never sees a
partly written file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from ghostcli.errors import GhostError, NonFiniteError, UsageError, nearest, printable
from ghostcli.records import lease
from ghostcli.records.model import Environment, Part, Refused, RunResult, RunSetup, read
from ghostcli.records.storage import (
    cannot_write,
    passing,
    read_or_empty,
    refuse_link,
    sweep,
    sync_folder,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

#: The files of a run, in the order in which they are written.
PARTS = (
    "status.json",
    "recipe.json",
    "env.json",
    "metrics.jsonl",
    "model.safetensors",
    "predictions.npz",
    "result.json",
)
#: The problem of a run with missing files.
INCOMPLETE = "its files are incomplete"
#: Words of the training loop in a status without an exit code, as older versions wrote it.
DIVERGED = "became non-finite"
RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]*-[a-z]+-[0-9a-f]{8}(/s[0-9]+)?", re.ASCII | re.IGNORECASE)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """Read access to a run directory."""

    path: Path
    id: str

    @cached_property
    def state(self) -> dict[str, Any]:
        """The content of status.json; {} if it is missing or unreadable."""
        return read_or_empty(self.path / "status.json", dict[str, Any])

    @property
    def status(self) -> str:
        """absent | running | interrupted | failed | done | broken. A run with a dead process counts as interrupted."""
        if not self.state and not any((self.path / name).exists() for name in PARTS):
            return "absent"
        status = self.state.get("status")
        if status not in ("done", "running", "interrupted", "failed"):
            return "broken"
        unreadable = self.result is None if status == "done" else self._setup[1] not in ("", INCOMPLETE)
        if unreadable:
            return "broken"
        return "interrupted" if status == "running" and self.owner is None else status

    @property
    def owner(self) -> lease.Lease | None:
        """The lease of the process that works on it; None if there is none."""
        return lease.holder(self.path)

    @property
    def setup(self) -> RunSetup | None:
        """The definition of the run; None if its files are missing or unreadable."""
        return self.result or self._setup[0]

    @cached_property
    def result(self) -> RunResult | None:
        """The results; None if the run is not done, or result.json is unreadable."""
        return self._result[0] if self.state.get("status") == "done" else None

    @property
    def environment(self) -> Environment | None:
        """The environment of the run; None if env.json is missing or unreadable."""
        return self.result.environment if self.result else _read(self.path / "env.json", Environment)[0]

    @cached_property
    def _setup(self) -> tuple[RunSetup | None, str]:
        return _read(self.path / "recipe.json", RunSetup)

    @cached_property
    def _result(self) -> tuple[RunResult | None, str]:
        return _read(self.path / "result.json", RunResult)

    @property
    def problem(self) -> str | None:
        """Why this run is not finished; None if it is."""
        match self.status:
            case "done":
                return None
            case "failed":
                return str(self.state.get("error") or "failed").removeprefix(f"{self.id}: ")
            case "running":
                return "still running"
            case "interrupted":
                return "unfinished"
            case "absent":
                return "not started"
            case _:
                return (self._result if self.state.get("status") == "done" else self._setup)[1] or INCOMPLETE

    @property
    def diverged(self) -> bool:
        """Whether a loss, a weight or a logit of the failed run became non-finite."""
        code = self.state.get("exit_code")
        return DIVERGED in str(self.problem) if code is None else code == NonFiniteError.exit_code

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per epoch. An incomplete last line (from a killed writer) is left out."""
        file = self.path / "metrics.jsonl"
        try:
            now = file.stat()
            return list(_rows_of(file, now.st_size, now.st_mtime_ns))
        except OSError:
            return []

    def predictions(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Final test logits [n, C] (float16) and labels [n]; None if the file is missing or unreadable."""
        try:
            return predictions((self.path / "predictions.npz").read_bytes())
        except OSError:
            return None

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def saved(self) -> dict[str, int]:
        """The names of its checkpoints, with their times: equal if nothing was saved in between."""
        return {file.name: file.stat().st_mtime_ns for file in (self.path / "checkpoint").glob("*.safetensors")}


@lru_cache(maxsize=128)
def _rows_of(file: Path, size: int, changed: int) -> tuple[dict[str, Any], ...]:
    """The rows of a metrics file, which a report reads three times. `size` and `changed` tell its versions apart."""
    numbered = enumerate(_values(file.read_bytes().splitlines()), 1)
    return tuple(row for _, row in takewhile(lambda one: _is_row(one[1], one[0]), numbered))


def _values(lines: list[bytes]) -> list[Any]:
    """The JSON values of these lines, up to the first that has none."""
    with contextlib.suppress(ValueError):  # all lines at once: a sweep has a million
        together = from_json(b"[" + b",".join(lines) + b"]")
        if len(together) == len(lines):
            return together
    values = []
    with contextlib.suppress(ValueError):
        for line in lines:
            values.append(from_json(line))
    return values


def predictions(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits [n, C] and labels [n] from the content of predictions.npz; None if it holds anything else."""
    from numpy.lib.format import read_array  # numpy is loaded only where it is needed

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # a whole file is read, so its checksum is tested
            files = [io.BytesIO(archive.read(f"{name}.npy")) for name in ("logits", "labels")]
        logits, labels = (read_array(file, allow_pickle=False) for file in files)
    except Exception:  # the zip, its compression and numpy raise nearly anything on a damaged file
        return None
    fits = logits.ndim == 2 and logits.size and labels.shape == logits.shape[:1]
    return (logits, labels) if fits and logits.dtype.kind == "f" and labels.dtype.kind in "iu" else None


def _read(path: Path, kind: type[Part]) -> tuple[Part | None, str]:
    """A part of the record, or None with the reason."""
    try:
        return read(path, kind), ""
    except Refused as error:
        return None, str(error)
    except GhostError:
        return None, f"{path.name} is damaged" if path.exists() else INCOMPLETE


def _is_row(row: Any, epoch: int) -> bool:
    """Whether `row` is a valid line of metrics for `epoch`."""
    try:
        return row["epoch"] == epoch and isinstance(row["test"]["accuracy"], int | float)
    except (LookupError, TypeError):
        return False


def scan(runs: Path) -> list[RunRecord]:
    """All runs under `runs`, sorted by id. Links are ignored. A missing folder counts as empty."""
    if not runs.is_dir():
        return []
    records = []
    for group in _folders(runs):
        for seed in _folders(group.path):
            run_id = f"{group.name}/{seed.name}"
            if RUN_ID.fullmatch(run_id):
                records.append(RunRecord(Path(seed.path), run_id))
    return records


def _folders(path: Path | str) -> list[os.DirEntry[str]]:
    """The folders in a folder that are no links, sorted by name."""
    try:
        with os.scandir(path) as entries:
            return sorted((one for one in entries if one.is_dir(follow_symlinks=False)), key=lambda one: one.name)
    except OSError:
        return []


def find(runs: Path, run_id: str) -> RunRecord:
    """The run with this id (`NAME-STRATEGY-DIGEST8[/sSEED]`). UsageError if there is none or more than one."""
    known = scan(runs)
    name = id_of(run_id, runs)
    if not RUN_ID.fullmatch(name):
        begun = [run.id for run in known if run.id.startswith(name)] if name else []
        hint = f"; these begin so: {', '.join(begun[:5])}" if begun else ", such as gns-1.0-plain-1a2b3c4d/s0"
        raise UsageError(f"{printable(run_id)}: is not a run id{hint} (`ghost runs list` shows yours)")
    hits = [run for run in known if run.id == name or run.id.startswith(name + "/")]
    if not hits:
        hint = nearest(name, [run.id for run in known]) if known else "; it has no runs at all"
        raise UsageError(f"{printable(runs)} has no run {name}{hint}")
    if len(hits) > 1:
        raise UsageError(f"{name} has several seeds; name one of {', '.join(run.id for run in hits)}")
    return hits[0]


def id_of(name: str, runs: Path) -> str:
    """A run's id, of `run/ID` and of a path in the folder of runs, as commands print it and TAB completes it."""
    plain = name.removeprefix("run/").rstrip("/")
    if not RUN_ID.fullmatch(plain):
        for path, folder in ((Path(name), runs), (Path(name).absolute(), runs.absolute())):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
    return plain


def metrics_begin_with(run: Path, length: int, checksum: str) -> bool:
    """Whether the first `length` bytes of a run's metrics are those of a checkpoint."""
    beginning = _metrics(run)[:length]
    return len(beginning) == length and hashlib.sha256(beginning).hexdigest() == checksum


def _metrics(run: Path) -> bytes:
    try:
        return (run / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


class RunWriter:
    """Write access to a run directory. Only the holder of the run's lease writes."""

    def __init__(self, runs: Path, run_id: str) -> None:
        self.runs, self.id = runs, run_id
        self.path = runs / run_id
        self.started = time.time()
        self.lease: lease.Held | None = None

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[RunWriter]:
        """Hold the run's lease in this context, on whatever machine. Wait for another writer, and name it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.lease = lease.take(
                self.path, lambda who: say(f"{self.id}: {who} is working on it; waiting (Ctrl-C stops)")
            )
        except OSError as error:
            raise UsageError(
                f"--runs {printable(self.runs)}: not writable ({error.strerror or error}); name another folder"
            ) from error
        try:
            yield self
        finally:
            self.lease.give_back()
            self.lease = None
            if not self.path.exists():  # nothing was begun
                with contextlib.suppress(OSError):
                    self.path.parent.rmdir()

    def require_lease(self) -> None:
        """lease.Lost if another process has taken the run over. Every write asks."""
        if self.lease is not None:
            self.lease.require()

    def open(self) -> None:
        """Create the directory and remove temporary files of killed writers. Call it inside `locked`."""
        self.require_lease()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "checkpoint").mkdir(exist_ok=True)
        except OSError as error:
            raise GhostError(cannot_write(self.path, error)) from error
        refuse_link(self.path / "checkpoint", self.path / "metrics.jsonl")
        sweep(self.path)
        sweep(self.path / "checkpoint")

    def set_aside(self) -> Path | None:
        """Rename an earlier attempt (for --no-resume). Returns the new path; None if there is no earlier attempt."""
        if not self.path.exists():
            return None
        self.require_lease()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        try:
            os.rename(self.path, aside)
        except OSError as error:
            raise GhostError(cannot_write(aside, error)) from error
        sync_folder(aside.parent)
        return aside

    @property
    def has_checkpoint(self) -> bool:
        return any((self.path / "checkpoint").glob("*.safetensors"))

    def discard_if_empty(self) -> None:
        """Remove the directory of a run that never started (no checkpoint, no metrics)."""
        if not self.has_checkpoint and not (self.path / "metrics.jsonl").exists():
            self.require_lease()
            shutil.rmtree(self.path, ignore_errors=True)

    def set_status(self, status: str, **more: Any) -> None:
        self.require_lease()
        state = {"status": status, "started": self.started, "updated": time.time(), **more}
        write_json(self.path / "status.json", state, "status")

    def write(self, name: str, value: Any) -> None:
        self.require_lease()
        write_json(self.path / name, value, name.partition(".")[0])

    def write_file(self, name: str, content: bytes) -> None:
        self.require_lease()
        write_bytes(self.path / name, content, name.partition(".")[0])

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one line for a finished epoch, and sync."""
        self.require_lease()
        passing("metrics:before")
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "ab") as out:
                out.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise GhostError(cannot_write(path, error)) from error
        passing("metrics:after")

    def metrics_mark(self) -> tuple[int, str]:
        """Length and sha256 of the metrics file, for the checkpoint that is written next."""
        self.require_lease()
        content = _metrics(self.path)
        return len(content), hashlib.sha256(content).hexdigest()

    def rewind_metrics(self, length: int) -> None:
        """Cut the metrics to the length at the checkpoint."""
        self.require_lease()
        content = _metrics(self.path)
        if len(content) > length:
            write_bytes(self.path / "metrics.jsonl", content[:length], "rewind")
