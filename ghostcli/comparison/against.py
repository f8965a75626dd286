"""Compares run groups that the user names, each with the first.

Invariant: nothing that differs between two groups is refused or hidden. It is in the row's `differs`. Only the test
images must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ghostcli.comparison.admission import Admitted
from ghostcli.comparison.groups import RunGroup, budget_of, cohorts
from ghostcli.comparison.rows import Options, Row, Table
from ghostcli.comparison.tables import row_of
from ghostcli.errors import UsageError, nearest, printable
from ghostcli.paper import joined, label
from ghostcli.recipe.diff import config_diff, untaught
from ghostcli.recipe.models import UNDIGESTED
from ghostcli.records import trained


def table(chosen: Sequence[str], admitted: Admitted, options: Options = Options()) -> Table:
    """The named groups, each compared with the first, without verdicts. `chosen`: ids without seeds, two or more.

    UsageError where a name stands for no run that may be compared, two names for one group, or the test images differ.
    """
    every = [group for cohort in cohorts(admitted.runs, admitted.failed) for group in cohort.groups]
    groups = [_group(name, every, admitted, options) for name in chosen]
    base, *others = groups
    for i, group in enumerate(groups):
        if (first := groups.index(group)) < i:
            raise UsageError(
                f"{printable(chosen[i])}: is the same training as {printable(chosen[first])}; name it once"
            )
    rows = (row(base, None, options), *(row(group, base, options) for group in others))
    jobs = {run.id.rpartition("/")[0] for group in groups for run in group.runs}
    left_out = tuple(out for out in admitted.left_out if out.run.rpartition("/")[0] in jobs)
    title = f"Compared with {job(base)}: {label(base.student)}, {_teaching(base)}, {base.about.data}, "
    title += budget_of(base.about.train_images, base.about.epochs)
    return Table("compare", title, "any", rows, options, None, left_out, job(base))


def job(group: RunGroup) -> str:
    """The id of a group's runs without the seed."""
    return group.runs[0].id.rpartition("/")[0]


def _group(name: str, groups: Sequence[RunGroup], admitted: Admitted, options: Options) -> RunGroup:
    """The group with runs of this id. A path in the runs folder is an id too, as a shell completes it."""
    wanted = name.removeprefix(trained.RUN).removeprefix(f"{options.runs}/").rstrip("/")
    for group in groups:
        jobs = {run.id.rpartition("/")[0] for run in group.runs}
        if wanted in jobs:
            return group
        if wanted in group.ids:
            raise UsageError(f"{printable(name)}: is one seed; all seeds are compared, so name {job(group)}")
    for out in admitted.left_out:
        if wanted in (out.run, out.run.rpartition("/")[0]):
            raise UsageError(f"{printable(name)}: none of its runs can be compared ({out.run}: {out.reason})")
    known = sorted({job(group) for group in groups})
    hint = nearest(wanted, known) if known else "; no run there can be compared"
    raise UsageError(f"{printable(name)}: there are no runs with this id{hint}")


def row(group: RunGroup, base: RunGroup | None, options: Options = Options()) -> Row:
    """The row of a group, compared with `base` (None: it is the first). UsageError if their test images differ."""
    if base and group.about.test.labels != base.about.test.labels:
        tested = [f"{job(one)} on {one.about.test_images:,} of {one.about.data}" for one in (group, base)]
        raise UsageError(f"{' and '.join(tested)}: they were tested on different images, so they are not compared")
    differs = dict(_differences(base, group)) if base else None
    return replace(row_of(group, base, options.metric), name=job(group), differs=differs)


def _differences(base: RunGroup, group: RunGroup) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What differs between two groups: facts of their runs, then keys of their recipes."""
    theirs, ours = base.about, group.about
    both = bool(base.teachers and group.teachers)  # then [distill] is compared key by key
    facts = {
        "student": (theirs.student, ours.student),
        "source": (theirs.source, ours.source),
        "parameters": (theirs.parameters, ours.parameters) if theirs.student == ours.student else None,
        "teaching": (_teaching(base, both), _teaching(group, both)),
        "teacher runs": (_lessons(base), _lessons(group)) if base.teachers == group.teachers else None,
        "training images": (theirs.data_checksum[:8], ours.data_checksum[:8]),
        "start": (theirs.start, ours.start),
        "epoch of the result": (theirs.accuracy.selected_by, ours.accuracy.selected_by),
    }
    diff = config_diff(base.recipe, group.recipe)
    keys = diff.keys() - UNDIGESTED - {"engine.branches"} if both else untaught(diff)
    for name, pair in (*facts.items(), *((key, diff[key]) for key in diff if key in keys)):
        if pair and pair[0] != pair[1]:
            yield name, pair


def _teaching(group: RunGroup, brief: bool = False) -> str:
    """`alone`, or the method, its settings (not if `brief`) and the teachers: `kd T=4 from GN-S 1.0x`."""
    how = group.method if brief else group.how
    return f"{how} from {joined(group.teachers, group.strategy)}" if group.teachers else "alone"


def _lessons(group: RunGroup) -> str:
    return ", ".join(sorted({teacher.run for lesson in group.lessons for teacher in lesson}))
