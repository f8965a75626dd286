"""`ghost demo`: the whole story on an embedded data set, in two minutes on a CPU.

Invariant: it is made of the same verbs and the same engine as everything else; it only chooses the jobs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from ghostcli import plan
from ghostcli.cli.options import Device, Json, Runs, words
from ghostcli.display import console
from ghostcli.run import launch

TARGET = 95.0  # percent on the digits' test images; below it the demo says so

#: Ghost networks all the way down: a ResNet would spend the two minutes alone.
STUDENT, ASSISTANT, TEACHER = "gns:0.3", "gns:0.4", "gns:0.5"


def demo(
    runs: Runs = Path("runs/demo"),
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with an earlier demo, or start over.")
    ] = True,
    as_json: Json = False,
) -> None:
    """The whole story in two minutes on a CPU, with real handwritten digits.

    A teacher, a student alone, and the same student taught by the teacher, through an assistant, and by an ensemble;
    then the table that compares them.
    """
    from ghostcli.cli.train import summary
    from ghostcli.recipe import load

    found = load("smoke/demo")
    recipe, name = found.recipe, found.name
    asked = [
        plan.plain(TEACHER, 0, recipe, name),
        plan.plain(STUDENT, 0, recipe, name),
        plan.chain([TEACHER], STUDENT, 0, recipe, name, runs),
        plan.chain([TEACHER, ASSISTANT], STUDENT, 0, recipe, name, runs),
        plan.ensemble([TEACHER, STUDENT], STUDENT, 0, recipe, name, runs),  # its untaught self is the second teacher
    ]
    began = time.perf_counter()
    # Networks this small do not fill two cores: two runs side by side take a third less time.
    options = launch.Options(runs, device, resume, jobs=min(2, os.cpu_count() or 1), command=words())
    records = launch.carry_out(plan.order(asked), options)
    seconds = time.perf_counter() - began
    rows = [summary(record.result) for record in records]
    taught = [row["accuracy"]["last"] for row in rows if row["student"] == STUDENT]
    reached = min(taught) >= TARGET
    if as_json:
        typer.echo(
            json.dumps({"runs": rows, "seconds": round(seconds, 1), "target": TARGET, "reached": reached}, indent=1)
        )
        return
    from ghostcli.cli.table import table

    table("also", runs=runs)
    verdict = f"every {STUDENT} is above {TARGET:.0f} %" if reached else f"NOT every {STUDENT} is above {TARGET:.0f} %"
    console.print(
        f"demo: {seconds:.0f} s; {verdict} (lowest {min(taught):.2f} %). One seed a row: read no order into them."
    )
    console.print(
        "Next: ghost distill resnet18 --student gns:1.0 --recipe smoke --data cifar10, or ghost --help", style="dim"
    )
