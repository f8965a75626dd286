"""Which implementation of folded training's operations runs: plain PyTorch, C++ on a CPU, Triton on a GPU.

Invariant: the choice changes speed and rounding only. `GHOST_KERNEL` is `auto` (default), `pytorch`, or `cpp`.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from ghostcli.errors import UsageError
from ghostcli.zoo.kernels import native, pytorch
from ghostcli.zoo.kernels.pytorch import pitch

__all__ = ["choice", "of", "pitch", "status"]

CHOICES = ("auto", "pytorch", "cpp")


def choice() -> str:
    """`GHOST_KERNEL`; UsageError where it is none of the known."""
    name = os.environ.get("GHOST_KERNEL", "auto").strip().lower() or "auto"
    if name not in CHOICES:
        raise UsageError(f"GHOST_KERNEL={name} is no kernel; use one of {', '.join(CHOICES)}")
    return name


def of(x: Tensor) -> ModuleType:
    """The operations for a tensor of this device and precision."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and choice() != "pytorch" and native.available():
        return native
    return pytorch


def status() -> dict[str, str]:
    """What `of` gives a float32 tensor on the CPU, and why: {"name": "c++"|"pytorch", "why": a sentence}."""
    if choice() == "pytorch":
        return {"name": "pytorch", "why": "GHOST_KERNEL asks for it."}
    if native.available():
        return {"name": "c++", "why": native.reason()}
    return {"name": "pytorch", "why": native.reason()}
