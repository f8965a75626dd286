"""`ghost demo`: trains and compares small networks on an embedded data set, in two minutes on a CPU.

Invariant: it only chooses the jobs. Planning, training and tables are the same as for every other verb.
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

TARGET = 95.0  # percent on the digits' test images; the demo says if a student is below

#: Only Ghost networks: a ResNet alone would take the two minutes.
STUDENT, ASSISTANT, TEACHER = "gns:0.3", "gns:0.4", "gns:0.5"


def demo(
    runs: Runs = Path("runs/demo"),
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue an earlier demo, or start over.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train and compare in two minutes on a CPU, with real handwritten digits.

    The demo trains a teacher and a student alone. It then trains the same student with the teacher, with an assistant
    in between, and with an ensemble. Last it prints the table that compares them.
    """
    from ghostcli.cli.train import summary
    from ghostcli.recipe import load

    found = load("smoke/demo")
    recipe, name = found.recipe, found.name
    jobs = [
        plan.plain(TEACHER, 0, recipe, name),
        plan.plain(STUDENT, 0, recipe, name),
        plan.chain([TEACHER], STUDENT, 0, recipe, name, runs),
        plan.chain([TEACHER, ASSISTANT], STUDENT, 0, recipe, name, runs),
        plan.ensemble([TEACHER, STUDENT], STUDENT, 0, recipe, name, runs),  # second teacher: the student trained alone
    ]
    began = time.perf_counter()
    # One network this small does not use two cores fully. Two runs at a time take a third less time in all.
    options = launch.Options(runs, device, resume, jobs=min(2, os.cpu_count() or 1), command=words())
    records = launch.carry_out(plan.order(jobs), options)
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
        f"demo: {seconds:.0f} s; {verdict} (lowest {min(taught):.2f} %). Each row is one seed, so do not rank the rows."
    )
    console.print(
        "Next: ghost distill resnet18 --student gns:1.0 --recipe smoke --data cifar10, or ghost --help", style="dim"
    )
