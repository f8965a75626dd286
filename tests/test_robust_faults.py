"""Every write, stopped at each of its stages; disks that are full, closed or gone: an error, and then the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crash
import pytest

EVERY_STEP = ("-s", "engine.checkpoint_minutes=1e-9")
STAGES = ("before", "half", "written", "renamed")


def stages(*files: str) -> list[str]:
    """The fault points of an atomic write of each file."""
    return [f"{file}:{stage}" for file in files for stage in STAGES]


GROUPS = {
    "start": ("plain", [*stages("status"), "recipe:half", "env:half"]),
    "checkpoint": ("plain", [*stages("checkpoint"), "checkpoint:between", "checkpoint:after", "checkpoint:between@2"]),
    "metrics": ("plain", ["metrics:before", "metrics:after", *stages("rewind")]),
    "results": ("plain", [*stages("model", "result"), "predictions:half", "status:half@2", "status:written@2"]),
    "table": ("kd", [*stages("table"), "table:values", "table:filled"]),
}


@pytest.fixture
def ghost(tmp_path):
    """`ghost(NAME, *MORE, fault="", ...) -> Command` that has ended, with its runs in tmp_path/runs."""

    def run(name: str, *more: object, fault: str = "", runs: Path | str = "runs", **how):
        argv = [*crash.COMMANDS[name], *crash.TINY, *EVERY_STEP, *more, "--runs", runs]
        return crash.server().run(argv, tmp_path, {"GHOST_FAULT": fault}, **how)

    return run


#: A dozen commands each; .ci/run runs them.
LONG = {"checkpoint", "metrics", "results", "table"}


@pytest.mark.parametrize("group", [pytest.param(g, marks=pytest.mark.long) if g in LONG else g for g in GROUPS])
def test_killed_at_each_stage_of_each_write(ghost, tmp_path, group):
    """One run that is killed at one stage after the other, and then left alone."""
    name, points = GROUPS[group]
    if name == "kd":  # its teacher is at rest; the student's own fault points are meant
        shutil.copytree(crash.teacher(), tmp_path / "runs")
    for point in points:
        done = ghost(name, fault=f"{point}=kill")
        assert done.code == -signal.SIGKILL, f"{point} was not reached: {done.code}\n{done.err}"
    done = ghost(name)
    assert done.code == 0, done.err
    assert not crash.differences(crash.uninterrupted(name)[0], tmp_path / "runs")
    assert not [*(tmp_path / "runs").rglob(".*.tmp")]


@pytest.mark.parametrize("point", ["checkpoint:renamed@3", "checkpoint:between@3", "checkpoint:after@3"])
def test_no_more_is_lost_than_since_the_last_checkpoint(ghost, point):
    """The third one, of the whole first epoch: it counts from its first rename on."""
    assert ghost("plain", fault=f"{point}=kill").code == -signal.SIGKILL
    assert "goes on after epoch 1\n" in ghost("plain").err


def test_a_run_goes_on_from_a_checkpoint_of_any_size(ghost, tmp_path):
    """What it could write, it can read: the limit is for weights, and a checkpoint holds them several times."""
    small = "from ghostcli.records import tensorfile; tensorfile.MAX_BYTES = 1000"
    assert ghost("plain", fault="checkpoint:after@3=kill", before=small).code == -signal.SIGKILL
    done = ghost("plain", before=small)
    assert done.code == 0 and "goes on after epoch 1\n" in done.err, done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


@pytest.mark.parametrize(
    ("point", "action"),
    [
        *(("status:half", "enospc"), ("env:before", "eacces"), ("checkpoint:half", "enospc")),
        *(("checkpoint:before@2", "eacces"), ("rewind:half", "enospc"), ("predictions:written", "enospc")),
        *(("table:values", "enospc"), ("table:filled", "eacces")),
    ],
)
def test_a_write_that_fails_is_named_and_mended(ghost, tmp_path, point, action):
    name = "plain"
    if point.startswith("table"):
        name = "kd"
        shutil.copytree(crash.teacher(), tmp_path / "runs")
    if point.startswith("rewind"):
        assert ghost(name, fault="metrics:after=kill").code == -signal.SIGKILL
    done = ghost(name, fault=f"{point}={action}")
    assert done.code == 1 and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert "could not be written" in last and {"enospc": "No space left", "eacces": "Permission"}[action] in last
    assert "same command again" in last
    assert ghost(name).code == 0
    assert not crash.differences(crash.uninterrupted(name)[0], tmp_path / "runs")


@pytest.mark.parametrize(("lease", "code", "words"), [("s0", 2, "not writable"), ("table", 1, "could not be written")])
def test_a_lease_that_cannot_be_made_is_no_other_process(ghost, tmp_path, lease, code, words):
    """On a full disk ghost says so at once, instead of waiting for whoever seems to be faster."""
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    done = ghost("kd", fault=f"{lease}.lease:before=enospc")
    assert done.code == code and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert words in last and "No space left on device" in last
    assert ghost("kd").code == 0
    assert not [*(tmp_path / "runs").rglob("*.lease*")]


# Disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of `size` bytes; the test is skipped where none may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="ghost-disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        if mounted.returncode:
            pytest.skip("no file system may be mounted here")
        yield folder
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def leave(disk: Path, room: int) -> Path:
    """Fill the disk up to `room` bytes; returns the file to remove."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(max(0, free - room)))
    return filler


