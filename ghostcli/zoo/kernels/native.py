"""The C++ kernels: built on first use by the compiler at hand, kept in a per-user cache, called through ctypes.

Invariant: a library is only ever loaded complete (renamed into place when done, named by a digest of all that went
into it), and where none can be had the caller is told so and nothing fails.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ghostcli.zoo.kernels import pytorch
from ghostcli.zoo.kernels.pytorch import Step

NAME = "c++"
SOURCES = ("depthwise.cpp",)
HEADERS = ("vector.h",)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
BUILD_SECONDS = 120


def cache_folder() -> Path:
    """`GHOST_CACHE`, else `ghost` in the user's cache folder."""
    own = os.environ.get("GHOST_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ghost"


def available() -> bool:
    return _library()[0] is not None


def reason() -> str:
    """Why the kernels are, or are not, in use: a sentence."""
    return _library()[1]


def _cpu() -> str:
    """The processor's name and abilities, which -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library or None, and a sentence about it. Tried once in a process."""
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "No C++ compiler (g++ or clang++) was found, so plain PyTorch runs."
    try:
        path = _built(compiler)
        return ctypes.CDLL(str(path)), f"Compiled by {compiler}, kept at {path}."
    except subprocess.CalledProcessError as e:
        last = (e.stderr or "").strip().splitlines()
        return None, f"{compiler} could not build the kernels ({last[-1] if last else 'no message'})."
    except (OSError, subprocess.SubprocessError) as e:
        return None, f"The compiled kernels could not be had ({e})."


def _built(compiler: str) -> Path:
    """The library's place in the cache, built if it is not there."""
    here = Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=20)
    digest = hashlib.sha256()
    for part in (*FLAGS, version.stdout, _cpu(), torch.__version__):
        digest.update(part.encode() + b"\0")
    for name in SOURCES + HEADERS:
        digest.update((here / name).read_bytes() + b"\0")
    folder = cache_folder()
    path = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        objects = []
        for name in SOURCES:
            objects.append(str(Path(scratch) / f"{name}.o"))
            _run(compiler, *FLAGS, "-c", str(here / name), "-o", objects[-1])
        library = Path(scratch) / "kernels.so"
        # without an OpenMP runtime of its own the library finds PyTorch's, and so shares its pool of threads
        _run(compiler, "-shared", *objects, "-o", str(library))
        try:
            ctypes.CDLL(str(library), mode=os.RTLD_NOW)
        except OSError:
            _run(compiler, "-shared", "-fopenmp", *objects, "-o", str(library))
        os.replace(library, path)
    return path


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)


def _call(name: str, *arguments: object) -> None:
    converted = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_void_p(None) if a is None else a
        for a in arguments
    ]
    getattr(_library()[0], name)(*converted, ctypes.c_int(torch.get_num_threads()))


def _pitch(x: Tensor) -> ctypes.c_long:
    from ghostcli.zoo.kernels import pitch

    return ctypes.c_long(pitch(x))


def _map(x: Tensor | None) -> tuple[Tensor | None, ctypes.c_long]:
    return (None, ctypes.c_long(0)) if x is None else (x, _pitch(x))


def _sizes(x: Tensor) -> tuple[ctypes.c_long, ...]:
    return tuple(map(ctypes.c_long, x.shape))


def _window(k: int, stride: int) -> tuple[ctypes.c_int, ctypes.c_long]:
    return ctypes.c_int(k), ctypes.c_long(stride)


def moments(x: Tensor, k: int, stride: int) -> tuple[Tensor, Tensor]:
    if k == 1:
        return pytorch.moments(x, k, stride)
    c, t = x.shape[3], k * k
    mean, cov = x.new_empty(c, t), x.new_empty(c, t, t)
    _call("depthwise_moments", *_map(x), *_sizes(x), *_window(k, stride), mean, cov)
    return mean, cov


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: int, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    if k == 1:
        return pytorch.convolve(x, kernel, bias, k, stride, relu, out)
    n, h, w, c = x.shape
    if out is None:
        out = x.new_empty(n, -(-h // stride), -(-w // stride), c)
    kernel, bias = kernel.contiguous(), bias.contiguous()
    _call("depthwise_forward", *_map(x), *_sizes(x), *_window(k, stride), kernel, bias, ctypes.c_int(relu), *_map(out))
    return out


def reduce(dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, k: int, stride: int) -> Step:
    if k == 1:
        return pytorch.reduce(dz, z, x, kernel, k, stride)
    c = x.shape[3]
    dkernel, dbias = x.new_empty(c, k * k), x.new_empty(c)
    _call("depthwise_reduce", *_map(dz), *_map(z), *_map(x), *_sizes(x), *_window(k, stride), dkernel, dbias)
    return Step(dkernel, dbias, dz, z)


def adjoint(
    step: Step,
    x: Tensor,
    kernel: Tensor,
    S: Tensor,
    t: Tensor,
    k: int,
    stride: int,
    add: Tensor | None = None,
    mask: bool = False,
) -> Tensor:
    if k == 1:
        return pytorch.adjoint(step, x, kernel, S, t, k, stride, add, mask)
    dx = x.new_empty(x.shape)
    coefficients = (kernel.contiguous(), S.contiguous(), t.contiguous())
    _call(
        "depthwise_adjoint", *_map(step.dz), *_map(step.z), *_map(x), *_sizes(x), *_window(k, stride), *coefficients,
        *_map(add), ctypes.c_int(mask), *_map(dx),
    )  # fmt: skip
    return dx
