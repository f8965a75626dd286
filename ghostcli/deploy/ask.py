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

from ghostcli.comparison import calibration
from ghostcli.comparison.stats import interval_of
from ghostcli.data import load
from ghostcli.data.pictures import SUFFIXES, decode, decoders, entries
from ghostcli.deploy.source import BATCH, Network, logits, section_of
from ghostcli.display import console
from ghostcli.errors import UsageError, printable

STDIN = "-"


def list_pictures(asked: Sequence[str]) -> list[str]:
    """The files that arguments name: a folder stands for every picture below it, sorted by name; `-` for itself."""
    files: list[str] = []
    for name in asked:
        if not name:
            raise UsageError('IMAGE: "" names no picture; is a variable empty?')
        path = Path(name)
        if name == STDIN or not path.is_dir():
            files.append(name)
            continue
        below = _pictures(path)
        if not below:
            raise UsageError(f"{printable(name)}: the folder holds no images ({', '.join(sorted(SUFFIXES))})")
        files += map(str, sorted(below))
    if files.count(STDIN) > 1:
        raise UsageError("-: standard input holds one picture; name it once")
    return files


def _pictures(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The pictures below a folder, without hidden ones. A link to a folder is followed, but not to one `above` it."""
    above |= {folder.resolve()}
    found: list[Path] = []
    for path in entries(folder):
        if path.is_dir():
            found += _pictures(path, above) if path.resolve() not in above else []
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def predict(network: Network, files: Sequence[str], top: int) -> list[dict[str, Any]]:
    """An object a picture: `image`, `predictions`: the `top` likeliest classes, best first, with probabilities.

    A picture that cannot be read has no predictions, and `error`: why.
    """
    classes, size = network.about.classes, network.about.size
    rows = []
    with decoders() as pool:
        for begin in range(0, len(files), BATCH):
            part = files[begin : begin + BATCH]
            read = list(pool.map(lambda name: _read(name, size), part))
            pixels = [picture for picture in read if isinstance(picture, np.ndarray)]
            probabilities = iter(calibration.softmax(answers(network, np.stack(pixels))) if pixels else ())
            for name, picture in zip(part, read, strict=True):
                if isinstance(picture, str):
                    rows.append({"image": name, "predictions": [], "error": picture})
                    continue
                row = next(probabilities)
                best = np.argsort(-row, kind="stable")[:top]
                likeliest = [{"class": classes[i], "probability": round(float(row[i]), 6)} for i in best]
                rows.append({"image": name, "predictions": likeliest})
    return rows


def answers(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Logits [N, classes] of uint8 pixels [N, S, S, 3]."""
    return logits(network.ask, pixels, len(network.about.classes), network.label)


def _read(name: str, size: int) -> np.ndarray | str:
    """The pixels of a picture, or what is wrong with it."""
    try:
        if name != STDIN:
            named = Path(name).suffix.lower() in SUFFIXES  # a pipe of the shell has another name, and is read
            if named and os.path.exists(name) and not os.path.isfile(name):
                return f"{printable(name)}: is named as an image but is not a file"
            return decode(Path(name), size)
        return decode(io.BytesIO(sys.stdin.buffer.read()), size, "standard input")
    except UsageError as error:
        return str(error)


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

    Its own data may have changed: a warning says so. UsageError where the data has other classes.
    """
    section = network.section if data_name is None else section_of(data_name, network.about.size)
    try:
        data = load(section)
    except UsageError as error:
        folder = section.name.removeprefix("folder:")
        if data_name is not None or folder == section.name or os.path.isdir(folder):
            raise
        where = f"{error}. {printable(network.label)} was tested on {printable(section.name)}"
        raise UsageError(f"{where}: name its place now with --data") from error
    if data_name is None and network.checksum not in ("", data.checksum):
        changed = f"{printable(network.label)}: the images of {data.name} are no longer those of its record"
        console.print(changed, style="yellow", markup=False)
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
    logits, labels, name = answers_on_test(network, data_name)
    confusion = calibration.confusion(logits, labels)
    accuracy = 100 * int(confusion.trace()) / len(labels)
    low, high = interval_of(accuracy, len(labels))
    return Evaluation(
        model=network.label,
        data=name,
        images=len(labels),
        accuracy=round(accuracy, 4),
        low=round(low, 4),
        high=round(high, 4),
        nll=calibration.nll(logits, labels),
        ece=calibration.ece(logits, labels),
        runtime=network.runtime,
    ), confusion


def by_class(classes: Sequence[str], confusion: np.ndarray) -> list[dict[str, Any]]:
    """Each class with test images, worst first: its accuracy and 95 % interval (Wilson's), in percent."""
    rows = []
    for name, counts, right in zip(classes, confusion, confusion.diagonal(), strict=True):
        images = int(counts.sum())
        if images:
            accuracy = 100 * int(right) / images
            low, high = interval_of(accuracy, images)
            numbers = {"accuracy": accuracy, "low": low, "high": high}
            rows.append({"class": name, "images": images} | {key: round(x, 4) for key, x in numbers.items()})
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
