"""`ghost bench --mlperf-tiny`: networks beside the benchmark's references. Invariant: what is published says so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from ghostcli.deploy import mlperf, source
from ghostcli.display import Display, apart, table, tell, tell_json


def compare(models: list[str], runs: Path, as_json: bool) -> None:
    """Runs and exported files on the benchmark's 200 test images and on all 10,000, then the published references."""
    rows = []
    with apart(), Display() as show:
        networks = [source.open_network(model, runs) for model in models]
        show.begin("bench", len(networks))
        for network in networks:
            rows.append(mlperf.measure(network))
            show.advance(note=network.label)
    rows += mlperf.references()
    verdicts = mlperf.verdicts(rows)
    if as_json:
        measurements = [{key: value for key, value in asdict(row).items() if key != "right"} for row in rows]
        tell_json({"networks": measurements, "verdicts": verdicts})
        return
    view = table("network", "parameters", "MACs", "200 images [95 %]", "10,000 images [95 %]", "target")
    for row in rows:
        view.add_row(
            row.model + (" (published)" if row.reference else ""),
            "-" if row.parameters is None else f"{row.parameters:,}",
            "-" if row.macs is None else f"{row.macs / 1e6:.2f} M",
            f"{row.on_200:.1f} [{row.on_200_low:.1f}, {row.on_200_high:.1f}]",
            f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]",
            "-" if row.target is None else f"{row.target:.0f}",
        )
    tell(view)
    for sentence in verdicts:
        typer.echo(sentence)
