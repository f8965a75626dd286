"""The paper's tables with our numbers beside the printed ones, as values; how they look is formats.py's.

Invariant: every row of the paper is there, in its order, whether or not a run fills it; every delta is against
the untaught arm of the same student, protocol and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ghostcli.compare import control as controls
from ghostcli.compare import groups as runs_of
from ghostcli.compare.commands import RUNS, baseline_of, fills, reproduces
from ghostcli.compare.control import Control
from ghostcli.compare.cost import Cost, costs, of_arm
from ghostcli.compare.groups import Arm, Finding, Group, LeftOut
from ghostcli.compare.labels import names
from ghostcli.compare.match import fits, may_fit, most_telling
from ghostcli.compare.stats import Difference, Summary
from ghostcli.compare.verdicts import judge
from ghostcli.paper import FAMILIES, PaperRow, paper
from ghostcli.recipe.diff import differing, own_values
from ghostcli.records.record import RunRecord

MARGIN = 0.3


@dataclass(frozen=True)
class Row:
    """One line. `printed` is None for what the paper has no row for; `arm` is None where nothing was run.

    `control` is there where there is a baseline, be it to say which command makes one. `name` is its alone in its
    table.
    """

    student: str
    strategy: str
    teachers: tuple[str, ...]
    parameters: int | None
    printed: PaperRow | None = None
    arm: Arm | None = None
    ours: Summary | None = None
    delta: Difference | None = None
    p_adjusted: float | None = None
    verdict: str | None = None
    findings: tuple[Finding, ...] = ()
    command: str | None = None
    missing_baseline: str | None = None
    control: Control | None = None
    name: str = ""

    @property
    def taught(self) -> bool:
        return bool(self.teachers)


@dataclass(frozen=True)
class Table:
    """A table under one family's protocol. `group` is None where no run of the family fills a row of it.

    `whole` is the command that fills all of it.
    """

    name: str
    title: str
    family: str
    rows: tuple[Row, ...]
    group: Group | None = None
    left_out: tuple[LeftOut, ...] = ()
    margin: float = MARGIN
    metric: str = "selected"
    mixed: bool = False
    equal_budget: bool = False
    whole: str = ""

    @property
    def filled(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.ours is not None)

    @property
    def full_budget(self) -> bool:
        return self.group is None or self.mixed or self.group.budget >= paper().source.budget


@dataclass(frozen=True)
class Options:
    """How runs become numbers: `metric` is selected or best, `margin` in points of accuracy.

    `equal_budget`: baselines are untaught runs that saw as many training images as the taught run and all the
    trainings below it together. `runs` is where commands are to put what is missing.
    """

    metric: str = "selected"
    margin: float = MARGIN
    mixed: bool = False
    equal_budget: bool = False
    runs: Path = RUNS


@dataclass(frozen=True)
class Baselines:
    """Finds what a taught arm is compared with. `spent` is None where budgets are a run's own."""

    groups: tuple[Group, ...]
    spent: dict[str, Cost] | None
    runs: Path = RUNS

    def of(self, arm: Arm, group: Group) -> tuple[Arm | None, str | None]:
        """The baseline of `arm`, a member of `group`; where there is none, why, or the command that makes it."""
        if self.spent is None:
            found = group.baseline(arm.student)
            return found, None if found else f"`{baseline_of(arm, arm.about.epochs, runs=self.runs)}` makes it"
        spent = of_arm(arm, self.spent)
        if not spent.whole:
            return None, f"{arm.runs[0].id} had teachers whose records are gone, so its whole budget is unknown"
        epochs = round(spent.images / arm.about.train_images)
        for other in self.groups:
            found = other.baseline(arm.student)
            if found and found.about.epochs == epochs and _same_but_epochs(found, arm):
                return found, None
        return None, f"`{baseline_of(arm, epochs, runs=self.runs)}` makes it"


def _same_but_epochs(a: Arm, b: Arm) -> bool:
    same_images = a.about.data_checksum == b.about.data_checksum
    return same_images and runs_of.trained_apart(a, b) <= {"train.epochs"}


