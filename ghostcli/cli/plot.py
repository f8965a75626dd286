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

    from ghostcli.compare.groups import Arm, Group
    from ghostcli.compare.tables import Table
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
    from ghostcli.compare import groups as arms
    from ghostcli.render import figures

    good, _ = arms.finished(records)
    groups = arms.groups([run for run in good if family in (None, run.result.family)])
    ids = {run.id for run in chosen}
    found = [curve for group in groups for curve in _of_group(group, ids)]
    finished = {run.id for run in good}
    found += [
        figures.Curve(run.id.partition("/")[0], f"{run.id} ({run.status})", accuracy)
        for run in chosen
        if run.id not in finished and (accuracy := _accuracies([run])) is not None
    ]
    return figures.curves(found)


def _of_group(group: Group, ids: set[str]) -> list[Curve]:
    """The curves of the runs in `ids` (none: of every taught student) and of their baselines."""
    from ghostcli.paper import label
    from ghostcli.render.figures import Curve

    named = {arm: [run for run in arm.runs if run.id in ids] for arm in group.arms}
    students = {arm.student for arm in group.arms if (named[arm] if ids else arm.teachers)}
    if not ids and not students:
        students = {arm.student for arm in group.arms}
    found = []
    for arm in group.arms:
        runs = named[arm] or (arm.runs if not (ids and arm.teachers) else [])
        accuracy = _accuracies(runs) if arm.student in students else None
        if accuracy is not None:
            name = _taught_by(arm) if arm.teachers else "alone"
            panel = f"{label(arm.student)}\n{group.families}: {group.describe()}"
            found.append(Curve(panel, name, accuracy, baseline=not arm.teachers))
    return found


def _accuracies(runs: Sequence[RunRecord]) -> np.ndarray | None:
    """Test accuracy [n, epochs] as far as all the runs have it; None where that is nowhere."""
    import numpy as np

    curves = [[row["test"]["accuracy"] for row in run.metrics()] for run in runs]
    epochs = min(map(len, curves), default=0)
    return np.array([curve[:epochs] for curve in curves]) if epochs else None


def _taught_by(arm: Arm) -> str:
    """Teachers and their way in few words: a legend has little room."""
    from ghostcli.paper import label

    if len(arm.teachers) == 1:
        return f"{label(arm.teachers[0])}, {arm.how}"
    if arm.way.startswith("born-again"):
        return f"{arm.how}, generation {len(arm.teachers)}"
    return f"{arm.how}, " + (
        f"{len(arm.teachers)} teachers"
        if arm.strategy in ("ensemble", "adaptive")
        else f"from {label(arm.teachers[0])}"
    )


def _width(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.render import figures

    if chosen:
        records = chosen
    families = (family,) if family else tables.families(records)
    found = [_with_group(tables.build("I", records, f), records) for f in families]
    if (family or records) and not any(table.group for table in found):
        under = f" under {family}" if family else ""
        recipe = f" --recipe {family}" if family not in (None, "paper") else ""
        raise UsageError(
            f"plot width: no run{under} is an untaught GN-S on {paper().source.data}, finished and to be set beside "
            f"the printed ones; `ghost train-teacher gns:1.0{recipe}` makes one"
        )
    return figures.width(found)


def _with_group(table: Table, records: Sequence[RunRecord]) -> Table:
    """Table I with the runs of widths that it does not print, where it has no others."""
    from dataclasses import replace

    from ghostcli.compare import groups as arms
    from ghostcli.render import figures

    if table.group is not None:
        return table
    good = arms.of_family(arms.finished(records)[0], table.family)
    groups = [group for group in arms.groups(good) if group.about.data == paper().source.data]

    def widths(group: Group) -> int:
        return sum(figures.untaught_small(arm) for arm in group.arms)

    return replace(table, group=arms.largest([group for group in groups if widths(group)], widths))


def _front(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import groups as arms
    from ghostcli.compare.cost import costs, of_arm
    from ghostcli.paper import label
    from ghostcli.render import figures

    good, _ = arms.finished(chosen or records)
    good = [run for run in good if family in (None, run.result.family)]
    groups = arms.groups(good)
    if not groups:
        raise UsageError("plot front: there is no finished run to draw; `ghost runs list` shows what there is")
    # Accuracies on different images or budgets share no axis: the group with the most to show is drawn.
    group = max(groups, key=lambda group: (len(group.arms), group.budget))
    known = costs(records)
    points = []
    for arm in group.arms:
        ours = arm.summary()
        spent = of_arm(arm, known).full if cost == "hours" else arm.about.parameters / 1e6
        points.append(figures.Point(label(arm.student), spent, ours.mean, ours.sd, arm.way))
    axis = "Training hours, teachers included" if cost == "hours" else "Parameters, training form (millions)"
    return figures.front(points, axis, f"{group.families}: {group.describe()}")


def _forest(records: Sequence[RunRecord], chosen: Sequence[RunRecord], family: str | None, cost: str) -> Figure:
    from ghostcli.compare import tables
    from ghostcli.render import figures

    families = (family,) if family else tables.families(records)
    built = [tables.build(t.name, records, f) for f in families for t in paper().tables]
    besides = tables.also_run(records, built, only=(family,) if family else FAMILIES)
    shown = [*built, besides] if besides else built
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
    teachers = [known[t.run] for t in (run.setup.teachers if run.setup else ()) if t.run in known]
    if not teachers:
        raise UsageError(f"plot disagree: {run.id} has no teacher among these runs; name a taught run")
    taught = [_predictions(teacher) for teacher in teachers]
    data = load(run.result.recipe.data)
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
