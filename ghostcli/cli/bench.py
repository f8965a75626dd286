"""`ghost bench`: what networks cost. Invariant: figures go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.cli import proofs
from ghostcli.cli.options import Device, Json, Runs
from ghostcli.deploy import bench as deploy_bench
from ghostcli.deploy.bench import THROUGHPUTS
from ghostcli.deploy.formats import choose
from ghostcli.display import Display, apart, table, tell, tell_json
from ghostcli.errors import UsageError, printable
from ghostcli.records import trained

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="gns:WIDTH, gnd:WIDTH, a teacher, run/ID, or pretrained/NAME.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the accuracy of finished runs against MACs: .png, .pdf or .svg."),
]
#: What a mode does not read: giving it is a mistake.
UNREAD = {
    "with --mlperf-tiny": {"batch", "rounds", "timing", "classes", "device", "plot", "formats", "as_markdown"},
    "with --formats": {"batch", "classes", "device"},
    "without --formats": {"as_markdown"},
}


def bench(
    ctx: typer.Context,
    models: Models,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Images in a training step and a large inference.")
    ] = 256,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in which all networks take turns.")] = 7,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Time them too, or only count.")] = True,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of the last layer.")] = 10,
    runs: Runs = Path("runs"),
    device: Device = "auto",
    plot: Plot = None,
    formats: Annotated[
        str | None,
        typer.Option("--formats", metavar="all|F,F...", help="Instead: prove one run in each format and runtime."),
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="With --formats: the table as Markdown.")] = False,
    mlperf: Annotated[
        bool, typer.Option("--mlperf-tiny", help="Instead: runs and exported files beside MLPerf Tiny's references.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters, MACs, speed and memory of networks: train form (branches apart) and deploy form (folded).

    ghost bench gns:1.0 gns:2.8 resnet18        ghost bench run/gns-1.0-kd-1a2b3c4d/s0 --formats all
    """
    _refuse_unread(
        ctx, "with --mlperf-tiny" if mlperf else "with --formats" if formats is not None else "without --formats"
    )
    if mlperf:
        from ghostcli.cli.mlperf import compare

        compare(models, runs, as_json)
        return
    if formats is not None:
        _formats(models, formats, runs, timing, rounds, plot, as_markdown, as_json)
        return
    networks = deploy_bench.resolve(models, classes, runs)
    if plot is not None:
        _drawable(plot)
    rows = [deploy_bench.count(network) for network in networks]
    if timing:
        from ghostcli.engine.device import pick

        where = pick(device)
        with apart(), Display() as show:
            turns = len(networks) * (2 + len(deploy_bench.FIGURES) * (rounds + 1))
            show.begin("bench", turns)
            measurements = deploy_bench.measure(networks, batch, where, rounds, lambda note: show.advance(note=note))
        rows = [row | more for row, more in zip(rows, measurements, strict=True)]
    if as_json:
        tell_json(rows)
    else:
        _print(rows)
    if plot is not None:
        _plot(rows, runs, plot)


def _refuse_unread(ctx: typer.Context, mode: str) -> None:
    """UsageError for a flag on the command line that has no effect in this mode."""
    for flag in ctx.command.params:
        source = ctx.get_parameter_source(flag.name)
        if flag.name in UNREAD[mode] and source is not None and source.name == "COMMANDLINE":
            name = [*flag.opts, *flag.secondary_opts][-1 if ctx.params[flag.name] is False else 0]
            raise UsageError(f"{name}: has no effect {mode}; leave it out")


