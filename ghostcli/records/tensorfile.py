"""Tensors in a safetensors file that carries its own checksum: the form of checkpoints and of weights.

Invariant: what is read is what was written, to the bit, or is refused. No pickle is ever read or written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ghostcli.errors import GhostError, printable

MAX_BYTES = 4 << 30  # no network here comes near; a larger file is none of ours


def checksum(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> str:
    """sha256 over names, shapes, types and bytes of the tensors and the canonical metadata."""
    content = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def encode(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> bytes:
    """The file's bytes, the same for the same content. Layouts (channels_last) become plain contiguous values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry, not two: safetensors writes several in an order that changes from process to process.
    return save(tensors, {"ghost": json.dumps({"meta": meta, "sha256": checksum(tensors, meta)}, sort_keys=True)})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file that `encode` made; GhostError naming it where it is not whole."""
    name = printable(str(path))
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise GhostError(f"{name}: {size} bytes is more than any file of ghost's holds; refused unread")
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        ours = json.loads(header["ghost"])
        meta, good = ours["meta"], ours["sha256"] == checksum(tensors, ours["meta"])
    except OSError as error:
        raise GhostError(f"{name}: cannot be read ({error.strerror})") from error
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise GhostError(f"{name}: is no whole file of ghost's ({type(error).__name__}); refused") from error
    if not good or not isinstance(meta, dict):
        raise GhostError(f"{name}: its checksum does not match its content; refused")
    return tensors, meta
