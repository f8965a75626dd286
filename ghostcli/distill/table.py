"""The teacher table: a teacher's logits for (image, view), computed once and stored with the teacher's run.

Invariants: an entry is complete or absent. Its value is on the disk before its mark is written, and no entry without a
mark is read, so a kill loses entries, never parts of one. An entry has the same bits whenever it is computed on one
kind of device (see `teacher_logits_of_views`), so a student's targets do not depend on earlier or interrupted runs.

An image has (2 pad + 1)^2 crops, and twice as many with flips: 162 for CIFAR-10. A table is float16, images x views x
classes: 162 MB for CIFAR-10. It is read through a memory map and never loaded whole. Its disk space is allocated when
it is created. It is written through files: a write to a memory map on a full disk is a bus error, and the process
dies without a message.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghostcli import signals
from ghostcli.errors import GhostError, printable
from ghostcli.recipe.digest import digest
from ghostcli.records import lease
from ghostcli.records.storage import cannot_write, passing, read_json, refuse_link, sweep, write_json
from ghostcli.zoo.evaluate import compact

#: Images whose missing entries are looked up together.
CHUNK = 4096
#: Seconds of computed entries per commit. A kill loses at most these and one batch. A commit waits for the disk, so
#: small commits would be slow.
COMMIT_SECONDS = 5.0

LogitsOfViews = Callable[[Tensor, Tensor], Tensor]  # image numbers [B], views [B] -> logits [B, C]


def describe(weights: str, data: str, images: int, classes: int, views: dict[str, Any]) -> dict[str, Any]:
    """All that determines a table's content. Equal descriptions mean equal tables. `views` has a key `count`."""
    return {"schema": 1, "weights": weights, "data": data, "images": images, "classes": classes, "views": views}