def _formats(
    models: list[str],
    formats: str,
    runs: Path,
    timing: bool,
    rounds: int,
    plot: Path | None,
    as_markdown: bool,
    as_json: bool,
) -> None:
    """One run in every format and every runtime that is here; nothing is written."""
    if len(models) != 1:
        raise UsageError("--formats: takes one finished run; type ghost bench run/ID --formats all")
    files = [(form, None) for form in choose(formats)]
    run = trained.find(runs, models[0])
    if plot is not None:
        _drawable(plot)
        if not timing:
            raise UsageError("--plot: draws latencies, which --no-timing leaves out; remove one of the two")

    from ghostcli.deploy import export

    with apart(), Display() as show:
        show.begin("bench", 0)
        network = export.prepare(run)
        rows, errors = export.prove(
            network, files, timing, everywhere=True, rounds=rounds, say=lambda note: show.advance(0, note=note)
        )
    if as_json:
        tell_json([asdict(row) for row in rows])
    else:
        proofs.tell(rows, as_markdown)
    if plot is not None:
        _save(proofs.figure(rows), plot)
    if errors and all(row.problem for row in rows[1:]):
        raise typer.Exit(errors[0].exit_code)


def _drawable(file: Path) -> None:
    from ghostcli.render.figures import require_suffix

    require_suffix(file, "--plot ")
    if not file.parent.is_dir():
        raise UsageError(f"--plot {printable(file)}: there is no folder {printable(file.parent)}; make it first")


def _print(rows: list[dict[str, Any]]) -> None:
    titles = ["parameters", "deployed parameters", "MACs", "deployed MACs"]
    _tell(titles, [(row["model"], _counts(row)) for row in rows])
    for row in rows:
        if (side := row["image_size"]) != 32:
            typer.echo(f"{row['model']}: with images of {side} x {side} pixels, as it was trained")
    if "device" not in rows[0]:
        return
    titles = [f"{form}\nimages/s" for form in ("training", "inference", "deployed")]
    titles += ["batch 1\nms", "deployed\nms (p90)", "step\nMiB"]
    typer.echo()
    _tell(titles, [(row["model"], _timings(row)) for row in rows])
    most = max((spread["n"] for row in rows for spread in _throughputs(row)), default=0)
    typer.echo(
        f"{rows[0]['device']}, batch {rows[0]['batch']}, float32. Medians of {most} rounds, taken in turns, "
        "± half the distance of the quartiles."
    )
    for row in rows:
        fewest = min((spread["n"] for spread in _throughputs(row)), default=most)
        if fewest < most:
            typer.echo(f"{row['model']}: too slow for all rounds, some figures have {fewest}")
        if row["note"]:
            typer.echo(f"{row['model']}: {row['note']}")


def _tell(titles: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
    view = table("model", *titles)
    for model, cells in rows:
        view.add_row(model, *cells)
    tell(view)


def _counts(row: dict[str, Any]) -> list[str]:
    parameters = [f"{row[key]:,}" for key in ("parameters", "deploy_parameters")]
    return parameters + [f"{row[key] / 1e6:,.1f} M" for key in ("train_macs", "macs")]


def _timings(row: dict[str, Any]) -> list[str]:
    memory = "-" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:,.0f}"
    latencies = [_latency(row["train_latency_ms"]), _latency(row["latency_ms"], p90=True)]
    return [_speed(row, name) for name in THROUGHPUTS] + [*latencies, memory]


def _throughputs(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["spread"][name] for name in THROUGHPUTS if row["spread"][name]]


def _speed(row: dict[str, Any], name: str) -> str:
    spread = row["spread"][name]
    if spread is None:
        return "-"
    return f"{row[name]:,.0f} ±{(spread['high'] - spread['low']) / 2:,.0f}"


def _latency(quantiles: dict[str, float] | None, p90: bool = False) -> str:
    if quantiles is None:
        return "-"
    return f"{quantiles['median']:.2f}" + (f" ({quantiles['p90']:.2f})" if p90 else "")


def _plot(rows: list[dict[str, Any]], runs: Path, file: Path) -> None:
    from ghostcli.render.figures import front

    points = deploy_bench.points(rows, runs)
    if not points:
        raise UsageError(
            f"--plot: {printable(runs)} has no finished run of {', '.join(printable(row['model']) for row in rows)}; "
            "train one first (ghost train-teacher MODEL)"
        )
    _save(front(points, "Multiply-accumulates of the deploy form, one image (millions)"), file)


def _save(figure: Any, file: Path) -> None:
    from ghostcli.render.figures import save

    save(figure, file)
    typer.echo(f"{printable(file)}: written", err=True)
