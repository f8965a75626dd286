"""`ghost plot`: figures from run records.

Invariant: it reads run records and writes only the file of --out. Only `disagree` shows images and opens the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostcli.cli.options import Runs
from ghostcli.errors import UsageError, one_of
from ghostcli.paper import FAMILIES, paper
from ghostcli.plan import commands

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from ghostcli.compare.admission import Admitted
    from ghostcli.compare.groups import Cohort
    from ghostcli.compare.rows import Table
    from ghostcli.records.record import RunRecord

COSTS = ("parameters", "hours")


def plot(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="curves, width, front, forest, confusion, reliability or disagree.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run ids, with or without the seed. Default: all suitable runs."),
    ] = None,
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A .png, .pdf or .svg file.", show_default="KIND.png"),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="F", help=f"{', '.join(FAMILIES)}.", show_default="those with runs"),
    ] = None,
    cost: Annotated[
        str, typer.Option("--cost", metavar="C", help="The x axis of `front`: parameters, or hours of training.")
    ] = "parameters",
) -> None:
    """Draw learning curves, accuracy against width or cost, differences, or the errors of one run."""
    from ghostcli.records import record
    from ghostcli.render.figures import require_suffix, save

    out = out or Path(f"{kind}.png")
    one_of("plot", kind, tuple(KINDS))
    one_of("--cost", cost, COSTS)
    one_of("--family", family or "paper", FAMILIES)
    require_suffix(out, "--out ")
    records = record.scan(runs)
    chosen = [run for name in names or () for run in named(name, records, runs)]
    figure = KINDS[kind](records, chosen, family, cost)
    typer.echo(str(save(figure, out)))


def named(name: str, records: Sequence[RunRecord], runs: Path) -> list[RunRecord]:
    """The runs of an id: one seed, or all seeds of a job."""
    from ghostcli.records import record

    wanted = name.removeprefix("run/").rstrip("/")
    return [run for run in records if wanted in (run.id, run.id.rpartition("/")[0])] or [record.find(runs, name)]


def learning_curves(
    records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None = None, cost: str = ""
) -> Figure:
    """Test accuracy by epoch of the chosen runs (none: all suitable runs) and of their students' baselines."""
    from ghostcli.compare.admission import admit
    from ghostcli.compare.groups import cohorts
    from ghostcli.render import figures, gather

    good = admit(records).runs
    shown = cohorts([run for run in good if family in (None, run.setup.family)])
    found = gather.curves(shown, {run.id for run in chosen})
    finished = {run.id for run in good}
    found += [
        gather.Curve(run.id.partition("/")[0], f"{run.id} ({run.status})", accuracy)
        for run in chosen
        if run.id not in finished and (accuracy := gather.accuracies([run])) is not None
    ]
    return figures.curves(found)


def _width(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.compare.admission import admit
    from ghostcli.render import figures

    admitted = admit(chosen or records)
    families = (family,) if family else tables.families(admitted)
    found = [_with_cohort(t, admitted) for f in families for t in tables.built(["I"], admitted, f)]
    if (family or admitted.runs) and not any(table.cohort for table in found):
        under = f" under {family}" if family else ""
        command = commands.training("gns:1.0", recipe=family or "paper")
        raise UsageError(
            f"plot width: there is no finished GN-S baseline{under} on {paper().source.data} to compare with the "
            f"paper's; `{command}` makes one"
        )
    return figures.width(found)


def _with_cohort(table: Table, admitted: Admitted) -> Table:
    """Table I. If no run fills its rows: with runs of other widths."""
    from dataclasses import replace

    from ghostcli.compare.groups import cohorts, largest, of_family
    from ghostcli.render import figures

    if table.cohort is not None:
        return table

    def widths(cohort: Cohort) -> int:
        return sum(figures.untaught_small(group) for group in cohort.groups)

    found = cohorts(of_family(admitted.runs, table.family))
    fitting = [cohort for cohort in found if cohort.about.data == paper().source.data]
    return replace(table, cohort=largest((cohort, rows) for cohort in fitting if (rows := widths(cohort))))


def _front(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare.admission import admit
    from ghostcli.compare.cost import costs
    from ghostcli.compare.groups import cohorts
    from ghostcli.render import figures, gather

    found = cohorts([run for run in admit(chosen or records).runs if family in (None, run.setup.family)])
    if not found:
        raise UsageError("plot front: there is no finished run to draw; `ghost runs list` shows all runs")
    # Accuracies on different images or budgets are not comparable, so only the cohort with the most groups is drawn.
    cohort = max(found, key=lambda one: (len(one.groups), one.budget))
    hours = cost == "hours"
    points = gather.points(cohort, costs(records), hours)
    return figures.front(points, gather.AXES[hours], f"{cohort.families}: {cohort.describe()}")


def _forest(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.compare.admission import admit
    from ghostcli.render import figures

    shown = tables.judged(tables.every(admit(records), family))
    if chosen:
        ids = {run.id for run in chosen}
        shown = [tables.only(table, ids) for table in shown]
    return figures.forest(shown)


def _confusion(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.render import pictures
    from ghostcli.render.facts import class_names

    run = _one(chosen, "confusion")
    logits, labels = _predictions(run)
    return pictures.confusion(logits, labels, class_names(run.result), run.id)


def _reliability(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.render import pictures

    if not chosen:
        raise UsageError("plot reliability: name one run or several, as `ghost runs list` shows them")
    return pictures.reliability([(run.id, *_predictions(run)) for run in chosen])


def _disagree(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    import numpy as np

    from ghostcli.data import load
    from ghostcli.render import pictures

    run = _one(chosen, "disagree")
    logits, labels = _predictions(run)
    known = {record.id: record for record in records}
    teachers = [known[teacher.run] for teacher in run.setup.teachers if teacher.run in known] if run.setup else []
    if not teachers:
        raise UsageError(f"plot disagree: {run.id} has no teacher among these runs; name a taught run")
    taught = [_predictions(teacher) for teacher in teachers]
    data = load(run.setup.recipe.data)
    if not all(np.array_equal(labels, theirs) for _, theirs in taught) or data.checksum != run.result.data_checksum:
        raise UsageError(
            f"plot disagree: {run.id} and its teacher were tested on other images than the files of {data.name} here"
        )
    teacher = np.mean([np.asarray(theirs, dtype=np.float64) for theirs, _ in taught], axis=0)
    title = f"{run.id} (S) and {', '.join(record.id for record in teachers)} (T)"
    return pictures.disagreement(data.test.pixels.numpy(), labels, logits, teacher, data.classes, title=title)


def _one(chosen: Sequence[RunRecord], kind: str) -> RunRecord:
    if len(chosen) != 1:
        raise UsageError(f"plot {kind}: name one run with its seed, as `ghost runs list` shows it")
    return chosen[0]


def _predictions(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    found = run.predictions()
    if found is None:
        raise UsageError(f"{run.id}: has no predictions ({run.problem or 'predictions.npz is missing'})")
    return found


KINDS: dict[str, Callable[[Sequence[RunRecord], Sequence[RunRecord], str | None, str], Figure]] = {
    "curves": learning_curves,
    "width": _width,
    "front": _front,
    "forest": _forest,
    "confusion": _confusion,
    "reliability": _reliability,
    "disagree": _disagree,
}
