"""Measuring time and memory: samples taken in turns, a process of its own for each peak of memory.

Invariant: what is compared takes turns within one run, and a figure comes with its spread and its number of samples.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostcli.errors import GhostError, UsageError

SAMPLE = 0.2  # seconds that one sample of a quick figure lasts at least
BUDGET = 20.0  # seconds that one figure of one network may take, but for one call that takes longer
MEBI = 1 << 20


@dataclass(frozen=True)
class Spread:
    """The median of `n` samples and their quartiles."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


@dataclass
class Meter:
    """One thing to be timed. `seconds` are those of one call: a mean over each sample, or, `apart`, of every call."""

    call: Callable[[], Any]
    wait: Callable[[], None] = lambda: None  # until the device is done
    prepare: Callable[[], None] = lambda: None  # untimed, before each sample
    apart: bool = False
    warmup: int = 2
    budget: float = BUDGET
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0
    problem: str | None = None

    def warm(self) -> None:
        """Call it until it is warm, and learn how many calls make a sample."""
        self.prepare()
        took = 0.0
        for _ in range(self.warmup):
            took = self._time(1)
            if took > self.budget:  # too slow to be called twice: the cold call stands
                self.seconds.append(took)
                return
        self.calls = max(1, min(1000, int(SAMPLE / max(took, 1e-9))))

    def sample(self) -> None:
        if self.spent > self.budget or self.problem:
            return
        self.prepare()
        if self.apart:
            self.seconds += [self._time(1) for _ in range(self.calls)]
        else:
            self.seconds.append(self._time(self.calls) / self.calls)

    def _time(self, calls: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            self.call()
        self.wait()
        took = time.perf_counter() - began
        self.spent += took
        return took


def interleave(meters: Sequence[Meter], rounds: int, step: Callable[[], None] = lambda: None) -> None:
    """Warm every meter up, then sample each once a round; `step` is told of every turn.

    A meter that runs out of memory keeps its `problem`, and the others go on.
    """
    for turn in range(rounds + 1):
        for meter in meters:
            try:
                meter.sample() if turn else meter.warm()
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                    raise
                meter.problem, meter.seconds = "out of memory", []
            step()
        if not turn:
            for meter in meters:  # the budget is for what is kept
                meter.spent = sum(meter.seconds)


def p90(values: Sequence[float]) -> float:
    return sorted(values)[max(0, math.ceil(0.9 * len(values)) - 1)]


def short(value: float) -> float:
    """Four digits: no timing is better known."""
    return float(f"{value:.4g}")


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile in milliseconds."""
    return {"median": short(1000 * spread(seconds).median), "p90": short(1000 * p90(seconds))}


def measured_apart(command: Sequence[str], what: str) -> tuple[float | None, str | None]:
    """The number that `command`, a process of its own, prints; (None, why) where it ran out of memory.

    A UsageError in the process is one here too.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return float(done.stdout.splitlines()[-1]), None  # a user's own network may print, too
    last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    if last.startswith(prefix := f"{UsageError.__module__}.{UsageError.__name__}: "):
        raise UsageError(last.removeprefix(prefix))
    if done.returncode == -9 or "memory" in last.lower():
        return None, f"{what} does not fit into memory"
    raise UsageError(f"{what} failed: {last}") if "ValueError" in last else GhostError(last)


def resident_peak(work: Callable[[], Any]) -> float:
    """MiB by which this process's resident memory rose at most while `work` ran. For a process of its own."""
    for file, order in (
        ("oom_score_adj", "1000"),  # if memory ends, this process is to be the victim
        ("clear_refs", "5"),  # Linux's high-water mark is from now on
    ):
        with contextlib.suppress(OSError):
            Path("/proc/self", file).write_text(order)
    before = high_water()
    work()
    return high_water() - before


def high_water() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss: it starts at what the parent held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEBI if sys.platform == "darwin" else 1024)
