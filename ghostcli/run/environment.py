"""What a run is made under, as env.json keeps it. Invariant: the same content, the same bits."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostcli import __version__
from ghostcli.display import Display
from ghostcli.errors import GhostError
from ghostcli.records.model import Environment, dump
from ghostcli.records.record import RunWriter
from ghostcli.records.storage import read_json

if TYPE_CHECKING:
    import torch


def note(run: RunWriter, now: Environment, show: Display) -> tuple[Environment, list[str]]:
    """Write env.json. Returns it, and (shown too) in which ways a run that goes on is no longer made under the same."""
    earlier: dict[str, Any] = {}
    if run.has_checkpoint:
        with contextlib.suppress(GhostError, TypeError, ValueError):  # one that is damaged tells nothing
            earlier = dict(read_json(run.path / "env.json"))
    noted = earlier.pop("changes", ())
    notes = [str(note) for note in noted] if isinstance(noted, list) else []
    earlier.pop("data_checksum", None)  # other images are no change but an error, which the checkpoint sees
    found = dump(now)
    changes = [f"{key} {earlier[key]} -> {value}" for key, value in found.items() if earlier.get(key, value) != value]
    if changes:
        show.warn(f"{run.id}: goes on under another environment, and no longer to the bit: {', '.join(changes)}")
    now = now.model_copy(update={"changes": (*notes, *changes)})
    run.write("env.json", dump(now))
    return now, [f"environment changed on the way: {note}" for note in now.changes]


def now(device: torch.device, data_checksum: str, self_check: dict[str, str] | None = None) -> Environment:
    """What would have to be the same for the same bits; `self_check` is what the fast path's trial found."""
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


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The checkout's commit, where ghost runs from one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
