"""`ghost data`: lists data sets, downloads them, and checks the files on disk.

Invariant: results go to stdout; with --json they are one JSON value. Only `fetch` and `split` write files.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.cli.options import Json
from ghostcli.data import SETS, data_root, folder_of
from ghostcli.display import table, tell, tell_json
from ghostcli.errors import UsageError, printable
from ghostcli.plan import commands

app = typer.Typer(no_args_is_help=True, help="Data sets: list, download, check; look at your own images.")

Name = Annotated[str, typer.Argument(help="cifar10, cifar100, digits or folder:PATH")]

MEANING = {"ready": "yes", "incomplete": "partly", "packed": "packed", "absent": "no"}


@app.command("list")
def list_sets(as_json: Json = False) -> None:
    """The named data sets: folder, whether the files are there, number of images and classes."""
    rows = _sets()
    if as_json:
        tell_json(rows)
        return
    view = table("name", "on disk", "training", "test", "classes", "folder", words=("on disk", "folder"))
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("train_images", "test_images", "classes"))
        view.add_row(row["name"], MEANING[row["state"]], *counts, row["path"])
    tell(view)
    typer.echo("A missing set is downloaded at first use, or by `ghost data fetch NAME`.")
    typer.echo("Your own images: folder:PATH, with PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or val/).")


@app.command()
def fetch(name: Name, as_json: Json = False) -> None:
    """Download a set, or repair it: files with the published checksum stay, all others are downloaded again."""
    if folder_of(name) is not None:
        raise UsageError(f"{printable(name)}: your own images need no download; `ghost data verify` checks them")
    SETS[name].fetch(data_root())
    row = next(row for row in _sets() if row["name"] == name)
    tell_json(row) if as_json else typer.echo(f"{name}: ready, {row['path']}")


@app.command()
def verify(name: Name, as_json: Json = False) -> None:
    """Check a set: CIFAR's files by the published MD5, a folder's by decoding each. Exit code 2 if a file is bad."""
    checks = _checks(name)
    bad = [check for check in checks if check["problem"]]
    if as_json:
        tell_json({"name": printable(name), "ok": not bad, "files": checks})
    else:
        for check in checks:
            typer.echo(f"BAD {check['problem']}" if check["problem"] else f"ok  {check['file']}")
    if bad:
        of_all = f" of {len(checks)}" if name in SETS else ""  # of a folder only the bad files are listed
        raise UsageError(f"{printable(name)}: files that failed: {len(bad)}{of_all}")


Folder = Annotated[str, typer.Argument(metavar="PATH", help="A folder with one folder per class, or folder:PATH.")]
#: So many files of a list are named.
NAMED = 5


@app.command()
def inspect(folder: Folder, as_json: Json = False) -> None:
    """Describe a folder of your own images: classes, sizes, faults, pictures in both parts, and a first command.

    ghost data inspect folder:photos
    """
    from ghostcli.data import inspect as inspection

    contents = inspection.inspect(_path(folder))
    command = contents.settings and commands.training("gns:1.0", flags=commands.flags_of(contents.settings))
    if as_json:
        data = {key: value for key, value in asdict(contents).items() if key != "settings"}
        tell_json(data | {"command": command})
        return
    view = table("class", *contents.counts)
    for name in dict.fromkeys(name for part in contents.counts.values() for name in part):
        view.add_row(name, *(f"{part.get(name, 0):,}" for part in contents.counts.values()))
    totals = {part: sum(classes.values()) for part, classes in contents.counts.items()}
    view.add_row("all", *(f"{total:,}" for total in totals.values()), style="bold")
    tell(view)
    if contents.sides:
        typer.echo("shorter sides: {} to {} pixels, median {}".format(*contents.sides[::2], contents.sides[1]))
    _list("cannot be read", [f"{file}: {why}" for file, why in contents.broken])
    _list("in both train and test: the accuracy will be too high", [" = ".join(files) for files in contents.shared])
    _list("equal pictures in several classes", [" = ".join(files) for files in contents.contradictory])
    for remark in contents.remarks:
        typer.echo(remark)
    if command:
        typer.echo(f"A first training (settings not tested on your images): {command}")


@app.command()
def split(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder for train/ and test/.")],
    share: Annotated[
        float, typer.Option("--share", min=0.01, max=0.99, metavar="S", help="Share of each class for test/.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Seed of the random choice.")] = 0,
) -> None:
    """Copy a folder without a test part to a new one with train/ and test/: stratified, equal pictures in one part."""
    from ghostcli.data import inspect as inspection

    counts = inspection.split(_path(folder), out, share, seed)
    typer.echo(f"{printable(out)}: {counts['train']:,} training and {counts['test']:,} test images (seed {seed})")
    for remark in inspection.passed_over(_path(folder)):
        typer.echo(remark)


def _path(name: str) -> Path:
    if name in SETS:
        raise UsageError(f"{name}: is not a folder; type folder:PATH")
    return folder_of(name if name.startswith("folder:") else f"folder:{name}")


def _list(title: str, lines: list[str]) -> None:
    if lines:
        typer.echo(f"{len(lines)} {title}:")
        for line in lines[:NAMED]:
            typer.echo(f"  {line}")
        if len(lines) > NAMED:
            typer.echo(f"  and {len(lines) - NAMED} more (--json prints all)")


def _sets() -> list[dict[str, Any]]:
    rows = []
    for known in SETS.values():
        state = known.state(data_root())
        counts = {key: getattr(known, key) for key in ("train_images", "test_images", "classes")}
        path = known.place(data_root())
        rows.append({"name": known.name, "state": state, **counts, "path": path, "present": state == "ready"})
    return rows


def _checks(name: str) -> list[dict[str, str | None]]:
    """`file` and `problem` (None if it is good): each file of a named set; of a folder the bad files, or one entry."""
    folder = folder_of(name)
    if folder is None:
        return [{"file": file, "problem": problem} for file, problem in SETS[name].checks(data_root())]
    from ghostcli.data import inspect as inspection
    from ghostcli.data.folder import list_images

    if broken := inspection.inspect(folder).broken:
        return [{"file": file, "problem": f"{file}: {why}"} for file, why in broken]
    train, test = list_images(folder)
    images, held_out = (sum(map(len, part.values())) for part in (train, test))
    summary = f"{len(train)} classes, {images:,} training and {held_out:,} test images"
    return [{"file": f"{printable(folder)}: {summary}", "problem": None}]
