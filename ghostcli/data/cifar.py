"""CIFAR-10 and CIFAR-100 in their authors' format: download, check, read.

Invariant: a file is unpickled only after its published MD5 matched. The unpickler accepts only the types that CIFAR's
files contain. Addresses and checksums come from torchvision's classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from ghostcli import display
from ghostcli.data import Images
from ghostcli.errors import UsageError, origin, printable

#: A download fails after this many seconds without an answer.
TIMEOUT = 30


class Archive:
    """One published set under `root`: its address, its files with their MD5, and its keys."""

    def __init__(self, name: str, root: Path) -> None:
        from torchvision.datasets import CIFAR10, CIFAR100

        source, self.labels_key = {"cifar10": (CIFAR10, "labels"), "cifar100": (CIFAR100, "fine_labels")}[name]
        self.name, self.root = name, root
        self.url, self.filename, self.md5 = source.url, source.filename, source.tgz_md5
        self.packed, self.folder = root / source.filename, root / source.base_folder
        self.train, self.test = dict(source.train_list), dict(source.test_list)
        self.meta, self.names_key = source.meta["filename"], source.meta["key"]
        self.files = {**self.train, **self.test, self.meta: source.meta["md5"]}

    def by_hand(self) -> str:
        """What a user can do after a failed download."""
        return f"put {self.filename} (MD5 {self.md5}) into {printable(self.root)}/, or set GHOST_DATA to where it is"


def read(name: str, root: Path) -> tuple[tuple[str, ...], Images, Images]:
    """(classes, train, test), downloaded at first use. UsageError names a file that is missing or damaged."""
    source = Archive(name, root)
    if state(name, root) in ("absent", "packed"):
        if problem := problem_of_archive(name, root):
            raise UsageError(problem)
        fetch(name, root)
    return _read_names(source), _read_images(source, source.train), _read_images(source, source.test)


def state(name: str, root: Path) -> str:
    """ready, incomplete (files are missing), packed (only the archive) or absent. Does not check checksums."""
    source = Archive(name, root)
    there = [os.path.isfile(source.folder / file) for file in source.files]
    if any(there):
        return "ready" if all(there) else "incomplete"
    return "packed" if os.path.isfile(source.packed) else "absent"


def place(name: str, root: Path) -> str:
    return printable(Archive(name, root).folder)


def checks(name: str, root: Path) -> list[tuple[str, str | None]]:
    source = Archive(name, root)
    paths = {source.folder / file: md5 for file, md5 in source.files.items()}
    return [(printable(path), _problem(name, path, md5)) for path, md5 in paths.items()]


def fetch(name: str, root: Path) -> None:
    """Write every missing or wrong file of the set. A damaged archive is downloaded again."""
    source = Archive(name, root)
    with _lock(source):
        wrong = [file for file, md5 in source.files.items() if _problem(name, source.folder / file, md5)]
        if not wrong:
            return
        had_archive = source.packed.exists()
        try:
            if not had_archive or problem_of_archive(name, root):
                _download(source)
            _unpack(source, wrong)
        except OSError:
            if not had_archive:
                source.packed.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder may hold good files
                source.folder.rmdir()
            raise


def problem_of_archive(name: str, root: Path) -> str | None:
    """What is wrong with the archive, in one line. None if it is right or absent."""
    source = Archive(name, root)
    return _problem(name, source.packed, source.md5) if os.path.isfile(source.packed) else None


@contextlib.contextmanager
def _lock(source: Archive) -> Iterator[None]:
    """Lock the set for one process. A folder created only for the lock is removed again."""
    root = source.root
    is_new = not os.path.exists(root)
    lock = root / f".{source.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{printable(root)}: cannot be written ({reason}): {source.by_hand()}") from error
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        if is_new:
            with contextlib.suppress(OSError):  # the folder may hold the download
                root.rmdir()


def _download(source: Archive) -> None:
    """Download the archive with pooch. It writes a temporary file and renames it if the checksum is right."""
    import pooch

    console = Console(stderr=True)
    if display.volume != display.QUIET:
        console.print(
            f"{source.name}: fetching {source.url} into {printable(source.root)}/", markup=False, soft_wrap=True
        )
    pooch.get_logger().setLevel("ERROR")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *columns, console=console, transient=True, disable=not display.live()) as show:
        bar = _Bar(show, source.filename)
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT, headers={"User-Agent": "ghost"})
        try:
            pooch.retrieve(source.url, f"md5:{source.md5}", source.filename, source.root, downloader=downloader)
        except ValueError as error:
            raise UsageError(
                f"{source.url} sent {bar.total:,} bytes that are not the published archive (MD5 {source.md5}): "
                f"try again, or {source.by_hand()}"
            ) from error
        except requests.RequestException as error:
            raise UsageError(f"cannot fetch {source.url} ({origin(error)}): {source.by_hand()}") from error


class _Bar:
    """A rich progress bar with the interface that pooch needs."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress, self.task, self.total = progress, progress.add_task(label, total=None), 0

    def update(self, count: int) -> None:
        self.progress.update(self.task, advance=count, total=self.total)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        self.progress.stop()


def _unpack(source: Archive, wanted: list[str]) -> None:
    """Extract the `wanted` files. The archive's checksum was checked before. Other members are ignored."""
    targets = {f"{source.folder.name}/{file}": source.folder / file for file in wanted}
    source.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.root) as folder, tarfile.open(source.packed, "r:gz") as tar:
        part = Path(folder) / "part"
        for member in tar:
            if member.name in targets:
                part.write_bytes(tar.extractfile(member).read())
                part.replace(targets[member.name])


def _problem(name: str, path: Path, md5: str) -> str | None:
    """What is wrong with a file, in one line."""
    try:
        _checked_bytes(name, path, md5)
    except UsageError as error:
        return str(error)
    return None


def _checked_bytes(name: str, path: Path, md5: str) -> bytes:
    mend = f"`ghost data fetch {name}` downloads it again"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{printable(path)}: is missing; {mend}") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    if (there := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UsageError(
            f"{printable(path)}: damaged or cut short ({len(content):,} bytes, MD5 {there}, published {md5}); {mend}"
        )
    return content


def _read_names(source: Archive) -> tuple[str, ...]:
    return tuple(_unpickle(source, source.meta)[source.names_key])


def _read_images(source: Archive, files: dict[str, str]) -> Images:
    planes, labels = [], []
    for file in files:
        content = _unpickle(source, file)
        planes.append(content["data"].reshape(-1, 3, 32, 32))
        labels += content[source.labels_key]
    pixels, end = np.empty((len(labels), 32, 32, 3), np.uint8), len(labels)
    while planes:  # each is let go when it is copied
        part = planes.pop()
        pixels[end - len(part) : end] = part.transpose(0, 2, 3, 1)
        end -= len(part)
    return Images(torch.from_numpy(pixels), torch.tensor(labels))


def _unpickle(source: Archive, file: str) -> dict[str, Any]:
    """The content of a published file. Its checksum has matched, so its keys and types are the authors'."""
    content = _checked_bytes(source.name, source.folder / file, source.files[file])
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UsageError(f"{printable(source.folder / file)}: refused: {printable(error)}") from error


class _Unpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and plain numpy arrays. Refuses any other type."""

    _ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which CIFAR's files never contain") from None
