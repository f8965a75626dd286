"""`ghost predict`: what a trained network says about pictures. Invariant: answers go to stdout, nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.cli import complete
from ghostcli.cli.options import Json, Runs
from ghostcli.display import apart, table, tell, tell_json
from ghostcli.errors import UsageError, printable

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A finished run (run/ID), pretrained/NAME, or an exported .onnx, .pt2 or .tflite file.",
        autocompletion=complete.models,
    ),
]


def predict(
    model: Model,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Picture files, folders, or - for stdin.")],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Classes to name, likeliest first.")] = 3,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """The classes of pictures, with probabilities: one line per picture. One that cannot be read is named at the end.

    ghost predict run/gns-1.0-kd-1a2b3c4d/s0 cat.jpg        ghost predict student.onnx photos/ --top 1 --json
    """
    from ghostcli.deploy import ask, source

    files = ask.list_pictures(images)
    with apart():
        rows = ask.predict(source.open_network(model, runs), files, top)
    unread = [row["error"] for row in rows if "error" in row]
    if as_json:
        tell_json(rows)
    elif len(unread) < len(rows):
        _print([row for row in rows if "error" not in row])
    if unread:
        raise UsageError("\n".join(unread))


def _print(rows: list[dict[str, Any]]) -> None:
    view = table("image", *[""] * len(rows[0]["predictions"]), words=("",), header=False)
    for row in rows:
        cells = [f"{100 * each['probability']:5.1f} % {each['class']}" for each in row["predictions"]]
        view.add_row(printable(row["image"]), *map(printable, cells))
    tell(view)
