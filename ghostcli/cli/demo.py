"""`ghost demo`: does teaching help? An answer with its uncertainty, on real handwritten digits.

Invariant: it is made of the same engine, records and comparisons as everything else; it only chooses the jobs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghostcli import plan
from ghostcli.cli.options import Device, Json, Runs, Where, with_common, words
from ghostcli.cli.train import leave
from ghostcli.display import tell_json
from ghostcli.errors import printable
from ghostcli.machine import cores
from ghostcli.plan import Job, record_of
from ghostcli.run import launch

if TYPE_CHECKING:
    from ghostcli.comparison.rows import Row, Table
    from ghostcli.recipe.load import Resolved

#: Only Ghost networks: a ResNet alone would take longer than all of them.
STUDENT, ASSISTANT, TEACHER = "gns:0.2", "gns:0.3", "gns:0.5"
SEEDS = (0, 1, 2, 3, 4)
#: The teacher's recipe, and that of all who have few labelled digits.
ALL, FEW = "smoke/demo", "smoke/few"
ALONE, ONE, CHAIN, TWO = "alone", "one teacher", "via an assistant", "two teachers"


@with_common
def demo(
    where: Where,
    runs: Runs = Path("runs/demo"),
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue an earlier demo, or start over.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Does teaching help? Trained and answered in a few minutes on two CPU cores, with real handwritten digits.

    A small network learns from few digits: alone from their labels, and taught by a network that saw all digits.
    """
    from ghostcli.recipe import load

    began = time.perf_counter()
    everything, few = load(ALL), load(FEW)
    # One thread a run: such networks gain nothing from more, and their number would change the last bits of a result.
    place = where.place()
    place = replace(place, cpus=place.cpus or 1)
    at_a_time = 0 if place.remote else cores()
    options = launch.Options(runs, device, resume, at_a_time, command=words(), place=place)
    teacher = plan.plain(TEACHER, 0, everything.recipe, everything.name)
    ways = students(teacher, few, runs)
    todo = plan.order([teacher, *(job for jobs in ways.values() for job in jobs)])
    if place.detach:
        leave(todo, options)
        return
    launch.carry_out(todo, options)
    from ghostcli.render import figures

    table, rows = compared(todo.jobs, ways, runs)
    forest = figures.save(figures.forest([table]), runs / "forest.png")
    prediction = _predict_first(ways[ONE][0], runs)
    seconds = time.perf_counter() - began
    if as_json:
        tell_json(_object(rows, seconds, forest, prediction))
    else:
        _show(rows, few, forest, prediction, runs)
        from ghostcli.display import console

        console.print(f"demo: {seconds:.0f} s", style="dim")


def students(teacher: Job, few: Resolved, runs: Path) -> dict[str, list[Job]]:
    """Way of learning from few labelled digits -> its jobs, one for each seed."""
    common = (few.recipe, few.name)
    return {
        ALONE: [plan.plain(STUDENT, seed, *common) for seed in SEEDS],
        ONE: [plan.chain((teacher,), STUDENT, seed, *common, runs) for seed in SEEDS],
        # One seed each: the time is for the question that gets a verdict.
        CHAIN: [plan.chain((teacher, ASSISTANT), STUDENT, SEEDS[0], *common, runs)],
        TWO: [plan.ensemble([teacher, STUDENT], STUDENT, SEEDS[0], *common, runs)],
    }


def compared(jobs: Sequence[Job], ways: Mapping[str, Sequence[Job]], runs: Path) -> tuple[Table, dict[str, Row]]:
    """The table of the demo's own runs, with verdicts, and the row of each way."""
    from ghostcli.comparison import tables
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.looks import noted

    admitted = admit([record_of(job, runs) for job in {job.id: job for job in jobs}.values()])
    [table] = noted(tables.judged([t for t in tables.every(admitted) if t.name == tables.ALSO]), runs)
    of = {run: row for row in table.filled for run in row.group.ids}
    return table, {way: of[first.id] for way, (first, *_) in ways.items()}


def _predict_first(job: Job, runs: Path) -> dict[str, Any]:
    """The first test digit as a file, and what `ghost predict` says of it; a picture of both."""
    import numpy as np
    from PIL import Image

    from ghostcli.data import load
    from ghostcli.deploy import ask, source
    from ghostcli.render import figures, pictures

    data = load(job.recipe.data)
    digit, true = runs / "digit.png", data.classes[int(data.test.labels[0])]
    Image.fromarray(data.test.pixels[0].numpy()).save(digit)
    [row] = ask.predict(source.open_network(job.id, runs), [str(digit)], len(data.classes))
    shares = {each["class"]: each["probability"] for each in row["predictions"]}
    title = f"{STUDENT}, taught, says {row['predictions'][0]['class']}; it is a {true}"
    drawn = pictures.answer(np.asarray(Image.open(digit)), {name: shares[name] for name in data.classes}, title)
    picture = figures.save(drawn, runs / "answer.png")
    return {
        "run": job.id,
        "image": str(digit),
        "true": true,
        "predictions": row["predictions"],
        "picture": str(picture),
    }


def _object(rows: Mapping[str, Row], seconds: float, forest: Path, prediction: Mapping[str, Any]) -> dict[str, Any]:
    from ghostcli.render import data, sentence

    objects = [{"way": way} | data.row_object(row) for way, row in rows.items()]
    summary = {"verdict": sentence.verdict(rows[ONE]), "rows": objects, "seconds": round(seconds, 1)}
    return summary | {"forest": str(forest), "answer": dict(prediction)}


def _show(rows: Mapping[str, Row], few: Resolved, forest: Path, prediction: Mapping[str, Any], runs: Path) -> None:
    from ghostcli.display import table, tell, wrapped
    from ghostcli.recipe.sets import SETS
    from ghostcli.render import sentence, text_table
    from ghostcli.render.notes import SINGLE

    whole, tested = SETS[few.recipe.data.name].train_images, rows[ALONE].group.about.test_images
    typer.echo(
        f"\nA small network ({STUDENT}) has {few.recipe.data.limit} labelled digits.\n"
        f"Its teacher ({TEACHER}) saw all {whole:,}.\n"
        f"Accuracy on {tested} test digits, mean ± standard deviation (seeds):\n"
    )
    view = table("how it learnt", "accuracy (%)", "against alone [95 %]", "verdict", words=("verdict",))
    for way, row in rows.items():
        against = "" if row.delta is None else text_table.interval(row.delta)
        verdict = (row.verdict or "") + " (1 run)" * bool(row.delta and row.delta.of_two_networks)
        view.add_row(way, text_table.accuracy(row.ours, row.group), against.rstrip(SINGLE), verdict)
    tell(view)
    best = prediction["predictions"][0]
    answer = (
        f"The taught student says that the digit {prediction['image']} is a {best['class']} "
        f"({100 * best['probability']:.0f} %); it is a {prediction['true']}."
    )
    typer.echo(f"\n{wrapped(f'Verdict: {sentence.verdict(rows[ONE])}.')}\n\n{wrapped(answer)}\n")
    where = printable(runs)
    typer.echo(f"pictures  {printable(forest)}, {printable(prediction['picture'])}")
    typer.echo(f"a page    ghost report --runs {where} --open")
    typer.echo(f"ask it    ghost predict run/{prediction['run']} {printable(prediction['image'])} --runs {where}")
    typer.echo("CIFAR-10  ghost distill resnet18 --student gns:1.0 --recipe smoke --data cifar10")
