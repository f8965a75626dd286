"""From a float network to the int8 file that loses least: ways of quantising, from the plainest on.

Invariant: every choice is made on training images; the test images see the result alone. The next way is tried only
while the best so far loses more than the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ghostcli import signals
from ghostcli.data import Images
from ghostcli.data.batches import Cropper, order, views
from ghostcli.deploy import equalise, int8, onnxwrite, tflite, tflite8
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import Ask, ask_onnxruntime
from ghostcli.deploy.source import as_input, logits
from ghostcli.recipe.models import AugmentSection

CALIBRATION = 256  # training images that the ranges of activations are taken from
HELD_OUT = 4000  # other training images, on which the ways are compared
PROBED = 256  # of these, images on which the sensitive operators are looked for
MARGIN = 0.3  # points of accuracy on the held-out images that may be lost
MOST_FLOAT = 4  # operators that may stay in float
SMALL = 0.02  # of all weights, what such an operator may hold: the file is to stay small
PART = 8  # operators that are looked at together

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """A kind of file that can be quantised.

    `encode`: a program as a float file. `ask`: what asks a file. `observe`, `quantise`: as in `int8`. `weighted`: the
    operators that may stay in float, None where all must be integers. `bits`: of a weight.
    """

    encode: Callable[[nn.Module, About], bytes]
    ask: Callable[[bytes, str], tuple[Ask, str]]
    observe: Callable[[bytes, np.ndarray, float], int8.Observed]
    quantise: Callable[..., tuple[bytes, str]]
    weighted: Callable[[bytes], dict[str, int]] | None
    bits: Callable[[], int]


KINDS = {
    "onnx-int8": Kind(
        onnxwrite.encode, ask_onnxruntime, int8.observe, int8.quantise, int8.weighted, lambda: 7 if int8.narrow() else 8
    ),
    "tflite-int8": Kind(tflite.encode, tflite.ask, tflite8.observe, tflite8.quantise, None, lambda: 8),
}


@dataclass(frozen=True)
class Way:
    """One way of quantising: its file, points of accuracy lost on the held-out images, operators in integers."""

    name: str
    content: bytes
    lost: float
    integers: str


@dataclass(frozen=True)
class Task:
    """What is quantised. `train` are the run's training images, `augment` how it saw them."""

    kind: Kind
    program: nn.Module
    about: About
    train: Images
    augment: AugmentSection

    def pixels(self, begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` training images and labels from `begin` on in a fixed random order, as views that training takes."""
        index = order(len(self.train), 0, 0)[begin : begin + count]
        chosen = Cropper(self.train, self.augment).crop(index, views(len(self.train), 0, 0, self.augment)[index])
        return chosen.numpy(), self.train.labels[index].numpy()

    def batches(self) -> Callable[[int], Tensor]:
        """Batches for fine-tuning, by number: float32 [B, 3, S, S] in 0..1."""
        cropper, count = Cropper(self.train, self.augment), len(self.train)
        size = min(equalise.BATCH, count)

        def batch(step: int) -> Tensor:
            signals.raise_if_received()
            epoch, place = divmod(step, count // size)
            index = order(count, 1, epoch)[place * size : (place + 1) * size]
            return torch.from_numpy(as_input(cropper.crop(index, views(count, 1, epoch, self.augment)[index]).numpy()))

        return batch


def climb(task: Task, content: bytes, say: Say) -> tuple[bytes, str]:
    """(the int8 file, a sentence on the way that was needed) of a network, `content` its float file."""
    small = min(CALIBRATION, max(1, len(task.train) // 2))
    seen, _ = task.pixels(0, small)
    pixels, labels = task.pixels(small, HELD_OUT)
    ways: list[Way] = []
    wanted = _accuracy(content, task, pixels, labels)
    for name, made, integers in _ways(task, content, as_input(seen), as_input(pixels[:PROBED]), say):
        lost = wanted - _accuracy(made, task, pixels, labels)
        say(f"int8: {name}: {-lost:+.2f} points")
        ways.append(Way(name, made, lost, integers))
        if lost <= MARGIN:
            break
    best = min(ways, key=lambda way: way.lost)
    return best.content, (
        f"{best.name}; {-best.lost:+.2f} points on {len(labels):,} training images that it was not calibrated on; "
        f"{best.integers} convolutions and matrix products in integers, weights of {task.kind.bits()} bits"
    )


def _ways(
    task: Task, content: bytes, images: np.ndarray, probes: np.ndarray, say: Say
) -> Iterator[tuple[str, bytes, str]]:
    """(name, int8 file, operators in integers) of each way; one is made only when it is asked for."""
    kind, about = task.kind, task.about

    def trimmed(made: bytes) -> tuple[bytes, str]:
        return kind.quantise(made, about, images, kind.observe(made, images, equalise.OUTSIDE).trimmed)

    observed = kind.observe(content, images, equalise.OUTSIDE)
    yield "min-max ranges", *kind.quantise(content, about, images, observed.extremes)
    yield "percentile ranges", *kind.quantise(content, about, images, observed.trimmed)
    if equalise.has_bottlenecks(task.program):
        say("int8: equalisation")
        level = kind.encode(equalise.equalised(task.program, torch.from_numpy(images)), about)
        yield "equalised channels, percentile ranges", *trimmed(level)
    if kind.weighted is not None:
        say("int8: sensitive operators")
        kept = _sensitive(task, content, images, observed.trimmed, probes)
        name = f"percentile ranges, {len(kept)} operators in float"
        yield name, *kind.quantise(content, about, images, observed.trimmed, kept)
    taught = equalise.tuned(task.program, task.batches(), kind.bits(), lambda note: say(f"int8: fine-tuning, {note}"))
    yield "fine-tuned under quantisation", *trimmed(kind.encode(taught, about))


def _sensitive(task: Task, content: bytes, images: np.ndarray, ranges: int8.Ranges, probes: np.ndarray) -> list[str]:
    """The operators that change the logits most by being in integers: the worst part, and the worst in it."""
    kind = task.kind
    wanted = kind.ask(content, "float")[0](probes)

    def error(in_float: list[str]) -> float:
        signals.raise_if_received()
        made = kind.quantise(content, task.about, images, ranges, in_float)[0]
        return float(((kind.ask(made, "int8")[0](probes) - wanted) ** 2).mean())

    sizes = kind.weighted(content)
    names = [name for name, size in sizes.items() if size <= SMALL * sum(sizes.values())]
    parts = [names[begin : begin + PART] for begin in range(0, len(names), PART)]
    worst = min(parts, key=error)
    return sorted(worst, key=lambda name: error([name]))[:MOST_FLOAT]


def _accuracy(content: bytes, task: Task, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Percent, in the file's own runtime."""
    ask = task.kind.ask(content, "int8")[0]
    found = logits(ask, pixels, len(task.about.classes), "int8")
    return 100 * float((found.argmax(axis=1) == labels).mean())
