"""CIFAR's archives: fetched, checked and unpacked.

Invariant: a file appears under its own name only whole and with its published MD5; a failure leaves nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ghostcli.data.cifar import Archive, check_file, md5_of
from ghostcli.errors import UsageError, printable

#: Seconds of silence after which a download is given up.
TIMEOUT = 30


def fetch(source: Archive, root: Path) -> None:
    """Puts every file of the set in place: those already right stay, a damaged archive is fetched anew."""
    with _owned(source, root):
        wrong = [file for file in source.files if check_file(source, root, file)]
        if not wrong:
            return
        if not os.path.isfile(root / source.filename) or problem_of_archive(source, root):
            _download(source, root)
        _unpack(source, root, wrong)


def problem_of_archive(source: Archive, root: Path) -> str | None:
    """What is wrong with the packed file, in a line; None where it is right or absent."""
    path = root / source.filename
    if not os.path.isfile(path):
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"{printable(path)}: cannot be read ({error.strerror})"
    if md5_of(content) == source.md5:
        return None
    return (
        f"{printable(path)}: damaged or half downloaded ({len(content):,} bytes, MD5 {md5_of(content)}, "
        f"published {source.md5}); `ghost data fetch {source.name}` fetches it anew"
    )


@contextlib.contextmanager
def _owned(source: Archive, root: Path) -> Iterator[None]:
    """One process at a time; what was made only for that is taken away again."""
    made = not os.path.exists(root)
    lock = root / f".{source.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{printable(root)}: cannot be written ({reason}): {source.by_hand(root)}") from error
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: something was fetched
                root.rmdir()


def _download(source: Archive, root: Path) -> None:
    console = Console(stderr=True)
    console.print(f"{source.name}: fetching {source.url} into {printable(root)}/", markup=False, soft_wrap=True)
    part = root / (source.filename + ".part")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with (
            part.open("wb") as file,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            try:
                _receive(source.url, file, progress, source.filename)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
                raise UsageError(f"cannot fetch {source.url} ({reason}): {source.by_hand(root)}") from error
            file.flush()
            os.fsync(file.fileno())
        if md5_of(part.read_bytes()) != source.md5:
            raise UsageError(
                f"what {source.url} gave ({part.stat().st_size:,} bytes) is not the published archive: "
                f"try again, or {source.by_hand(root)}"
            )
        part.replace(root / source.filename)
    finally:
        part.unlink(missing_ok=True)


def _receive(url: str, file: BinaryIO, progress: Progress, label: str) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "ghost"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        task = progress.add_task(label, total=response.length)
        while block := response.read(1 << 18):
            file.write(block)
            progress.advance(task, len(block))


def _unpack(source: Archive, root: Path, wanted: list[str]) -> None:
    """Writes the `wanted` files out of the archive, which has been checked; no other member is looked at."""
    packed = root / source.filename
    left = set(wanted)
    try:
        with tarfile.open(packed, "r:gz") as archive:
            for member in archive:
                folder, _, file = member.name.partition("/")
                content = archive.extractfile(member) if folder == source.folder and file in left else None
                if content is not None and md5_of(whole := content.read()) == source.files[file]:
                    _write(root / source.folder / file, whole)
                    left.discard(file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{printable(packed)}: cannot be unpacked ({printable(error)})") from error
    if left:
        raise UsageError(f"{printable(packed)}: does not hold the published {', '.join(sorted(left))}: delete it")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
