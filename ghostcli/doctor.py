"""Checks an installation. Each check gives one line, with what to do if it fails.

Invariant: the checks change nothing. The test in the run directory removes all its files.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ghostcli import __version__
from ghostcli.data import SETS, data_root
from ghostcli.errors import GhostError, origin, printable
from ghostcli.machine import cores, free_disk
from ghostcli.plan import commands
from ghostcli.records import lease, record
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import write_bytes

Level = Literal["ok", "note", "FAIL"]

OLDEST = {"python": (3, 11), "torch": (2, 11), "torchvision": (0, 26)}
FULL, TIGHT = 0.2e9, 2e9  # bytes: checkpoints of a few runs; a study with teacher tables


@dataclass(frozen=True)
class Finding:
    """`note`: information, not an error. `FAIL`: something required is missing or damaged."""

    name: str
    level: Level
    message: str


def examine(runs: Path) -> Iterator[Finding]:
    """Run all checks in order. An exception in a check is a finding, and the other checks still run."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("versions", _versions),
        ("device", _device),
        ("kernel", _kernel),
        ("data", _data),
        ("disk", lambda: _disk(runs)),
        ("run directory", lambda: _trial(runs)),
        ("runs", lambda: _runs(runs)),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # a fault of the machine can raise any exception
            text = str(error).partition("\n")[0] or "no message"
            kind = "" if isinstance(error, GhostError) else f"{type(error).__name__}: "
            yield Finding(name, "FAIL", f"{kind}{text}")


def _versions() -> Iterator[Finding]:
    from ghostcli.run.environment import commit

    origin = commit()
    yield Finding("ghost", "ok", __version__ + (f", commit {origin[:10]}" if origin else ""))
    yield _version("python", platform.python_version(), "install a newer Python and ghost into it")
    for package in ("torch", "torchvision"):
        try:
            version = metadata.version(package)
            __import__(package)
        except Exception as error:  # a broken binary raises OSError, RuntimeError, AttributeError, ...
            text = str(error).partition("\n")[0]
            yield Finding(package, "FAIL", f"cannot be imported ({text}); pip install --force-reinstall {package}")
        else:
            yield _version(package, version, f"pip install --upgrade {package}")
    try:
        yield Finding("timm", "ok", metadata.version("timm"))
    except metadata.PackageNotFoundError:
        yield Finding("timm", "note", "not installed; only timm/NAME models need it: pip install 'ghostcli[timm]'")


def _version(name: str, version: str, mend: str) -> Finding:
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers >= OLDEST[name]:
        return Finding(name, "ok", version)
    return Finding(name, "FAIL", f"{version} is too old, {'.'.join(map(str, OLDEST[name]))} is needed: {mend}")


def _device() -> Iterator[Finding]:
    import torch

    from ghostcli.engine.device import describe, has_bfloat16, pick

    device = pick("auto")
    name = f"{device.type}: {describe(device)}"
    if device.type == "cpu" and torch.get_num_threads() < cores():
        yield Finding("device", "note", f"{name}; the machine has {cores()} cores (OMP_NUM_THREADS limits the threads)")
    else:
        yield Finding("device", "ok", name)
    if has_bfloat16(device.type):
        text = "float32, and bfloat16 in hardware (-s engine.precision=bfloat16)"
    else:
        text = "float32; bfloat16 works, but slowly: this hardware has no such arithmetic"
    yield Finding("precision", "ok", text)


def _kernel() -> Iterator[Finding]:
    from ghostcli.zoo import kernels

    status = kernels.status()
    slower = status["name"] == "pytorch"
    text = f"{status['name']}: {status['why']}"
    yield Finding("kernel", "note" if slower else "ok", text + (" Same results, slower training." if slower else ""))


