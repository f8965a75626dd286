"""Reads and writes tensors as safetensors with a checksum, for checkpoints and weights.

Invariant: reading returns exactly what was written, bit for bit, or fails. Pickle is never used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save

from ghostcli.errors import GhostError, printable

MAX_BYTES = 4 << 30  # far more than the weights of any network here


def checksum(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> str:
    """sha256 over names, shapes, types and bytes of the tensors and the canonical metadata."""
    content = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _to_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in the host's memory, gapless. One transfer for each type of number, because a checkpoint of
    a small network has 1,400 tensors."""
    away: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        if not tensor.is_cpu:
            away.setdefault(tensor.dtype, []).append(name)
    on_host = {}
    for names in away.values():
        flat = [tensors[name].detach().reshape(-1) for name in names]
        parts = torch.cat(flat).cpu().split([len(tensor) for tensor in flat])
        on_host |= {name: part.view(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
    return {
        name: on_host[name] if name in on_host else tensor.detach().contiguous() for name, tensor in tensors.items()
    }


def encode(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> bytes:
    """The bytes of the file; equal content gives equal bytes. Memory formats (channels_last) become contiguous."""
    tensors = _to_host(tensors)
    # One metadata entry only: safetensors writes several in an order that differs between processes.
    header = {"ghost": json.dumps({"meta": meta, "sha256": checksum(tensors, meta)}, sort_keys=True)}
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):  # numpy has no such type
        return save(tensors, header)
    # the same bytes in a third of the time
    return save_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, header)


def read(path: Path, largest: float = MAX_BYTES) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file from `encode`. GhostError with its name if it is damaged, or has more bytes."""
    name = printable(path)
    try:
        size = path.stat().st_size
        if size > largest:
            raise GhostError(f"{name}: {size} bytes is too large for a file of ghost; refused without reading")
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        ours = json.loads(header["ghost"])
        meta, good = ours["meta"], ours["sha256"] == checksum(tensors, ours["meta"])
    except OSError as error:
        raise GhostError(f"{name}: cannot be read ({error.strerror})") from error
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise GhostError(f"{name}: is damaged or not a file of ghost ({type(error).__name__}); refused") from error
    if not good or not isinstance(meta, dict):
        raise GhostError(f"{name}: its checksum does not match its content; refused")
    return tensors, meta
