"""What a network says about pictures (`ghost predict`) and about a whole test set (`ghost evaluate`).

Invariant: a picture goes through the steps that the training images went through, in the same code.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghostcli.compare import calibration
from ghostcli.compare.stats import accuracy_interval
from ghostcli.data.pictures import SUFFIXES, decode, decoders
from ghostcli.deploy.source import Network, logits
from ghostcli.errors import UsageError, printable

BATCH = 250  # pictures that are decoded and asked about at a time
STDIN = "-"


def list_pictures(asked: Sequence[str]) -> list[str]:
    """The files that arguments name: a folder stands for every picture below it, sorted by name; `-` for itself."""
    found: list[str] = []
    for name in asked:
        path = Path(name)
        if name == STDIN or not path.is_dir():
            found.append(name)
            continue
        below = [
            Path(folder) / file
            for folder, folders, files in os.walk(path)
            if not _hidden(Path(folder).relative_to(path))
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in SUFFIXES
        ]
        if not below:
            raise UsageError(f"{printable(name)}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
        found += map(str, sorted(below))
    if found.count(STDIN) > 1:
        raise UsageError("-: standard input holds one picture; name it once")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def predict(network: Network, files: Sequence[str], top: int) -> list[dict[str, Any]]:
    """An object a picture: `image`, `predictions`: the `top` likeliest classes, best first, with probabilities."""
    classes, size = network.about.classes, network.about.size
    rows = []
    with decoders() as pool:
        for begin in range(0, len(files), BATCH):
            part = files[begin : begin + BATCH]
            pixels = np.stack(list(pool.map(lambda name: _pixels(name, size), part)))
            probabilities = calibration.softmax(answers(network, pixels))
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
            for name, row, best in zip(part, probabilities, order, strict=True):
                said = [{"class": classes[i], "probability": round(float(row[i]), 6)} for i in best]
                rows.append({"image": name, "predictions": said})
    return rows


def answers(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Logits [N, classes] of uint8 pixels [N, S, S, 3]."""
    return logits(network.ask, pixels, len(network.about.classes), network.label)


def _pixels(name: str, size: int) -> np.ndarray:
    if name != STDIN:
        return decode(Path(name), size)
    return decode(io.BytesIO(sys.stdin.buffer.read()), size, "standard input")


@dataclass(frozen=True)
class Evaluation:
    """`accuracy`, `low`, `high` in percent (95 %, Wilson's interval), `nll` in nats, `ece` a fraction (15 bins)."""

    model: str
    data: str
    images: int
    accuracy: float
    low: float
    high: float
    nll: float
    ece: float
    runtime: str


def answers_on_test(network: Network, data_name: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """(logits [N, C], labels [N] by the network's numbers, name) of the test images of its own data or `data_name`.

    UsageError where the data has other classes.
    """
    from ghostcli import data as sets
    from ghostcli.deploy.source import section_of

    section = network.section if data_name is None else section_of(data_name, network.about.size)
    data = sets.load(section)
    labels = _numbers(network, data.classes, data.name)[data.test.labels.numpy()]
    pixels = data.test.pixels.numpy()
    if pixels.shape[1] != network.about.size:
        raise UsageError(
            f"{printable(data.name)}: its images have a side of {pixels.shape[1]} pixels, "
            f"{printable(network.label)} takes {network.about.size}"
        )
    return answers(network, pixels), labels, data.name


def evaluate(network: Network, data_name: str | None) -> tuple[Evaluation, np.ndarray]:
    """The test images of the network's own data, or of `data_name`; with the confusion, counts [true, said].

    UsageError where the data has other classes.
    """
    found, labels, name = answers_on_test(network, data_name)
    confusion = calibration.confusion(found, labels)
    right = int(confusion.trace())
    low, high = accuracy_interval(right, len(labels))
    return Evaluation(
        model=network.label,
        data=name,
        images=len(labels),
        accuracy=round(100 * right / len(labels), 4),
        low=round(low, 4),
        high=round(high, 4),
        nll=calibration.nll(found, labels),
        ece=calibration.ece(found, labels),
        runtime=network.runtime,
    ), confusion


def by_class(classes: Sequence[str], confusion: np.ndarray) -> list[dict[str, Any]]:
    """Each class with test images, worst first: its accuracy and 95 % interval (Wilson's), in percent."""
    rows = []
    for name, said, right in zip(classes, confusion, confusion.diagonal(), strict=True):
        images = int(said.sum())
        if images:
            low, high = accuracy_interval(int(right), images)
            numbers = {"accuracy": 100 * right / images, "low": low, "high": high}
            rows.append({"class": name, "images": images} | {key: round(float(x), 4) for key, x in numbers.items()})
    return sorted(rows, key=lambda row: row["accuracy"])


def class_mean(rows: Sequence[dict[str, Any]]) -> float:
    """The mean of the classes' accuracies. A class with few images counts as much as one with many."""
    return round(sum(row["accuracy"] for row in rows) / len(rows), 4)


def _numbers(network: Network, classes: tuple[str, ...], data: str) -> np.ndarray:
    """The network's number of each class of a data set, by name."""
    ours = network.about.classes
    if sorted(ours) != sorted(classes):
        only = sorted(set(classes) - set(ours)) or sorted(set(ours) - set(classes))
        raise UsageError(
            f"{printable(data)}: its {len(classes)} classes are not the {len(ours)} of {printable(network.label)} "
            f"('{printable(only[0])}' is in one alone); name a data set with the same classes"
        )
    return np.array([ours.index(name) for name in classes])