class TeacherTable:
    """One teacher's logits over one training set and one definition of views."""

    def __init__(self, run: Path, meta: dict[str, Any]) -> None:
        """Open or create the table of `run` with description `meta` (see `describe`).

        Raises GhostError, naming the folder, if the table there is of another teacher, data set or views.
        """
        self.meta, self.mapped = meta, False
        self.folder = run / "teacher-table" / digest(meta)[:8]
        self.shape = (meta["images"], meta["views"]["count"], meta["classes"])
        refuse_link(self.folder.parent, self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                sweep(self.folder)
                self._create()
                self._check()
                self._map()
        except OSError as error:
            raise GhostError(cannot_write(self.folder, error)) from error

    @contextmanager
    def _lock(self) -> Iterator[lease.Held]:
        """Keep other writers out, on any machine. What they wrote before is seen inside."""
        with lease.held(self.folder / "table") as lock:
            if self.mapped:
                self._map()
            yield lock

    def _map(self) -> None:
        """Open the files. A network file system shows what other machines wrote until then, but not for sure later."""
        self.logits = np.memmap(self.folder / "logits.f16", np.float16, "r", shape=self.shape)
        self.filled = np.memmap(self.folder / "filled.u8", np.uint8, "r", shape=self.shape[:2])
        self.mapped = True

    def _create(self) -> None:
        # meta.json is written last. If it is missing, the other files may be incomplete and are made again.
        if (self.folder / "meta.json").exists():
            return
        try:
            for name, size in self._sizes().items():
                with open(self.folder / name, "wb") as file:
                    file.truncate(size)
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            for name in self._sizes():  # what was allocated would fill the disk for all other runs
                (self.folder / name).unlink(missing_ok=True)
            if error.errno == errno.ENOSPC:
                needed = f"{sum(self._sizes().values()) / 1e6:,.1f} MB"
                raise GhostError(
                    f"{printable(self.folder)}: no room for this table of {needed} ({error.strerror}); make room, or "
                    "compute the teacher at each step with -s distill.source=live"
                ) from error
            raise
        write_json(self.folder / "meta.json", self.meta, "table")

    def _check(self) -> None:
        meta = read_json(self.folder / "meta.json")
        files = {name: self.folder / name for name in self._sizes()}
        there = {name: file.stat().st_size for name, file in files.items() if file.exists()}
        wrong = [name for name, size in self._sizes().items() if there.get(name) != size]
        if meta != self.meta or wrong:
            what = f"{wrong[0]} has the wrong size" if wrong else "it is of another teacher, data set or views"
            raise GhostError(f"{printable(self.folder)}: not the table of this teacher ({what}); delete that folder")

    def _sizes(self) -> dict[str, int]:
        """The files of a table, with their bytes."""
        images, views, classes = self.shape
        return {"logits.f16": images * views * classes * 2, "filled.u8": images * views}

    def _apply(self, lock: lease.Held, places: np.ndarray, logits: np.ndarray) -> None:
        """Write entries at `places` (image * views + view): values first, then marks, so a marked entry is complete."""
        order = places.argsort()  # in file order
        rows = memoryview(logits[order].tobytes())
        width = logits.itemsize * logits.shape[1]
        with self._synced_file("logits.f16") as file:
            for i, place in enumerate(places[order].tolist()):
                file.seek(place * width)
                _put(file, rows[i * width : (i + 1) * width])
        passing("table:values")
        lock.require()  # marks of another process, which took over while this one was frozen, are not overwritten
        with self._synced_file("filled.u8") as file:
            first, last = places[order[0]], places[order[-1]]
            file.seek(first)
            marks = bytearray(file.read(last - first + 1))
            np.frombuffer(marks, np.uint8)[places - first] = 1
            file.seek(first)
            _put(file, marks)
        passing("table:filled")

    @contextmanager
    def _synced_file(self, name: str) -> Iterator[io.FileIO]:
        """A file for writing rows, synced at the end. Unbuffered, because each seek would flush a buffer."""
        with open(self.folder / name, "r+b", buffering=0) as file:
            yield file
            os.fsync(file.fileno())

    def _commit(self, images: np.ndarray, views: np.ndarray, logits: np.ndarray) -> None:
        """Write the entries that no other process has written since."""
        with self._lock() as lock:
            # The first writer wins: an entry is never written twice.
            fresh = self.filled[images, views] == 0
            if fresh.any():
                self._apply(lock, images[fresh] * self.shape[1] + views[fresh], logits[fresh])

    def fill(
        self, views: np.ndarray, compute: LogitsOfViews, batch: int, progress: Callable[[int], None] | None = None
    ) -> int:
        """Compute the missing entries (image i, views[i]). Returns how many were missing."""
        computed, gathered, since = 0, [], time.monotonic()
        for start in range(0, len(views), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(views)))
            missing = numbers[self.filled[numbers, views[numbers]] == 0]
            for part in (missing[at : at + batch] for at in range(0, len(missing), batch)):
                signals.raise_if_received()
                # not yet fetched: a device computes the next batch meanwhile
                gathered.append((part, compute(torch.from_numpy(part), torch.from_numpy(views[part]))))
                if time.monotonic() - since > COMMIT_SECONDS:
                    self._add(gathered, views)
                    gathered, since = [], time.monotonic()
            computed += len(missing)
            if progress is not None:
                progress(len(numbers))
        if gathered:
            self._add(gathered, views)
        return computed

    def _add(self, gathered: list[tuple[np.ndarray, Tensor]], views: np.ndarray) -> None:
        """Commit computed entries: pairs (image numbers, logits)."""
        folder, images = printable(self.folder), np.concatenate([numbers for numbers, _ in gathered])
        logits = compact(torch.cat([logits for _, logits in gathered])).cpu().numpy()
        if not np.isfinite(logits).all():
            raise GhostError(f"{folder}: the teacher's logits are not finite; its run is unusable, train it again")
        try:
            self._commit(images, views[images], logits)
        except OSError as error:
            raise GhostError(cannot_write(self.folder, error)) from error

    def read(self, views: np.ndarray) -> Tensor:
        """float16 [N, C]: the entry of each image i at views[i]. The entries must be filled."""
        numbers = np.arange(len(views))
        with self._lock():  # entries that other machines filled are seen
            pass
        if not self.filled[numbers, views].all():
            raise GhostError(f"{printable(self.folder)}: entries that were filled are missing; delete that folder")
        return torch.from_numpy(self.logits[numbers, views])

    def coverage(self) -> float:
        """The filled share of all entries."""
        return float(self.filled.mean())


def _put(file: io.FileIO, content: memoryview | bytearray) -> None:
    if file.write(content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
