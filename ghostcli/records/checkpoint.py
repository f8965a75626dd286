"""Checkpoints: one file each, checked by its own content digest; the previous one is kept.

Invariant: at every instant at least one whole checkpoint lies on the disk once the first was written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from ghostcli.errors import GhostError, printable
from ghostcli.records.storage import fault, sync_folder, write_bytes
from ghostcli.records.tensorfile import encode

LAST, PREVIOUS = "last.safetensors", "previous.safetensors"


def write(folder: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Make this the last checkpoint; what was last becomes the previous one once this one is verified."""
    content = encode(tensors, meta)
    fresh, last, previous = folder / "fresh.safetensors", folder / LAST, folder / PREVIOUS
    write_bytes(fresh, content, "checkpoint")
    if hashlib.sha256(fresh.read_bytes()).digest() != hashlib.sha256(content).digest():
        raise GhostError(f"{printable(str(fresh))}: what was read back is not what was written; check the disk")
    if last.exists():
        os.replace(last, previous)
    fault("checkpoint:between")
    os.replace(fresh, last)
    sync_folder(folder)
    fault("checkpoint:after")


def candidates(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first: `fresh` is whole too where a kill came between its two renames."""
    return [folder / name for name in ("fresh.safetensors", LAST, PREVIOUS) if (folder / name).exists()]
