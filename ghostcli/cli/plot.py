"""`ghost plot`: figures from run records.

Invariant: reads run records and writes the one file that --out names. Only `disagree`, which shows images, opens
the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostcli.errors import UsageError, printable
from ghostcli.paper import FAMILIES, paper

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from ghostcli.compare.admission import Admitted
    from ghostcli.compare.groups import Cohort, RunGroup
    from ghostcli.compare.rows import Table
    from ghostcli.records.record import RunRecord
    from ghostcli.render.figures import Curve

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COSTS = ("parameters", "hours")


def plot(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="curves, width, front, forest, confusion, reliability or disagree.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs by id, with or without the seed; none: all that fit."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories live.")] = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="PNG, PDF or SVG by suffix.", show_default="KIND.png"),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="F", help=f"{', '.join(FAMILIES)}.", show_default="those with runs"),
    ] = None,
    cost: Annotated[
        str, typer.Option("--cost", metavar="C", help="Of `front`: parameters or hours of training.")
    ] = "parameters",
) -> None:
    """Draw learning curves, accuracy against width or cost, deltas, or what one run gets wrong."""
    from ghostcli.records import record
    from ghostcli.render.figures import SUFFIXES, save

    out = out or Path(f"{kind}.png")
    for value, known, what in (
        (kind, tuple(KINDS), "plot"),
        (cost, COSTS, "--cost"),
        (family or "paper", FAMILIES, "--family"),
    ):
        if value not in known:
            raise UsageError(f"{what} '{printable(value)}' does not exist; there are {', '.join(known)}")
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {printable(out)}: its name must end in {', '.join(SUFFIXES)}")
    records = record.scan(runs)
    chosen = [run for name in names or () for run in _named(name, records, runs)]
    figure = KINDS[kind](records, chosen, family, cost)
    typer.echo(str(save(figure, out)))


def _named(name: str, records: Sequence[RunRecord], runs: Path) -> list[RunRecord]:
    """The runs of an id: one seed, or all of a job's."""
    from ghostcli.records import record

    wanted = name.removeprefix("run/").rstrip("/")
    return [run for run in records if wanted in (run.id, run.id.rpartition("/")[0])] or [record.find(runs, name)]


def learning_curves(
    records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None = None, cost: str = ""
) -> Figure:
    """Test accuracy by epoch of the chosen runs (none: all that fit), beside their students' untaught runs."""
    from ghostcli.compare.admission import admit
    from ghostcli.compare.groups import cohorts
    from ghostcli.render import figures

    good = admit(records).runs
    ids = {run.id for run in chosen}
    shown = cohorts([run for run in good if family in (None, run.setup.family)])
    found = [curve for cohort in shown for curve in _of_cohort(cohort, ids)]
    finished = {run.id for run in good}
    found += [
        figures.Curve(run.id.partition("/")[0], f"{run.id} ({run.status})", accuracy)
        for run in chosen
        if run.id not in finished and (accuracy := _accuracies([run])) is not None
    ]
    return figures.curves(found)


def _of_cohort(cohort: Cohort, ids: set[str]) -> list[Curve]:
    """The curves of the runs in `ids` (none: of every taught student) and of their baselines."""
    from ghostcli.paper import label
    from ghostcli.render.figures import Curve

    named = {group: [run for run in group.runs if run.id in ids] for group in cohort.groups}
    students = {group.student for group in cohort.groups if (named[group] if ids else group.teachers)}
    if not ids and not students:
        students = {group.student for group in cohort.groups}
    found = []
    for group in cohort.groups:
        runs = named[group] or (group.runs if not (ids and group.teachers) else [])
        accuracy = _accuracies(runs) if group.student in students else None
        if accuracy is not None:
            name = _taught_by(group) if group.teachers else "alone"
            panel = f"{label(group.student)}\n{cohort.families}: {cohort.describe()}"
            found.append(Curve(panel, name, accuracy, baseline=not group.teachers))
    return found


def _accuracies(runs: Sequence[RunRecord]) -> np.ndarray | None:
    """Test accuracy [n, epochs] as far as all the runs have it; None where that is nowhere."""
    import numpy as np

    curves = [[row["test"]["accuracy"] for row in run.metrics()] for run in runs]
    epochs = min(map(len, curves), default=0)
    return np.array([curve[:epochs] for curve in curves]) if epochs else None


