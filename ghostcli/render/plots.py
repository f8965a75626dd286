"""The figures of `ghost plot`, made from run records.

Invariant: no file is written. Only `_disagree` opens the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ghostcli.comparison import tables
from ghostcli.comparison.admission import Admitted, admit
from ghostcli.comparison.cost import costs
from ghostcli.comparison.groups import Cohort, cohorts, largest, of_family
from ghostcli.comparison.rows import Table
from ghostcli.errors import UsageError
from ghostcli.paper import paper
from ghostcli.plan import commands
from ghostcli.records.record import RunRecord
from ghostcli.render import figures, gather, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Asked:
    """What to draw: of `records`, all runs of a folder, those that were `chosen` (none: all that are suitable).

    `family`: None for all. `hours`: whether costs are hours of training, or parameters.
    """

    records: Sequence[RunRecord]
    chosen: Sequence[RunRecord] = ()
    family: str | None = None
    hours: bool = False

    def cohorts(self, runs: Iterable[RunRecord]) -> list[Cohort]:
        """The cohorts of these runs, as far as they are of the family."""
        return cohorts([run for run in runs if self.family in (None, run.setup.family)])


def learning_curves(asked: Asked) -> Figure:
    """Test accuracy by epoch of the chosen runs (none: all suitable runs) and of their students' baselines."""
    good = admit(asked.records).runs
    curves = gather.curves(asked.cohorts(good), {run.id for run in asked.chosen})
    finished = {run.id for run in good}
    curves += [
        gather.Curve(run.id.partition("/")[0], f"{run.id} ({run.status})", accuracy)
        for run in asked.chosen
        if run.id not in finished and (accuracy := gather.accuracies([run])) is not None
    ]
    return figures.curves(curves)


def width(asked: Asked) -> Figure:
    """Fig. 1 of the paper, for the family or for all that have runs."""
    admitted, family = admit(asked.chosen or asked.records), asked.family
    families = (family,) if family else tables.families(admitted)
    family_tables = [_with_cohort(t, admitted) for f in families for t in tables.built(["I"], admitted, f)]
    if (family or admitted.runs) and not any(table.cohort for table in family_tables):
        under = f" under {family}" if family else ""
        command = commands.training("gns:1.0", recipe=family or "paper")
        raise UsageError(
            f"plot width: there is no finished GN-S baseline{under} on {paper().source.data} to compare with the "
            f"paper's; `{command}` makes one"
        )
    return figures.width(family_tables)


def _with_cohort(table: Table, admitted: Admitted) -> Table:
    """Table I. If no run fills its rows: with runs of other widths."""
    if table.cohort is not None:
        return table

    all_cohorts = cohorts(of_family(admitted.runs, table.family))
    fitting = [
        (cohort, figures.untaught_small(cohort)) for cohort in all_cohorts if cohort.about.data == paper().source.data
    ]
    return replace(table, cohort=largest((cohort, len(widths)) for cohort, widths in fitting if widths))


def _front(asked: Asked) -> Figure:
    cohort = gather.most_groups(asked.cohorts(admit(asked.chosen or asked.records).runs))
    if cohort is None:
        raise UsageError("plot front: there is no finished run to draw; `ghost runs list` shows all runs")
    points = gather.points(cohort, costs(asked.records), asked.hours)
    return figures.front(points, gather.AXES[asked.hours], f"{cohort.families}: {cohort.describe()}")


def _forest(asked: Asked) -> Figure:
    judged = tables.judged(tables.every(admit(asked.records), asked.family))
    if asked.chosen:
        ids = {run.id for run in asked.chosen}
        judged = [tables.only(table, ids) for table in judged]
    return figures.forest(judged)


def _confusion(asked: Asked) -> Figure:
    run = _one(asked, "confusion")
    logits, labels = _predictions(run)
    return pictures.confusion(logits, labels, run.result.names, run.id)


def _reliability(asked: Asked) -> Figure:
    if not asked.chosen:
        raise UsageError("plot reliability: name one run or several, as `ghost runs list` shows them")
    return pictures.reliability([(run.id, *_predictions(run)) for run in asked.chosen])


def _disagree(asked: Asked) -> Figure:
    from ghostcli.data import load  # torch

    run = _one(asked, "disagree")
    logits, labels = _predictions(run)
    known = {record.id: record for record in asked.records}
    teachers = [known[teacher.run] for teacher in run.setup.teachers if teacher.run in known] if run.setup else []
    if not teachers:
        raise UsageError(f"plot disagree: {run.id} has no teacher among these runs; name a taught run")
    outputs = [_predictions(teacher) for teacher in teachers]
    data = load(run.setup.recipe.data)
    if not all(np.array_equal(labels, theirs) for _, theirs in outputs) or data.checksum != run.result.data_checksum:
        raise UsageError(
            f"plot disagree: {run.id} and its teacher were tested on other images than the files of {data.name} here"
        )
    teacher = np.mean([np.asarray(theirs, dtype=np.float64) for theirs, _ in outputs], axis=0)
    classes = run.result.class_names or data.classes  # an older record has no names
    title = f"{run.id} (S) and {', '.join(record.id for record in teachers)} (T)"
    return pictures.disagreement(data.test.pixels.numpy(), labels, logits, teacher, classes, title=title)


def _one(asked: Asked, kind: str) -> RunRecord:
    if len(asked.chosen) != 1:
        raise UsageError(f"plot {kind}: name one run with its seed, as `ghost runs list` shows it")
    return asked.chosen[0]


def _predictions(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    predictions = run.predictions()
    if predictions is None:
        raise UsageError(f"{run.id}: has no predictions ({run.problem or 'predictions.npz is missing'})")
    return predictions


KINDS: dict[str, Callable[[Asked], Figure]] = {
    "curves": learning_curves,
    "width": width,
    "front": _front,
    "forest": _forest,
    "confusion": _confusion,
    "reliability": _reliability,
    "disagree": _disagree,
}
