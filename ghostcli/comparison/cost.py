"""The cost of a run: its training steps, its teachers' logits, and the trainings of these teachers.

Live logits are computed within the steps (`train_seconds`). With teacher tables, `teacher_seconds` is the time to fill
missing entries and to read. Both are part of the run's own cost, so the two ways can be compared. Entries that an
earlier student added to the table are not counted again. The time of `ghost teach fill` is in no record.

Invariant: the amortised costs of all runs without students add up to the total (if no record is missing).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ghostcli.comparison.groups import RunGroup
from ghostcli.records.record import RunRecord


@dataclass(frozen=True)
class Cost:
    """Training hours on one device, without evaluation.

    `own`: the run with its teachers' logits. `full`: also the trainings of all its teachers, each once. `amortised`:
    the cost of each teacher is divided among its finished students. `trainings`: the number of trainings in `full`, and
    `images` their training images in total. `whole` is False if the record of a teacher is missing; its hours are then
    not counted.
    """

    own: float
    full: float
    amortised: float
    trainings: float
    images: float
    whole: bool = True


def costs(records: Iterable[RunRecord]) -> dict[str, Cost]:
    """Run id -> cost, for every finished run."""
    runs = {run.id: run.result for run in records if run.result is not None}
    hours = {name: (result.train_seconds + result.teacher_seconds) / 3600 for name, result in runs.items()}
    images = {name: result.epochs * result.train_images for name, result in runs.items()}
    direct = {name: tuple(teacher.run for teacher in result.teachers) for name, result in runs.items()}
    students = Counter(teacher for teachers in direct.values() for teacher in teachers)
    lineage: dict[str, frozenset[str]] = {}
    shares: dict[str, float] = {}

    def below(name: str) -> frozenset[str]:
        """`name` and all runs below it (teachers, their teachers, ...). A missing record has no teachers."""
        if name not in lineage:
            lineage[name] = frozenset({name})  # ends the recursion for a record that names itself as a teacher
            lineage[name] = frozenset({name}).union(*map(below, direct.get(name, ())))
        return lineage[name]

    def share(name: str) -> float:
        if name not in shares:
            shares[name] = hours.get(name, 0.0)
            shares[name] += sum(share(teacher) / students[teacher] for teacher in direct.get(name, ()))
        return shares[name]

    return {
        name: Cost(
            own=hours[name],
            full=math.fsum(hours.get(run, 0.0) for run in below(name)),
            amortised=share(name),
            trainings=len(below(name)),
            images=sum(images.get(run, 0) for run in below(name)),
            whole=below(name) <= runs.keys(),
        )
        for name in runs
    }


def of_group(group: RunGroup, known: dict[str, Cost]) -> Cost:
    """The mean over a group's seeds."""
    seed_costs = [known[run.id] for run in group.runs]
    names = ("own", "full", "amortised", "trainings", "images")
    means = (sum(getattr(cost, name) for cost in seed_costs) / len(seed_costs) for name in names)
    return Cost(*means, whole=all(cost.whole for cost in seed_costs))
