"""CIFAR-10 and CIFAR-100 as their authors packed them: checked, then read.

Invariant: a byte is unpickled only after the published MD5 of its file matched, and the unpickler admits
nothing but what CIFAR's files hold. Addresses and checksums are those of torchvision's own classes.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghostcli.data import Images
from ghostcli.errors import UsageError, printable


@dataclass(frozen=True)
class Archive:
    """One published set: where it comes from, its files with their MD5, and what they hold."""

    name: str
    url: str
    filename: str
    md5: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels_key: str
    names_key: str
    classes: int
    train_images: int = 50_000
    test_images: int = 10_000

    @property
    def files(self) -> dict[str, str]:
        return {**self.train, **self.test, **self.meta}

    def by_hand(self, root: Path) -> str:
        """What a person can do where fetching failed."""
        return f"put {self.filename} (MD5 {self.md5}) into {printable(root)}/, or set GHOST_DATA to where it is"


def archive(name: str) -> Archive:
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    return Archive(
        name=name,
        url=source.url,
        filename=source.filename,
        md5=source.tgz_md5,
        folder=source.base_folder,
        train={file: md5 for file, md5 in source.train_list},
        test={file: md5 for file, md5 in source.test_list},
        meta={source.meta["filename"]: source.meta["md5"]},
        labels_key="labels" if name == "cifar10" else "fine_labels",
        names_key=source.meta["key"],
        classes=10 if name == "cifar10" else 100,
    )


def read_cifar(name: str, root: Path) -> tuple[tuple[str, ...], Images, Images]:
    """(classes, train, test), downloaded at first use. UsageError names a file that is missing or damaged."""
    from ghostcli.data.download import fetch, problem_of_archive

    source = archive(name)
    if state(source, root) in ("absent", "packed"):
        if problem := problem_of_archive(source, root):
            raise UsageError(problem)
        fetch(source, root)
    classes = read_names(source, root)
    return classes, _read_images(source, root, source.train), _read_images(source, root, source.test)


def state(source: Archive, root: Path) -> str:
    """ready, incomplete (files are missing), packed (only the archive is) or absent. No sums checked."""
    there = [os.path.isfile(root / source.folder / file) for file in source.files]
    if any(there):
        return "ready" if all(there) else "incomplete"
    return "packed" if os.path.isfile(root / source.filename) else "absent"


def check_file(source: Archive, root: Path, file: str) -> str | None:
    """What is wrong with one file of the set, in a line; None where it is the published one."""
    try:
        _checked_bytes(source, root, file)
    except UsageError as error:
        return str(error)
    return None


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _checked_bytes(source: Archive, root: Path, file: str) -> bytes:
    path = root / source.folder / file
    mend = f"`ghost data fetch {source.name}` puts it right"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{printable(path)}: is missing; {mend}") from error
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    if md5_of(content) != source.files[file]:
        raise UsageError(
            f"{printable(path)}: damaged or cut short ({len(content):,} bytes, MD5 {md5_of(content)}, "
            f"published {source.files[file]}); {mend}"
        )
    return content


def read_names(source: Archive, root: Path) -> tuple[str, ...]:
    (file,) = source.meta
    held = _unpickle(source, root, file)
    names = held.get(source.names_key)
    if not isinstance(names, list) or len(names) != source.classes or not all(isinstance(n, str) for n in names):
        raise _foreign(source, root, file, f"{source.classes} class names")
    return tuple(printable(name) for name in names)


def _read_images(source: Archive, root: Path, files: dict[str, str]) -> Images:
    pixels, labels = [], []
    for file in files:
        held = _unpickle(source, root, file)
        rows, of_rows = held.get("data"), held.get(source.labels_key)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (3 * 32 * 32,):
            raise _foreign(source, root, file, "images of 32 x 32")
        if (
            not isinstance(of_rows, list)
            or len(of_rows) != len(rows)
            or not all(type(label) is int and 0 <= label < source.classes for label in of_rows)
        ):
            raise _foreign(source, root, file, "a label an image")
        pixels.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += of_rows
    return Images(torch.from_numpy(np.concatenate(pixels)).contiguous(), torch.tensor(labels))


def _unpickle(source: Archive, root: Path, file: str) -> dict[str, Any]:
    content = _checked_bytes(source, root, file)
    try:
        held = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # pickle raises nearly anything on a malformed stream
        raise UsageError(f"{printable(root / source.folder / file)}: refused: {printable(error)}") from error
    if not isinstance(held, dict):
        raise _foreign(source, root, file, "a dictionary")
    return held


def _foreign(source: Archive, root: Path, file: str, expected: str) -> UsageError:
    return UsageError(
        f"{printable(root / source.folder / file)}: does not hold {expected}, as a file of {source.name} does"
    )


class _Unpickler(pickle.Unpickler):
    """Containers, numbers, strings and plain numpy arrays; any other name is refused by it."""

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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR's files never do") from None
