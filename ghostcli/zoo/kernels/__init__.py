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


def pitch(x: Tensor) -> int:
    """Elements from one pixel of [N, H, W, C] to the next; 0 where the pixels do not follow one another so."""
    n, h, w, c = x.shape
    sn, sh, sw, sc = x.stride()
    step = sw if w > 1 else sh if h > 1 else sn if n > 1 else c
    regular = (c == 1 or sc == 1) and step >= c
    regular = regular and (h == 1 or sh == w * step) and (n == 1 or sn == h * w * step)
    return step if regular else 0
