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
from ghostcli.errors import GhostError, Interrupted
from ghostcli.recipe.models import AugmentSection

CALIBRATION = 256  # training images that the ranges of activations are taken from
HELD_OUT = 4000  # other training images, on which the ways are compared
PROBED = 256  # of these, images on which the sensitive operators are looked for
MARGIN = 0.3  # points of accuracy on the held-out images that may be lost
MOST_FLOAT = 4  # operators that may stay in float
SMALL = 0.02  # of all weights, what such an operator may hold: the file is to stay small
PART = 8  # operators that are looked at together

Say = Callable[[str], None]
Make = Callable[[], tuple[bytes, str]]  # an int8 file, and how many operators are in integers


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
    """(the int8 file, a sentence on the way that was needed) of a network, `content` its float file.

    A way that fails is left out, and the sentence says so. GhostError where each one fails.
    """
    small = min(CALIBRATION, max(1, len(task.train) // 2))
    seen, _ = task.pixels(0, small)
    pixels, labels = task.pixels(small, HELD_OUT)
    wanted = _accuracy(content, task, pixels, labels)
    ways: list[Way] = []
    failed: list[tuple[str, Exception]] = []
    for name, make in _ways(task, content, as_input(seen), as_input(pixels[:PROBED]), say):
        say(f"int8: {name}")
        try:
            file, integers = make()
            lost = wanted - _accuracy(file, task, pixels, labels)
        except (Interrupted, MemoryError):
            raise
        except Exception as error:  # the quantisers' exceptions share no base
            failed.append((name, error))
            continue
        say(f"int8: {name}: {-lost:+.2f} points")
        ways.append(Way(name, file, lost, integers))
        if lost <= MARGIN:
            break
    if not ways:
        first = failed[0][1]
        raise first if isinstance(first, GhostError) else GhostError(f"{type(first).__name__}: {first}") from first
    best = min(ways, key=lambda way: way.lost)
    return best.content, (
        f"{best.name}; {-best.lost:+.2f} points on {len(labels):,} training images that it was not calibrated on; "
        f"{best.integers} convolutions and matrix products in integers, weights of {task.kind.bits()} bits"
        + "".join(f"; {name} failed ({error})" for name, error in failed)
    )


def _ways(task: Task, content: bytes, images: np.ndarray, probes: np.ndarray, say: Say) -> Iterator[tuple[str, Make]]:
    """(name, what makes its int8 file) of each way that the network has."""
    kind, about = task.kind, task.about
    observed = kind.observe(content, images, equalise.OUTSIDE)
    small = _small(kind, content)

    def trimmed(program: nn.Module) -> tuple[bytes, str]:
        file = kind.encode(program, about)
        return kind.quantise(file, about, images, kind.observe(file, images, equalise.OUTSIDE).trimmed)

    def in_float() -> tuple[bytes, str]:
        operators = _sensitive(task, content, images, observed.trimmed, probes, small)
        return kind.quantise(content, about, images, observed.trimmed, operators)

    yield "min-max ranges", lambda: kind.quantise(content, about, images, observed.extremes)
    yield "percentile ranges", lambda: kind.quantise(content, about, images, observed.trimmed)
    if equalise.has_bottlenecks(task.program):
        level = "equalised channels, percentile ranges"
        yield level, lambda: trimmed(equalise.equalised(task.program, torch.from_numpy(images)))
    if small:
        yield "percentile ranges, sensitive operators in float", in_float

    def note(text: str) -> None:
        say(f"int8: fine-tuning, {text}")

    yield (
        "fine-tuned under quantisation",
        lambda: trimmed(equalise.tuned(task.program, task.batches(), kind.bits(), note)),
    )


def _small(kind: Kind, content: bytes) -> list[str]:
    """The operators that may stay in float; none where all must be integers, or each holds much of a small network."""
    sizes = kind.weighted(content) if kind.weighted is not None else {}
    return [name for name, size in sizes.items() if size <= SMALL * sum(sizes.values())]


def _sensitive(
    task: Task, content: bytes, images: np.ndarray, ranges: int8.Ranges, probes: np.ndarray, names: list[str]
) -> list[str]:
    """Of `names`, those that change the logits most by being in integers: the worst part, and the worst in it."""
    kind = task.kind
    wanted = kind.ask(content, "float")[0](probes)

    def error(in_float: list[str]) -> float:
        signals.raise_if_received()
        file = kind.quantise(content, task.about, images, ranges, in_float)[0]
        return float(((kind.ask(file, "int8")[0](probes) - wanted) ** 2).mean())

    parts = [names[begin : begin + PART] for begin in range(0, len(names), PART)]
    worst = min(parts, key=error)
    return sorted(worst, key=lambda name: error([name]))[:MOST_FLOAT]


def _accuracy(content: bytes, task: Task, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Percent, in the file's own runtime."""
    ask = task.kind.ask(content, "int8")[0]
    answers = logits(ask, pixels, len(task.about.classes), "int8").argmax(axis=1)
    return 100 * float((answers == labels).mean())
