"""Estimates the time and disk space of a graph of jobs from measured rates.

Invariant: each figure names its basis: a finished run of the network, or the measured rate of another network scaled by
multiply-accumulates. Start-up and teaching checks are not included. No torch here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from ghostcli.paper import paper
from ghostcli.plan import Job, Plan, is_done, record_of
from ghostcli.recipe.models import DataSection
from ghostcli.recipe.sets import SETS
from ghostcli.records.record import RunRecord
from ghostcli.zoo import names

#: Multiply-accumulates of a forward pass of one 32 x 32 image in train form, in millions.
MACS = {
    "gns:1.0": 19.6,
    "gns:1.3": 31.4,
    "gns:1.6": 45.9,
    "gns:1.9": 64.1,
    "gns:2.2": 84.2,
    "gns:2.8": 131.7,
    "gns:3.4": 192.4,
    "gnd:1.0": 35.6,
    "resnet18": 140.0,
    "resnet34": 291.0,
    "resnet50": 326.0,
    "vgg13": 247.0,
    "densenet161": 619.0,
    "inceptionv3": 3460.0,
    "efficientnetv2": 2849.0,
}
#: Ghost network or not -> the network to measure if no network of the kind has a run.
REFERENCE = {True: "gns:1.0", False: "resnet18"}
#: Training time grows as this power of the MACs. Memory limits Ghost networks more than arithmetic: GN-S 3.4 has 9.8
#: times the MACs of GN-S 1.0 and takes 4.4 times as long on a CPU core (9.8^(2/3) is 4.6); on the authors' GPU it took
#: 2.8 times as long. The times per MAC of the other networks differ by at most 40 %.
POWER = {True: 2 / 3, False: 1.0}
#: The rate of a run counts from this many training images: the first steps build kernels and warm up.
ENOUGH = 2000
#: The basis of a finished job, which costs nothing.
DONE = "done"
#: Cost of a forward pass as a share of a training step.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Cost:
    """The cost of one job: seconds with one run at a time, bytes on disk, and the basis of the student's rate."""

    seconds: float
    bytes: int
    basis: str


class Rates:
    """Training seconds per image, by network, on one kind of device.

    `measure(network)` returns the images per second of a network without a finished run.
    """

    def __init__(self, records: Iterable[RunRecord], device: str, measure: Callable[[str], float]) -> None:
        self.measure = measure
        self.known: dict[str, float] = {}
        self.basis: dict[str, str] = {}
        largest: dict[str, int] = {}
        for run in records:
            result = run.result if run.status == "done" else None
            # The rate of a taught run includes the time of its teachers.
            if result is None or result.strategy != "plain" or result.environment.device_type != device:
                continue
            rates = [
                rate for row in run.metrics() if isinstance(rate := row.get("images_per_second"), float) and rate > 0
            ]
            images = result.train_images * len(rates)
            if images > largest.get(result.student, ENOUGH - 1):
                largest[result.student] = images
                self.known[result.student] = 1 / median(rates[1:] or rates)
                self.basis[result.student] = "measured in finished runs"
        self.measured = set(self.known)

    def seconds(self, model: str) -> float:
        if model not in self.known:
            self._scale(model)
        return self.known[model]

    def _scale(self, model: str) -> None:
        """Scale the rate of the measured network of the same kind with the nearest MACs."""
        ghost = names.is_ghost(model)
        like = [name for name in self.measured if name in MACS and names.is_ghost(name) == ghost]
        if not like:
            like = [REFERENCE[ghost]]
            self.known[like[0]] = 1 / self.measure(like[0])
            self.basis[like[0]] = "measured over a few steps now"
            self.measured.add(like[0])
        if model in self.known:
            return
        near = min(like, key=lambda name: abs(math.log(MACS[name] / MACS[model])))
        self.known[model] = self.known[near] * (MACS[model] / MACS[near]) ** POWER[ghost]
        self.basis[model] = f"scaled by MACs from {near}"


def sizes(section: DataSection) -> tuple[int, int, int]:
    """Training images, test images and classes for a recipe's data section."""
    known = SETS.get(section.name)
    if known is None:
        return _folder_sizes(section)
    train, test, classes = known.train_images, known.test_images, known.classes
    train = min(train, section.limit or train) - section.validation
    return train, min(test, section.limit_test or test), classes


@cache
def _folder_sizes(section: DataSection) -> tuple[int, int, int]:
    """The same for a user's own folder."""
    from ghostcli import data

    dataset = data.load(section)
    return len(dataset.train), len(dataset.test), len(dataset.classes)


def costs(graph: Plan, rates: Rates, runs: Path) -> dict[str, Cost]:
    """Job id -> the remaining cost, in the graph's order; zero for a finished job.

    Students of a teacher share its table of logits. So a view costs nothing if an earlier student used it.
    """
    seen: dict[str, dict[int, int]] = defaultdict(dict)  # teacher's run -> student's seed -> epochs
    for job in graph.jobs:
        if is_done(job, runs) and _views(job):
            for teacher in job.teachers:
                _see(seen[teacher.id], job)
    return {job.id: _cost(job, rates, runs, seen) for job in graph.jobs}


def _cost(job: Job, rates: Rates, runs: Path, seen: dict[str, dict[int, int]]) -> Cost:
    if is_done(job, runs):
        return Cost(0.0, 0, DONE)
    epochs = job.recipe.train.last_epoch
    train, test, classes = sizes(job.recipe.data)
    each = rates.seconds(job.student)
    seconds = epochs * (train + FORWARD * test) * each
    space = 4 * copies(job) * paper().models[job.student].parameters + test * (2 * classes + 8)
    for teacher in job.teachers:
        computed = train * epochs
        if views := _views(job):
            before = _distinct(seen[teacher.id], views)
            if not seen[teacher.id]:
                space += train * views * (2 * classes + 1)
            _see(seen[teacher.id], job)
            computed = round(train * (_distinct(seen[teacher.id], views) - before))
        seconds += computed * FORWARD * rates.seconds(teacher.student)
    left = 1 - min(len(record_of(job, runs).metrics()) / epochs, 1.0)
    return Cost(seconds * left, space, rates.basis[job.student])


def copies(job: Job) -> int:
    """Number of weight-sized tensors that a run stores: the final weights, and two checkpoints with weights, momentum,
    and averaged or selected weights."""
    per_checkpoint = 2 + (job.recipe.train.ema > 0) + (job.recipe.data.validation > 0)
    return 1 + 2 * per_checkpoint


def _views(job: Job) -> int:
    """Views of an image in this job's teacher tables; 0 if teacher logits are computed at every step."""
    return 0 if job.recipe.why_live else job.recipe.augment.view_count


def _see(by_seed: dict[int, int], job: Job) -> None:
    by_seed[job.seed] = max(by_seed.get(job.seed, 0), job.recipe.train.last_epoch)


def _distinct(by_seed: dict[int, int], views: int) -> float:
    """Expected number of distinct views drawn. Each seed draws its own views; students of one seed draw the same."""
    return views * (1 - (1 - 1 / views) ** sum(by_seed.values()))


def hours(seconds: float) -> str:
    """A duration with two digits and a unit: `3.5 h`."""
    for unit, name in ((86400 * 2, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            value = seconds / (86400 if name == "days" else unit)
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{math.ceil(seconds)} s"


def space(count: int) -> str:
    """Bytes in decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
    return f"{count} B"
