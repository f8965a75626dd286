"""The proof of a format: what a file answers on all test images, how fast, and in how much memory.

Invariant: every figure is of the very bytes that are written, loaded again in the runtime that is named; the baseline
is the deploy form in torch, on the same images.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ghostcli.comparison import stats
from ghostcli.deploy.formats import Format
from ghostcli.deploy.timer import measured_apart, resident_peak
from ghostcli.errors import GhostError, printable

TOLERANCES = {False: 1e-3, True: 2e-2}  # of logits, as a part of the largest: weights of 32 bits, of 16 bits
INT8_LOSES = 2.0  # points of accuracy that an int8 file may lose


@dataclass(frozen=True)
class Proof:
    """A row of the table. Accuracies in percent; `difference`, `low`, `high` in points against the float network
    (95 %, paired, over the test images); `largest_difference` in logits; memory in MiB. Where `problem` says what
    failed, the figures are None and no file is there.
    """

    format: str
    file: str | None = None
    run: str | None = None
    bytes: int | None = None
    images: int | None = None
    accuracy: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    disagreements: int | None = None
    largest_difference: float | None = None
    latency_ms: dict[str, float] | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    runtime: str | None = None
    note: str | None = None
    problem: str | None = None


def compare(row: Proof, found: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> Proof:
    """The row with what `found` logits [N, C] are against `wanted`, those of the float network."""
    right, reference = (logits.argmax(axis=1) == labels for logits in (found, wanted))
    accuracy = 100 * right.mean()
    sides = [stats.Sample(np.array([100 * side.mean()]), side[None]) for side in (right, reference)]
    gap = stats.difference(*sides)
    return replace(
        row,
        images=len(labels),
        accuracy=round(float(accuracy), 4),
        difference=round(gap.mean, 4),
        low=None if gap.low is None else round(gap.low, 4),
        high=None if gap.high is None else round(gap.high, 4),
        disagreements=int((found.argmax(axis=1) != wanted.argmax(axis=1)).sum()),
        largest_difference=float(np.abs(found.astype(np.float64) - wanted).max()),
    )


def memory(content: bytes, suffix: str, runtime: str, size: int) -> float | None:
    """MiB that a process of its own needs to load the file and to ask it about one image; None where unmeasured."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{suffix}"
        path.write_bytes(content)
        try:
            peak, _ = measured_apart(
                [sys.executable, "-m", "ghostcli.deploy.proof", str(path), runtime.split()[0], str(size)], "the file"
            )
        except (GhostError, ValueError):
            return None
    return peak


def accept(row: Proof, form: Format, expected: float, wanted: np.ndarray) -> None:
    """GhostError where a file is not the network it was made of, by more than its format explains.

    `expected` is the network's accuracy in percent on the images of the row, `wanted` its logits. An int8 file is
    refused where it loses more than `INT8_LOSES` points beyond doubt (the whole 95 % interval). Others may differ by
    0.1 points, and one image: ties may fall the other way.
    """
    name = printable(row.file or row.format)
    scale = max(1.0, float(np.abs(wanted).max()))
    tolerance = TOLERANCES[form.half] * scale
    if not form.int8 and not row.largest_difference <= tolerance:
        raise GhostError(f"{name}: not written: its logits are off by {row.largest_difference:.3g}")
    gap = expected - row.accuracy
    lost = row.high is not None and row.high < -INT8_LOSES
    if lost if form.int8 else not abs(gap) <= 0.1 + 100 / row.images:
        raise GhostError(
            f"{name}: not written, it reaches {row.accuracy:.2f} % where the network reaches {expected:.2f} %"
        )


def _main(file: str, runtime: str, size: int) -> None:
    """The body of the process that `memory` measures in."""
    from ghostcli.deploy import source

    def work() -> None:
        source.opened(Path(file).name, Path(file).read_bytes(), runtime)[0](np.zeros((1, 3, size, size), np.float32))

    source.warm(runtime)
    print(round(resident_peak(work), 1))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