def _data() -> Iterator[Finding]:
    from ghostcli.data.cifar import problem_of_archive

    root = data_root()
    for name, known in SETS.items():
        there = known.state(root)
        if there == "absent":
            yield Finding(
                name, "note", f"not in {printable(root)}; downloaded at first use or by ghost data fetch {name}"
            )
        elif there == "packed":
            problem = problem_of_archive(name, root)
            yield Finding(name, "FAIL" if problem else "ok", problem or "archive intact; unpacked at first use")
        else:
            files = known.checks(root)
            problems = [problem for _, problem in files if problem]
            more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
            intact = f"intact, {len(files)} files checked, {known.place(root)}"
            yield Finding(name, "FAIL" if problems else "ok", problems[0] + more if problems else intact)


def _disk(runs: Path) -> Iterator[Finding]:
    free = free_disk(runs)
    text = f"{free / 1e9:.1f} GB free for {printable(runs)}"
    if free < FULL:
        yield Finding(
            "disk", "FAIL", f"{text}, too little for checkpoints; free some, or name another folder with --runs"
        )
    elif free < TIGHT:
        yield Finding("disk", "note", f"{text}; a teacher's table alone takes 0.17 GB")
    else:
        yield Finding("disk", "ok", text)


def _trial(runs: Path) -> Iterator[Finding]:
    """Test the file operations of a run in the run directory, then remove the files."""
    where = printable(runs)
    new_folders = [folder for folder in (runs, *runs.parents) if not folder.exists()]
    folder = runs / f".doctor.{os.getpid()}"
    began = time.perf_counter()
    try:
        folder.mkdir(parents=True)
        problem = _write_and_lock(folder)
    except (OSError, GhostError) as error:
        why = getattr(error, "strerror", None) or origin(error)
        problem = f"cannot be written ({why}); name another folder with --runs"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in new_folders:
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    if problem:
        yield Finding("run directory", "FAIL", f"{where}: {problem}")
    else:
        took = 1000 * (time.perf_counter() - began)
        yield Finding("run directory", "ok", f"{where}: write, sync, rename and lock work ({took:.0f} ms)")


def _write_and_lock(folder: Path) -> str | None:
    file = folder / "trial"
    for content in (b"old", b"new" * 1000):
        write_bytes(file, content, "doctor")
        if file.read_bytes() != content:
            return "the content read back is not what was written; check the disk"
    if [entry.name for entry in folder.iterdir()] != ["trial"]:
        return "a rename does not remove its source; name a folder on another file system with --runs"
    run, rival = folder / "run", folder / "rival"
    rival.mkdir()
    (rival / "file").touch()
    with lease.held(run):
        try:
            os.rename(rival, lease.folder_of(run))
        except OSError:  # as leases need it
            return None
    return "locks do not work (a folder replaces a full one); name a folder on another file system with --runs"


def _runs(runs: Path) -> Iterator[Finding]:
    records = record.scan(runs)
    done = sum(run.status == "done" for run in records)
    yield Finding(
        "runs", "ok", f"{done} finished in {printable(runs)}" if records else f"none in {printable(runs)} yet"
    )
    for run in records:
        if run.status not in ("done", "absent"):
            yield _unfinished(run, runs)


def _unfinished(run: RunRecord, runs: Path) -> Finding:
    """The state of a run that is not done, and the command that continues it."""
    command = run.setup.command if run.setup else ()
    remove, verify = (commands.line("runs", verb, run.id, runs=runs) for verb in ("rm", "verify"))
    again = f"continue: {commands.line(*command)}" if command else f"give its command again, or {remove}"
    epochs = len(run.metrics())
    match run.status:
        case "running":
            return Finding(run.id, "note", f"running in {run.owner or 'another process'}, {epochs} epochs done")
        case "broken":
            return Finding(run.id, "FAIL", f"broken, {run.problem} ({verify}); {again}")
        case "failed":
            return Finding(run.id, "note", f"failed after {epochs} epochs: {printable(run.problem)}; then {again}")
        case _:
            return Finding(run.id, "note", f"unfinished after {epochs} epochs, {again}")
