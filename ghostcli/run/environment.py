"""The environment of a run (env.json). Invariant: the same environment gives the same result, bit for bit."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostcli import __version__
from ghostcli.display import Display
from ghostcli.records.model import Environment, dump
from ghostcli.records.record import RunWriter
from ghostcli.records.storage import read_or_empty

if TYPE_CHECKING:
    import torch


def note(run: RunWriter, now: Environment, show: Display) -> tuple[Environment, list[str]]:
    """Write env.json. Returns it, and notes on what changed since the run's last checkpoint (also printed)."""
    earlier = read_or_empty(run.path / "env.json", dict[str, Any]) if run.has_checkpoint else {}
    previous = earlier.pop("changes", ())
    notes = [str(note) for note in previous] if isinstance(previous, list) else []
    earlier.pop("data_checksum", None)  # other images are an error, which loading the checkpoint reports
    current = dump(now)
    changes = [f"{key} {earlier[key]} -> {value}" for key, value in current.items() if earlier.get(key, value) != value]
    if changes:
        show.warn(f"{run.id}: the environment has changed ({', '.join(changes)}); the result will not be bit-identical")
    now = now.model_copy(update={"changes": (*notes, *changes)})
    run.write("env.json", dump(now))
    return now, [f"environment changed during the run: {note}" for note in now.changes]


def now(device: torch.device, data_checksum: str, self_check: dict[str, str] | None = None) -> Environment:
    """Everything that must be equal for an identical result. `self_check`: the result of the fast path's self-check."""
    import torch

    from ghostcli.engine.device import describe as describe_device
    from ghostcli.zoo import kernels

    return Environment(
        ghost=__version__,
        commit=commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        torch=metadata.version("torch"),
        torchvision=metadata.version("torchvision"),
        numpy=metadata.version("numpy"),
        device=describe_device(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
        kernel=kernels.status(device.type)["name"],
        data_checksum=data_checksum,
        self_check=self_check or {},
    )


def described(now: Environment) -> str:
    """The environment in a line, for --verbose."""
    at = f" ({now.commit[:12]})" if now.commit else ""
    return f"ghost {now.ghost}{at}, torch {now.torch}, Python {now.python}; {now.device}; kernels: {now.kernel}"


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The git commit, if ghost runs from a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
