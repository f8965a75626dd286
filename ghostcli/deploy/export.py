"""From a finished run to files that deploy it, each proven on the run's own test images before it is written.

Invariant: what is written is what was proven: the file's very bytes were loaded again and asked. A file that was not
proven does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from ghostcli import zoo
from ghostcli.data import Data
from ghostcli.deploy import ladder, onnxwrite, page, program, proof, source, tflite
from ghostcli.deploy.about import About
from ghostcli.deploy.formats import BATCH, FORMATS, Format
from ghostcli.deploy.onnxfile import Ask
from ghostcli.deploy.program import Program
from ghostcli.deploy.proof import Proof
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import write_bytes
from ghostcli.run.job import load_data
from ghostcli.zoo import evaluate, weights
from ghostcli.zoo.weights import Loaded

COMPARED = 1000  # images on which train form and deploy form are compared
BROWSED = 1000  # images that a page is proven on: it computes one at a time
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A run's network, ready to be written in any format."""

    run: RunRecord
    loaded: Loaded
    about: About
    data: Data

    @cached_property
    def deployed(self) -> torch.nn.Module:
        return zoo.deploy(self.loaded.model).to(memory_format=torch.channels_last)

    @cached_property
    def program(self) -> Program:
        return Program(self.deployed, self.loaded.norm).eval()

    @cached_property
    def onnx(self) -> bytes:
        return onnxwrite.encode(self.program, self.about)

    @cached_property
    def tflite(self) -> bytes:
        return tflite.encode(self.program, self.about)

    @property
    def samples(self) -> list[tuple[str, np.ndarray]]:
        """The first test image of each of the first ten classes, with its name."""
        classes = enumerate(self.about.classes[:10])
        first = [(name, np.flatnonzero(self.labels == number)[:1]) for number, name in classes]
        return [(name, self.pixels[index[0]]) for name, index in first if len(index)]

    @cached_property
    def pixels(self) -> np.ndarray:
        return self.data.test.pixels.numpy()

    @cached_property
    def labels(self) -> np.ndarray:
        return self.data.test.labels.numpy()

    @cached_property
    def wanted(self) -> np.ndarray:
        """Logits of all test images as the deploy form in torch gives them."""
        return self.answers(source.ask_torch(self.program), "torch")

    def answers(self, ask: Ask, name: str) -> np.ndarray:
        return source.logits(ask, self.pixels, len(self.about.classes), name)


def prepare(run: RunRecord) -> Exported:
    """UsageError where the run cannot be exported: unfinished, without weights, or its test images have changed."""
    loaded, about, section = source.parts(run)
    data = load_data(section)
    if data.checksum != run.result.data_checksum:
        raise UsageError(f"{run.id}: the images of {data.name} are no longer those it was tested on; put them back")
    return Exported(run, loaded, about, data)


def from_train_form(network: Exported) -> float:
    """The largest difference of the deploy form's logits from the train form's, on the first test images."""
    few = network.data.test[:COMPARED]
    theirs = evaluate.logits(network.loaded.model, few, network.loaded.norm).numpy()
    return float(np.abs(theirs - network.wanted[:COMPARED]).max())


def encode(network: Exported, form: Format, say: Say = lambda note: None) -> tuple[bytes, str | None]:
    """The file of one format, and how it was made where there is a choice."""
    if form.name == "pt2":
        return program.encode(network.program, network.about), None
    if form.name == "onnx":
        return network.onnx, None
    if form.name == "tflite":
        return network.tflite, None
    if form.int8:
        kind, augment = ladder.KINDS[form.name], network.run.result.recipe.augment
        task = ladder.Task(kind, network.program, network.about, network.data.train, augment)
        return ladder.climb(task, network.tflite if form.suffix == ".tflite" else network.onnx, say)
    if form.name == "html":
        return page.encode(network.onnx, network.about, network.samples), None
    deployed = zoo.deploy(network.loaded.model)
    return weights.encode(deployed.half() if form.half else deployed, network.loaded.norm, form="deploy"), None


