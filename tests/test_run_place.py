"""Where jobs run: wrong flags, missing programs, other versions and unseen folders are one line each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import crash
import pytest

from ghostcli import plan
from ghostcli.errors import UsageError
from ghostcli.recipe import load
from ghostcli.run import on_ray, queue, spec
from ghostcli.run.job import Options
from ghostcli.run.place import Place

PLAIN = [*crash.COMMANDS["plain"], *crash.TINY]

WRONG = {
    "no such place": (["--on", "cloud"], "--on cloud: is no place to run"),
    "an address for Slurm": (["--on", "slurm://head:1"], "is no place to run"),
    "an empty address": (["--on", "ray://"], "is no place to run"),
    "an address without a port": (["--on", "ray://head"], "has no port; type ray://HOST:PORT"),
    "detach here": (["--detach"], "--detach: is for --on slurm"),
    "detach from Ray": (["--on", "ray", "--detach"], "--detach: is for --on slurm"),
    "a partition here": (["--partition", "gpu"], "--partition: is for --on slurm"),
    "an option of sbatch on Ray": (["--on", "ray", "--slurm", "qos=a"], "--slurm: is for --on slurm"),
    "no option of sbatch": (["--on", "slurm", "--slurm", "a b=c"], "is no option of sbatch"),
    "an option that is ours": (["--on", "slurm", "--slurm", "dependency=afterok:1"], "ghost sets this option"),
    "control characters": (["--on", "slurm", "--slurm", "comment=a\nb"], "has control characters"),
    "a part of a GPU on Slurm": (["--on", "slurm", "--gpus-per-job", "0.5"], "Slurm gives whole GPUs"),
    "one and a half GPUs": (["--on", "ray", "--gpus-per-job", "1.5"], "must be a whole number, or a fraction below 1"),
    "endless GPUs": (["--on", "slurm", "--gpus-per-job", "inf"], "--gpus-per-job inf: must be a whole number"),
    "no number of GPUs": (["--on", "ray", "--gpus-per-job", "nan"], "--gpus-per-job nan: must be a whole number"),
    "GPUs here": (["--gpus-per-job", "1"], "here --device chooses the GPU"),
    "nobody there": (["--on", "ray://127.0.0.1:1"], "nobody answers at ray://127.0.0.1:1"),
}


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_flag_is_one_line(ghost, tmp_path, case):
    flags, told = WRONG[case]
    if case == "nobody there":
        pytest.importorskip("ray")
    done = ghost(*PLAIN, *flags)
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err
    assert not list(tmp_path.glob("runs/*/s*"))


def test_without_ray_one_line_says_what_to_install(ghost, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = ghost(*PLAIN, "--on", "ray")
    assert done.code == 2 and "pip install 'ghostcli[ray]'" in done.err and done.err.count("\n") == 1


def test_a_machine_that_differs_is_named(tmp_path):
    token = spec.mark(tmp_path)
    host, wrong, when = on_ray.look(str(tmp_path), token, spec.versions())
    assert (host, wrong) == (socket.gethostname(), "") and abs(when - time.time()) < 60
    for name in ("ghost", "torch", "recipe schema"):
        _, wrong, _ = on_ray.look(str(tmp_path), token, spec.versions() | {name: "0.0"})
        assert wrong.startswith(f"{host} has {name} {spec.versions()[name]} and not 0.0"), wrong
    _, wrong, _ = on_ray.look(str(tmp_path / "elsewhere"), token, spec.versions())
    assert f"{host} does not see what was written there; mount the same file system" in wrong


def test_a_job_is_read_back_as_it_was(tmp_path):
    """Every kind of job, with its teachers: the same id, and so the same work."""
    found = load("smoke", ["data.name=digits"])
    common = (found.recipe, found.name)
    jobs = [
        plan.plain("gns:0.1", 3, *common),
        plan.chain(["gns:0.3", "gns:0.2"], "gns:0.1", 2, *common, tmp_path),
        plan.ensemble(["gns:0.3", "gns:0.2"], "gns:0.1", 1, *common, tmp_path),
    ]
    for job in jobs:
        file = spec.write(job, Options(tmp_path), "token")
        given = spec.read(file)
        again = given.job
        assert again == job and again.id == job.id == given.run and again.content == job.content
        written = json.loads(file.read_text())
        for part in (written["job"], *written["job"]["teachers"]):
            part["later"] = 1
            file.write_text(json.dumps(written))
            with pytest.raises(UsageError, match="is not a job of this version"):
                spec.read(file)
            del part["later"]


def test_a_file_that_is_no_job_is_refused(ghost, tmp_path):
    job = plan.plain("gns:0.1", 0, load("smoke").recipe, "smoke")
    file = spec.write(job, Options(tmp_path / "runs"), spec.mark(tmp_path / "runs"))
    good = json.loads(file.read_text())
    for content, told in {
        "": "is not JSON",
        "[]": "is not a job of this version",
        json.dumps(good | {"threads": "many"}): "at threads",
        json.dumps(good | {"more": 1}): "at more",
    }.items():
        file.write_text(content)
        done = ghost("run-job", file)
        assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err
    done = ghost("run-job", tmp_path / "nowhere.json")
    assert done.code == 2 and "mount the folder of the runs" in done.err
    changed = good["job"] | {"seed": 1}
    file.write_text(json.dumps(good | {"job": changed}))
    done = ghost("run-job", file)
    assert done.code == 2 and f"not {job.id}: the sources of ghost differ" in done.err, done.err


def test_the_reader_of_a_wrong_configuration_is_told_where(ghost, tmp_path):
    file = tmp_path / "config" / "ghost" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[slurm]\nqos = 1979-05-27\n")
    done = ghost(*PLAIN, "--on", "slurm", "--dry-run")
    assert done.code == 2 and f"{file}: slurm.qos must be text, a number or true" in done.err
    with pytest.raises(UsageError):
        spec.read(file)


def test_the_name_of_a_folder_is_never_run_by_the_script(tmp_path):
    """The script names a folder that is not mounted, whatever characters are in it."""
    runs = tmp_path / 'a"$(touch touched)`touch touched`'
    [job] = plan.order([plan.plain("gns:0.1", 0, load("smoke").recipe, "smoke")]).jobs
    text = queue.script(job, runs, Place("slurm"))
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and f"ghost: {runs} is not mounted on {socket.gethostname()}" in done.stderr
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_busy_cluster_is_asked_twice(failures, tmp_path, capsys):
    """Ray's own words, from a head without time for another process."""
    words = "Initialization failure from server:\nTraceback (most recent call last):\nRuntimeError: Starting it failed."
    asked = []

    def init(address, **_):
        asked.append(address)
        if len(asked) <= failures:
            raise ConnectionAbortedError(words)

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"ray://127.0.0.1:{head.getsockname()[1]}"
        executor = on_ray.Ray(Options(tmp_path, place=Place("ray", address=address)), 1)
        executor.ray = SimpleNamespace(init=init, shutdown=lambda: None)
        refused = pytest.raises(
            UsageError, match=r"no connection to .* failure from server: RuntimeError: Starting it failed"
        )
        with refused if failures == 2 else contextlib.nullcontext(), executor._connected():
            pass
    assert asked == [address] * 2
    assert "trying once more" in capsys.readouterr().err


REQUEUES = """
from ghostcli.errors import GhostError
from ghostcli.run import carry

carry.TAKEN_AWAY = 0
try:
    carry._requeue()
except GhostError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("scontrol", "code"),
    [("exit 0", 75), ("kill -TERM $$", 75), ("kill -TERM $PPID; sleep 60", 75), ("echo no such job >&2; exit 1", 0)],
)
def test_slurm_may_end_a_job_that_asks_to_be_requeued_before_it_answers(tmp_path, scontrol, code):
    """It sends SIGTERM to all of the job's processes, and scontrol is one. Only a refusal is an error."""
    asked = tmp_path / "scontrol"
    asked.write_text(f"#!/bin/sh\n{scontrol}\n")
    asked.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    done = subprocess.run([sys.executable, "-c", REQUEUES], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("no such job; give the command again" in done.stdout) == (code == 0)
