"""What the tests of Ray and of Slurm share: commands in processes of their own, and what they make on this machine."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crash

KD = [*crash.COMMANDS["kd"], *crash.TINY]
#: Commands that share a folder of runs: a chain of teacher, assistant and student, then an ensemble of two teachers.
GRAPHS = [
    [*crash.COMMANDS["chain"], *crash.TINY],
    ["ensemble", "gns:0.2", "gns:0.15", "--student", "gns:0.1", *crash.TINY],
]
#: Long enough to be stopped amid its training on a busy machine, with a checkpoint after each step.
LONG = [*KD, "--epochs", "30", "-s", "engine.checkpoint_minutes=1e-9"]


def ghost(folder: Path, environment: dict[str, str], *words: object, wait: bool = True, **more: str) -> Any:
    """`ghost WORDS` in a new process in `folder`: with `wait` its returncode, out and err; otherwise the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ghostcli", *map(str, words)],
        env=crash.ENVIRONMENT | environment | more,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=crash.HANGS)
    return SimpleNamespace(returncode=process.returncode, out=out, err=err)


@functools.cache
def here(*commands: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What commands make on this machine in one folder, one run after the other, with one thread."""
    with tempfile.TemporaryDirectory(prefix="ghost-here-") as name:
        for command in commands:
            done = ghost(Path(name), {}, *command, "--runs", "runs", "--cpus-per-job", "1")
            assert done.returncode == 0, done.err
        return crash.outcomes(Path(name) / "runs")


def differences(runs: Path, *commands: list[str]) -> list[str]:
    """Where runs that commands made elsewhere are not, to the byte, what they are here; [] where they are."""
    return crash.differences(here(*map(tuple, commands or (KD,))), runs)


def until(happened: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def trains(folder: Path, strategy: str = "plain") -> bool:
    """Whether a run has saved something and goes on."""
    return bool(list(folder.glob(f"runs/*-{strategy}-*/s0/checkpoint/last*")))
