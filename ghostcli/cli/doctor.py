"""`ghost doctor`: is all there that a study needs? Invariant: it only looks; exit code 1 where a check fails."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.errors import printable

COLOURS = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Versions, device, kernel, data checksums, disk, a trial in the run directory, and runs that wait for you.

    A line each: ok, note (worth knowing) or FAIL (required, with what to do); exit code 1 where something fails.
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
        for finding in examine(runs):  # each as it is found: checksums take their second
            findings.append(finding)
            line = Text(f"{finding.level:4}  ", style=COLOURS[finding.level])
            console.print(line + Text(printable(f"{finding.name}: {finding.message}"), style="default"))
    if any(finding.level == "FAIL" for finding in findings):
        raise typer.Exit(1)
