"""`ghost export`: a finished run as a deployable file. Invariant: the figures it prints are of the file it wrote."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.errors import printable
from ghostcli.records import record


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run: ID or run/ID.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="NAME.pt2 (torch alone runs it) or NAME.safetensors."),
    ],
    half: Annotated[bool, typer.Option("--half", help="Weights as float16 (.safetensors).")] = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """The deploy form of a run's network as a file, proven on the run's test images before it is written.

    ghost export gns-1.0-kd-1a2b3c4d/s0 --out student.pt2
    """
    from ghostcli.deploy import export as room

    chosen = record.find(runs, run)
    proof = room.export(chosen, out, half)
    if as_json:
        typer.echo(json.dumps({"run": chosen.id, **asdict(proof)}, indent=1))
        return
    typer.echo(
        f"{printable(proof.file)}: {proof.parameters:,} parameters, {proof.form}, {proof.bytes:,} bytes\n"
        f"reloaded, on {proof.images:,} test images: {proof.accuracy:.2f} % (recorded {proof.recorded:.2f} %)\n"
        f"largest difference of logits: {proof.from_deploy_form:.2g} from the deploy form, which differs from the "
        f"train form by {proof.from_train_form:.2g}"
    )
    if out.suffix == ".pt2":
        typer.echo("use: torch.export.load(FILE).module()(images), float32 [N, 3, H, W] in 0..1; no ghost needed")
