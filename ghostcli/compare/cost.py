"""What a run cost: its training steps, its teachers' answers, and the trainings of those teachers.

Teachers that answer live do so within the steps (`train_seconds`). With teacher tables, `teacher_seconds` is the time
to fill what was missing and to read. Both count as the run's own cost, so the two ways can be compared. Logits that
an earlier student of the same teacher put into the table are not paid for again. A table that `ghost teach fill` made
is in no record.

Invariant: the amortised costs of all runs that teach nobody add up to the total (where no record is lost).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ghostcli.compare.groups import RunGroup
from ghostcli.records.record import RunRecord


@dataclass(frozen=True)
class Cost:
    """Training hours on one device, without evaluation.

    `own`: the run alone, with its teachers' answers. `full`: with every training below it, each once.
    `amortised`: each teacher's cost is divided among the finished runs that it taught. `trainings`: how many
    trainings `full` counts, and `images` the training images that they saw together. `whole` is False where the
    record of a teacher is gone, and its hours with it.
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
        """All runs that `name` rests on, with itself. A lost record is named, and rests on nothing."""
        if name not in lineage:
            lineage[name] = frozenset({name})  # a record that names itself among its teachers ends here
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
            full=sum(hours.get(run, 0.0) for run in below(name)),
            amortised=share(name),
            trainings=len(below(name)),
            images=sum(images.get(run, 0) for run in below(name)),
            whole=below(name) <= runs.keys(),
        )
        for name in runs
    }


def of_group(group: RunGroup, known: dict[str, Cost]) -> Cost:
    """The mean over a group's seeds."""
    found = [known[run.id] for run in group.runs]
    names = ("own", "full", "amortised", "trainings", "images")
    means = (sum(getattr(cost, name) for cost in found) / len(found) for name in names)
    return Cost(*means, whole=all(cost.whole for cost in found))
