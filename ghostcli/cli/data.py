"""`ghost data`: lists data sets, downloads them, and checks the files on disk.

Invariant: results go to stdout; with --json they are one JSON value. Only `fetch` writes files.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ghostcli.cli.options import Json
from ghostcli.errors import UsageError, printable

app = typer.Typer(no_args_is_help=True, help="Data sets: list, download, check.")

Name = Annotated[str, typer.Argument(help="cifar10, cifar100, digits or folder:PATH")]

MEANING = {"ready": "yes", "incomplete": "partly", "packed": "packed", "absent": "no"}


@app.command("list")
def list_sets(as_json: Json = False) -> None:
    """The named data sets: folder, whether the files are there, number of images and classes."""
    rows = _sets()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "on disk", box=None, pad_edge=False)
    for heading in ("training", "test", "classes"):
        table.add_column(heading, justify="right")
    table.add_column("folder", overflow="fold")
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("train_images", "test_images", "classes"))
        table.add_row(row["name"], MEANING[row["state"]], *counts, Text(row["path"]))
    console = Console()
    console.print(table)
    console.print("A missing set is downloaded at first use, or by `ghost data fetch NAME`.")
    console.print("Your own images: folder:PATH, with PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or val/).")


@app.command()
def fetch(name: Name, as_json: Json = False) -> None:
    """Download a set, or repair it: files with the published checksum stay, all others are downloaded again."""
    from ghostcli.data import SETS, data_root, folder_of

    if folder_of(name) is not None:
        raise UsageError(f"{printable(name)}: your own images need no download; `ghost data verify` checks them")
    SETS[name].fetch(data_root())
    row = next(row for row in _sets() if row["name"] == name)
    typer.echo(json.dumps(row, indent=1) if as_json else f"{name}: ready, {row['path']}")


@app.command()
def verify(name: Name, as_json: Json = False) -> None:
    """Check a set: CIFAR's files by the published MD5, a folder's by decoding each. Exit code 2 if a file is bad."""
    checks = _checks(name)
    bad = [check for check in checks if check["problem"]]
    if as_json:
        typer.echo(json.dumps({"name": printable(name), "ok": not bad, "files": checks}, indent=1))
    else:
        for check in checks:
            typer.echo(f"BAD {check['problem']}" if check["problem"] else f"ok  {check['file']}")
    if bad:
        raise UsageError(f"{printable(name)}: {len(bad)} of {len(checks)} checks failed")


def _sets() -> list[dict[str, Any]]:
    from ghostcli.data import SETS, data_root

    rows = []
    for known in SETS.values():
        state = known.state(data_root())
        counts = {key: getattr(known, key) for key in ("train_images", "test_images", "classes")}
        path = known.place(data_root())
        rows.append({"name": known.name, "state": state, **counts, "path": path, "present": state == "ready"})
    return rows


def _checks(name: str) -> list[dict[str, str | None]]:
    """One entry per file (or one for the whole set): `file` and `problem`, which is None if the file is good."""
    from ghostcli.data import SETS, data_root, folder_of

    folder = folder_of(name)
    if folder is None:
        return [{"file": file, "problem": problem} for file, problem in SETS[name].checks(data_root())]
    from ghostcli.data.folder import read_folder

    classes, train, test = read_folder(folder, size=8)
    summary = f"{len(classes)} classes, {len(train):,} training and {len(test):,} test images"
    return [{"file": f"{printable(folder)}: {summary}", "problem": None}]
