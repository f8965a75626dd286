"""`ghost export`: a finished run as files for devices. Invariant: the figures it prints are of the files it wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ghostcli.cli import proofs
from ghostcli.cli.options import Json, Runs
from ghostcli.deploy import formats
from ghostcli.display import Display, apart, tell_json
from ghostcli.errors import printable
from ghostcli.records import trained

Markdown = Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run (ID or run/ID), or pretrained/NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="A file, or a folder for several formats.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F,F...",
            help="onnx, onnx-int8, tflite, tflite-int8, pt2, safetensors, safetensors-float16, html; several with "
            "commas, or all.",
            show_default="by the ending of --out",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="In 8-bit integers: the file --out, or one more file in the folder.")
    ] = False,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time the files too, or only check them.")
    ] = True,
    runs: Runs = Path("runs"),
    as_markdown: Markdown = False,
    as_json: Json = False,
) -> None:
    """The deploy form of a run's network as files, each loaded again and proven on all test images.

    ghost export gns-1.0-kd-1a2b3c4d/s0 --out student.onnx        ghost export ... --format onnx,pt2 --out folder
    """
    chosen = trained.find(runs, run)
    files = formats.destinations(chosen.id, out, form, int8)

    from ghostcli.deploy.export import from_train_form, prepare, prove

    with apart(), Display() as show:
        show.begin("export", 0)
        network = prepare(chosen)
        formats.make_folders(files)
        rows, errors = prove(network, files, timing, say=lambda note: show.advance(0, note=note))
    if errors and len(files) == 1:
        raise errors[0]
    if as_json:
        tell_json([asdict(row) for row in rows[1:]])
    else:
        proofs.tell(rows, as_markdown)
        typer.echo(
            f"{network.about.model}, {rows[0].images:,} test images of {network.data.name}; the run recorded "
            f"{chosen.result.accuracy.selected:.2f} %. Deploy form and train form differ "
            f"in their logits by {from_train_form(network):.2g} at most."
        )
        for row in rows:
            if row.file is not None:
                typer.echo(f"{printable(row.file)}: written")
    if errors:
        raise typer.Exit(errors[0].exit_code)
