"""Decides which runs a comparison may use.

Invariant: each refused run is listed with the reason. Times of files do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ghostcli.comparison import checked
from ghostcli.comparison.groups import grouped, job_of, same_conditions
from ghostcli.comparison.rows import LeftOut
from ghostcli.plan import Finished, Job
from ghostcli.recipe.digest import SEMANTICS
from ghostcli.recipe.models import Recipe
from ghostcli.records import trained
from ghostcli.records.contents import content_problems
from ghostcli.records.model import RunSetup
from ghostcli.records.record import RunRecord
from ghostcli.zoo import names

NON_FINITE = "non-finite"
#: Two networks with fewer errors, or fewer right answers, can make exactly the same errors by chance.
FEW = 10


@dataclass(frozen=True)
class Admitted:
    """`runs` may be compared. `failed` became non-finite; they are in `left_out` too, and are counted beside n."""

    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]
    left_out: tuple[LeftOut, ...]


def admit(records: Iterable[RunRecord]) -> Admitted:
    """Check each record alone, then against the other records of its job."""
    records = list(records)
    reasons = {run.id: reason for run in records if (reason := _why_unfinished(run))}
    reasons |= contradictions(records, for_table=True)
    for runs in grouped((run for run in records if run.id not in reasons), _job_and_conditions).values():
        reasons |= _second_records(runs)
    left_out = (
        LeftOut(run.id, reasons[run.id], run.setup.family if run.setup else "") for run in records if run.id in reasons
    )
    failed = (run for run in records if reasons.get(run.id) == NON_FINITE and run.setup)
    return Admitted(tuple(run for run in records if run.id not in reasons), tuple(failed), tuple(left_out))


def contradictions(records: Sequence[RunRecord], for_table: bool = False) -> dict[str, str]:
    """Run id -> why a finished run is not valid: its record contradicts itself, or another run of its job.

    `for_table`: records that were checked before and have not changed since are not read again, and the
    logits are compared with their checksum alone.
    """
    setups = {run.id: run.setup for run in records if run.setup}
    done = [run for run in records if run.status == "done"]

    def check(run: RunRecord) -> list[str]:
        return [*content_problems(run, whole=not for_table), *identity_problems(run, setups)]

    reasons = checked.problems(done, setups, check) if for_table else {r.id: p[0] for r in done if (p := check(r))}
    for runs in grouped((run for run in done if run.id not in reasons), _job_and_conditions).values():
        reasons |= _job_problems(runs)
    return reasons


def _job_and_conditions(run: RunRecord) -> tuple[Any, ...]:
    return *job_of(run.result), *same_conditions(run.result)


def _why_unfinished(run: RunRecord) -> str | None:
    match run.status:
        case "done":
            return None
        case "failed":
            return NON_FINITE if run.diverged else "failed"
        case "interrupted" | "running":
            return "unfinished"
        case _:
            return run.problem


def identity_problems(run: RunRecord, setups: dict[str, RunSetup]) -> list[str]:
    """Check that the recipe of a finished run gives its digests and protocol. `setups`: run id -> setup, for all runs.

    The digest depends on the teachers' digests, so it is only checked if the records of all teachers exist, or their
    weights are their digest (a network that comes with ghost). The digest of a user's own network depends on its
    source, which may have changed, so it is not checked.
    """
    about = run.result
    if about.semantics != SEMANTICS:
        return []
    digests = {t.run: (setups[t.run].digest, setups[t.run].of_group) for t in about.teachers if t.run in setups}
    digests |= {t.run: (t.weights, t.weights) for t in about.teachers if t.run.startswith(trained.PRETRAINED)}
    known = all(t.run in digests for t in about.teachers) and not names.is_own(about.student)
    teachers = tuple(
        Finished(t.run, t.network, t.seed, digest, (), about.classes, group)
        for t in about.teachers
        for digest, group in [digests.get(t.run, ("", ""))]
    )
    job = _job(about.student, about.recipe, teachers)
    if job.protocol != about.protocol or (
        known and (job.digest, job.group) != (about.digest, about.group or job.group)
    ):
        return ["its recipe does not give its digest: the recipe or the digest was changed"]
    if about.epochs != (expected := about.recipe.train.last_epoch):
        return [f"it has {about.epochs} epochs, its recipe says {expected}"]
    return []


@lru_cache(maxsize=1024)
def _job(student: str, recipe: Recipe, teachers: tuple[Finished, ...]) -> Job:
    """A job for its digests, which the seeds of a run group share."""
    return Job(student, 0, recipe, "", teachers)


def _job_problems(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Run id -> reason, for the runs of one job that contradict the others."""
    reasons: dict[str, str] = {}
    for same in grouped(runs, lambda run: run.result.digest).values():
        if len({tuple((t.run, t.seed) for t in run.result.teachers) for run in same}) > 1:
            reasons |= {run.id: "the runs of this job name different teachers under one digest" for run in same}
        elif len({tuple(t.weights for t in run.result.teachers) for run in same}) > 1:
            reasons |= {run.id: "the runs of this job had teachers of one id with different weights" for run in same}
    contents: dict[str, Callable[[RunRecord], Any]] = {
        "weights": lambda run: run.result.files.get("model.safetensors"),
        "predictions": lambda run: run.result.files.get("predictions.npz"),
        "errors on the test images": _errors,
    }
    for what, key in contents.items():
        for content, same in grouped(runs, key).items():
            if content is not None and len({run.result.seed for run in same}) > 1:
                if key is _errors and any(map(_collapsed, same)):
                    continue  # all networks that have (nearly) collapsed to one class make the same errors
                listed = " and ".join(run.id for run in same)
                reasons = {run.id: f"equal {what} under different seeds: {listed}" for run in same} | reasons
    return reasons


def _collapsed(run: RunRecord) -> bool:
    """Whether a network gives all test images one class. An older record says so with its logits alone."""
    if (answered := run.result.test.answered) is not None:
        return answered == 1
    predictions = run.predictions()
    return predictions is not None and len(set(predictions[0].argmax(axis=1).tolist())) == 1


def _second_records(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Run id -> reason, for all but one of several records with the same seed and teachers.

    The record of the digest with the most seeds counts. If that is not unique, the lowest id counts.
    """
    seeds = Counter(run.result.digest for run in runs)
    first: dict[Any, str] = {}
    reasons: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (-seeds[run.result.digest], run.id)):
        first_run = first.setdefault((run.result.seed, *(teacher.run for teacher in run.result.teachers)), run.id)
        if first_run != run.id:
            reasons[run.id] = f"a second record of one seed; {first_run} counts"
    return reasons


def _errors(run: RunRecord) -> tuple[str, str] | None:
    """The errors on the test images, if there are enough to identify a network."""
    answers = run.result.test
    right = int(answers.mask().sum())
    return (answers.labels, answers.correct) if min(right, answers.images - right) >= FEW else None