@pytest.mark.parametrize("room", [4096, 100_000, 400_000, 560_000])
def test_full_disk(ghost, room):
    """Less room than the first files, the first checkpoint, the second, the third need (250 kB each)."""
    with small_disk(4_000_000) as disk:
        filler = leave(disk, room)
        done = ghost("plain", runs=disk / "runs")
        assert done.code in (1, 2) and "No space left on device" in done.err and "Traceback" not in done.err
        filler.unlink()
        done = ghost("plain", runs=disk / "runs")
        assert done.code == 0, done.err
        assert not crash.differences(crash.uninterrupted("plain")[0], disk / "runs")


@pytest.mark.parametrize("room", [30_000, 120_000])
def test_full_disk_where_a_table_should_be(ghost, room):
    """No bus error from a memory map, and nothing half there."""
    with small_disk(8_000_000) as disk:
        shutil.copytree(crash.teacher(), disk / "runs")
        filler = leave(disk, room)
        done = ghost("kd", runs=disk / "runs")
        assert done.code == 1 and "No space left on device" in done.err and "teacher-table" in done.err
        filler.unlink()
        done = ghost("kd", runs=disk / "runs")
        assert done.code == 0, done.err
        assert not crash.differences(crash.uninterrupted("kd")[0], disk / "runs")


def test_limit_on_file_sizes(ghost, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))"
    done = ghost("plain", before=limit)
    assert done.code == 1 and "File too large" in done.err and "checkpoint" in done.err and "Traceback" not in done.err
    assert ghost("plain").code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


#: Root is bound by no permission. This makes it an owner like any other: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH.
MORTAL = """
import ctypes, os
if os.geteuid() == 0:
    number = ctypes.c_uint32
    header, data = (number * 2)(0x20080522, 0), (number * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0, ctypes.get_errno()
    data[0] &= ~0b110
    assert libc.capset(header, data) == 0, ctypes.get_errno()
"""


@pytest.fixture
def closed(tmp_path):
    """`closed(FOLDER)` makes a folder read-only until the test is over."""
    folders = []

    def close(folder: Path) -> Path:
        folder.chmod(0o555)
        folders.append(folder)
        return folder

    yield close
    for folder in folders:
        folder.chmod(0o755)


def test_read_only_run_directory(ghost, tmp_path, closed):
    (tmp_path / "mine").mkdir()
    done = ghost("plain", runs=closed(tmp_path / "mine") / "runs", before=MORTAL)
    assert done.code == 2 and "not writable (Permission denied)" in done.err and "--runs" in done.err


def test_run_directory_that_becomes_read_only(ghost, tmp_path, closed):
    argv = [*crash.COMMANDS["plain"], *crash.TINY, *EVERY_STEP, "--runs", "runs"]
    command = crash.server().start(argv, tmp_path, before=MORTAL)
    assert command.until(lambda: list(tmp_path.glob("runs/*/s0/checkpoint/last*")))
    (checkpoint,) = tmp_path.glob("runs/*/s0/checkpoint")
    closed(checkpoint)
    assert command.wait() == 1
    assert "could not be written (Permission denied)" in command.err and "Traceback" not in command.err
    checkpoint.chmod(0o755)
    done = ghost("plain", before=MORTAL)
    assert done.code == 0 and "goes on" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_run_directory_that_vanishes(ghost, tmp_path):
    argv = [*crash.COMMANDS["plain"], *crash.TINY, *EVERY_STEP, "--runs", "runs"]
    command = crash.server().start(argv, tmp_path)
    assert command.until(lambda: list(tmp_path.glob("runs/*/s0/checkpoint/last*")))
    (run,) = tmp_path.glob("runs/*/s0")
    run.rename(tmp_path / "gone")
    assert command.wait() == 1
    assert "could not be written (No such file" in command.err and "Traceback" not in command.err
    assert ghost("plain").code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_images_that_vanish_or_change(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (16, 16), (90 * shade + 9 * i, 70, 50)).save(tmp_path / f"pets/{part}/{name}/{i}.png")
    argv = ["train-teacher", "gns:0.1", "--data", "folder:pets", "--epochs", "2", "-s", "data.size=16", "--runs"]

    def train(runs: str, fault: str = ""):
        return crash.server().run([*argv, runs], tmp_path, {"GHOST_FAULT": fault})

    assert train("whole").code == 0
    assert train("killed", "checkpoint:after=kill").code == -signal.SIGKILL
    image = tmp_path / "pets/train/cat/3.png"
    kept = image.read_bytes()
    image.unlink()
    done = train("killed")
    assert done.code == 2 and "have changed since this run began" in done.err and "restore them" in done.err
    shutil.move(tmp_path / "pets", tmp_path / "elsewhere")
    done = train("killed")
    assert done.code == 2 and "pets" in done.err and "Traceback" not in done.err
    shutil.move(tmp_path / "elsewhere", tmp_path / "pets")
    image.write_bytes(kept)
    done = train("killed")
    assert done.code == 0 and "goes on after epoch" in done.err
    assert not crash.differences(crash.outcomes(tmp_path / "whole"), tmp_path / "killed")
