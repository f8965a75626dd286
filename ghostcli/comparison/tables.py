"""The paper's tables with our numbers beside the printed ones, as values. `render/` shows them.

Invariant: every row of the paper is there, in its order, whether or not a run fills it. Every difference is against
the untaught group of the same student, protocol, start and images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from ghostcli.comparison import commands, control
from ghostcli.comparison.admission import Admitted
from ghostcli.comparison.cost import Cost, costs, of_group
from ghostcli.comparison.groups import (
    Cohort,
    RunGroup,
    budget_of,
    cohorts,
    grouped,
    largest,
    of_family,
    same_conditions,
    unlike,
    with_changes,
)
from ghostcli.comparison.labels import names
from ghostcli.comparison.match import matches, may_match, ranked, rows_of
from ghostcli.comparison.power import could_find
from ghostcli.comparison.rows import MARGIN, LeftOut, Line, Options, Row, Table
from ghostcli.comparison.stats import Difference
from ghostcli.comparison.verdicts import judge
from ghostcli.paper import FAMILIES, PaperRow, PaperTable, paper
from ghostcli.recipe.diff import config_diff, training_changes, typed, untaught
from ghostcli.recipe.models import Recipe
from ghostcli.records.record import RunRecord

#: Facts of the environment that should be equal in all compared runs.
ENVIRONMENT = ("ghost", "commit", "torch", "device", "kernel")
#: A group of which a larger share of seeds became non-finite gets no verdict.
MOST_FAILED = 0.2
#: The name of the table of all other runs.
ALSO = "also run"
UNSHUFFLED = "not shuffled, while its baseline is"


@dataclass(frozen=True)
class Baselines:
    """Finds the baseline of a taught group. `spent`: run id -> cost, if budgets include the teachers; else None."""

    cohorts: tuple[Cohort, ...]
    spent: dict[str, Cost] | None
    options: Options

    @classmethod
    def among(cls, found: Iterable[Cohort], admitted: Admitted, options: Options) -> Baselines:
        return cls(tuple(found), costs(admitted.runs) if options.equal_budget else None, options)

    @cached_property
    def blind(self) -> tuple[RunGroup, ...]:
        """The groups that may be the control of another one."""
        return tuple(group for cohort in self.cohorts for group in cohort.groups if group.blind)

    def of(self, group: RunGroup, cohort: Cohort) -> tuple[RunGroup | None, str | None]:
        """The baseline of `group`, a member of `cohort`, or None with the reason or the command that makes it."""
        epochs = group.about.epochs
        if self.spent is None:
            baseline = cohort.baseline(group)
        else:
            spent = of_group(group, self.spent)
            if not spent.whole:
                return None, f"records of {group.runs[0].id}'s teachers are missing, so its whole budget is unknown"
            epochs = round(spent.images / group.about.train_images)
            baseline = self._longer(group, epochs)
        if baseline is None:
            return None, f"`{commands.of_baseline(group, epochs, self.options.runs)}` makes it"
        if reason := unlike(group, baseline):
            return None, reason
        return baseline, None

    def _longer(self, group: RunGroup, epochs: int) -> RunGroup | None:
        """The untaught group of the same network with so many epochs that differs from `group` in nothing else."""
        for other in self._untaught.get((group.student, group.about.data_checksum, epochs), ()):
            if untaught(config_diff(other.recipe, group.recipe)) <= {"train.epochs", "train.stop"} and not unlike(
                group, other
            ):
                return other
        return None

    @cached_property
    def _untaught(self) -> dict[tuple[str, str, int], list[RunGroup]]:
        """The baselines of all cohorts by student, images and epochs."""
        every = (group for cohort in self.cohorts for groups in cohort.untaught.values() for group in groups)
        return grouped(every, lambda group: (group.student, group.about.data_checksum, group.about.epochs))


def families(admitted: Admitted) -> tuple[str, ...]:
    """The families with a run in a printed row; `paper` if there are none."""
    there = {run.setup.family for run in admitted.runs if rows_of(run.result)}
    return tuple(family for family in FAMILIES if family in there) or ("paper",)


def built(names: Iterable[str], admitted: Admitted, family: str, options: Options = Options()) -> list[Table]:
    """Tables by name (I to IV) from the runs of one family, without verdicts. UsageError if there is no such table."""
    runs = of_family(admitted.runs, family)
    family_cohorts = cohorts(runs, of_family(admitted.failed, family))
    refused = [out for out in admitted.left_out if out.family in ("", family)]
    baselines = Baselines.among(family_cohorts, admitted, options)
    return [_build(paper().table(name), family, runs, refused, baselines) for name in names]


def _build(
    printed: PaperTable, family: str, runs: Sequence[RunRecord], refused: Sequence[LeftOut], baselines: Baselines
) -> Table:
    options, name = baselines.options, printed.name
    filled = [(one, {row for group in one.groups for row in rows_of(group.about, name)}) for one in baselines.cohorts]
    cohort = largest((one, len(rows)) for one, rows in filled if rows)
    rows, left_out = [], _other_protocols(runs, name, cohort)
    for row in printed.rows:
        line, left = _row(row, family, cohort, baselines)
        rows.append(line)
        left_out += left
    left_out += [out for out in refused if any(may_match(out.run, row) for row in printed.rows)]
    left_out = tuple(sorted(set(left_out), key=lambda out: (out.reason, out.run)))
    return Table(name, printed.title, family, _with_names(rows), options, cohort, left_out)


def _row(row: PaperRow, family: str, cohort: Cohort | None, baselines: Baselines) -> tuple[Row, list[LeftOut]]:
    command = commands.of_row(row, family, cohort, baselines.options.runs)
    empty = Row(row.student, row.strategy, row.teachers, row.parameters, row, command=command)
    if cohort is None:
        return empty, []
    groups, left = [], []
    for group in ranked([group for group in cohort.groups if matches(group.about, row)], family, row):
        if _order_differs(group, cohort):
            left += _left_out(group, UNSHUFFLED)
        else:
            groups.append(group)
    if not groups:
        return empty, left
    best, *others = groups
    for group in others:
        diff = config_diff(group.recipe, best.recipe)
        start = f"a {group.about.start} start" if group.about.start != best.about.start else ""
        what = typed({key: ours for key, (ours, _) in diff.items()}) or start or "its teachers differ"
        left += _left_out(group, f"another recipe for the same row ({what})")
    seen = measured(best, cohort, baselines)
    return replace(seen, teachers=row.teachers, parameters=row.parameters, printed=row, command=command), left


def measured(group: RunGroup, cohort: Cohort, baselines: Baselines) -> Row:
    """The row of a run group: its accuracy and, if it was taught, the difference from its baseline and control."""
    baseline, missing = baselines.of(group, cohort) if group.teachers else (None, None)
    metric = baselines.options.metric
    against = control.of(group, baselines.blind, baselines.options) if group.teachers else None
    compared = [one for one in (group, baseline, against and against.group) if one]
    return replace(row_of(group, baseline, metric), mixed=mixed(compared), missing_baseline=missing, control=against)


def row_of(group: RunGroup, baseline: RunGroup | None, metric: str) -> Row:
    """The row of a group with its difference from `baseline`, without a control."""
    return Row(
        group.student,
        group.strategy,
        group.teachers,
        group.about.parameters,
        group=group,
        ours=group.summary(metric),
        baseline=baseline,
        delta=group.minus(baseline, metric) if baseline else None,
        findings=group.findings,
        mixed=mixed([group, baseline]) if baseline else (),
    )


def mixed(groups: Sequence[RunGroup]) -> tuple[str, ...]:
    """The facts of the environment that differ between compared runs: `torch 2.11.0 and 2.14.1`."""
    facts = []
    runs = [run for group in groups for run in group.runs]
    for key in ENVIRONMENT:
        length = 10 if key == "commit" else None
        values = sorted({str(getattr(run.result.environment, key))[:length] for run in runs})
        if len(values) > 1:
            facts.append(f"{key} {' and '.join(values)}")
    changed = [run.id for run in runs if run.result.environment.changes]
    return (*facts, *([f"a machine that changed during {', '.join(changed)}"] if changed else []))


def judged(tables: Sequence[Table]) -> tuple[Table, ...]:
    """The tables of one answer with verdicts, corrected over all their comparisons together.

    A comparison that cannot get a verdict does not count in the correction. A comparison in two tables counts once.
    """
    deltas: dict[tuple[frozenset[str], frozenset[str]], Difference] = {}
    for row in (row for table in tables for row in table.rows):
        for line, other in row.comparisons:
            if not failed(row.group, other):
                deltas[row.group.ids, other.ids] = line.delta
    margin = tables[0].options.margin if tables else MARGIN
    judgements = dict(zip(deltas, judge(list(deltas.values()), margin), strict=True))
    comparisons = sum(judgement.p is not None for judgement in judgements.values())

    def done(line: Line, group: RunGroup | None, other: RunGroup | None) -> Line:
        judgement = judgements.get((group.ids, other.ids)) if line.delta else None
        if judgement is None:
            return line
        finds = could_find(line.delta, comparisons=max(1, comparisons))
        return replace(line, p_adjusted=judgement.p, verdict=judgement.verdict, finds=finds)

    def both(row: Row) -> Row:
        against = row.control and done(row.control, row.group, row.control.group)
        return replace(done(row, row.group, row.baseline), control=against)

    return tuple(replace(table, rows=tuple(map(both, table.rows))) for table in tables)


def failed(*groups: RunGroup | None) -> bool:
    """Whether so many seeds of a group became non-finite that its other seeds are a biased selection."""
    return any(
        group is not None and len(group.failed) > MOST_FAILED * (len(group.failed) + len(group.runs))
        for group in groups
    )


def _with_names(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(replace(row, name=name) for row, name in zip(rows, names(rows), strict=True))


def every(admitted: Admitted, family: str | None = None, options: Options = Options()) -> list[Table]:
    """The paper's tables of one family (None: of all with runs), and last the other runs. Without verdicts."""
    names = [table.name for table in paper().tables]
    printed = [t for f in ([family] if family else families(admitted)) for t in built(names, admitted, f, options)]
    besides = also_run(admitted, printed, options, (family,) if family else FAMILIES)
    return [*printed, *([besides] if besides else [])]


