"""`ghost doctor`: checks the installation. Invariant: it changes nothing. Exit code 1 if a check fails."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.display import tell_json
from ghostcli.errors import printable

COLOURS = {"ok": "green", "note": "yellow", "FAIL": "bold red"}


def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Check versions, device, kernel, data checksums, disk, the run directory, and list unfinished runs.

    One line per check: ok, note (information) or FAIL (with what to do). Exit code 1 if a check fails.
    """
    from rich.console import Console
    from rich.text import Text

    from ghostcli.doctor import examine

    console, findings = Console(soft_wrap=True), []
    for finding in examine(runs):
        findings.append(finding)
        if not as_json:  # print each at once: checksums take about a second
            line = Text(f"{finding.level:4}  ", style=COLOURS[finding.level])
            console.print(line + Text(printable(f"{finding.name}: {finding.message}"), style="default"))
    ok = all(finding.level != "FAIL" for finding in findings)
    if as_json:
        tell_json({"ok": ok, "checks": [asdict(finding) for finding in findings]})
    if not ok:
        raise typer.Exit(1)
