"""From what a person types to a network that can be asked: a run, or an exported file through its own runtime.

Invariant: every network takes float32 [N, 3, S, S] in 0..1 and gives logits [N, classes]; what a run needs (its
weights, its classes' names) is looked up here alone.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ghostcli.deploy import about as room
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import Ask, ask_onnxruntime, ask_openvino, read
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.recipe.models import DataSection
from ghostcli.records import trained
from ghostcli.records.model import RunResult
from ghostcli.records.record import RunRecord

if TYPE_CHECKING:
    from ghostcli.zoo.weights import Loaded

SUFFIXES = (".onnx", ".pt2", ".tflite")


@dataclass(frozen=True)
class Network:
    """A network in its runtime. `label` is what the person called it, `section` the data it was tested on.

    `checksum`: of that data, "" if the network does not say.
    """

    label: str
    about: About
    runtime: str
    ask: Ask
    section: DataSection
    checksum: str = ""


def as_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def open_network(asked: str, runs: Path) -> Network:
    """The network that `asked` names: run/ID, ID, pretrained/NAME, FILE.onnx, FILE.pt2 or FILE.tflite.

    UsageError in a line where it is none.
    """
    file = Path(asked)
    if file.suffix in SUFFIXES:
        return open_file(asked, _content(file))
    if file.is_file():
        raise UsageError(
            f"{printable(asked)}: is no model; type run/ID, pretrained/NAME or a file that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    return open_run(trained.find(runs, asked))


def open_file(name: str, content: bytes) -> Network:
    """An exported file's bytes, in the runtime that its name's ending stands for."""
    if name.endswith(".onnx"):
        about = read(content, name)[1]
        ask, runtime = ask_onnxruntime(content, name)
    elif name.endswith(".tflite"):
        from ghostcli.deploy import tflite

        about = tflite.about(content, name)
        ask, runtime = tflite.ask(content, name)
    else:
        ask, runtime, about = _ask_program(content, name)
    return Network(name, about, runtime, ask, section_of(about.data, about.size))


def opened(name: str, content: bytes, runtime: str) -> tuple[Ask, str]:
    """(what asks an exported file of any format, its runtime with the version) for one of a format's runtimes."""
    if name.endswith(".onnx"):
        read(content, name)
        return (ask_openvino if runtime == "openvino" else ask_onnxruntime)(content, name)
    if name.endswith(".pt2"):
        return _ask_program(content, name)[:2]
    if name.endswith(".tflite"):
        from ghostcli.deploy import tflite

        return tflite.ask(content, name)
    return _ask_weights(content)


def warm(runtime: str) -> None:
    """Import what asking takes, before memory is measured."""
    import importlib

    importlib.import_module({"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(runtime, "torch"))
    if runtime == "litert":
        importlib.import_module("ghostcli.deploy.tflite")
        importlib.import_module("ai_edge_litert.interpreter")


def section_of(data: str, size: int) -> DataSection:
    return DataSection(name=data, **({"size": size} if data.startswith("folder:") else {}))


def open_run(run: RunRecord) -> Network:
    """A finished run's network in its deploy form, in torch on the CPU."""
    import torch

    from ghostcli import zoo
    from ghostcli.deploy.program import Program

    loaded, about, section = parts(run)
    program = Program(zoo.deploy(loaded.model).to(memory_format=torch.channels_last), loaded.norm).eval()
    runtime, checksum = f"torch {torch.__version__}", run.result.data_checksum
    return Network(trained.named(run.id), about, runtime, ask_torch(program), section, checksum)


def parts(run: RunRecord) -> tuple[Loaded, About, DataSection]:
    """A finished run's network in its train form, its description, and the data it was tested on."""
    from ghostcli.zoo import weights

    if run.status != "done" or run.result is None:
        raise UsageError(f"{run.id}: cannot be used, {run.problem}; finish it with the command that began it")
    if not run.weights.exists():
        raise UsageError(
            f"{run.id}: its weights are not here (records travel without them); use it where it was trained"
        )
    result = run.result
    section = result.recipe.data
    loaded = weights.load(run.weights, classes=result.classes, model=result.student)
    classes = _class_names(result)
    about = room.describe(
        run.id, loaded.name, section.name, classes, section.size, loaded.norm, result.accuracy.selected
    )
    return loaded, about, section


def _class_names(result: RunResult) -> tuple[str, ...]:
    """The names of a run's classes. An older record has none: those of its data as it is now, if it is here."""
    from ghostcli import data

    if not result.class_names:
        with contextlib.suppress(GhostError):
            names = data.class_names(result.data)
            if len(names) == result.classes:
                return names
    return result.names


def ask_torch(program: object) -> Ask:
    import torch

    def ask(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program(torch.from_numpy(images)).numpy()  # type: ignore[operator]

    return ask


def _ask_program(content: bytes, name: str) -> tuple[Ask, str, About]:
    import torch

    from ghostcli.deploy import program

    module, about = program.decode(content, name)
    return ask_torch(module), f"torch {torch.__version__}", about


def _ask_weights(content: bytes) -> tuple[Ask, str]:
    import torch

    from ghostcli.deploy.program import Program
    from ghostcli.zoo import weights

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        file.write_bytes(content)
        loaded = weights.load(file)
    return ask_torch(Program(loaded.model, loaded.norm).eval()), f"torch {torch.__version__}"


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{printable(file)}: cannot be read ({error.strerror})") from error


def logits(ask: Ask, pixels: np.ndarray, classes: int, name: str, batch: int = 250) -> np.ndarray:
    """float32 [N, classes] for uint8 pixels [N, S, S, 3]. UsageError naming the file where it answers otherwise."""
    from ghostcli import signals

    parts = []
    for begin in range(0, len(pixels), batch):
        signals.raise_if_received()
        images = as_input(pixels[begin : begin + batch])
        try:
            found = ask(images)
        except Exception as error:  # the runtimes' exceptions share no base
            reason = printable((str(error).splitlines() or [type(error).__name__])[0][:160])
            raise UsageError(f"{printable(name)}: cannot be run ({reason}); export it again") from error
        if np.shape(found) != (len(images), classes):
            raise UsageError(
                f"{printable(name)}: answers {np.shape(found)} where it says {classes} classes; export it again"
            )
        parts.append(found)
    return np.concatenate(parts)
