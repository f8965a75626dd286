"""What a run cost: its steps, what it had its teachers say, and the trainings of those teachers.

Teachers asked live answer within the steps (`train_seconds`); where tables hold their answers, a run's
`teacher_seconds` are what it spent on filling in what was missing and on reading. Both count as the run's own, so
that the two ways compare. What an earlier student of the same teacher filled in is not paid for again, which is the
table's gain: the first student bears it, and a table filled apart (`ghost teach fill`) stands in no record.

Invariant: amortised costs of the runs that teach nobody add up to all that was spent (where no record is lost).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ghostcli.compare.groups import Arm, finished
from ghostcli.records.model import RunResult
from ghostcli.records.record import RunRecord


@dataclass(frozen=True)
class Cost:
    """Training hours (no evaluation) on one device.

    `own`: the run alone, its teachers' answers included. `full`: with every training below it, each once, as if it
    had been the only student. `amortised`: each teacher's share divided among the finished runs that it taught.
    `trainings`: how many budgets `full` is made of, and `images` the training images that they saw in all. `whole` is
    False where a teacher's record is gone, and its hours with it.
    """

    own: float
    full: float
    amortised: float
    trainings: float
    images: float
    whole: bool = True


def costs(records: Iterable[RunRecord]) -> dict[str, Cost]:
    """Run id -> cost, for every finished run."""
    runs = {run.id: run.result for run in finished(records)[0]}
    hours = {name: _seconds(result) / 3600 for name, result in runs.items()}
    images = {name: result.epochs * result.train_images for name, result in runs.items()}
    direct = {name: tuple(teacher.run for teacher in result.teachers) for name, result in runs.items()}
    pupils = Counter(teacher for teachers in direct.values() for teacher in teachers)
    lineage: dict[str, frozenset[str]] = {}
    shares: dict[str, float] = {}

    def below(name: str) -> frozenset[str]:
        """All runs that `name` rests on, itself included; a lost record is named, and rests on nothing."""
        if name not in lineage:
            lineage[name] = frozenset({name})  # a record that names itself among its teachers ends here
            lineage[name] = frozenset({name}).union(*map(below, direct.get(name, ())))
        return lineage[name]

    def share(name: str) -> float:
        if name not in shares:
            shares[name] = hours.get(name, 0.0)
            shares[name] += sum(share(teacher) / pupils[teacher] for teacher in direct.get(name, ()))
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


def _seconds(result: RunResult) -> float:
    return result.train_seconds + result.teacher_seconds


def of_arm(arm: Arm, known: dict[str, Cost]) -> Cost:
    """The mean over an arm's seeds."""
    found = [known[run.id] for run in arm.runs]
    names = ("own", "full", "amortised", "trainings", "images")
    means = (sum(getattr(cost, name) for cost in found) / len(found) for name in names)
    return Cost(*means, whole=all(cost.whole for cost in found))
