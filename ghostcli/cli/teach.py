"""`ghost teach`: a trained teacher's table of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostcli import signals
from ghostcli.cli.options import Device, Json, Runs
from ghostcli.display import Display, apart, tell_json
from ghostcli.errors import UsageError
from ghostcli.records import trained
from ghostcli.run.job import load_data

app = typer.Typer(no_args_is_help=True, help="Work with a trained teacher's table of logits.")


@app.command("fill")
def fill(
    run: Annotated[str, typer.Argument(help="A finished run (ID or run/ID), or pretrained/NAME.")],
    runs: Runs = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fill the table of logits of a trained teacher: all views of all training images. All students reuse it.

    This is optional: a student's training computes missing logits and adds them to the table.
    """
    chosen = trained.find(runs, run)
    if chosen.status != "done" or chosen.result is None:
        raise UsageError(f"{chosen.id}: cannot teach ({chosen.problem}); finish it first")
    recipe = chosen.result.recipe
    from ghostcli.distill import teacher
    from ghostcli.engine.device import pick

    where = pick(device)
    data = load_data(recipe.data)
    if data.checksum != chosen.result.data_checksum:
        raise UsageError(f"{chosen.id}: the images of {recipe.data.name} have changed since its training; restore them")
    views = recipe.augment.view_count
    if views is None:
        raise UsageError(
            f"{chosen.id}: views with augment.cutout={recipe.augment.cutout} cannot be numbered, so no table is "
            "possible"
        )
    with apart(), Display() as show, signals.polled():
        loaded = teacher.load(chosen.id, runs, len(data.classes), where)
        show.begin(f"{chosen.id} table", views * len(data.train))
        table = teacher.fill_table(loaded, data, recipe.augment, where, show.advance)
    filled = {
        "run": chosen.id,
        "table": str(table.folder),
        "views": views,
        "images": len(data.train),
        "filled": table.coverage(),
    }
    if as_json:
        tell_json(filled)
    else:
        typer.echo(
            f"{chosen.id}: {filled['filled']:.1%} of {views} views x {len(data.train):,} images, in {table.folder}"
        )
