"""A deploy form as a LiteRT (`.tflite`) file, which phones and microcontrollers run: written and asked.

Invariant: the file computes the network's function, and what its user must know is `ghost.json` in the zip archive at
its end, where LiteRT's readers look for associated files.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ghostcli.deploy import about as description
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import Ask, require, threads
from ghostcli.deploy.onnxwrite import spelled
from ghostcli.errors import UsageError, printable

NEWEST = (2, 15)  # litert-torch takes torch below this
LONGEST = 1 << 20  # bytes that a description may have


def encode(program: nn.Module, about: About) -> bytes:
    """The file of a program (float32 [N, 3, S, S] in 0..1 to logits). UsageError without the converter."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= NEWEST:
        raise UsageError(
            f"tflite: litert-torch takes torch below {'.'.join(map(str, NEWEST))}, here is {torch.__version__}; "
            "export from an environment with an older torch"
        )
    require("litert", "litert_torch", "ai_edge_litert")
    with tempfile.TemporaryDirectory() as folder, silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch

        file = Path(folder) / "network.tflite"
        litert_torch.convert(spelled(program, top=6), (torch.rand(1, 3, about.size, about.size),)).export(str(file))
        content = file.read_bytes()
    return described(content, about)


def described(content: bytes, about: About) -> bytes:
    """A file with its description, in the place of an earlier one."""
    buffer = io.BytesIO(content[: _archive(content)])
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(description.ENTRY, description.encode(about))
    return buffer.getvalue()


def _archive(content: bytes) -> int:
    """Where the zip archive at the end of a file begins: at the end if there is none."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(content)) as archive:
        return min((entry.header_offset for entry in archive.infolist()), default=len(content))
    return len(content)


def about(content: bytes, file: str) -> About:
    """What a file says of itself. UsageError naming the file where that is nothing."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.getinfo(description.ENTRY).file_size > LONGEST:
                raise KeyError(description.ENTRY)
            text = archive.read(description.ENTRY)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(
            f"{printable(file)}: says nothing of its classes and its images; name a file that ghost export wrote"
        ) from error
    return description.decode(text, file)


def interpreter(content: bytes, file: str, whole: bool = False) -> Any:
    """The file in LiteRT. `whole`: every operator and every tensor stays visible, so it is slower."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    more = {"experimental_op_resolver_type": plain, "experimental_preserve_all_tensors": True} if whole else {}
    try:
        return Interpreter(model_content=content, num_threads=threads(), **more)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{printable(file)}: LiteRT cannot load it ({printable(str(error)[:160])})") from error


def ask(content: bytes, file: str) -> tuple[Ask, str]:
    """(float32 [N, 3, S, S] in 0..1 -> logits [N, classes], the runtime's name and version).

    A file with integers at its ends is asked in its own scales.
    """
    with silent():
        runner = interpreter(content, file)
        try:
            runner.allocate_tensors()
        except RuntimeError as error:
            raise UsageError(f"{printable(file)}: LiteRT cannot run it ({printable(str(error)[:160])})") from error
    source, target = runner.get_input_details()[0], runner.get_output_details()[0]
    shape: list[tuple[int, ...]] = []

    def call(images: np.ndarray) -> np.ndarray:
        if shape != [images.shape]:
            runner.resize_tensor_input(source["index"], images.shape)
            runner.allocate_tensors()
            shape[:] = [images.shape]
        runner.set_tensor(source["index"], _whole(images, source))
        runner.invoke()
        return _real(runner.get_tensor(target["index"]), target)

    return call, f"litert {version('ai-edge-litert')}"


def _whole(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    """Real values as an end of a network takes them."""
    if end["dtype"] is np.float32:
        return values
    scale, zero = end["quantization"]
    limits = np.iinfo(end["dtype"])
    return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(end["dtype"])


def _real(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    if end["dtype"] is np.float32:
        return values
    scale, zero = end["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Converters, quantisers and runtimes write progress to both streams, from C++ too."""
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            for number, before in zip((1, 2), originals, strict=True):
                os.dup2(before, number)
                os.close(before)
