"""The C++ kernels: compiled at first use, kept in a cache per user, called through ctypes.

Invariant: only complete libraries are loaded: a library is renamed after it is built, and its name has the digest of
its inputs. If no library is available, the caller gets the reason, and nothing fails.
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
import torch.nn.functional as F
from torch import Tensor

from ghostcli.zoo.kernels.pytorch import Step, pitch
from ghostcli.zoo.own import cache_folder

NAME = "c++"
SOURCES = ("depthwise.cpp", "pointwise.cpp", "multiply.cpp")
HEADERS = ("vector.h",)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
BUILD_SECONDS = 120
INT, LONG = ctypes.c_int, ctypes.c_long


def available() -> bool:
    return _library()[0] is not None


def reason() -> str:
    """One sentence: why the kernels are used or not used."""
    return _library()[1]


def _cpu() -> str:
    """The processor's name and features, which -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library or None, and a sentence about it. Tried once per process."""
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "No C++ compiler (g++ or clang++) was found, so plain PyTorch is used."
    try:
        path = _built(compiler)
        return ctypes.CDLL(str(path)), f"Compiled by {compiler}, kept at {path}."
    except subprocess.CalledProcessError as e:
        last = (e.stderr or "").strip().splitlines()
        return None, f"{compiler} could not build the kernels ({last[-1] if last else 'no message'})."
    except (OSError, subprocess.SubprocessError) as e:
        return None, f"The compiled kernels are not available ({e})."


def _built(compiler: str) -> Path:
    """The path of the library in the cache. It is built if it is missing."""
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
        # without its own OpenMP runtime the library uses PyTorch's, and shares its thread pool
        _run(compiler, "-shared", *objects, "-o", str(library))
        try:
            ctypes.CDLL(str(library), mode=os.RTLD_NOW)
        except OSError:
            _run(compiler, "-shared", "-fopenmp", *objects, "-o", str(library))
        os.replace(library, path)
    return path


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)


def _call(name: str, *arguments: Tensor | ctypes._SimpleCData | None) -> None:
    pointers = [
        a if isinstance(a, ctypes._SimpleCData) else ctypes.c_void_p(None if a is None else a.data_ptr())
        for a in arguments
    ]
    getattr(_library()[0], name)(*pointers, INT(torch.get_num_threads()))


def _map(x: Tensor | None) -> tuple[Tensor | None, ctypes.c_long]:
    return x, LONG(0 if x is None else pitch(x))


def _sizes(x: Tensor) -> tuple[ctypes.c_long, ...]:
    return tuple(LONG(size) for size in x.shape)


def _rows(x: Tensor) -> tuple[ctypes.c_long, ctypes.c_long]:
    return LONG(x.shape[:3].numel()), LONG(x.shape[3])


@functools.lru_cache(maxsize=256)
def _nearest(side: int, coarse: int) -> Tensor:
    """[side] int32: the pixel of `coarse` that covers each pixel, by PyTorch's rule for nearest."""
    where = F.interpolate(torch.arange(coarse, dtype=torch.float32)[None, None], side, mode="nearest")
    return where.flatten().to(torch.int32)


def _covering(x: Tensor, gate: Tensor) -> tuple[Tensor | ctypes.c_long, ...]:
    h, w = gate.shape[1:3]
    return gate, LONG(h), LONG(w), _nearest(x.shape[1], h), _nearest(x.shape[2], w)


def _window(k: int, stride: int) -> tuple[ctypes.c_int, ctypes.c_long]:
    return INT(k), LONG(stride)


def moments(x: Tensor, k: int, stride: int) -> tuple[Tensor, Tensor]:
    c, t = x.shape[3], k * k
    if k == 1:
        mean, cov = x.new_empty(c), x.new_empty(c, c)
        _call("pointwise_moments", *_map(x), *_rows(x), mean, cov)
        return mean, cov
    mean, cov = x.new_empty(c, t), x.new_empty(c, t, t)
    _call("depthwise_moments", *_map(x), *_sizes(x), *_window(k, stride), mean, cov)
    return mean, cov


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: int, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    n, h, w, _ = x.shape
    o = len(bias)
    if out is None:
        out = x.new_empty(n, -(-h // stride), -(-w // stride), o)
    kernel, bias = kernel.contiguous(), bias.contiguous()
    if k == 1:
        _call("pointwise_forward", *_map(x), *_rows(x), kernel, bias, LONG(o), INT(relu), *_map(out))
    else:
        _call("depthwise_forward", *_map(x), *_sizes(x), *_window(k, stride), kernel, bias, INT(relu), *_map(out))
    return out


def whole(x: Tensor) -> Tensor:
    return x  # a slice needs no copy


def reduce(dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, k: int, stride: int) -> Step:
    o = dz.shape[3]
    dkernel, dbias = x.new_empty(kernel.shape), x.new_empty(o)
    if k == 1:
        _call("pointwise_reduce", *_map(dz), *_map(z), *_map(x), *_rows(x), LONG(o), dkernel, dbias)
    else:
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
    dx = x.new_empty(x.shape)
    maps = (*_map(step.dz), *_map(step.z), *_map(x))
    rest = (kernel.contiguous(), S.contiguous(), t.contiguous(), *_map(add), INT(mask), *_map(dx))
    if k == 1:
        _call("pointwise_adjoint", *maps, *_rows(x), LONG(step.dz.shape[3]), *rest)
    else:
        _call("depthwise_adjoint", *maps, *_sizes(x), *_window(k, stride), *rest)
    return dx


def multiply(x: Tensor, gate: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    _call("multiply_forward", *_map(x), *_sizes(x), *_covering(x, gate), out)
    return out


def multiply_backward(dout: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    dx, dgate = x.new_empty(x.shape), gate.new_empty(gate.shape)
    _call("multiply_backward", *_map(dout), *_map(x), *_sizes(x), *_covering(x, gate), dx, dgate)
    return dx, dgate
