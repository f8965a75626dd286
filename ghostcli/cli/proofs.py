"""The table of exported formats: text, Markdown, a figure. Invariant: a value that is not there is a dash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ghostcli.deploy.formats import BATCH
from ghostcli.display import table
from ghostcli.display import tell as show
from ghostcli.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ghostcli.deploy.proof import Proof

TITLES = (
    "bytes",
    "accuracy",
    "difference [95 %]",
    "disagree",
    "logits off by",
    "ms (p90)",
    "images/s",
    "MiB",
    "runtime",
)


def cells(row: Proof) -> list[str]:
    """One row under `TITLES`; memory is that of loading the file and asking about one image."""
    if row.accuracy is None:
        return ["-"] * (len(TITLES) - 1) + [row.runtime or "-"]
    gap = "-" if row.low is None else f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
    latency = row.latency_ms and f"{row.latency_ms['median']:.2f} ({row.latency_ms['p90']:.2f})"
    return [
        "-" if row.bytes is None else f"{row.bytes:,}",
        f"{row.accuracy:.2f} %",
        gap,
        f"{row.disagreements:,}",
        f"{row.largest_difference:.2g}",
        latency or "-",
        "-" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}",
        row.runtime or "-",
    ]


def tell(rows: Sequence[Proof], markdown: bool = False) -> None:
    """The table on standard output, and under it why a format failed."""
    lines = [[row.format, *cells(row)] for row in rows]
    if markdown:
        typer.echo("| " + " | ".join(("format", *TITLES)) + " |\n|---" + "|---:" * (len(TITLES) - 1) + "|---|")
        for line in lines:
            typer.echo("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |")
    else:
        view = table("format", *TITLES)
        for line in lines:
            view.add_row(*line)
        show(view)
    for row in rows:
        if row.problem or row.note:
            typer.echo(f"{row.format}: {printable((row.problem or row.note).removeprefix(f'{row.format}: '))}")
    if sentence := integers(rows):
        typer.echo(sentence)


def integers(rows: Sequence[Proof]) -> str | None:
    """The speed of the best int8 file against the fastest float one of the same batch, and where it is no gain, why.

    None where neither was timed.
    """
    parts = []
    slower = False
    for name, cost in (("batch 1", _latency), (f"batch {BATCH}", _per_image)):
        sides: list[list[tuple[float, str]]] = [[], []]
        for row in rows:
            if (duration := cost(row)) is not None:
                sides[row.format.endswith("-int8")].append((duration, row.runtime.split()[0]))
        if not all(sides):
            continue
        (plain, where), (whole, runtime) = map(min, sides)
        parts.append(f"{plain / whole:.2f} x as fast at {name} ({runtime}, against {where})")
        slower = slower or whole > plain
    if not parts:
        return None
    sentence = f"int8 against the fastest float: {'; '.join(parts)}."
    if slower:
        from ghostcli.deploy import int8

        why = ", which has no VNNI instructions for 8-bit products" if int8.narrow() else ""
        sentence += f" Integers are no gain everywhere on this CPU{why}; other devices may need no float unit."
    return sentence


def _latency(row: Proof) -> float | None:
    return row.latency_ms["median"] if row.latency_ms else None


def _per_image(row: Proof) -> float | None:
    return 1 / row.images_per_second if row.images_per_second else None


def figure(rows: Sequence[Proof]) -> Figure:
    """Accuracy against latency at batch 1, of the rows that were asked about all test images."""
    from ghostcli.render.figures import Point, front

    points = []
    for row in rows:
        if row.latency_ms and row.images == rows[0].images:
            runtime = row.runtime.split()[0]
            name = row.format if row.format == runtime else f"{row.format} ({runtime})"
            points.append(Point(row.format, row.latency_ms["median"], row.accuracy, None, name))
    return front(points, "Latency at batch 1 (ms)")
