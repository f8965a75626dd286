"""The results of a comparison: tables of rows, and the runs that were left out.

Invariant: frozen values only. `comparison/tables.py` creates them and `render/` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostcli.comparison.groups import Cohort, Finding, RunGroup
from ghostcli.comparison.stats import Difference, Summary
from ghostcli.paper import PaperRow, paper
from ghostcli.plan import commands

MARGIN = 0.3


@dataclass(frozen=True)
class LeftOut:
    """A run that is in no row, with the reason. `family` is empty if its recipe is unreadable."""

    run: str
    reason: str
    family: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run group and its comparison. `group` and `ours` are None if there are no runs.

    `finds`: the smallest true difference, in points, that this design calls better or worse with 80 % probability. It,
    `p_adjusted` and `verdict` are set for the whole answer.
    """

    group: RunGroup | None = None
    ours: Summary | None = None
    delta: Difference | None = None
    p_adjusted: float | None = None
    verdict: str | None = None
    finds: float | None = None


@dataclass(frozen=True)
class Control(Line):
    """The same training with image-blind teachers (`distill.blind=true`), made by `command`.

    `delta`: the taught row minus the control.
    """

    command: str


@dataclass(frozen=True)
class Row(Line):
    """One row. `printed` is None if the paper has no such row.

    `delta`: the row minus its baseline. `missing_baseline`: why there is no baseline. `command` makes the row's runs.
    `mixed`: facts of the environment that differ between the compared runs. `looks`: earlier readings with fewer runs,
    as (runs of the row, runs of its baseline). `name` is unique in its table. `differs`: in a table of runs that the
    user chose, what differs from the baseline: key -> (value of the baseline, value of the row).
    """

    student: str
    strategy: str
    teachers: tuple[str, ...]
    parameters: int
    printed: PaperRow | None = None
    baseline: RunGroup | None = None
    findings: tuple[Finding, ...] = ()
    mixed: tuple[str, ...] = ()
    looks: tuple[tuple[int, int], ...] = ()
    command: str | None = None
    missing_baseline: str | None = None
    control: Control | None = None
    name: str = ""
    differs: dict[str, tuple[Any, Any]] | None = None

    @property
    def taught(self) -> bool:
        return bool(self.teachers)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The row, and its control if that was run."""
        return (self, self.control) if self.control and self.control.group else (self,)

    @property
    def comparisons(self) -> tuple[tuple[Line, RunGroup], ...]:
        """Each difference of this row that is known, and the group it is from: its baseline, its control."""
        pairs = ((self, self.baseline), (self.control, self.control and self.control.group))
        return tuple((line, other) for line, other in pairs if line and line.delta and other)


@dataclass(frozen=True)
class Options:
    """Options of a table: `metric` is selected or best; `margin` is in points of accuracy.

    `equal_budget`: baselines are untaught runs with as many training images as the taught run and all trainings below
    it in total. `runs`: the runs folder for the printed commands.
    """

    metric: str = "selected"
    margin: float = MARGIN
    equal_budget: bool = False
    runs: Path = commands.RUNS


@dataclass(frozen=True)
class Table:
    """A table for the protocol of one family. `cohort` is None if no run of the family is in one of its rows.

    `baseline`: what each row is compared with, in words.
    """

    name: str
    title: str
    family: str
    rows: tuple[Row, ...]
    options: Options
    cohort: Cohort | None = None
    left_out: tuple[LeftOut, ...] = ()
    baseline: str = "the same student and protocol without a teacher"

    @property
    def command(self) -> str:
        """The command for the runs of all rows of a printed table."""
        return commands.line("reproduce", self.name, "--family", self.family, runs=self.options.runs)

    @property
    def filled(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.ours is not None)

    @property
    def full_budget(self) -> bool:
        return self.cohort is None or self.cohort.budget >= paper().source.budget