def _taught_by(group: RunGroup) -> str:
    """Teachers and method in few words: a legend has little room."""
    from ghostcli.paper import label

    if len(group.teachers) == 1:
        return f"{label(group.teachers[0])}, {group.how}"
    if group.method.startswith("born-again"):
        return f"{group.how}, generation {len(group.teachers)}"
    several = group.strategy in ("ensemble", "adaptive")
    return f"{group.how}, " + (f"{len(group.teachers)} teachers" if several else f"from {label(group.teachers[0])}")


def _width(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.compare.admission import admit
    from ghostcli.render import figures

    admitted = admit(chosen or records)
    families = (family,) if family else tables.families(admitted)
    found = [_with_cohort(tables.build("I", admitted, f), admitted) for f in families]
    if (family or admitted.runs) and not any(table.cohort for table in found):
        under = f" under {family}" if family else ""
        recipe = f" --recipe {family}" if family not in (None, "paper") else ""
        raise UsageError(
            f"plot width: no run{under} is an untaught GN-S on {paper().source.data}, finished and to be set beside "
            f"the printed ones; `ghost train-teacher gns:1.0{recipe}` makes one"
        )
    return figures.width(found)


def _with_cohort(table: Table, admitted: Admitted) -> Table:
    """Table I with the runs of widths that it does not print, where it has no others."""
    from dataclasses import replace

    from ghostcli.compare.groups import cohorts, largest, of_family
    from ghostcli.render import figures

    if table.cohort is not None:
        return table

    def widths(cohort: Cohort) -> int:
        return sum(figures.untaught_small(group) for group in cohort.groups)

    found = cohorts(of_family(admitted.runs, table.family))
    fitting = [cohort for cohort in found if cohort.about.data == paper().source.data and widths(cohort)]
    return replace(table, cohort=largest(fitting, widths))


def _front(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare.admission import admit
    from ghostcli.compare.cost import costs, of_group
    from ghostcli.compare.groups import cohorts
    from ghostcli.paper import label
    from ghostcli.render import figures

    found = cohorts([run for run in admit(chosen or records).runs if family in (None, run.setup.family)])
    if not found:
        raise UsageError("plot front: there is no finished run to draw; `ghost runs list` shows what there is")
    # Accuracies on different images or budgets share no axis: the cohort with the most to show is drawn.
    cohort = max(found, key=lambda one: (len(one.groups), one.budget))
    known = costs(records)
    points = []
    for group in cohort.groups:
        ours = group.summary()
        spent = of_group(group, known).full if cost == "hours" else group.about.parameters / 1e6
        points.append(figures.Point(label(group.student), spent, ours.mean, ours.sd, group.method))
    axis = "Training hours, teachers included" if cost == "hours" else "Parameters, training form (millions)"
    return figures.front(points, axis, f"{cohort.families}: {cohort.describe()}")


def _forest(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.compare.admission import admit
    from ghostcli.render import figures

    admitted = admit(records)
    families = (family,) if family else tables.families(admitted)
    built = [tables.build(t.name, admitted, f) for f in families for t in paper().tables]
    besides = tables.also_run(admitted, built, only=(family,) if family else FAMILIES)
    shown = tables.judged([*built, besides] if besides else built)
    if chosen:
        ids = {run.id for run in chosen}
        shown = [tables.only(table, ids) for table in shown]
    return figures.forest(shown)


def _confusion(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.render import pictures

    run = _one(chosen, "confusion")
    logits, labels = _predictions(run)
    return pictures.confusion(logits, labels, _classes(run), run.id)


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
            f"plot disagree: {run.id}, its teacher and {data.name} as it lies here are not of the same images"
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
        raise UsageError(f"{run.id}: has no predictions ({run.problem or 'predictions.npz is gone'})")
    return found


def _classes(run: RunRecord) -> Sequence[str]:
    """Class names where they are known without opening the data, numbers elsewhere."""
    return CIFAR10 if run.result.data == "cifar10" else [str(i) for i in range(run.result.classes)]


KINDS: dict[str, Callable[[Sequence[RunRecord], Sequence[RunRecord], str | None, str], Figure]] = {
    "curves": learning_curves,
    "width": _width,
    "front": _front,
    "forest": _forest,
    "confusion": _confusion,
    "reliability": _reliability,
    "disagree": _disagree,
}
