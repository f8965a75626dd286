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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ghostcli.deploy import about as room
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import Ask, require, threads
from ghostcli.deploy.onnxwrite import spelled
from ghostcli.errors import UsageError, printable

NEWEST = (2, 15)  # litert-torch takes torch below this


def encode(program: nn.Module, about: About) -> bytes:
    """The file of a program (float32 [N, 3, S, S] in 0..1 to logits). UsageError without the converter."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= NEWEST:
        raise UsageError(
            f"tflite: litert-torch takes torch below {'.'.join(map(str, NEWEST))}, here is {torch.__version__}; "
            "export from an environment with an older torch"
        )
    require("litert", "litert_torch", "ai_edge_litert")
    with tempfile.TemporaryDirectory() as folder, _silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litert_torch

        file = Path(folder) / "network.tflite"
        litert_torch.convert(spelled(program), (torch.rand(1, 3, about.size, about.size),)).export(str(file))
        content = io.BytesIO(file.read_bytes())
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(room.ENTRY, room.encode(about))
    return content.getvalue()


def ask(content: bytes, file: str) -> tuple[Ask, str]:
    """(float32 [N, 3, S, S] in 0..1 -> logits [N, classes], the runtime's name and version)."""
    require("litert", "ai_edge_litert")
    with _silent():
        from ai_edge_litert.interpreter import Interpreter

        try:
            held = Interpreter(model_content=content, num_threads=threads())
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{printable(file)}: LiteRT cannot load it ({printable(str(error)[:160])})") from error
        held.allocate_tensors()
    source, target = held.get_input_details()[0]["index"], held.get_output_details()[0]["index"]
    shape: list[tuple[int, ...]] = []

    def call(images: np.ndarray) -> np.ndarray:
        if shape != [images.shape]:
            held.resize_tensor_input(source, images.shape)
            held.allocate_tensors()
            shape[:] = [images.shape]
        held.set_tensor(source, images)
        held.invoke()
        return held.get_tensor(target)

    return call, f"litert {version('ai-edge-litert')}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The converter and the runtime write progress to both streams, from C++ too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
