"""The results of a comparison: tables of rows, and the runs that were left out.

Invariant: frozen values only. `compare/tables.py` creates them and `render/` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ghostcli.compare.groups import Cohort, Finding, RunGroup
from ghostcli.compare.stats import Difference, Summary
from ghostcli.paper import PaperRow, paper
from ghostcli.plan.commands import RUNS

MARGIN = 0.3


@dataclass(frozen=True)
class LeftOut:
    """A run that is in no row, with the reason. `family` is empty if its recipe is unreadable."""

    run: str
    reason: str
    family: str = ""


@dataclass(frozen=True)
class Control:
    """The same training with image-blind teachers (`distill.blind=true`), made by `command`.

    All other fields are None if it was not run. `delta`: the taught row minus the control. `p_adjusted`, `verdict` and
    `finds` are set for the whole answer (see `Row`).
    """

    command: str
    group: RunGroup | None = None
    ours: Summary | None = None
    delta: Difference | None = None
    p_adjusted: float | None = None
    verdict: str | None = None
    finds: float | None = None


@dataclass(frozen=True)
class Row:
    """One row. `printed` is None if the paper has no such row. `group` is None if it has no runs.

    `delta`: the row minus its baseline. `missing_baseline`: why there is no baseline. `command` makes the row's runs.
    `finds`: the smallest true difference, in points, that this design calls better or worse with 80 % probability.
    `mixed`: facts of the environment that differ between the compared runs. `looks`: earlier readings with fewer runs,
    as (runs of the row, runs of its baseline). `name` is unique in its table.
    """

    student: str
    strategy: str
    teachers: tuple[str, ...]
    parameters: int | None
    printed: PaperRow | None = None
    group: RunGroup | None = None
    ours: Summary | None = None
    baseline: RunGroup | None = None
    delta: Difference | None = None
    p_adjusted: float | None = None
    verdict: str | None = None
    finds: float | None = None
    findings: tuple[Finding, ...] = ()
    mixed: tuple[str, ...] = ()
    looks: tuple[tuple[int, int], ...] = ()
    command: str | None = None
    missing_baseline: str | None = None
    control: Control | None = None
    name: str = ""

    @property
    def taught(self) -> bool:
        return bool(self.teachers)


@dataclass(frozen=True)
class Options:
    """Options of a table: `metric` is selected or best; `margin` is in points of accuracy.

    `equal_budget`: baselines are untaught runs with as many training images as the taught run and all trainings below
    it in total. `runs`: the runs folder for the printed commands.
    """

    metric: str = "selected"
    margin: float = MARGIN
    mixed: bool = False
    equal_budget: bool = False
    runs: Path = RUNS


@dataclass(frozen=True)
class Table:
    """A table for the protocol of one family. `cohort` is None if no run of the family is in one of its rows.

    `command` makes the runs of all rows.
    """

    name: str
    title: str
    family: str
    rows: tuple[Row, ...]
    options: Options
    cohort: Cohort | None = None
    left_out: tuple[LeftOut, ...] = ()
    command: str = ""

    @property
    def filled(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.ours is not None)

    @property
    def full_budget(self) -> bool:
        return self.cohort is None or self.cohort.mixed or self.cohort.budget >= paper().source.budget
