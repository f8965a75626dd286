"""`--on slurm`, on a real Slurm of this machine: the same bytes as here, one job a run, and what Slurm says is told.

Skipped, by name, where slurm-wlm and munge are not installed (`.ci/run` installs them).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import clusters
import crash
import pytest
import slurm
from clusters import GRAPHS, KD, LONG, differences, trains, until

pytestmark = [
    pytest.mark.skipif(bool(slurm.missing()), reason=f"Slurm is not installed: {', '.join(slurm.missing())}"),
    pytest.mark.xdist_group("slurm"),
]


@pytest.fixture(scope="module")
def queue():
    with contextlib.ExitStack() as stack:
        try:
            system = stack.enter_context(slurm.running())
        except (OSError, TimeoutError, subprocess.SubprocessError) as error:
            pytest.skip(f"Slurm is installed and does not start on this machine: {error}")
        yield system


@pytest.fixture
def ghost(queue, tmp_path):
    """`ghost(*words)` in a new process, on the tests' Slurm."""

    yield functools.partial(clusters.ghost, tmp_path, queue.environment)
    queue.ask("scancel", "--me")
    queue.until("squeue", "--me", "-h", is_="")


def log_of(runs: Path) -> str:
    return "\n".join(file.read_text() for file in runs.glob(".jobs/*/*.log"))


@pytest.mark.long
def test_the_same_bytes_and_nothing_twice(ghost, tmp_path):
    """Submitted and left; asked again while it is queued; waited for; asked a third time when it is done."""
    first = ghost(*KD, "--on", "slurm", "--detach", "--runs", "runs")
    assert first.returncode == 0 and "2 submitted" in first.err, first.err
    listed = json.loads(ghost("runs", "list", "--json").out)
    assert [row["status"] for row in listed if row["run"].startswith("gns-0.1-")] == ["queued"], listed
    again = ghost(*KD, "--on", "slurm", "--json")
    assert again.returncode == 0 and "submitted" not in again.err, again.err
    assert json.loads(again.out)["status"] == "done"
    third = ghost(*KD, "--on", "slurm")
    assert third.returncode == 0 and "found, finished earlier" in third.err
    assert not differences(tmp_path / "runs")
    assert len(list((tmp_path / "runs").glob(".jobs/*/*.slurm.json"))) == 2


@pytest.mark.long
def test_a_chain_and_an_ensemble_have_the_same_bytes(ghost, tmp_path):
    """Submitted one after the other while nothing is done yet: five runs, each once, teachers first."""
    for command in GRAPHS:
        done = ghost(*command, "--on", "slurm", "--detach")
        assert done.returncode == 0, done.err
    for command in GRAPHS:
        done = ghost(*command, "--on", "slurm")
        assert done.returncode == 0 and "submitted" not in done.err, done.err + log_of(tmp_path / "runs")
    assert not differences(tmp_path / "runs", *GRAPHS)
    assert len(list(tmp_path.glob("runs/*/s0/result.json"))) == 5


def number_of(folder: Path, strategy: str) -> str:
    """Slurm's number of the job of a strategy; 0 before there is one."""
    files = list(folder.glob(f"runs/.jobs/*-{strategy}-*/s0.slurm.json"))
    return json.loads(files[0].read_text())["job"] if files else "0"


@pytest.mark.long
def test_a_job_that_is_told_of_its_limit_saves_and_requeues(ghost, queue, tmp_path):
    """The signal that Slurm sends before the limit, in mid-training. The student waits, and no byte differs."""
    command = ghost(*LONG, "--on", "slurm", wait=False)
    until(lambda: trains(tmp_path))
    number = number_of(tmp_path, "plain")
    queue.ask("scancel", "--batch", "--signal=USR1", number)
    until(lambda: "Restarts=1" in queue.ask("scontrol", "show", "job", number))
    queue.ask("scontrol", "update", f"JobId={number}", "StartTime=now")  # Slurm would wait for two minutes
    assert "afterok" in queue.ask("scontrol", "show", "job", number_of(tmp_path, "kd"))
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 0, err + log_of(tmp_path / "runs")
    assert not differences(tmp_path / "runs", LONG)
    assert "goes on after epoch" in log_of(tmp_path / "runs")


