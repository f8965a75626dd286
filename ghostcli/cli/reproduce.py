"""`ghost reproduce`: plans, estimates and trains all runs of the paper's tables, then prints the tables.

Invariant: the printed tables contain only runs of this plan.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli import display
from ghostcli.cli.options import Data, Epochs, Running, Set, quoted, with_common
from ghostcli.cli.train import TeacherSeeds, leave, planned, show_scripts
from ghostcli.display import console, tell, tell_json
from ghostcli.errors import UsageError
from ghostcli.machine import free_disk
from ghostcli.packing import packed
from ghostcli.paper import FAMILIES, PaperRow, joined, label, paper
from ghostcli.plan import Job, is_done, record_of
from ghostcli.plan.estimate import DONE, Cost, Rates, costs, hours, sizes, space
from ghostcli.plan.study import Study, settings, study
from ghostcli.recipe.models import FEW_STEPS
from ghostcli.records import record
from ghostcli.run import launch
from ghostcli.run.launch import Outcome

#: Seconds of work above which a user at a terminal must confirm.
LONG = 600
#: Seconds of work above which --yes is required if there is no terminal.
DAY = 86_400


@with_common
def reproduce(
    tables: Annotated[list[str], typer.Argument(metavar="I|II|III|IV|all", help="Tables of the paper.")],
    how: Running,
    family: Annotated[str, typer.Option("--family", metavar="F", help=f"{', '.join(FAMILIES)}.")] = "paper",
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Seeds 0 to N - 1 of every row.")] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only N training and N test images.")
    ] = None,
    epochs: Epochs = None,
    skip: Annotated[
        list[str], typer.Option("--skip", metavar="MODEL", help="Leave out rows with this network (repeatable).")
    ] = [],  # noqa: B006 typer reads the default and never changes it
    overrides: Set = [],  # noqa: B006
    data: Data = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train each taught row with image-blind teachers.")
    ] = False,
    teacher_seeds: TeacherSeeds = 1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before long work.")] = False,
) -> None:
    """Train all runs of the paper's tables, each teacher and assistant once, and print the tables.

    ghost reproduce I II III IV --family paper --seeds 3        ghost reproduce all --limit 2000 --epochs 2

    Finished runs are reused; unfinished runs continue. The tables say if images or epochs are fewer than the paper's.

    --controls adds controls: the same training with teachers that see another image of the same class.
    """
    chosen = [*settings(quoted(data) if data is not None else None, limit, epochs), *overrides]
    options, runs = how.options(), how.runs
    todo = study(tables, family, seeds, chosen, skip, runs, controls, teacher_seeds)
    from ghostcli.engine.device import pick

    here = "auto" if options.place.remote else how.device  # a machine of the cluster may have what this one lacks
    rates = Rates(record.scan(runs), pick(here).type, lambda model: measure(model, here))
    expected = costs(todo.plan, rates, runs)
    if how.dry_run:
        _show_plan(todo, expected, options, how.json)
        show_scripts(todo.plan, options)
        return
    for line in _summary(todo, expected, options):
        console.print(line, markup=False)
    total = sum(cost.seconds for cost in expected.values())
    if total > LONG and not yes and sys.stdin.isatty() and not typer.confirm("Go ahead?", err=True):
        raise typer.Exit
    if total > DAY and not yes and not sys.stdin.isatty():
        raise UsageError(f"about {hours(total)} of work and no terminal to confirm it: add --yes to start")
    if options.place.detach:
        leave(todo.plan, options)
        return
    with display.apart() if how.json else contextlib.nullcontext():
        failed = _run(todo, packed(todo.plan, options), expected, how.json)
    if how.json:
        tell_json(_result(todo, runs))
    if failed:
        raise launch.together(failed, len(todo.plan.jobs))


def _run(todo: Study, options: launch.Options, expected: dict[str, Cost], quiet: bool) -> list[Outcome]:
    """Run the plan: a line on stderr for each job, and each table (unless `quiet`) as soon as its jobs are finished."""
    waiting = {table: {job.id for job in todo.of_table(table).jobs} for table in todo.tables}
    if not _printed_data(todo):  # one table of all runs, instead of the paper's tables
        waiting = {"": {job.id for job in todo.plan.jobs}}
    failed: list[Outcome] = []
    left = sum(cost.seconds for cost in expected.values())

    def print_full() -> None:
        for table in [table for table, jobs in waiting.items() if not jobs]:
            del waiting[table]
            if not quiet:
                _print_table(todo, table, options.runs)

    for count, outcome in enumerate(launch.run(todo.plan, options), 1):
        job = outcome.job
        seconds = expected[job.id].seconds
        left -= seconds
        if outcome.error is not None:
            failed.append(outcome)
            launch.warn(outcome, len(failed))
        elif seconds:
            about = f", about {hours(left)} left" if left > 1 else ""
            line = f"{_result_line(todo, job, options.runs)} ({count} of {len(todo.plan.jobs)}{about})"
            console.print(line, markup=False)
        for jobs in waiting.values():
            jobs.discard(job.id)
        print_full()
    print_full()
    return failed


def _result_line(todo: Study, job: Job, runs: Path) -> str:
    """`Table II, GN-S 1.0x < ResNet-18, seed 0: 91.02 (printed 91.10)`; with the id if the job fills no row."""
    result = record_of(job, runs).result
    ours = f"{result.accuracy.selected:.2f}" if result else "no result"
    rows = todo.rows_of(job)
    if not rows:
        return f"{job.id}: {ours}"
    budget = job.recipe.train.last_epoch * sizes(job.recipe.data)[0]
    comparable = _printed_data(todo) and budget >= paper().source.budget
    printed = f" (printed {rows[0].accuracy:.2f})" if comparable else ""
    return f"Table {rows[0].table}, {_name(rows[0])}, seed {job.seed}: {ours}{printed}"


def _name(row: PaperRow) -> str:
    return label(row.student) + (f" < {joined(row.teachers, row.strategy)}" if row.teachers else "")


def measure(model: str, device: str) -> float:
    """Images per second, measured over a few training steps of the engine on noise."""
    from ghostcli.deploy.bench import training_speed
    from ghostcli.engine.device import pick

    console.print(f"no finished run shows the training speed here: timing a few steps of {model}", style="dim")
    return training_speed(model, 64, pick(device), 1.0)


def _summary(todo: Study, expected: dict[str, Cost], options: launch.Options) -> list[str]:
    runs = options.runs
    flag, most = ("--streams", options.streams) if options.streams > 1 else ("--jobs", options.jobs)
    open_jobs = [job for job in todo.plan.jobs if expected[job.id].basis != DONE]
    lines = []
    for table in todo.tables:
        jobs = todo.of_table(table).jobs
        mine = [job for job in jobs if expected[job.id].basis != DONE]
        rows, of = sum(planned.row.table == table for planned in todo.rows), len(paper().table(table).rows)
        about = hours(sum(expected[job.id].seconds for job in mine))
        lines.append(f"Table {table}: {rows} of {of} rows need {len(jobs)} runs; {len(mine)} to train, about {about}")
    seconds, size = (sum(getattr(expected[job.id], key) for job in open_jobs) for key in ("seconds", "bytes"))
    free = free_disk(runs)
    together = f", at best {hours(seconds / most)} with {flag} {most}" if most > 1 else ""
    lines.append(
        f"Total: {len(open_jobs)} of {len(todo.plan.jobs)} runs to train, about {hours(seconds)} one at a time"
        f"{together} (without start-up and checks), up to {space(size)} of disk ({space(free)} free)"
    )
    if size > free:
        lines.append(f"Warning: {runs} has less free space; free some, or name another folder with --runs")
    steps = min((_steps(job) for job in todo.plan.jobs), default=FEW_STEPS)
    if steps < FEW_STEPS:
        lines.append(f"Warning: {steps} steps per run are too few to learn from; the accuracies mean nothing")
    for basis in sorted({expected[job.id].basis for job in open_jobs}):
        models = dict.fromkeys(job.student for job in open_jobs if expected[job.id].basis == basis)
        lines.append(f"Rates, {basis}: {', '.join(models)}")
    if open_jobs and options.place.remote:
        lines.append("Rates are those of this machine, or of the finished runs; the cluster's machines can differ")
    return lines + _left_out(todo)


def _steps(job: Job) -> int:
    return job.recipe.train.last_epoch * math.ceil(sizes(job.recipe.data)[0] / job.recipe.train.batch_size)


def _left_out(todo: Study) -> list[str]:
    if not todo.skipped:
        return []
    count = f"{len(todo.skipped)} row" + ("s" if len(todo.skipped) > 1 else "")
    return [f"Left out by --skip, {count}: {', '.join(f'{row.table} {_name(row)}' for row in todo.skipped)}"]


def _show_plan(todo: Study, expected: dict[str, Cost], options: launch.Options, as_json: bool) -> None:
    """Print the whole plan on stdout."""
    rows = [_plan_row(todo, job, expected[job.id], options.runs) for job in todo.plan.jobs]
    if as_json:
        total = {key: round(sum(row[key] for row in rows), 1) for key in ("seconds", "bytes")}
        document = {
            "tables": list(todo.tables),
            "family": todo.family,
            "runs": rows,
            "left_out": _skipped_rows(todo),
            **total,
        }
        tell_json(document)
        return
    view = display.table(
        "", "run", "tables", "taught by", "epochs", "plan", "about", words=("run", "tables", "taught by", "plan")
    )
    for number, (row, job) in enumerate(zip(rows, todo.plan.jobs, strict=True), 1):
        about = hours(row["seconds"]) if row["seconds"] else ""
        taught = joined(job.path, job.strategy) or "-"
        view.add_row(str(number), row["run"], " ".join(row["tables"]), taught, str(row["epochs"]), row["state"], about)
    tell(view)
    for line in _summary(todo, expected, options):
        typer.echo(line)


def _plan_row(todo: Study, job: Job, cost: Cost, runs: Path) -> dict[str, Any]:
    needs = {"seconds": round(cost.seconds, 1), "bytes": cost.bytes, "basis": cost.basis}
    return planned(job, runs) | {"tables": list(todo.needed_by[job.id])} | needs


def _tables(todo: Study, runs: Path) -> tuple[Any, ...]:
    """The tables of this plan's runs. Runs that fill no printed row come last."""
    from ghostcli.comparison import tables
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.rows import Options

    records = [record_of(job, runs) for job in todo.plan.jobs]
    admitted = admit(record for record in records if record.status != "absent")
    options = Options(runs=runs)
    if _printed_data(todo):
        paper_tables = tables.built(todo.tables, admitted, todo.family, options)
        return tables.judged(paper_tables)
    besides = tables.also_run(admitted, [], options, (todo.family,))  # runs on other data fill no printed row
    return tables.judged([besides] if besides else [])


def _printed_data(todo: Study) -> bool:
    return all(job.data == paper().source.data for job in todo.plan.jobs)


def _print_table(todo: Study, name: str, runs: Path) -> None:
    """Print one table (empty `name`: that of all runs). Verdicts are corrected over all tables that have runs."""
    from ghostcli.comparison.looks import noted
    from ghostcli.render import formats, text_table

    colour = sys.stdout.isatty()
    printed = [table for table in _tables(todo, runs) if name in ("", table.name)]
    texts = [text_table.results(table) for table in noted(printed, runs)]
    sys.stdout.write(formats.text(texts, colour=colour) + "\n")
    sys.stdout.flush()


def _result(todo: Study, runs: Path) -> dict[str, Any]:
    from ghostcli.comparison.looks import noted
    from ghostcli.render.data import objects

    tables = [objects(table) for table in noted(_tables(todo, runs), runs)]
    done = [job.id for job in todo.plan.jobs if is_done(job, runs)]
    return {"family": todo.family, "tables": tables, "runs": done, "left_out": _skipped_rows(todo)}


def _skipped_rows(todo: Study) -> list[dict[str, Any]]:
    return [{"table": row.table, "student": row.student, "teachers": list(row.teachers)} for row in todo.skipped]
