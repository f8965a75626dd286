"""From a finished run to files that deploy it, each proven on the run's own test images before it is written.

Invariant: what is written is what was proven: the file's very bytes were loaded again and asked. A file that was not
proven does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from ghostcli.deploy.timer import Meter, interleave, latency, short, spread
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import write_bytes
from ghostcli.run.job import load_data
from ghostcli.zoo import evaluate, weights
from ghostcli.zoo.weights import Loaded

COMPARED = 1000  # images on which train form and deploy form are compared
ROUNDS = 3
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
    def program(self) -> Program:
        return program.deployed(self.loaded)

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
    loaded, about = source.parts(run)
    data = load_data(run.result.recipe.data)
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
    rounds: int = ROUNDS,
    say: Say = lambda note: None,
) -> tuple[list[Proof], list[GhostError]]:
    """Prove each format and write it where its path says (None: nowhere): a row a format, the baseline's first.

    `everywhere` adds a row for every other runtime that reads the same file. A format that fails says why in its row
    and is among the errors; the others go on.
    """
    baseline = Proof("torch", run=network.run.id, bytes=network.run.weights.stat().st_size)
    baseline = replace(baseline, runtime=f"torch {torch.__version__}", note="the run, in its deploy form")
    baseline = proof.compare(baseline, network.wanted, network.wanted, network.labels)
    tried = [_Tried(baseline, source.ask_torch(network.program))]
    for form, path in files:
        for one in _tries(network, form, path, everywhere, say):
            if one.row.file is not None:  # before the next format and all timing, which may be interrupted
                write_bytes(Path(one.row.file), one.content, "export")
            tried.append(one)
    runnable = [one for one in tried if one.ask is not None]
    if timing and len(runnable) > 1:
        _time(network, runnable, rounds, say)
    return [one.row for one in tried], [one.error for one in tried if one.error is not None]


@dataclass
class _Tried:
    """A row, what asks its file (None: nothing to be timed), the file's bytes (None: no file), and what failed."""

    row: Proof
    ask: Ask | None = None
    content: bytes | None = None
    error: GhostError | None = None


def _tries(network: Exported, form: Format, path: Path | None, everywhere: bool, say: Say) -> Iterator[_Tried]:
    """A format's file, made once, in its first runtime and, if it passes there, `everywhere`."""
    content = None
    for runtime in form.runtimes if everywhere else form.runtimes[:1]:
        row = Proof(form.name, run=network.run.id, runtime=runtime)
        try:
            if content is None:
                say(form.name)
                content, note = encode(network, form, say)
                candidate = replace(row, file=str(path) if path else None, note=note)
            else:
                say(f"{form.name}: {runtime}")
                candidate = row
            one = _Tried(*_prove_one(network, form, candidate, content), content)
        except Exception as error:
            why = _in_words(error, form)
            one = _Tried(replace(row, problem=str(why)), error=why)
        yield one
        if one.error and runtime == form.runtimes[0]:
            return


def _time(network: Exported, runnable: Sequence[_Tried], rounds: int, say: Say) -> None:
    """Their speeds, taken in turns (latency at batch 1, throughput at `BATCH`), and the memory of each file."""
    say("timing")
    images = source.as_input(network.pixels[:BATCH])
    first = images[:1].copy()
    turns = [(Meter(partial(one.ask, first), apart=True), Meter(partial(one.ask, images))) for one in runnable]
    interleave([meter for pair in turns for meter in pair], rounds)
    for one, (alone, together) in zip(runnable, turns, strict=True):
        if alone.seconds:
            one.row = replace(one.row, latency_ms=latency(alone.seconds))
        if together.seconds:
            speed = len(images) / spread(together.seconds).median
            one.row = replace(one.row, images_per_second=short(speed))
        if one.content is not None:
            say(f"{one.row.format}: memory")
            suffix = FORMATS[one.row.format].suffix
            peak = proof.memory(one.content, suffix, one.row.runtime, network.about.size)
            one.row = replace(one.row, peak_memory_mb=peak)


def _in_words(error: Exception, form: Format) -> GhostError:
    """An exporter or a runtime that does not know a layer raises what it likes."""
    if isinstance(error, GhostError):
        return error
    reason = printable((str(error).splitlines() or [""])[0][:200])
    return GhostError(f"{form.name}: cannot be made ({type(error).__name__}: {reason})")


def _prove_one(network: Exported, form: Format, row: Proof, content: bytes) -> tuple[Proof, Ask | None]:
    """The row before timing, and what asks the file. GhostError where it is another network than the run's."""
    wanted, labels, ask = network.wanted, network.labels, None
    expected = network.run.result.accuracy.selected
    if form.runtimes == ("browser",):
        wanted, labels = wanted[:BROWSED], labels[:BROWSED]
        expected = 100 * float((wanted.argmax(1) == labels).mean())
        answers, times, version = page.run(content, network.pixels[:BROWSED])
        row = replace(row, latency_ms=latency(times / 1000))
    else:
        ask, version, _ = source.opened(f"network{form.suffix}", content, row.runtime)
        answers = network.answers(ask, form.name)
    row = proof.compare(replace(row, bytes=len(content), runtime=version), answers, wanted, labels)
    proof.accept(row, form, expected, wanted)
    return row, ask