@pytest.mark.long
def test_a_job_at_its_limit_saves_and_requeues(ghost, queue, tmp_path):
    """Its limit comes, and no signal came before that it could hear: URG is for nobody."""
    command = ghost(*LONG, "--on", "slurm", "--time", "9", "--slurm", "signal=B:URG@1", wait=False)
    until(lambda: trains(tmp_path))
    [run] = tmp_path.glob("runs/*-plain-*/s0")
    os.kill(crash.lease_of(run)["pid"], signal.SIGSTOP)  # Slurm wakes it to end it
    number = number_of(tmp_path, "plain")
    queue.ask("scontrol", "update", f"JobId={number}", "EndTime=now")
    until(lambda: "Reason=BeginTime" in queue.ask("scontrol", "show", "job", number))  # it was requeued
    queue.ask("scontrol", "update", f"JobId={number}", "StartTime=now", "TimeLimit=9")
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 0, err + log_of(tmp_path / "runs")
    assert "DUE TO TIME LIMIT" in log_of(tmp_path / "runs") and "goes on after epoch" in log_of(tmp_path / "runs")
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_scancel_saves_and_the_same_command_goes_on(ghost, queue, tmp_path):
    """The teacher is cancelled, so its student never starts; the command tells so and ends."""
    command = ghost(*LONG, "--on", "slurm", wait=False)
    until(lambda: trains(tmp_path))
    queue.ask("scancel", number_of(tmp_path, "plain"))
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 75 and "stopped in Slurm" in err and "not started, its teacher" in err, err
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/*/s0/status.json")]
    assert statuses == ["interrupted"]
    done = ghost(*LONG, "--on", "slurm")
    assert done.returncode == 0 and "1 submitted, 1 lost before, submitted again" in done.err, done.err
    assert "goes on after epoch" in log_of(tmp_path / "runs")
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_the_command_is_killed_and_slurmd_too(ghost, queue, tmp_path):
    """The jobs go on. The next command finds them and submits nothing."""
    command = ghost(*LONG, "--on", "slurm", wait=False)
    until(lambda: trains(tmp_path))
    command.kill()
    queue.kill("slurmd")
    queue.slurmd()
    command.communicate()
    done = ghost(*LONG, "--on", "slurm")
    assert done.returncode == 0 and "submitted" not in done.err, done.err
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_a_fresh_start_waits_until_the_running_job_has_saved(ghost, tmp_path):
    """Else the end of the cancelled job would pass for that of the new one."""
    plain = [*crash.COMMANDS["plain"], *LONG[len(crash.COMMANDS["kd"]) :], "--on", "slurm", "--detach"]
    assert ghost(*plain).returncode == 0
    until(lambda: trains(tmp_path))
    done = ghost(*plain, "--no-resume", "--json")
    assert done.returncode == 0 and "Slurm: 1 submitted" in done.err and "was renamed to" in done.err, done.err
    told = json.loads(done.out)
    assert told["status"] in ("queued", "running") and "error" not in told, told
    statuses = {row["run"]: row["status"] for row in json.loads(ghost("runs", "list", "--json").out)}
    assert statuses[told["run"]] in ("queued", "running"), statuses
    assert not list(tmp_path.glob("runs/.jobs/*/*.outcome.json"))


@pytest.mark.long
def test_ctrl_c_cancels_and_saves(ghost, queue, tmp_path):
    command = ghost(*LONG, "--on", "slurm", wait=False)
    until(lambda: trains(tmp_path))
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 75 and "the same command goes on" in err, err
    assert queue.ask("squeue", "--me", "-h") == ""
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.glob("runs/*/s0/status.json")]
    assert statuses == ["interrupted"]


def test_dry_run_prints_the_scripts(ghost, tmp_path):
    done = ghost(*KD, "--on", "slurm", "--dry-run", "--partition", "main", "--time", "2:00:00", "--slurm", "qos=a b")
    assert done.returncode == 0 and not (tmp_path / "runs").exists()
    for line in ("--partition=main", "--time=2:00:00", '--qos="a b"', "--cpus-per-task=1", "--signal=B:USR1@30"):
        assert done.out.count(f"#SBATCH {line}\n") == 2, line
    assert len(re.findall(r"^exec \S+ -m ghostcli run-job \S+$", done.out, re.MULTILINE)) == 2
    assert "--dependency=afterok:<job of gns-0.15-plain-" in done.out