def also_run(
    admitted: Admitted, shown: Sequence[Table], options: Options = Options(), only: Sequence[str] = FAMILIES
) -> Table | None:
    """The run groups of the families `only` that are in no printed row, also those displaced by another recipe.

    None if there are none. Each is compared within its own protocol, so the rows may not be comparable to each other.
    """
    elsewhere = placed(shown)
    elsewhere |= {out.run for table in shown for out in table.left_out if not out.reason.startswith("another recipe")}
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    all_cohorts = cohorts(admitted.runs, admitted.failed)
    baselines = Baselines.among(all_cohorts, admitted, options)
    for cohort in all_cohorts:
        for group in cohort.groups:
            if group.family not in only or group.ids & elsewhere:
                continue
            if group.teachers and _order_differs(group, cohort):
                left_out += _left_out(group, UNSHUFFLED)
            else:
                rows.append(measured(group, cohort, baselines))
    below = {run for row in rows if row.control and row.control.group for run in row.control.group.ids}
    rows = [row for row in rows if not row.group.ids & below]
    named = {out.run for table in shown for out in table.left_out}
    left_out += [out for out in admitted.left_out if out.run not in named and (out.family or only[0]) in only]
    if not rows and not left_out:
        return None
    rows.sort(key=lambda row: (row.group.about.data, FAMILIES.index(row.group.family), row.taught, row.student))
    return Table(
        ALSO, "Your runs that fill no row of the paper", "any", _with_names(rows), options, None, tuple(left_out)
    )


