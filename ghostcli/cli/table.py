"""`ghost table`: the paper's tables, with our numbers beside the printed ones.

Invariant: it reads run records and prints. It writes only --plot's file and the log of readings (comparison/looks.py).
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostcli.cli.options import Runs
from ghostcli.display import console, tell_json
from ghostcli.errors import UsageError, one_of, printable
from ghostcli.paper import FAMILIES, paper
from ghostcli.plan import commands

if TYPE_CHECKING:
    from ghostcli.comparison.admission import Admitted
    from ghostcli.comparison.rows import Options, Table
    from ghostcli.records.record import RunRecord
    from ghostcli.render.text_table import TextTable

FORMATS = ("text", "markdown", "latex", "csv", "json")
MAIN = ("published", "paper", "ghost")
NAMES = ("I", "II", "III", "IV", "all", "main", "also")
Form = Annotated[str, typer.Option("--format", metavar="F", help=f"{', '.join(FORMATS)}.")]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Margin = Annotated[float, typer.Option("--margin", metavar="POINTS", help="Smaller differences count as equivalent.")]
Family = Annotated[
    str | None, typer.Option("--family", metavar="F", help=f"{', '.join(FAMILIES)}.", show_default="those with runs")
]


def table(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="|".join(NAMES),
            help="main: printed, published, paper and ghost side by side; also: runs that fill no row of the paper.",
            show_default="those with runs",
        ),
    ] = None,
    runs: Runs = Path("runs"),
    family: Family = None,
    form: Form = "text",
    as_json: AsJson = False,
    margin: Margin = 0.3,
    cost: Annotated[bool, typer.Option("--cost", help="Also training hours, with the teachers' share.")] = False,
    more: Annotated[bool, typer.Option("--more", help="Also calibration and agreement with the teachers.")] = False,
    paper_metric: Annotated[
        bool,
        typer.Option(
            "--paper-metric", help="Accuracy of the best epoch on the test set, as in the paper (optimistic)."
        ),
    ] = False,
    equal_budget: Annotated[
        bool,
        typer.Option(
            "--equal-budget", help="Compare with baselines trained as long as a row and its teachers together."
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Also draw a figure: Fig. 1 for table I, differences for the others."
        ),
    ] = None,
) -> None:
    """Print the paper's tables: printed numbers, our numbers, and a verdict on the effect of teaching.

    A row compares runs of one protocol only. Each run that is left out is named with the reason. Without a name only
    tables with runs are printed; --format json and csv always have all.
    """
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.looks import noted
    from ghostcli.comparison.rows import Options
    from ghostcli.comparison.tables import judged
    from ghostcli.records import record

    form = checked(form, as_json, margin, plot)
    if family is not None:
        one_of("--family", family, FAMILIES)
    if which is not None:
        upper = which.upper()
        which = one_of("table", {name.upper(): name for name in NAMES}.get(upper, upper), NAMES)
    options = Options("best" if paper_metric else "selected", margin, equal_budget, runs)
    if not runs.is_dir() and runs != Path("runs"):
        console.print(f"ghost: --runs {printable(runs)}: there is no such folder, so no runs are in the tables")
    with uncollected():
        records = record.scan(runs)
        tables = noted(judged(_tables(which, admit(records), family, options)), runs)
        _print(which, tables, records, form, cost, more)
    if plot is not None:
        _plot(which, tables, plot)


def checked(form: str, as_json: bool, margin: float, plot: Path | None) -> str:
    """The format, after a check of the flags. UsageError for a value that cannot be."""
    from ghostcli.render.figures import require_suffix

    if not 0 <= margin < 100:
        raise UsageError(f"--margin {margin:g}: must be from 0 to below 100 points of accuracy, such as 0.3")
    if plot is not None:
        require_suffix(plot, "--plot ")
    return one_of("--format", "json" if as_json else form, FORMATS)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage: the records of a sweep are needed until the end, and it would take a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _tables(which: str | None, admitted: Admitted, family: str | None, options: Options) -> list[Table]:
    """The tables to print, without verdicts."""
    from ghostcli.comparison import tables

    if which == "main":
        printed = [t.name for t in paper().tables]
        return [t for f in MAIN for t in tables.built(printed, admitted, f, options)]
    candidates = tables.every(admitted, family, options)
    wanted = {"also": tables.ALSO}.get(which, which)
    return [table for table in candidates if wanted in (None, "all", table.name)]


def _with_runs(tables: Sequence[Table]) -> tuple[list[Table], tuple[str, ...]]:
    """The tables that runs fill, then those where runs were left out, and a note on the others. Without runs: all."""
    chosen = sorted((t for t in tables if t.filled or t.left_out), key=lambda t: not t.filled) or list(tables)
    empty = [name for name in dict.fromkeys(t.name for t in tables) if name not in {t.name for t in chosen}]
    command = commands.line("table", "all", runs=tables[0].options.runs)
    return chosen, (f"No runs yet: tables {', '.join(empty)}. `{command}` prints them too.",) if empty else ()


def _print(
    which: str | None, tables: Sequence[Table], records: Sequence[RunRecord], form: str, cost: bool, more: bool
) -> None:
    from ghostcli.comparison.cost import costs
    from ghostcli.render import data, text_table

    known = costs(records) if cost else None
    columns = {f: [t for t in tables if t.family == f] for f in MAIN}
    if form == "csv":
        sys.stdout.write(data.comma_separated([data.objects(t, known, more) for t in tables]))
        return
    if form == "json":
        objects = [data.side_by_side(columns)] if which == "main" else [data.objects(t, known, more) for t in tables]
        value = objects[0] if len(objects) == 1 and which not in (None, "all") else objects
        tell_json(value)
        return
    tables, note = _with_runs(tables) if which is None else (tables, ())
    texts = [text_table.side_by_side(columns)] if which == "main" else [text_table.results(t) for t in tables]
    if known is not None:
        texts += [text_table.cost(t, known) for t in tables if t.filled]
    if more:
        texts += [text_table.calibration(t) for t in tables if t.filled]
    if not texts:
        raise UsageError("table 'also': every run fills a row of the paper; `ghost table` prints these rows")
    texts[-1] = replace(texts[-1], general=texts[-1].general + note)
    write_text(texts, form)


def write_text(made: Sequence[TextTable], form: str) -> None:
    """Print tables as text for this terminal, as Markdown or as LaTeX."""
    from ghostcli.render import formats

    if form == "text":
        colour = sys.stdout.isatty()
        width = min(shutil.get_terminal_size((100, 24)).columns, 140) if colour else 100
        sys.stdout.write(formats.text(made, width, colour))
    else:
        sys.stdout.write({"markdown": formats.markdown, "latex": formats.latex}[form](made))


def _plot(which: str | None, tables: Sequence[Table], file: Path) -> None:
    from ghostcli.render import figures

    drawn = figures.width(tables) if which == "I" else figures.forest(tables)
    figures.save(drawn, file)