def test_the_users_configuration_is_read(ghost, tmp_path):
    (tmp_path / "config" / "ghost").mkdir(parents=True)
    file = tmp_path / "config" / "ghost" / "config.toml"
    file.write_text('[slurm]\npartition = "nightly"\nexclusive = true\nnice = 10\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = ghost(*KD, "--on", "slurm", "--dry-run", "--slurm", "nice=5", **home)
    assert {"#SBATCH --partition=nightly", "#SBATCH --exclusive", "#SBATCH --nice=5"} <= {*done.out.splitlines()}
    for content, told in {
        "slurm = 3": "write [slurm]",
        "[slurm": "cannot be read",
        "[slrm]": "[slrm] is no section",
        "[slurm]\noutput = 'x'": "ghost sets this option",
        "[slurm]\nnice = [1]": "slurm.nice must be",
    }.items():
        file.write_text(content)
        done = ghost(*KD, "--on", "slurm", "--dry-run", **home)
        assert done.returncode == 2 and told in done.err and done.err.count("\n") == 1, done.err


REFUSED = {
    "no such partition": (["--partition", "nope", "--detach"], "invalid partition specified: nope"),
    "no GPUs": (["--gpus-per-job", "1"], "Invalid generic resource"),
    "too long": (["--partition", "short", "--time", "10", "--detach"], "PartitionTimeLimit"),
    "too many cores": (["--cpus-per-job", "64"], "PartitionConfig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_queue_refuses_in_its_own_words(ghost, queue, tmp_path, case):
    flags, told = REFUSED[case]
    done = ghost(*crash.COMMANDS["plain"], *crash.TINY, "--on", "slurm", *flags)
    assert done.returncode == 2 and told in done.err, done.err
    assert queue.ask("squeue", "--me", "-h") == ""


@pytest.mark.long
def test_a_job_looks_for_itself(ghost, queue, tmp_path):
    """Other versions, a teacher that was changed, a folder that its machine does not see: refused by name."""
    assert ghost(*KD, "--on", "slurm").returncode == 0
    [spec] = tmp_path.glob("runs/.jobs/*-kd-*/s0.json")
    [run] = tmp_path.glob("runs/*-kd-*/s0")
    [teacher] = tmp_path.glob("runs/*-plain-*/s0/model.safetensors")
    content, weights = json.loads(spec.read_text()), teacher.read_bytes()
    subprocess.run(["rm", "-r", run], check=True)

    def refused(told: str, **change: object) -> None:
        spec.write_text(json.dumps(content | change))
        done = ghost("run-job", spec)
        assert done.returncode in (1, 2) and told in done.err and not run.exists(), done.err
        outcome = json.loads(spec.with_name("s0.outcome.json").read_text())
        assert outcome["code"] == done.returncode and told in outcome["error"]

    refused("torch", versions=content["versions"] | {"torch": "1.0"})
    refused("recipe schema", versions=content["versions"] | {"recipe schema": "0.1"})
    refused("does not see what was written", seen="0" * 32)
    refused("does not see the folder", folder="/nowhere")
    teacher.write_bytes(weights + b" ")
    spec.write_text(json.dumps(content))
    done = ghost("run-job", spec)
    assert done.returncode == 1 and "its weights have changed" in done.err
    teacher.write_bytes(weights)
    assert ghost("run-job", spec).returncode == 0 and ghost("run-job", spec).returncode == 0


def test_without_slurm_one_line_says_what_was_not_found(ghost, tmp_path):
    done = ghost(*KD, "--on", "slurm", PATH=os.path.dirname(sys.executable))
    assert done.returncode == 2 and done.err.count("\n") == 1
    assert "the command squeue was not found" in done.err


def test_a_controller_that_does_not_answer(ghost, queue, tmp_path):
    words = (queue.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", words) + "MessageTimeout=1\n")
    done = ghost(*KD, "--on", "slurm", SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert done.returncode == 1 and "Unable to contact slurm controller" in done.err, done.err


@pytest.mark.long
def test_the_demo_and_a_study_are_submitted_whole(ghost, queue, tmp_path):
    """Each student waits for its teachers, and the command leaves."""
    queue.ask("scontrol", "update", "NodeName=one", "State=DRAIN", "Reason=test")
    try:
        done = ghost("demo", "--on", "slurm", "--detach")
        assert done.returncode == 0 and "14 jobs in the queue" in done.err, done.err
        study = ["reproduce", "III", "--limit", 64, "--data", "digits", "--epochs", 1, "--on", "slurm", "--yes"]
        dry = ghost(*study, "--dry-run")
        assert dry.returncode == 0 and dry.out.count("#SBATCH --job-name=") == dry.out.count("ghostcli run-job") > 5
        done = ghost(*study, "--detach")
        assert done.returncode == 0 and f"{dry.out.count('#SBATCH --job-name=')} jobs in the queue" in done.err
        reasons = queue.ask("squeue", "--me", "-h", "-o", "%r").split("\n")
        assert reasons.count("Dependency") > 5
    finally:
        queue.ask("scancel", "--me")
        queue.ask("scontrol", "update", "NodeName=one", "State=RESUME")
