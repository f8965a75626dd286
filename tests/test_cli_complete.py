"""Completion by TAB, as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import write_run


def completed(words: str, folder: Path) -> list[str]:
    """What bash is told where the cursor stands behind `words`."""
    count = len(words.split()) - (not words.endswith(" "))
    asked = {"_GHOST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    code = "import sys; sys.argv = ['ghost']; from ghostcli.cli import app; app(prog_name='ghost')"
    environment = {**os.environ, **asked}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ghost distill resnet1", ["resnet18"]),
        ("ghost distill resnet18 --student gns:2", ["gns:2.8"]),
        ("ghost train-teacher gns --recipe published/ch", ["published/chain", "published/chain-gnd"]),
        ("ghost recipe show smoke/d", ["smoke/demo"]),
    ],
)
def test_names(words: str, expected: list[str], tmp_path: Path) -> None:
    assert completed(words, tmp_path) == expected


def test_runs_where_there_are_some_and_silence_where_there_are_none(tmp_path: Path) -> None:
    assert completed("ghost runs show gns", tmp_path) == []
    run = write_run(tmp_path / "runs", epochs=2)
    assert completed("ghost runs show gns", tmp_path) == [run]
    assert completed("ghost predict run/gns", tmp_path) == [f"run/{run}"]
    assert completed("ghost report gns", tmp_path) == [run]
