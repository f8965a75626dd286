"""Selects device and arithmetic.

Invariant: a requested device that is missing is an error. There is no fallback.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
from collections.abc import Iterator
from typing import NamedTuple

import psutil
import torch

from ghostcli.errors import OutOfMemoryError, UsageError, printable
from ghostcli.machine import cpuinfo, processor
from ghostcli.recipe.models import EngineSection

#: Error texts of torch's allocators, of oneDNN and of thread creation for missing memory.
NO_MEMORY = ("can't allocate memory", "out of memory", "could not create a primitive", "could not create a memory")
NO_MEMORY += ("can't start new thread",)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
LARGE = 128 << 20  # blocks of at least this many bytes are still returned, because unused ones would waste memory


def pick(name: str) -> torch.device:
    """`auto | cpu | cuda[:N] | mps` -> an existing device. UsageError if there is none.

    It also sets up the process: on a CPU freed memory is kept; on a GPU convolutions use float32, not TF32, and matrix
    products can be deterministic.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device {printable(name)}: is none of auto, cpu, cuda, cuda:N, mps")
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            here = f"this machine has {count}" if count else "this machine has no CUDA device"
            raise UsageError(f"--device {name}: {here}; use --device {'cuda' if count else 'cpu'}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has none; use --device cpu")
    device = torch.device(name)
    if name == "cpu":
        _keep_freed_memory()
    elif device.type == "cuda":
        if device.index is None:  # set_device takes no device without a number
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)  # Triton launches on the current one
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product: too late later
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, unless a recipe asks for less
    return device


def dealt(name: str, number: int) -> dict[str, str]:
    """The environment variable that gives process `number` one of this machine's cards, in turn.

    {} if the device `name` is a certain one, or there are no two cards.
    """
    count = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number % count].strip()}


def _keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory, so the next step reuses it.

    By default glibc returns each large block to the system and gets it again page by page, zeroed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if libc.mallopt(M_MMAP_THRESHOLD, LARGE) or libc.mallopt(M_MMAP_THRESHOLD, 32 << 20):
            libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Leave all that exists now out of Python's garbage collection.

    A full collection looks through torch's and our own modules, which stay anyway.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Settings(NamedTuple):
    """What PyTorch keeps for a whole process about its arithmetic."""

    deterministic: bool
    warn_only: bool
    fill: bool
    benchmark: bool
    tf32_products: bool
    tf32_convolutions: bool

    @classmethod
    def now(cls) -> Settings:
        cudnn = torch.backends.cudnn
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            cudnn.benchmark,
            torch.backends.cuda.matmul.allow_tf32,
            cudnn.allow_tf32,
        )

    def apply(self) -> None:
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = self.fill
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cuda.matmul.allow_tf32 = self.tf32_products
        torch.backends.cudnn.allow_tf32 = self.tf32_convolutions


@contextlib.contextmanager
def arithmetic(engine: EngineSection, device: torch.device) -> Iterator[None]:
    """Deterministic algorithms and TF32 if the recipe requests them; the settings are restored afterwards.

    CPU kernels are always deterministic. A card older than Ampere computes TF32 as float32. UsageError for TF32 without
    CUDA, or if an operation has no deterministic algorithm on this device.
    """
    tf32 = engine.precision == "tf32"
    if tf32 and device.type != "cuda":
        raise UsageError(f"engine.precision=tf32: {device.type} has no TF32; use float32 or bfloat16")
    before = Settings.now()
    strict = engine.deterministic and device.type == "cuda"
    wanted = before._replace(benchmark=device.type == "cuda" and not strict, tf32_products=tf32, tf32_convolutions=tf32)
    if strict:
        wanted = wanted._replace(deterministic=True, warn_only=False, fill=False)
    wanted.apply()
    try:
        yield
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            raise UsageError(
                "engine.deterministic=true: the environment variable CUBLAS_WORKSPACE_CONFIG forbids it; set it to "
                ":4096:8, or remove the key"
            ) from error
        if "deterministic implementation" not in str(error):
            raise
        what = str(error).partition(" does not have")[0]
        raise UsageError(
            f"engine.deterministic=true: {what} cannot be deterministic on this device; remove the key"
        ) from error
    finally:
        before.apply()


def autocast(engine: EngineSection, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 for the network's arithmetic if the recipe sets it. Moments and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=engine.precision == "bfloat16")


def has_bfloat16(kind: str) -> bool:
    """Whether a kind of device ("cpu", "cuda", "mps") has bfloat16 arithmetic in hardware."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(flag in cpuinfo() for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def slow_precision(engine: EngineSection, device: torch.device, compiled: bool) -> str | None:
    """A warning if bfloat16 costs time here. `compiled`: the network has compiled kernels on this device."""
    known = device.type == "cuda" or (device.type == "cpu" and cpuinfo())
    if engine.precision != "bfloat16" or not known:
        return None
    if not has_bfloat16(device.type):
        return "engine.precision=bfloat16: this hardware has no bfloat16 arithmetic and emulates it; try float32"
    if compiled and device.type == "cpu":
        return "engine.precision=bfloat16: the compiled kernels are for float32 and are not used"
    return None


def free_bytes(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Turn allocation errors into OutOfMemoryError, whose message names what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(_lever(batch_size)) from error
    except RuntimeError as error:
        if any(words in str(error).lower() for words in NO_MEMORY):
            raise OutOfMemoryError(_lever(batch_size)) from error
        raise


def _lever(batch_size: int) -> str:
    return (
        f"out of memory at train.batch_size={batch_size}. Half of it (-s train.batch_size={max(1, batch_size // 2)}) "
        "takes less, but is another recipe: batch norm and the rate see other batches. Fewer --jobs change no result"
    )


def describe(device: torch.device) -> str:
    """The device's own name, for the run record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads" if processor() else device.type
