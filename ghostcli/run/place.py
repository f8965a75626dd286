"""Where the jobs of a plan run, as a frozen value: this machine, a Ray cluster, or a Slurm queue.

Invariant: nothing here changes a result. A wrong flag is one UsageError before anything starts.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostcli.errors import UsageError, printable

LOCAL, RAY, SLURM = "local", "ray", "slurm"
#: Options of sbatch that ghost sets itself.
OURS = ("array", "chdir", "dependency", "job-name", "kill-on-invalid-dep", "open-mode", "output", "parsable", "wrap")


@dataclass(frozen=True)
class Place:
    """`address`: of a Ray cluster; None for the one that is running here. `cpus`: threads of a job; None for a share.

    `slurm`: options of sbatch without the dashes, in order; the value None for one without a value.
    """

    on: str = LOCAL
    address: str | None = None
    cpus: int | None = None
    gpus: float = 0.0
    slurm: tuple[tuple[str, str | None], ...] = ()
    detach: bool = False

    @property
    def remote(self) -> bool:
        return self.on != LOCAL

    @property
    def threads(self) -> int:
        """Threads of a job on a cluster."""
        return self.cpus or 1


HERE = Place()


def place(
    on: str = LOCAL,
    cpus: int | None = None,
    gpus: float = 0.0,
    slurm: Sequence[str] = (),
    flags: Mapping[str, str | None] | None = None,
    detach: bool = False,
) -> Place:
    """The place that the flags of a command name. `flags`: options of sbatch that have a flag of their own."""
    name, _, address = on.partition("://")
    if name not in (LOCAL, RAY, SLURM) or (address and name != RAY) or on.endswith("://"):
        raise UsageError(f"--on {printable(on)}: is no place to run. Type local, ray, ray://HOST:PORT or slurm")
    if address and not (address.rpartition(":")[0] and address.rpartition(":")[2].isdecimal()):
        raise UsageError(f"--on {printable(on)}: has no port; type ray://HOST:PORT, as in ray://head:10001")
    sbatch = {key: value for key, value in (flags or {}).items() if value is not None}
    for flag in [*(f"--{key}" for key in sbatch), *(["--slurm"] if slurm else []), *(["--detach"] if detach else [])]:
        if name != SLURM:
            raise UsageError(f"{flag}: is for --on slurm; add it, or leave {flag} out")
    if gpus and name == LOCAL:
        raise UsageError("--gpus-per-job: is for --on ray and --on slurm; here --device chooses the GPU")
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise UsageError(f"--gpus-per-job {gpus:g}: must be a whole number, or a fraction below 1 such as 0.5")
    options: dict[str, str | None] = {}
    if name == SLURM:
        if gpus != int(gpus):
            raise UsageError(f"--gpus-per-job {gpus:g}: Slurm gives whole GPUs; use --gres shard:N where it has shards")
        options = configured() | ({"gres": f"gpu:{int(gpus)}"} if gpus else {}) | sbatch
        for text in slurm:
            key, equals, value = text.partition("=")
            options[_key(key, f"--slurm {text}")] = value if equals else None
        for key, value in options.items():
            if value is not None and not value.isprintable():
                raise UsageError(f"--slurm {key}: its value has control characters; remove them")
    return Place(name, address and on, cpus, gpus, tuple(options.items()), detach)


def _key(key: str, where: str) -> str:
    key = key.strip().removeprefix("--")
    if not key or not key.replace("-", "").isalnum() or not key.isascii():
        raise UsageError(f"{printable(where)}: is no option of sbatch; type --slurm KEY=VALUE, as in --slurm qos=long")
    if key in OURS:
        raise UsageError(f"{printable(where)}: ghost sets this option of sbatch itself; leave it out")
    return key


def configuration() -> Path:
    """The user's configuration file."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ghost" / "config.toml"


def configured() -> dict[str, str | None]:
    """The options of sbatch in the section [slurm] of the user's configuration; {} without such a file."""
    file = configuration()
    try:
        content = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{printable(file)}: cannot be read ({printable(error)}); correct or remove it") from error
    section = content.get("slurm", {})
    if unknown := [name for name in content if name != "slurm"]:
        raise UsageError(f"{printable(file)}: [{printable(unknown[0])}] is no section; there is [slurm]")
    if not isinstance(section, dict):
        raise UsageError(f"{printable(file)}: slurm is no section; write [slurm] and options of sbatch below it")
    options: dict[str, str | None] = {}
    for key, value in section.items():
        if value is not True and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise UsageError(f"{printable(file)}: slurm.{printable(key)} must be text, a number or true")
        options[_key(key, f"{file}: slurm.{key}")] = None if value is True else str(value)
    return options
