"""Run groups (the seeds of one job) and cohorts (the run groups of one protocol, which may be compared).

Invariant: the runs of a group differ in their seeds only. The groups of a cohort have the same protocol and test
images.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from ghostcli.comparison.stats import Difference, Sample, Summary, difference, summarize
from ghostcli.paper import paper
from ghostcli.recipe.diff import teaching_changes, training_changes, typed
from ghostcli.recipe.models import Recipe
from ghostcli.records.model import Finding, RunResult, RunSetup, TeacherRun
from ghostcli.records.record import RunRecord
from ghostcli.zoo.names import is_own

#: `paper` and `published` differ only in their taught runs, so they share baselines.
SHARE_BASELINES = {"paper", "published"}
SMOOTHING = "train.label_smoothing"
#: Keys of [distill] that a row shows in another way, or that do not change a result.
SHOWN = {"kind", "temperature", "alpha", "dense", "weighting", "shuffle", "source", "blind"}

Item = TypeVar("Item")


@dataclass(frozen=True)
class RunGroup:
    """The finished and admitted runs of one job, by seed, and the `failed` runs, which became non-finite.

    `elsewhere`: seeds of the job that are in another group, since their weights started differently.
    """

    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...] = ()
    elsewhere: frozenset[int] = frozenset()

    @property
    def about(self) -> RunResult:
        """The result of the first run, for values that all runs share."""
        return self.runs[0].result

    @property
    def recipe(self) -> Recipe:
        return self.about.recipe

    @property
    def student(self) -> str:
        return self.about.student

    @property
    def strategy(self) -> str:
        return self.about.strategy

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.about.path

    @property
    def family(self) -> str:
        return self.about.family

    @property
    def blind(self) -> bool:
        """Whether it is a control, with teacher logits for another image of the same class."""
        return bool(self.teachers) and self.recipe.distill.blind

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(run.id for run in self.runs)

    @cached_property
    def setting(self) -> str:
        """The difference of its teaching from the paper's, in few words: `dkd T=4`."""
        kind = self.about.kind
        return " ".join([kind] * (kind not in (None, paper().source.kind)) + self._settings)

    @cached_property
    def _settings(self) -> list[str]:
        """Settings of its teaching, without the kind, that are neither the paper's nor shipped: `T=4`, `drop=1`."""
        if not self.teachers:
            return []
        distill, source = self.recipe.distill, paper().source
        values = {"T": (distill.temperature, source.temperature), "α": (distill.alpha, source.alpha)}
        words = [f"{sign}={ours:g}" for sign, (ours, theirs) in values.items() if ours != theirs]
        changes = teaching_changes(self.recipe, self.family)
        skipped = SHOWN if self.one_teacher else {*SHOWN, "teacher_seed"}
        words += [f"{key}={value}" for key, value in changes.items() if key not in skipped]
        return words + ["blind teachers"] * self.blind

    @property
    def method(self) -> str:
        """The name of its method: `plain`, `dkd`, `chain`, `dense hint`, `born-again`."""
        kind = self.about.kind or paper().source.kind
        if self.teachers and set(self.teachers) == {self.student} and self.strategy in ("kd", "chain"):
            name = "born-again"
        else:
            name = kind if self.strategy == "kd" else self.strategy
        return name if name in ("plain", kind) or kind == paper().source.kind else f"{name} {kind}"

    @property
    def how(self) -> str:
        """Its method and settings: `dkd T=4 α=0.1`."""
        return " ".join([self.method, *self._settings])

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Its training settings that differ from its family's shipped recipes, without data and budget."""
        return training_changes(self.recipe, self.family)

    @property
    def smoothing(self) -> float:
        """Label smoothing: the share of each label that is distributed over all classes."""
        return self.recipe.train.label_smoothing

    @property
    def steps(self) -> int:
        """Optimiser steps of one training."""
        return self.about.epochs * math.ceil(self.about.train_images / self.recipe.train.batch_size)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.result.seed for run in self.runs)

    @property
    def teacher_runs(self) -> tuple[str, ...] | None:
        """The ids of each run's teachers; None without teachers."""
        if not self.teachers:
            return None
        return tuple(" ".join(teacher.run for teacher in run.result.teachers) for run in self.runs)

    @property
    def lessons(self) -> frozenset[tuple[TeacherRun, ...]]:
        """The teachers of its runs."""
        return frozenset(run.result.teachers for run in self.runs)

    @property
    def teacher_count(self) -> int:
        """The number of different trainings of its teachers; 0 without teachers."""
        return len(set(self.teacher_runs or ()))

    @property
    def one_teacher(self) -> bool:
        """Whether all seeds had the same teachers."""
        return self.teacher_count == 1

    @property
    def missing(self) -> tuple[int, ...]:
        """Planned seeds without a result, so the plan is not complete (yet)."""
        planned = {seed for run in self.runs for seed in run.result.planned}
        return tuple(sorted(planned - {*self.seeds, *self.elsewhere, *(run.setup.seed for run in self.failed)}))

    @cached_property
    def correct(self) -> np.ndarray | None:
        """Whether each test image was classified correctly, bool [n, N]; None if the runs' test images differ."""
        if not all(run.result.tested_like(self.about) for run in self.runs):
            return None
        return np.stack([run.result.test.mask() for run in self.runs])

    def accuracy(self, metric: str = "selected") -> np.ndarray:
        """Test accuracies [n] in percent."""
        return np.array([getattr(run.result.accuracy, metric) for run in self.runs], dtype=np.float64)

    def summary(self, metric: str = "selected") -> Summary:
        return summarize(self.accuracy(metric))

    def minus(self, baseline: RunGroup, metric: str = "selected") -> Difference:
        """This group minus `baseline`. Test images are used only if both sides have the same, at the compared epoch."""
        both = (self, baseline)
        # The recorded answers on the test images are those of the selected epoch.
        scores = [run.result.accuracy for group in both for run in group.runs]
        same_epoch = all(getattr(score, f"{metric}_epoch") == score.selected_epoch for score in scores)
        same_images = self.about.tested_like(baseline.about)
        ours, theirs = (
            Sample(
                group.accuracy(metric),
                group.correct if same_epoch and same_images else None,
                group.teacher_runs,
                group.seeds,
            )
            for group in both
        )
        # Runs form pairs if equal seeds mean equal initial weights and order of images.
        starts = {(group.student, group.about.start, group.about.shuffled) for group in both}
        return difference(ours, theirs, paired=len(starts) == 1)

    @property
    def nll(self) -> float | None:
        """Mean negative log-likelihood on the test images, in nats; None if a run lacks it."""
        values = [run.result.nll for run in self.runs]
        return None if None in values else float(np.mean(values))

    @property
    def ece(self) -> float:
        """Expected calibration error, a fraction, mean over the runs."""
        return float(np.mean([run.result.test.ece for run in self.runs]))

    @property
    def agreement(self) -> dict[str, float]:
        """Percent of test images on which student and teacher agree, by teacher: mean over the runs that have it."""
        pairs = [pair for run in self.runs for pair in run.result.agreement.items() if pair[1] is not None]
        by_teacher = grouped(pairs, itemgetter(0))
        return {
            teacher: float(np.mean([percent for _, percent in agreements]))
            for teacher, agreements in by_teacher.items()
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings of the teaching check, each code once. A taught run that was not shuffled always has one."""
        warnings: dict[str, Finding] = {}
        for run in self.runs:
            for item in run.result.check:
                if item.level == "warn":
                    warnings.setdefault(item.code, item)
        if self.teachers and not self.about.shuffled:
            message = "the training images had the same order in every epoch"
            warnings.setdefault("unshuffled", Finding(code="unshuffled", level="warn", message=message))
        return tuple(warnings.values())


@dataclass(frozen=True)
class Cohort:
    """Run groups of one protocol on the same images."""

    groups: tuple[RunGroup, ...]

    @property
    def about(self) -> RunResult:
        return self.groups[0].about

    @property
    def families(self) -> str:
        """The families of its runs, such as `paper and published`, which share their training."""
        return " and ".join(sorted({group.family for group in self.groups}))

    @property
    def budget(self) -> int:
        """Training images of one training in total: epochs x images."""
        return max(group.about.epochs * group.about.train_images for group in self.groups)

    def describe(self) -> str:
        """Data, budget and differences from the shipped recipe, in a phrase."""
        soft = self.groups[0].smoothing
        smoothed = f"labels smoothed by {soft:g}" if soft else ""
        budget = budget_of(self.about.train_images, self.about.epochs)
        words = (self.about.data, budget, smoothed, with_changes(self.changes))
        return ", ".join(word for word in words if word)

    @cached_property
    def changes(self) -> dict[str, Any]:
        """Its training settings that differ from the nearest of its families, without data and budget."""
        return min((group.changes for group in self.groups), key=len)

    @cached_property
    def untaught(self) -> dict[str, list[RunGroup]]:
        """Student -> its groups without teachers, those with the least label smoothing first.

        There are several with mixing, and of a user's own network: one of each source.
        """
        plain = [group for group in self.groups if not group.teachers]
        return grouped(sorted(plain, key=lambda group: group.smoothing), lambda group: group.student)

    def baseline(self, group: RunGroup) -> RunGroup | None:
        """The untaught group of the same network; of another network by the same name, if there is no other."""
        there = self.untaught.get(group.student, [])
        return next((other for other in there if unlike(group, other) is None), there[0] if there else None)


def grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Key -> the items that have it, in their order."""
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def budget_of(images: int, epochs: int) -> str:
    return f"{images:,} images × {epochs} epoch{'s' * (epochs != 1)}"


def with_changes(changes: dict[str, Any]) -> str:
    """`with optim.lr=0.3`: the changes of a protocol, without label smoothing, which is shown separately."""
    values = {key: value for key, value in changes.items() if key != SMOOTHING}
    return f"with {typed(values)}" if values else ""


def unlike(group: RunGroup, other: RunGroup) -> str | None:
    """Why two groups of one student cannot be compared: another network by the same name, or another start."""
    ours, theirs, run = group.about, other.about, other.runs[0].id
    if theirs.parameters != ours.parameters:
        return f"{run} is another network by the same name: their parameters differ in number"
    if theirs.source != ours.source:
        return f"{run} is another network by the same name: their sources differ"
    if theirs.start != ours.start:
        return (
            f"its weights start as {ours.start}, those of {run} as {theirs.start}: "
            "runs with different starts are not compared"
        )
    return None


def same_conditions(about: RunResult) -> tuple[str, ...]:
    """Protocol (data, budget, training), images and choice of the epoch. Runs are comparable if these are equal."""
    return about.protocol, about.data_checksum, about.accuracy.selected_by


def members(teachers: tuple[str, ...], strategy: str) -> tuple[str, ...]:
    """The teachers in a form that can be compared: in order for a chain, sorted for an ensemble."""
    return teachers if strategy in ("chain", "dense") else tuple(sorted(teachers))


def job_of(about: RunSetup) -> tuple[Any, ...]:
    """A key that is equal for runs of one job.

    Runs without teachers do the same work if their protocols are equal, even if their digests differ (folded and plain
    branches). The exception is a user's own network, because only the digest contains its source.
    """
    identity = about.of_group if about.teachers or is_own(about.student) else about.protocol
    return about.student, about.strategy, members(about.path, about.strategy), identity


def of_family(runs: Sequence[RunRecord], family: str) -> list[RunRecord]:
    """The runs of a family: its own, and untaught runs of other families with a protocol that the family uses.

    `paper` and `published` differ only in their taught runs, so they always share baselines with shipped settings.
    """
    own = [run for run in runs if run.setup.family == family]
    protocols = {run.setup.protocol for run in own}

    def lent(run: RunRecord) -> bool:
        if run.setup.teachers or run.setup.family == family:
            return False
        shares = {run.setup.family, family} == SHARE_BASELINES
        return run.setup.protocol in protocols or (
            shares and training_changes(run.setup.recipe, family).keys() <= {SMOOTHING}
        )

    return own + [run for run in runs if lent(run)]


def cohorts(runs: Sequence[RunRecord], failed: Sequence[RunRecord] = ()) -> list[Cohort]:
    """One cohort per protocol.

    Runs of one job whose weights started differently are not pooled: a network whose ImageNet weights could not be had
    starts from scratch. `failed` runs go to the largest group of their job.
    """
    lost = grouped(failed, lambda run: job_of(run.setup))
    all_cohorts = []
    for together in grouped(runs, lambda run: same_conditions(run.result)).values():
        groups: list[RunGroup] = []
        for job, runs_of_job in grouped(together, lambda run: job_of(run.result)).items():
            starts = grouped(runs_of_job, lambda run: run.result.start).values()
            for place, seeds in enumerate(sorted(starts, key=len, reverse=True)):
                ordered = tuple(sorted(seeds, key=lambda run: (run.result.seed, run.id)))
                elsewhere = frozenset(run.result.seed for run in runs_of_job if run not in seeds)
                groups.append(RunGroup(ordered, tuple(lost.get(job, ())) if place == 0 else (), elsewhere))
        all_cohorts.append(Cohort(tuple(groups)))
    return all_cohorts


def largest(candidates: Iterable[tuple[Cohort, int]]) -> Cohort | None:
    """The cohort to show, of pairs with the rows it fills: with shipped settings if possible, then by budget, rows,
    runs and id.

    A larger budget than the paper's counts like the paper's, so one longer training does not displace a full table.
    """
    most = paper().source.budget

    def rank(candidate: tuple[Cohort, int]) -> tuple[Any, ...]:
        cohort, rows = candidate
        runs = sum(len(group.runs) for group in cohort.groups)
        return not cohort.changes, min(cohort.budget, most), rows, runs, cohort.about.run

    return max(candidates, key=rank, default=(None, 0))[0]
