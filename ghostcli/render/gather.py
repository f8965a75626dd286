"""Turns records and run groups into plain values for figures and reports.

Invariant: nothing is drawn here, and no file is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghostcli.comparison.cost import Cost, of_group
from ghostcli.comparison.groups import Cohort, RunGroup, grouped
from ghostcli.paper import label
from ghostcli.records.record import RunRecord


@dataclass(frozen=True)
class Curve:
    """Values by epoch of one run group: `values` [n, epochs]; `panel` is the title of its panel."""

    panel: str
    name: str
    values: np.ndarray
    baseline: bool = False

    @property
    def mean(self) -> np.ndarray:
        """The mean over the runs, by epoch."""
        return self.values.mean(axis=0)

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The lowest and the highest run, by epoch; None for one run."""
        return (self.values.min(axis=0), self.values.max(axis=0)) if len(self.values) > 1 else None

    def lowest(self, after: float) -> float:
        """The lowest value of any run after this share of the epochs."""
        return float(self.values[:, int(after * self.values.shape[1]) :].min())


@dataclass(frozen=True)
class Point:
    """A network at a cost: `error` is its standard deviation over seeds, or None."""

    name: str
    cost: float
    accuracy: float
    error: float | None = None
    series: str = ""


def curves(cohorts: Iterable[Cohort], ids: set[str] | None = None) -> list[Curve]:
    """The curves of the runs in `ids` (none: of every taught student) and of their baselines."""
    return [curve for cohort in cohorts for curve in _of_cohort(cohort, ids or set())]


def _of_cohort(cohort: Cohort, ids: set[str]) -> list[Curve]:
    named = {group: [run for run in group.runs if run.id in ids] for group in cohort.groups}
    students = {group.student for group in cohort.groups if (named[group] if ids else group.teachers)}
    if not ids and not students:
        students = {group.student for group in cohort.groups}
    cohort_curves = []
    for group in cohort.groups:
        runs = named[group] or (group.runs if not (ids and group.teachers) else [])
        accuracy = accuracies(runs) if group.student in students else None
        if accuracy is not None:
            name = taught_by(group) if group.teachers else "alone"
            panel = f"{label(group.student)}\n{cohort.families}: {cohort.describe()}"
            cohort_curves.append(Curve(panel, name, accuracy, baseline=not group.teachers))
    return cohort_curves


def accuracies(runs: Sequence[RunRecord]) -> np.ndarray | None:
    """Test accuracy [n, epochs] for the epochs that all runs have; None if there are none."""
    by_run = [[row["test"]["accuracy"] for row in run.metrics()] for run in runs]
    epochs = min(map(len, by_run), default=0)
    return np.array([curve[:epochs] for curve in by_run]) if epochs else None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an epoch's line by name: `test/accuracy`, `loss`, `lr`."""
    named: dict[str, float] = {}
    for key, value in row.items():
        for part, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if type(number) in (int, float) and key != "epoch" and math.isfinite(number):
                named[f"{key}/{part}" if part else key] = float(number)
    return named


def taught_by(group: RunGroup) -> str:
    """Teachers and method in few words, for a legend."""
    if len(group.teachers) == 1:
        return f"{label(group.teachers[0])}, {group.how}"
    if group.method.startswith("born-again"):
        return f"{group.how}, generation {len(group.teachers)}"
    several = group.strategy in ("ensemble", "adaptive")
    return f"{group.how}, " + (f"{len(group.teachers)} teachers" if several else f"from {label(group.teachers[0])}")


def panels(found: Iterable[Curve]) -> dict[str, list[Curve]]:
    """The title of each panel -> its curves, the best at the end of training first."""
    panels = grouped(found, lambda curve: curve.panel)
    return {panel: sorted(own, key=lambda curve: -curve.mean[-1]) for panel, own in panels.items()}


def most_groups(found: Sequence[Cohort]) -> Cohort | None:
    """The cohort that a front shows, that with the most groups: other images or budgets cannot share its axis."""
    return max(found, key=lambda one: (len(one.groups), one.budget), default=None)


def points(cohort: Cohort, known: dict[str, Cost], hours: bool = False) -> list[Point]:
    """Accuracy of each group against its parameters in millions (with `hours`: the hours of all its trainings)."""
    group_points = []
    for group in cohort.groups:
        ours = group.summary()
        spent = of_group(group, known).full if hours else group.about.parameters / 1e6
        group_points.append(Point(label(group.student), spent, ours.mean, ours.sd, group.method))
    return group_points


#: `hours` of `points` -> the label of the axis.
AXES = {False: "Parameters, train form (millions)", True: "Training hours, teachers included"}


def pareto(found: Sequence[Point]) -> list[Point]:
    """The Pareto front by rising cost: points with a higher accuracy than all points of equal or lower cost."""
    front: list[Point] = []
    for point in sorted(found, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front
