"""Which runs may stand side by side: finished runs, gathered into arms (seeds of one job) and groups (one protocol).

Invariant: the runs of an arm differ in nothing but the seed, and the arms of a group were trained and tested on
the same images under the same protocol. Every run that is set aside leaves its name and the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ghostcli.compare.stats import Difference, Sample, Summary, difference, summarize
from ghostcli.paper import paper
from ghostcli.recipe.diff import departures, own_teaching, own_values, typed
from ghostcli.records.model import RunResult
from ghostcli.records.record import RunRecord

#: What stands in a table: `selected` (last epoch, or the one chosen on validation) or `best` (on the test set).
METRICS = ("selected", "best")
SHARE_BASELINES = {"paper", "published"}
SMOOTHING = "train.label_smoothing"
#: Keys of [distill] that a row says otherwise, or that no result follows from.
SHOWN = {"kind", "temperature", "alpha", "dense", "weighting", "shuffle", "source"}


@dataclass(frozen=True)
class LeftOut:
    """A run that stands in no row, and why. `family` is empty where its recipe could not be read."""

    run: str
    reason: str
    family: str = ""


@dataclass(frozen=True)
class Finding:
    """A warning of the teaching check: `code` names it, `message` is its line."""

    code: str
    message: str


@dataclass(frozen=True)
class Arm:
    """The seeds of one job, in order of seed."""

    runs: tuple[RunRecord, ...]

    @cached_property
    def about(self) -> RunResult:
        """The record of its first run, for what its runs share."""
        return self.runs[0].result

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Its resolved recipe, section by section."""
        return self.about.recipe.model_dump(mode="json")

    @property
    def student(self) -> str:
        return self.about.student

    @property
    def strategy(self) -> str:
        return self.about.strategy

    @property
    def teachers(self) -> tuple[str, ...]:
        return self.about.path

    @cached_property
    def setting(self) -> str:
        """What sets its teaching apart from the paper's, in few words: `dkd T=4`."""
        kind = self.about.kind
        return " ".join([kind] * (kind not in (None, paper().source.kind)) + self._switches)

    @cached_property
    def _switches(self) -> list[str]:
        """The values of its teaching, the kind aside, that are not the paper's or its recipe's: `T=4`, `drop=1`."""
        distill, source = self.recipe["distill"], paper().source
        if not self.teachers:
            return []
        signs = {"temperature": "T", "alpha": "α"}
        words = [
            f"{sign}={distill[key]:g}"
            for key, sign in signs.items()
            if distill.get(key, getattr(source, key)) != getattr(source, key)
        ]
        own = own_teaching(distill, self.about.family)
        return words + [f"{key}={value}" for key, value in own.items() if key not in SHOWN]

    @property
    def way(self) -> str:
        """Who teaches how, by the name of the method: `plain`, `dkd`, `chain`, `dense hint`, `born-again`."""
        kind = self.about.kind or paper().source.kind
        if self.teachers and set(self.teachers) == {self.student} and self.strategy in ("kd", "chain"):
            name = "born-again"
        else:
            name = kind if self.strategy == "kd" else self.strategy
        return name if name in ("plain", kind) or kind == paper().source.kind else f"{name} {kind}"

    @property
    def how(self) -> str:
        """Its way and what it is set to: `dkd T=4 α=0.1`."""
        return " ".join([self.way, *self._switches])

    @cached_property
    def departs(self) -> dict[str, Any]:
        """Where its training is not what its family ships, beyond data and budget."""
        return own_values(self.recipe, self.about.family)

    @property
    def smoothing(self) -> float:
        """The share of its labels that is spread over all classes."""
        return self.about.recipe.train.label_smoothing

    @property
    def newest(self) -> float:
        return max(_written(run) for run in self.runs)

    @cached_property
    def answers(self) -> tuple[np.ndarray, str] | None:
        """Correctness [n, N] and the labels' checksum; None where a run has none or other test images."""
        tests = [run.result.test for run in self.runs]
        masks = [test.mask() if test else None for test in tests]
        if any(mask is None for mask in masks) or len({test.labels for test in tests}) > 1:
            return None
        return np.stack(masks), tests[0].labels

    def correct(self, metric: str = "selected") -> tuple[np.ndarray, str] | None:
        """Its answers where they are of `metric`'s epoch in every run: what is kept is the selected epoch's."""
        epochs = (run.result.accuracy for run in self.runs)
        same = all(getattr(found, f"{metric}_epoch") == found.selected_epoch for found in epochs)
        return self.answers if same else None

    def accuracy(self, metric: str = "selected") -> np.ndarray:
        return np.array([getattr(run.result.accuracy, metric) for run in self.runs], dtype=np.float64)

    def summary(self, metric: str = "selected") -> Summary:
        return summarize(self.accuracy(metric))

    def minus(self, baseline: Arm, metric: str = "selected") -> Difference:
        """This arm against `baseline`; test images count only where both saw the same, at the epoch compared."""
        ours, theirs = self.correct(metric), baseline.correct(metric)
        paired = ours is not None and theirs is not None and ours[1] == theirs[1]
        return difference(
            Sample(self.accuracy(metric), ours[0] if paired else None),
            Sample(baseline.accuracy(metric), theirs[0] if paired else None),
        )

    def mean(self, key: str) -> float | None:
        """Mean over its runs of a number in result.json; None where a run lacks it."""
        values = [getattr(run.result, key) for run in self.runs]
        return None if any(value is None for value in values) else float(np.mean(values))

    @property
    def steps(self) -> int:
        """Optimiser steps of one training."""
        return self.about.epochs * math.ceil(self.about.train_images / self.about.recipe.train.batch_size)

    @cached_property
    def ece(self) -> float | None:
        """Expected calibration error, a fraction, meaned over its runs; None where one has no predictions."""
        tests = [run.result.test for run in self.runs]
        return None if any(test is None for test in tests) else float(np.mean([test.ece for test in tests]))

    @property
    def agreement(self) -> dict[str, float]:
        """Percent of test images on which student and teacher agree, over the runs that say.

        By the teacher's network, or by its run's id where several teachers are one network.
        """
        values: dict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            for teacher, percent in run.result.agreement.items():
                if percent is not None:
                    values[teacher].append(percent)
        return {teacher: float(np.mean(percents)) for teacher, percents in values.items()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the teaching check warned of; a taught run that was not shuffled is always among them."""
        found: dict[str, str] = {}
        for run in self.runs:
            for item in run.result.check:
                if item.level not in ("ok", "pass", "info"):
                    found.setdefault(item.code, item.message)
        if self.teachers and not self.about.shuffled:
            found.setdefault("unshuffled", "the training images came in the same order every epoch")
        return tuple(Finding(code, message) for code, message in found.items())


@dataclass(frozen=True)
class Group:
    """Arms of one protocol on the same images (or of several, where mixing was allowed)."""

    arms: tuple[Arm, ...]
    mixed: bool = False

    @property
    def about(self) -> RunResult:
        return self.arms[0].about

    @property
    def families(self) -> str:
        """Whose runs they are: `paper and published` train alike and teach otherwise."""
        return " and ".join(sorted({arm.about.family for arm in self.arms}))

    @property
    def budget(self) -> int:
        """Images seen in one training."""
        return max(arm.about.epochs * arm.about.train_images for arm in self.arms)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.arms[0].recipe

    def describe(self) -> str:
        about = self.about
        if self.mixed:
            return "mixed protocols"
        soft = self.arms[0].smoothing
        words = (about.data, budget_of(about), f"labels smoothed by {soft:g}" if soft else "", own(self.departs))
        return ", ".join(word for word in words if word)

    @cached_property
    def departs(self) -> dict[str, Any]:
        """Where its protocol is not what a family ships of which it has runs, beyond data and budget."""
        return min((arm.departs for arm in self.arms), key=len)

    def baseline(self, student: str) -> Arm | None:
        """The untaught arm; of several, which only mixing allows, that of the least smoothed labels."""
        untaught = [arm for arm in self.arms if arm.student == student and not arm.teachers]
        return min(untaught, key=lambda arm: arm.smoothing, default=None)

    @property
    def only_controls(self) -> bool:
        """Whether nothing in it was taught and all labels are smoothed."""
        return all(arm.smoothing > 0 and not arm.teachers for arm in self.arms)


def budget_of(result: RunResult) -> str:
    epochs = result.epochs
    return f"{result.train_images:,} images × {epochs} epoch{'s' * (epochs != 1)}"


def own(departs: dict[str, Any]) -> str:
    """`with optim.lr=0.3`: what a protocol must say besides its budget; smoothed labels have words of their own."""
    values = {key: value for key, value in departs.items() if key != SMOOTHING}
    return f"with {typed(values)}" if values else ""


def finished(records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[LeftOut]]:
    """Runs with a whole, finite result, and the others with what is wrong with each."""
    good, bad = [], []
    for record in records:
        reason = _unfit(record)
        good.append(record) if reason is None else bad.append(
            LeftOut(record.id, reason, record.setup.family if record.setup else "")
        )
    return good, bad


def _unfit(record: RunRecord) -> str | None:
    if record.problem is not None or record.result is None:
        problem = record.problem or "no result"
        if record.status == "failed":
            return "non-finite" if "finite" in problem else "failed"
        return "unfinished" if record.status in ("interrupted", "running") else problem
    values = [getattr(record.result.accuracy, metric) for metric in METRICS]
    return None if all(map(math.isfinite, values)) else "non-finite"


def same_conditions(result: RunResult) -> tuple[str, str]:
    """Runs may be compared where this is equal: the protocol (data, budget, training) and the images' checksum."""
    return result.protocol, result.data_checksum


def of_family(runs: Sequence[RunRecord], family: str) -> list[RunRecord]:
    """The runs that count for a family: its own, and untaught runs of any other under a protocol of its own.

    `paper` and `published` differ in what taught runs do, so baselines of their shipped training are always shared.
    """
    own = [run for run in runs if run.result.family == family]
    protocols = {same_conditions(run.result) for run in own}

    def lent(run: RunRecord) -> bool:
        if run.result.teachers or run.result.family == family:
            return False
        shares = {run.result.family, family} == SHARE_BASELINES
        return same_conditions(run.result) in protocols or (
            shares and own_values(run.result.recipe.model_dump(mode="json"), family).keys() <= {SMOOTHING}
        )

    return own + [run for run in runs if lent(run)]


def groups(runs: Sequence[RunRecord], mixed: bool = False) -> list[Group]:
    """One group a protocol; all in one where mixing is allowed, the arms then pooled over recipes too.

    Untaught runs on labels smoothed otherwise are pooled in no case: they are one another's controls.
    """
    together: dict[Any, dict[Any, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        result = run.result
        # Untaught runs of one protocol do the same work even where digests differ (folded and plain branches).
        job = (
            result.student,
            result.strategy,
            members(result.strategy, result.path),
            result.digest if result.teachers else "",
        )
        if mixed:
            job = (*job[:3], None if result.teachers else result.recipe.train.label_smoothing)
        together[None if mixed else same_conditions(result)][job].append(run)
    return [Group(tuple(_arm(seeds) for seeds in jobs.values()), mixed) for jobs in together.values()]


def _arm(runs: list[RunRecord]) -> Arm:
    """One run a seed and digest, the newest, in order of seed."""
    by_seed: dict[Any, RunRecord] = {}
    taught = bool(runs[0].result.teachers)
    for run in sorted(runs, key=_written):
        by_seed[run.result.seed, run.result.digest if taught else run.result.protocol] = run
    return Arm(tuple(sorted(by_seed.values(), key=lambda run: (run.result.seed, run.id))))


def _written(run: RunRecord) -> float:
    try:
        return (run.path / "result.json").stat().st_mtime
    except OSError:
        return 0.0


def members(strategy: str, teachers: Sequence[str]) -> tuple[str, ...]:
    """The teachers as an identity: in order down a chain, in any order in an ensemble."""
    return tuple(teachers if strategy in ("chain", "dense") else sorted(teachers))


def trained_apart(a: Arm, b: Arm) -> set[str]:
    """The keys in which the trainings of two arms differ: what a teacher alone or no result follows from aside."""
    from ghostcli.recipe.models import UNDIGESTED

    keys = {*departures(a.recipe, b.recipe), *departures(b.recipe, a.recipe)} - UNDIGESTED - {"engine.branches"}
    return {key for key in keys if not key.startswith("distill.")}


def largest(candidates: Iterable[Group], rows: Callable[[Group], int]) -> Group | None:
    """A group trained as its recipe ships before any other; then by budget up to the paper's, rows and age.

    Mere controls come after what has the same budget.

    What goes beyond the paper's budget counts no more than it: a lone longer training displaces no full table.
    """
    most = paper().source.budget

    def rank(group: Group) -> tuple[bool, int, bool, int, float]:
        newest = max(arm.newest for arm in group.arms)
        return not group.departs, min(group.budget, most), not group.only_controls, rows(group), newest

    return max(candidates, key=rank, default=None)