def placed(tables: Iterable[Table]) -> set[str]:
    """The ids of the runs that are in a row of these tables, as a control too."""
    groups = (line.group for table in tables for row in table.rows for line in row.lines)
    return {run for group in groups if group for run in group.ids}


def _other_protocols(runs: Sequence[RunRecord], table: str, cohort: Cohort | None) -> list[LeftOut]:
    """Runs that belong to a row of the table but have another protocol than the one shown."""
    if cohort is None:
        return []
    out, reference = [], cohort.about
    conditions = same_conditions(reference)

    @cache
    def differs(recipe: Recipe, taught: bool, budget: tuple[int, int], family: str) -> str:
        """Asked once for all seeds."""
        words = []
        if budget == (reference.train_images, reference.epochs):
            diff = config_diff(recipe, reference.recipe)
            keys = diff.keys() if taught else untaught(diff)
            words = [typed({key: diff[key][0] for key in diff if key in keys})]
        if not any(words):
            words = [budget_of(*budget), with_changes(training_changes(recipe, family))]
        return ", ".join(word for word in words if word)

    for run in runs:
        about = run.result
        if same_conditions(about) != conditions and rows_of(about, table):
            why = differs(about.recipe, bool(about.teachers), (about.train_images, about.epochs), about.family)
            out.append(LeftOut(run.id, f"other protocol ({why})", about.family))
    return out


def _left_out(group: RunGroup, reason: str) -> list[LeftOut]:
    return [LeftOut(run.id, reason, group.family) for run in group.runs]


def _order_differs(group: RunGroup, cohort: Cohort) -> bool:
    """Whether a taught group was not shuffled but its baseline was. In `published` this is intended."""
    baseline = cohort.baseline(group)
    return group.family != "published" and baseline is not None and group.about.shuffled != baseline.about.shuffled


def only(table: Table, ids: set[str]) -> Table:
    """The table with only the rows of these runs."""
    return replace(table, rows=tuple(row for row in table.filled if ids & row.group.ids))
