"""Checkpoints: one file each, with a checksum of its content. The previous checkpoint is kept.

Invariant: after the first write, at least one complete checkpoint is on disk at any time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ghostcli.errors import GhostError, printable
from ghostcli.records.storage import passing, sync_folder, write_bytes
from ghostcli.records.tensorfile import encode

LAST, PREVIOUS = "last.safetensors", "previous.safetensors"


def write(folder: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write the last checkpoint. After it is verified, the checkpoint before becomes the previous one."""
    content = encode(tensors, meta)
    fresh, last, previous = folder / "fresh.safetensors", folder / LAST, folder / PREVIOUS
    write_bytes(fresh, content, "checkpoint")
    if fresh.read_bytes() != content:
        raise GhostError(f"{printable(fresh)}: the content read back is not what was written; check the disk")
    if last.exists():
        os.replace(last, previous)
    passing("checkpoint:between")
    os.replace(fresh, last)
    sync_folder(folder)
    passing("checkpoint:after")


def candidates(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first. `fresh` is left, and complete, after a kill between the two renames."""
    return [folder / name for name in ("fresh.safetensors", LAST, PREVIOUS) if (folder / name).exists()]
