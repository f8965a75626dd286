"""From what a person types to a network that can be asked: a run, or an exported file through its own runtime.

Invariant: every network takes float32 [N, 3, S, S] in 0..1 and gives logits [N, classes]; what a run needs (its
weights, its classes' names) is looked up here alone.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ghostcli import signals
from ghostcli.deploy import about as description
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import Ask, ask_onnxruntime, ask_openvino, read
from ghostcli.errors import UsageError, printable
from ghostcli.recipe.load import load
from ghostcli.recipe.models import DataSection
from ghostcli.records import trained
from ghostcli.records.record import RunRecord

if TYPE_CHECKING:
    from ghostcli.zoo.weights import Loaded

SUFFIXES = (".onnx", ".pt2", ".tflite")
BATCH = 250  # images that a network is asked about at a time


@dataclass(frozen=True)
class Network:
    """A network in its runtime. `label` is what the person called it.

    `tested_on`: the data of a run, None for a file, which knows the name alone. `checksum`: of that data, "" if the
    network does not say.
    """

    label: str
    about: About
    runtime: str
    ask: Ask
    tested_on: DataSection | None = None
    checksum: str = ""

    @property
    def section(self) -> DataSection:
        """The data it was tested on. UsageError if this ghost does not know that set."""
        return self.tested_on or section_of(self.about.data, self.about.size)


def as_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def open_network(asked: str, runs: Path) -> Network:
    """The network that `asked` names: run/ID, ID, pretrained/NAME, FILE.onnx, FILE.pt2 or FILE.tflite.

    UsageError in a line where it is none.
    """
    file = Path(asked)
    if file.suffix in SUFFIXES:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{printable(file)}: cannot be read ({error.strerror})") from error
        ask, runtime, about = opened(asked, content)
        return Network(asked, about, runtime, ask)
    if file.is_file():
        raise UsageError(
            f"{printable(asked)}: is no model; type run/ID, pretrained/NAME or a file that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    return open_run(trained.find(runs, asked))


def opened(name: str, content: bytes, runtime: str = "") -> tuple[Ask, str, About | None]:
    """(what asks an exported file of any format, its runtime with the version, what the file says of itself).

    `runtime` is one of a format's. Weights alone (.safetensors) say nothing of themselves.
    """
    suffix = Path(name).suffix
    if suffix == ".onnx":
        about = read(content, name)[1]
        through = ask_openvino if runtime == "openvino" else ask_onnxruntime
        return *through(content, name), about
    if suffix == ".tflite":
        from ghostcli.deploy import tflite

        about = tflite.about(content, name)
        return *tflite.ask(content, name), about
    import torch

    from ghostcli.deploy import program

    version = f"torch {torch.__version__}"
    if suffix == ".pt2":
        module, about = program.decode(content, name)
        return ask_torch(module), version, about
    from ghostcli.zoo import weights

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        file.write_bytes(content)
        loaded = weights.load(file)
    return ask_torch(program.Program(loaded.model, loaded.norm).eval()), version, None


def warm(runtime: str) -> None:
    """Import what asking takes, before memory is measured."""
    needed = {
        "onnxruntime": ["onnxruntime"],
        "openvino": ["openvino"],
        "litert": ["torch", "ghostcli.deploy.tflite", "ai_edge_litert.interpreter"],
    }
    for module in needed.get(runtime, ["torch"]):
        importlib.import_module(module)


def section_of(data: str, size: int) -> DataSection:
    """The section of a recipe for the data of --data. UsageError, as from a training verb, for an unknown name."""
    load("paper", flags=[("--data", f"data.name={json.dumps(data, ensure_ascii=False)}")])  # TOML has no surrogates
    return DataSection(name=data, **({"size": size} if data.startswith("folder:") else {}))


def open_run(run: RunRecord) -> Network:
    """A finished run's network in its deploy form, in torch on the CPU."""
    import torch

    from ghostcli.deploy import program

    loaded, about = parts(run)
    ask, runtime = ask_torch(program.deployed(loaded)), f"torch {torch.__version__}"
    result = run.result
    return Network(trained.named(run.id), about, runtime, ask, result.recipe.data, result.data_checksum)


def parts(run: RunRecord) -> tuple[Loaded, About]:
    """A finished run's network in its train form, and its description."""
    from ghostcli.zoo import weights

    if run.status != "done" or run.result is None:
        raise UsageError(f"{run.id}: cannot be used, {run.problem}; finish it with the command that began it")
    if not run.weights.exists():
        raise UsageError(
            f"{run.id}: its weights are not here (records travel without them); use it where it was trained"
        )
    result, data = run.result, run.result.recipe.data
    loaded = weights.load(run.weights, classes=result.classes, model=result.student)
    accuracy = result.accuracy.selected
    return loaded, description.describe(run.id, loaded.name, data.name, result.names, data.size, loaded.norm, accuracy)


def ask_torch(program: object) -> Ask:
    import torch

    def ask(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program(torch.from_numpy(images)).numpy()  # type: ignore[operator]

    return ask


def logits(ask: Ask, pixels: np.ndarray, classes: int, name: str) -> np.ndarray:
    """float32 [N, classes] for uint8 pixels [N, S, S, 3]. UsageError naming the file where it answers otherwise."""
    parts = []
    for begin in range(0, len(pixels), BATCH):
        signals.raise_if_received()
        images = as_input(pixels[begin : begin + BATCH])
        try:
            part = ask(images)
        except Exception as error:  # the runtimes' exceptions share no base
            reason = printable((str(error).splitlines() or [type(error).__name__])[0][:160])
            raise UsageError(f"{printable(name)}: cannot be run ({reason}); export it again") from error
        if np.shape(part) != (len(images), classes):
            raise UsageError(
                f"{printable(name)}: answers {np.shape(part)} where it says {classes} classes; export it again"
            )
        parts.append(part)
    return np.concatenate(parts)
