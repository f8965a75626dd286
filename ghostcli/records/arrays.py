"""Reads the arrays of a run's .npz file. Invariant: no pickle is read, and damage is refused."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
from numpy.lib import format as npy

#: The exceptions for content that is not a valid archive of arrays.
UNREADABLE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(ValueError, LookupError, TypeError, RuntimeError, MemoryError),
)


def arrays(content: bytes, *names: str) -> tuple[np.ndarray, ...]:
    """The named arrays of an .npz file with this content. One of UNREADABLE if it has no such arrays."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # a whole file is read, so its checksum is tested
        files = [io.BytesIO(archive.read(f"{name}.npy")) for name in names]
    return tuple(npy.read_array(file, allow_pickle=False) for file in files)
