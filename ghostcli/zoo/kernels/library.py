"""The library of C++ kernels: compiled at first use, kept in a cache per user, called through ctypes.

Invariant: only complete libraries are loaded: a library is renamed after it is built, and its name has the digest of
its inputs. If no library is available, the caller gets the reason, and nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ghostcli.machine import cpuinfo
from ghostcli.zoo.own import cache_folder

SOURCES = ("algebra.cpp", "depthwise.cpp", "pointwise.cpp", "weigh.cpp", "norm.cpp")
HEADERS = ("algebra.h", "rows.h", "vector.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-fopenmp")
#: Seconds for one source; on a busy machine it takes minutes.
BUILD_SECONDS = 600
NARROW, WIDE = 8, 16  # floats in a vector; WIDE needs AVX-512


def available() -> bool:
    return _library(NARROW)[0] is not None


def reason() -> str:
    """One sentence: why the kernels are used or not used."""
    return _library(NARROW)[1]


def unbuilt() -> bool:
    """Whether the first use compiles the kernels. That takes half a minute, or minutes on a busy machine."""
    compiler = None if _library.cache_info().currsize else _compiler()  # asked once, whatever came of it
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return compiler is not None and not _path(compiler, NARROW).exists()
    return False


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")


def _cpu() -> str:
    """The processor's name and features, which -march=native depends on."""
    lines = {line for line in cpuinfo().splitlines() if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(lines)) or platform.processor() + platform.machine()


@functools.cache
def _library(lanes: int) -> tuple[ctypes.CDLL | None, str]:
    """The loaded library for vectors of `lanes` floats, or None, and a sentence about it. Tried once per process."""
    compiler = _compiler()
    if compiler is None:
        return None, "No C++ compiler was found; install g++ or clang++."
    try:
        path = _build(compiler, lanes)
        return ctypes.CDLL(str(path)), f"Compiled by {compiler}, kept at {path}."
    except subprocess.CalledProcessError as e:
        last = (e.stderr or "").strip().splitlines()
        return None, f"{compiler} could not build the kernels ({last[-1] if last else 'no message'})."
    except (OSError, subprocess.SubprocessError) as e:
        return None, f"The compiled kernels are not available ({e})."


def _flags(lanes: int) -> tuple[str, ...]:
    return (*FLAGS, f"-DWIDTH={lanes}")


def _path(compiler: str, lanes: int) -> Path:
    """Where the library is in the cache, once it is built: its name has the digest of all that it is built from."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60)
    digest = hashlib.sha256()
    for part in (*_flags(lanes), version.stdout, _cpu(), torch.__version__):
        digest.update(part.encode() + b"\0")
    for name in SOURCES + HEADERS:
        digest.update((Path(__file__).parent / name).read_bytes() + b"\0")
    return cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"


def _build(compiler: str, lanes: int) -> Path:
    """The path of the library in the cache. It is built if it is missing."""
    here, flags, path = Path(__file__).parent, _flags(lanes), _path(compiler, lanes)
    folder = path.parent
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        objects = [str(Path(scratch) / f"{name}.o") for name in SOURCES]
        with ThreadPoolExecutor() as pool:
            # a list, so that the first failure is raised
            list(pool.map(lambda name, to: _run(compiler, *flags, "-c", str(here / name), "-o", to), SOURCES, objects))
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


Argument = Tensor | int | float | None
_TYPES = {int: ctypes.c_long, bool: ctypes.c_long, float: ctypes.c_double}


def call(name: str, *arguments: Argument, wide: bool = False) -> None:
    """The function `name` of a library, in C: a pointer for a tensor or None, long for int, double for float.

    `wide`: of the library with the longer vectors, where this processor has them.
    """
    function = getattr(_best(wide), name)
    if function.argtypes is None:  # its first call
        function.restype = None
        function.argtypes = [*(_TYPES.get(type(a), ctypes.c_void_p) for a in arguments), ctypes.c_long]
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    function(*values, torch.get_num_threads())


@functools.cache
def wide_library() -> ctypes.CDLL | None:
    return _library(WIDE)[0] if "avx512f" in cpuinfo().split() else None


def _best(wide: bool) -> ctypes.CDLL:
    return (wide_library() if wide else None) or _library(NARROW)[0]


@functools.cache
def address(name: str, wide: bool) -> int:
    """Where the function `name` is, of the library that `call` would take."""
    return ctypes.cast(getattr(_best(wide), name), ctypes.c_void_p).value
