"""`ghost report`: runs and studies as one HTML page. Invariant: it writes the file that --out names, and no record."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostcli.cli import complete
from ghostcli.cli.options import Runs
from ghostcli.errors import UsageError, printable

if TYPE_CHECKING:
    from ghostcli.records.record import RunRecord
    from ghostcli.report.page import Asked

#: What changes in a run's folder while it is trained.
WATCHED = ("status.json", "metrics.jsonl", "result.json", "predictions.npz")


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|STUDY",
            help="Runs by id, or folders of runs; none: all runs.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page.")] = Path("report.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Serve the page to this machine until Ctrl-C; it fills while runs go on.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="Of --live; 0: any free one.")] = 0,
) -> None:
    """One HTML page of a run or of a study: curves, tables, forest plots, errors, and how everything was made.

    The page needs no network and no other file. One run that you name has a page of its own kind.

    ghost report        ghost report gns-1.0-kd-1a2b3c4d/s0 --open        ghost report runs/studies/NAME -o study.html
    """
    from ghostcli.records.storage import write_bytes
    from ghostcli.report import page

    content = gather(names or [], runs)
    if not content.shown and not live:
        raise UsageError(f"{printable(runs)}: holds no runs to report; `ghost demo` makes some in minutes")
    if live:
        _serve(names or [], runs, port, show)
        return
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {printable(out)}: its name must end in .html")
    if not out.parent.is_dir():
        raise UsageError(
            f"--out {printable(out)}: there is no folder {printable(out.parent)}; make it, or name another"
        )
    write_bytes(out, page.render(content).encode())
    typer.echo(printable(out))
    if show and not webbrowser.open(out.resolve().as_uri()):
        typer.echo(f"no browser was found; open {printable(out)} by hand", err=True)


def gather(names: Sequence[str], runs: Path) -> Asked:
    """The records that `names` stand for: folders of runs, and ids within `runs`. Without names: all of `runs`.

    A run that lies in several folders counts once: a finished record before others, then that of the first folder.
    """
    from ghostcli.cli.plot import named
    from ghostcli.cli.runs import scanned
    from ghostcli.records.record import RUN_ID, id_of
    from ghostcli.report.page import Asked

    folders = [Path(name) for name in names if _holds_runs(Path(name)) and not RUN_ID.fullmatch(id_of(name, runs))]
    ids = [name for name in names if Path(name) not in folders]
    places = [*folders, *([runs] if ids or not names else [])]
    records = [run for place in places for run in scanned(place)]
    by_id: dict[str, RunRecord] = {}
    for run in records:
        if run.id not in by_id or (by_id[run.id].status != "done" and run.status == "done"):
            by_id[run.id] = run
    unique = tuple(by_id.values())
    if not ids:
        return Asked(unique, looked=places[0] if len(places) == 1 else None)
    chosen = {run.id for name in ids for run in named(name, unique, runs)}
    chosen |= {run.id for folder in folders for run in scanned(folder)}
    return Asked(unique, frozenset(chosen), runs if not folders else None)


def _holds_runs(path: Path) -> bool:
    return path.is_dir() and not (path / "status.json").exists()


def _serve(names: Sequence[str], runs: Path, port: int, show: bool) -> None:
    from ghostcli.display import console
    from ghostcli.errors import Interrupted
    from ghostcli.report import page
    from ghostcli.report.live import HOST, Server

    def stamp() -> object:
        files = [run.path / name for run in gather(names, runs).records for name in WATCHED]
        return [(str(file), *_stamp(file)) for file in files]

    try:
        server = Server(port, stamp, lambda: page.render(gather(names, runs), live=True))
    except OSError as error:
        raise UsageError(f"--port {port}: cannot listen on {HOST} ({error.strerror or error}); name another") from error
    with server:
        typer.echo(server.address)
        console.print("The page fills while runs go on. Ctrl-C stops it.", style="dim")
        if show and not webbrowser.open(server.address):
            console.print("No browser was found: open the address by hand.", style="dim")
        try:
            server.serve_forever()
        except Interrupted:  # asked to stop, which is no failure
            return


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
