"""Chooses the implementation of folded training's operations: plain PyTorch, C++ on a CPU, Triton on a GPU.

Invariant: the choice changes speed and rounding only. `GHOST_KERNEL` is `auto` (default), `pytorch`, or `cpp`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from ghostcli.errors import one_of
from ghostcli.zoo.kernels import library, native, pytorch
from ghostcli.zoo.kernels.pytorch import pitch

__all__ = ["choice", "of", "pitch", "plain", "status", "switch_off", "unbuilt"]

CHOICES = ("auto", "pytorch", "cpp")
_off: dict[str, str] = {}  # kind of device -> why its kernels are not used in this process


def choice() -> str:
    """The value of `GHOST_KERNEL`. UsageError if it is unknown."""
    return one_of("GHOST_KERNEL", os.environ.get("GHOST_KERNEL", "").strip().lower() or "auto", CHOICES)


def of(x: Tensor) -> ModuleType:
    """The operations for a tensor of this device and precision."""
    if choice() == "pytorch" or x.dtype == torch.float64 or x.device.type in _off:
        return pytorch
    if x.dtype == torch.float32 and x.device.type == "cpu" and native.available():
        return native
    return (_triton() or pytorch) if x.device.type == "cuda" and choice() == "auto" else pytorch


@functools.cache
def _triton() -> ModuleType | None:
    try:
        from ghostcli.zoo.kernels import triton_depthwise
    except ImportError:
        return None
    return triton_depthwise


def switch_off(device: str, why: str) -> None:
    """From here on plain PyTorch runs on this kind of device ("cpu", "cuda") in this process."""
    _off[device] = why


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Plain PyTorch on every device, for a while."""
    before = dict(_off)
    _off.update({"cpu": "", "cuda": ""})
    try:
        yield
    finally:
        _off.clear()
        _off.update(before)


def unbuilt(device: str) -> bool:
    """Whether the first step on `device` must wait for a C++ compiler."""
    return device == "cpu" and choice() != "pytorch" and library.unbuilt()


def status(device: str = "cpu") -> dict[str, str]:
    """What a float32 tensor on `device` ("cpu", "cuda"...) gets, and why: {"name", "why": a sentence}."""
    if choice() == "pytorch":
        return {"name": "pytorch", "why": "GHOST_KERNEL asks for it."}
    if device in _off:
        return {"name": "pytorch", "why": f"The compiled kernels failed the self-check: {_off[device]}."}
    if device == "cpu":
        return {"name": "c++" if native.available() else "pytorch", "why": native.reason()}
    if device == "cuda" and choice() == "auto" and _triton():
        return {"name": "triton", "why": "Compiled by Triton on first use."}
    if device == "cuda" and choice() == "auto":
        return {"name": "pytorch", "why": "Triton is not installed."}
    return {"name": "pytorch", "why": f"There are no other kernels for {device} here."}