def families(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """The families with a finished run that fills a printed row; `paper` where there is none."""
    good, _ = runs_of.finished(records)
    there = {run.result.family for run in good if any(fits(run.result, row) for row in paper().rows)}
    return tuple(family for family in FAMILIES if family in there) or ("paper",)


def build(name: str, records: Sequence[RunRecord], family: str, options: Options = Options()) -> Table:
    """Table `name` (I to IV) from the runs of one family. UsageError where the paper has no such table."""
    printed = paper().table(name)
    good, bad = runs_of.finished(records)
    pool = runs_of.of_family(good, family)
    wanted = [run for run in pool if any(fits(run.result, row) for row in printed.rows)]
    found = runs_of.groups(pool, options.mixed)
    baselines = Baselines(tuple(found), costs(records) if options.equal_budget else None, options.runs)

    def fill(group: Group) -> int:
        return sum(any(fits(arm.about, row) for arm in group.arms) for row in printed.rows)

    group = runs_of.largest([group for group in found if fill(group)], fill)
    rows, aside = [], _others(wanted, group)
    for row in printed.rows:
        line, left = _row(row, group, family, options, baselines)
        rows.append(line)
        aside += left
    unfit = [out for out in bad if out.family in ("", family)]
    aside += [out for out in unfit if any(may_fit(out.run, row) for row in printed.rows)]
    return Table(
        printed.name,
        printed.title,
        family,
        with_names(judged(rows, options.margin)),
        group,
        tuple(sorted(set(aside), key=lambda out: (out.reason, out.run))),
        options.margin,
        options.metric,
        options.mixed,
        options.equal_budget,
        reproduces(printed.name, family, options.runs),
    )


def _row(
    row: PaperRow, group: Group | None, family: str, options: Options, baselines: Baselines
) -> tuple[Row, list[LeftOut]]:
    command = fills(row, family, group, options.runs)
    empty = Row(row.student, row.strategy, row.teachers, row.parameters, row, command=command)
    if group is None:
        return empty, []
    baseline = group.baseline(row.student)
    fitting = most_telling([arm for arm in group.arms if fits(arm.about, row)], family, row)
    if not options.mixed and family != "published":
        unlike = [arm for arm in fitting if _shuffled_otherwise(arm, baseline)]
        left = _left(unlike, "not shuffled, while its baseline is")
        fitting = [arm for arm in fitting if arm not in unlike]
    else:
        left = []
    if not fitting:
        return empty, left
    shown, *others = fitting
    for arm in others:
        changed = differing(arm.recipe, shown.recipe)
        left += _left([arm], f"another recipe for the same row ({changed or 'its teachers differ'})")
    seen = measured(shown, group, options, baselines)
    return replace(seen, teachers=row.teachers, parameters=row.parameters, printed=row, command=command), left


def measured(arm: Arm, group: Group, options: Options, baselines: Baselines) -> Row:
    """A row of what an arm reached and, where it was taught and its baseline is there, what teaching changed."""
    baseline, missing = baselines.of(arm, group) if arm.teachers else (None, None)
    return Row(
        arm.student,
        arm.strategy,
        arm.teachers,
        arm.about.parameters,
        arm=arm,
        ours=arm.summary(options.metric),
        delta=arm.minus(baseline, options.metric) if baseline else None,
        findings=arm.findings,
        missing_baseline=missing,
        control=controls.of(arm, baseline, baselines.groups, options.metric, options.runs) if baseline else None,
    )


def judged(rows: Sequence[Row], margin: float) -> tuple[Row, ...]:
    """The rows and their controls with verdicts, corrected over all of them together."""
    compared: list[Row | Control | None] = [*rows, *(row.control for row in rows)]
    verdicts = judge([it.delta if it else None for it in compared], margin)
    done = [
        replace(it, p_adjusted=found.p, verdict=found.verdict) if it and it.delta else it
        for it, found in zip(compared, verdicts, strict=True)
    ]
    return tuple(
        replace(row, control=against) for row, against in zip(done[: len(rows)], done[len(rows) :], strict=True)
    )


def with_names(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(replace(row, name=name) for row, name in zip(rows, names(rows), strict=True))


def also_run(
    records: Sequence[RunRecord],
    shown: Sequence[Table],
    options: Options = Options(),
    only: Sequence[str] = FAMILIES,
) -> Table | None:
    """The arms of `only` these families that no printed row has a place for, or that lost it to another recipe.

    None if there are none. Each is compared with the baseline of its own protocol, so rows here need not be
    comparable to one another.
    """
    good, bad = runs_of.finished(records)
    placed = {run.id for table in shown for row in table.rows if row.arm for run in row.arm.runs}
    elsewhere = {out.run for table in shown for out in table.left_out if not out.reason.startswith("another recipe")}
    rows = []
    found = runs_of.groups(good)
    baselines = Baselines(tuple(found), costs(records) if options.equal_budget else None, options.runs)
    for group in found:
        for arm in group.arms:
            ids = {run.id for run in arm.runs}
            if arm.about.family in only and not ids & (placed | elsewhere):
                rows.append(measured(arm, group, options, baselines))
    named = {out.run for table in shown for out in table.left_out}
    left = tuple(out for out in bad if out.run not in named and (out.family or only[0]) in only)
    if not rows and not left:
        return None
    rows.sort(key=lambda row: (row.arm.about.data, FAMILIES.index(row.arm.about.family), row.taught, row.student))
    title = "Runs that no row of the paper stands for"
    table = Table("also run", title, "any", with_names(judged(rows, options.margin)), None, left)
    return replace(table, margin=options.margin, metric=options.metric, equal_budget=options.equal_budget)


def _others(wanted: Sequence[RunRecord], group: Group | None) -> list[LeftOut]:
    """Runs that would fill a row but were made under another protocol than the one shown."""
    if group is None or group.mixed:
        return []
    shown = runs_of.same_conditions(group.about)
    out = []
    for run in wanted:
        result = run.result
        if runs_of.same_conditions(result) != shown:
            budget = runs_of.budget_of(result)
            recipe = result.recipe.model_dump(mode="json")
            alike = (result.train_images, result.epochs) == (group.about.train_images, group.about.epochs)
            changed = differing(recipe, group.recipe, bool(result.teachers)) if alike else ""
            words = (changed or budget, "" if changed else runs_of.own(own_values(recipe, result.family)))
            apart = ", ".join(word for word in words if word)
            out.append(LeftOut(run.id, f"other protocol ({apart})", result.family))
    return out


def _left(left: Sequence[Arm], reason: str) -> list[LeftOut]:
    return [LeftOut(run.id, reason, arm.about.family) for arm in left for run in arm.runs]


def _shuffled_otherwise(arm: Arm, baseline: Arm | None) -> bool:
    return baseline is not None and arm.about.shuffled != baseline.about.shuffled


def only(table: Table, ids: set[str]) -> Table:
    """The rows that some of these runs fill."""
    return replace(table, rows=tuple(row for row in table.filled if ids & {run.id for run in row.arm.runs}))
