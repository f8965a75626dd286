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
from ghostcli.comparison.rows import LeftOut, Options, Row, Table
from ghostcli.comparison.tables import row_of
from ghostcli.errors import UsageError, nearest, printable
from ghostcli.paper import joined, label
from ghostcli.recipe.diff import config_diff, untaught
from ghostcli.recipe.models import UNDIGESTED
from ghostcli.records.record import id_of


def table(chosen: Sequence[str], admitted: Admitted, options: Options = Options()) -> Table:
    """The named groups, each compared with the first, without verdicts. `chosen`: ids without seeds, two or more.

    UsageError where a name stands for no run that may be compared, two names for one group, or the test images differ.
    """
    every = [group for cohort in cohorts(admitted.runs, admitted.failed) for group in cohort.groups]
    groups, passed_over = _alike(chosen, [_named(name, every, admitted, options) for name in chosen])
    base, *others = groups
    for i, group in enumerate(groups):
        if (first := groups.index(group)) < i:
            raise UsageError(
                f"{printable(chosen[i])}: is the same training as {printable(chosen[first])}; name it once"
            )
    rows = (row(base, None, options), *(row(group, base, options) for group in others))
    jobs = {run.id.rpartition("/")[0] for group in groups for run in group.runs}
    left_out = tuple(out for out in admitted.left_out if out.run.rpartition("/")[0] in jobs) + tuple(passed_over)
    title = f"Compared with {job(base)}: {label(base.student)}, {_teaching(base)}, {base.about.data}, "
    title += budget_of(base.about.train_images, base.about.epochs)
    return Table("compare", title, "any", rows, options, None, left_out, job(base))


def job(group: RunGroup) -> str:
    """The id of a group's runs without the seed."""
    return group.runs[0].id.rpartition("/")[0]


def _named(name: str, groups: Sequence[RunGroup], admitted: Admitted, options: Options) -> list[RunGroup]:
    """The groups with runs of this id: several if its images or its starts changed between seeds.

    A path in the runs folder is an id too, as a shell completes it.
    """
    wanted = id_of(name, options.runs)
    if found := [group for group in groups if wanted in {run.id.rpartition("/")[0] for run in group.runs}]:
        return found
    for group in groups:
        if wanted in group.ids:
            raise UsageError(f"{printable(name)}: is one seed; all seeds are compared, so name {job(group)}")
    for out in admitted.left_out:
        if wanted in (out.run, out.run.rpartition("/")[0]):
            raise UsageError(f"{printable(name)}: none of its runs can be compared ({out.run}: {out.reason})")
    known = sorted({job(group) for group in groups})
    hint = nearest(wanted, known) if known else "; no run there can be compared"
    raise UsageError(f"{printable(name)}: there are no runs with this id{hint}")


def _alike(chosen: Sequence[str], named: Sequence[Sequence[RunGroup]]) -> tuple[list[RunGroup], list[LeftOut]]:
    """One group for each name, and the runs that are passed over.

    Where an id has several groups, the images that all names have count, of several the ones with the most runs.
    UsageError if there are none.
    """
    if all(len(groups) == 1 for groups in named):
        return [group for [group] in named], []
    shared = set.intersection(*({group.about.data_checksum for group in groups} for groups in named))
    if not shared:
        name, groups = next((name, groups) for name, groups in zip(chosen, named, strict=True) if len(groups) > 1)
        apart = " and ".join(", ".join(sorted(group.ids)) for group in groups)
        raise UsageError(
            f"{printable(name)}: its runs were not all trained on the same images ({apart}), and no images are those "
            "of all compared trainings; remove the runs that are not meant, with ghost runs rm"
        )

    def runs_on(images: str) -> int:
        return sum(len(group.runs) for groups in named for group in groups if group.about.data_checksum == images)

    images = max(sorted(shared), key=runs_on)
    taken, passed_over = [], []
    for groups in named:
        on_these = [group for group in groups if group.about.data_checksum == images]
        taken.append(max(on_these, key=lambda group: len(group.runs)))
        for group in groups:
            if group is not taken[-1]:
                why = f"a {group.about.start} start" if group in on_these else "other images than the compared runs"
                passed_over += [LeftOut(run.id, why, group.family) for run in group.runs]
    return taken, passed_over


def row(group: RunGroup, base: RunGroup | None, options: Options = Options()) -> Row:
    """The row of a group, compared with `base` (None: it is the first). UsageError if their test images differ."""
    if base and not group.about.tested_like(base.about):
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