def prove(
    network: Exported,
    files: Sequence[tuple[Format, Path | None]],
    timing: bool = True,
    everywhere: bool = False,
    rounds: int = proof.ROUNDS,
    say: Say = lambda note: None,
) -> tuple[list[Proof], list[GhostError]]:
    """Prove each format and write it where its path says (None: nowhere): a row a format, the baseline's first.

    `everywhere` adds a row for every other runtime that reads the same file. A format that fails says why in its row
    and is among the errors; the others go on.
    """
    baseline = Proof("torch", run=network.run.id, bytes=network.run.weights.stat().st_size)
    baseline = replace(baseline, runtime=f"torch {torch.__version__}", note="the run, in its deploy form")
    rows = [proof.compare(baseline, network.wanted, network.wanted, network.labels)]
    asks: list[Ask | None] = [source.ask_torch(network.program)]
    made: dict[str, bytes] = {}
    errors: list[GhostError] = []

    def attempt(form: Format, work: Callable[[], tuple[Proof, Ask | None]], row: Proof) -> bool:
        """Append the row that `work` gives, or one that says why there is none."""
        ask = None
        try:
            row, ask = work()
        except GhostError as error:
            errors.append(error)
            row = replace(row, file=None, problem=str(error))
        except Exception as error:  # an exporter or a runtime that does not know a layer raises what it likes
            reason = printable((str(error).splitlines() or [""])[0][:200])
            errors.append(GhostError(f"{form.name}: cannot be made ({type(error).__name__}: {reason})"))
            row = replace(row, file=None, problem=str(errors[-1]))
        rows.append(row)
        asks.append(ask)
        return row.problem is None

    for form, path in files:
        row = Proof(form.name, str(path) if path else None, network.run.id, runtime=form.runtimes[0])

        def first(form: Format = form, row: Proof = row) -> tuple[Proof, Ask | None]:
            say(form.name)
            content, note = encode(network, form, say)
            made[form.name] = content
            return _proven(network, form, replace(row, note=note), content)

        if attempt(form, first, row) and everywhere:
            for runtime in form.runtimes[1:]:
                say(f"{form.name}: {runtime}")
                row = Proof(form.name, None, network.run.id, runtime=runtime)
                attempt(form, partial(_proven, network, form, row, made[form.name]), row)
    good = [i for i, ask in enumerate(asks) if ask is not None]
    if timing and len(good) > 1:
        say("timing")
        images = source.as_input(network.pixels[:BATCH])
        timed = proof.time_all([rows[i] for i in good], [asks[i] for i in good], images, rounds)
        for i, row in zip(good, timed, strict=True):
            rows[i] = row
            if row.format in made:
                say(f"{row.format}: memory")
                suffix = FORMATS[row.format].suffix
                peak = proof.memory(made[row.format], suffix, row.runtime, network.about.size)
                rows[i] = replace(row, peak_memory_mb=peak)
    for row in rows:
        if row.file is not None:
            write_bytes(Path(row.file), made[row.format], "export")
    return rows, errors


def _proven(network: Exported, form: Format, row: Proof, content: bytes) -> tuple[Proof, Ask | None]:
    """The row before timing, and what asks the file. GhostError where it is another network than the run's."""
    if form.runtimes == ("browser",):
        few = slice(0, BROWSED)
        found, times, version = page.run(content, network.pixels[few])
        row = replace(row, bytes=len(content), runtime=version, latency_ms=proof.latency(times / 1000))
        row = proof.compare(row, found, network.wanted[few], network.labels[few])
        proof.accept(
            row, form, 100 * float((network.wanted[few].argmax(1) == network.labels[few]).mean()), network.wanted
        )
        return row, None
    ask, version = source.opened(f"network{form.suffix}", content, row.runtime)
    row = replace(row, bytes=len(content), runtime=version)
    row = proof.compare(row, network.answers(ask, form.name), network.wanted, network.labels)
    proof.accept(row, form, network.run.result.accuracy.selected, network.wanted)
    return row, ask
