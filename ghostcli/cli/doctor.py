"""`ghost doctor`: checks the installation. Invariant: it changes nothing. Exit code 1 if a check fails."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.errors import printable

COLOURS = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Check versions, device, kernel, data checksums, disk, the run directory, and list unfinished runs.

    One line per check: ok, note (information) or FAIL (with what to do). Exit code 1 if a check fails.
    """
    from ghostcli.doctor import examine

    findings = []
    if as_json:
        findings = list(examine(runs))
        ok = all(finding.level != "FAIL" for finding in findings)
        typer.echo(json.dumps({"ok": ok, "checks": [asdict(finding) for finding in findings]}, indent=1))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(soft_wrap=True)
        for finding in examine(runs):  # print each at once: checksums take about a second
            findings.append(finding)
            line = Text(f"{finding.level:4}  ", style=COLOURS[finding.level])
            console.print(line + Text(printable(f"{finding.name}: {finding.message}"), style="default"))
    if any(finding.level == "FAIL" for finding in findings):
        raise typer.Exit(1)
