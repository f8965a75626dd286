"""SIGTERM and SIGINT, wherever they strike: code 75, the way to go on, and then the bits of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import crash
import pytest

from ghostcli import signals
from ghostcli.errors import Interrupted

#: Where a signal strikes (the function that is just being called) and the command it strikes in.
PHASES = {
    "reading the recipe": ("plain", "ghostcli.cli.options:Common.resolve", 1),
    "loading the data": ("plain", "ghostcli.run.job:load_data", 1),
    "building kernels": ("plain", "ghostcli.zoo.kernels:status", 1),
    "building the network": ("plain", "ghostcli.engine.train:make_state", 1),
    "training": ("plain", "ghostcli.engine.step:Update.__call__", 2),
    "an epoch's last step": ("plain", "ghostcli.engine.step:Update.__call__", 3),
    "evaluation": ("plain", "ghostcli.zoo.evaluate:logits", 1),
    "metrics": ("plain", "ghostcli.records.record:RunWriter.append_metrics", 1),
    "saving": ("plain", "ghostcli.records.checkpoint:write", 1),
    "the teaching check": ("kd", "ghostcli.check.findings:inspect", 1),
    "asking the teacher": ("kd", "ghostcli.distill.table:TeacherTable.fill", 1),
    "filling the table": ("kd", "ghostcli.distill.table:TeacherTable._commit", 1),
}


@pytest.fixture
def ghost(tmp_path):
    def run(name: str, *more: object, **how):
        return crash.server().run([*crash.COMMANDS[name], *crash.TINY, *more, "--runs", "runs"], tmp_path, **how)

    return run


def statuses(runs):
    return {json.loads(status.read_text())["status"] for status in runs.glob("*/s0/status.json")}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_saves_and_the_same_command_goes_on(ghost, tmp_path, phase):
    """SIGTERM, then SIGINT at the same place of the next attempt, then peace."""
    name, where, nth = PHASES[phase]
    if name == "kd":
        shutil.copytree(crash.teacher(), tmp_path / "runs")
    for number in (signal.SIGTERM, signal.SIGINT):
        done = ghost(name, before=crash.strike(where, number, nth))
        assert done.code == 75, f"{number.name}: {done.code}\n{done.err}"
        last = done.err.strip().splitlines()[-1]
        assert f"stopped by {number.name}" in last
        assert ("the same command goes on" in last) == (phase != "reading the recipe"), "nothing was saved then"
        assert "Traceback" not in done.err and done.out == ""
        assert statuses(tmp_path / "runs") <= {"interrupted", "done"}
    assert ghost(name).code == 0
    assert not crash.differences(crash.uninterrupted(name)[0], tmp_path / "runs")


def test_what_was_trained_is_saved(ghost, tmp_path):
    """After the second of three steps: the next attempt goes on with the third."""
    assert ghost("plain", before=crash.strike("ghostcli.engine.step:Update.__call__", nth=2)).code == 75
    done = ghost("plain")
    assert done.code == 0 and "goes on after epoch 0, batch 2" in done.err


@pytest.mark.parametrize("phase", ["training", "evaluation", "saving", "filling the table"])
def test_a_second_signal_leaves_at_once_and_harms_nothing(ghost, tmp_path, phase):
    name, where, nth = PHASES[phase]
    if name == "kd":
        shutil.copytree(crash.teacher(), tmp_path / "runs")
    done = ghost(name, before=crash.strike(where, signal.SIGINT, nth, times=2))
    assert done.code == 75
    assert "running" in statuses(tmp_path / "runs"), "it left, and did not stay to write its status"
    assert ghost(name).code == 0
    assert not crash.differences(crash.uninterrupted(name)[0], tmp_path / "runs")


def test_a_signal_between_two_runs(ghost, tmp_path):
    """It strikes while the teacher's results are written: the teacher is whole, its student not begun."""
    done = ghost("kd", before=crash.strike("ghostcli.run.results:predictions"))
    assert done.code == 75 and "the same command goes on" in done.err
    assert statuses(tmp_path / "runs") == {"done"} and len(list((tmp_path / "runs").iterdir())) == 1
    assert ghost("kd").code == 0
    assert not crash.differences(crash.uninterrupted("kd")[0], tmp_path / "runs")


def test_a_signal_while_the_last_results_are_written_comes_too_late(ghost, tmp_path):
    assert ghost("plain", before=crash.strike("ghostcli.run.results:predictions")).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_no_resume_is_not_the_command_that_goes_on(ghost):
    done = ghost("plain", "--no-resume", before=crash.strike("ghostcli.engine.step:Update.__call__", nth=2))
    assert done.code == 75 and "the same command goes on from there, without --no-resume" in done.err
    assert "goes on after epoch 0, batch 2" in ghost("plain").err


@pytest.mark.parametrize("body", ["strike()", "try:\n    strike()\nexcept Exception:\n    pass"])
def test_a_signal_is_no_error_of_the_users_code(tmp_path, body):
    """Ctrl-C while a network of the user's own is imported. What goes on after any error does not go on after it."""
    began = "import os, pathlib, signal\n\n\ndef strike():\n    os.kill(os.getpid(), signal.SIGINT)\n\n\n"
    (tmp_path / "mynet.py").write_text(f"{began}{body}\npathlib.Path('went-on').touch()\n")
    done = crash.server().run(["train-teacher", "py:mynet.py:build", "--data", "digits", "--runs", "runs"], tmp_path)
    assert done.code == 75 and "stopped by SIGINT" in done.err and "your own network" not in done.err
    assert not (tmp_path / "went-on").exists()


def test_filling_a_table_by_hand(tmp_path):
    """`ghost teach fill`, 18 views of 48 images, stopped twice and then finished."""
    argv = [*crash.COMMANDS["plain"], *crash.TINY, "-s", "augment.pad=1", "--runs", "runs"]
    assert crash.server().run(argv, tmp_path).code == 0
    (run,) = (str(path.relative_to(tmp_path / "runs")) for path in tmp_path.glob("runs/*/s0"))
    fill = ["teach", "fill", run, "--runs", "runs", "--device", "cpu", "--json"]
    for number, nth in ((signal.SIGTERM, 1), (signal.SIGINT, 9)):
        how = {"before": crash.strike("ghostcli.distill.table:TeacherTable._commit", number, nth)}
        done = crash.server().run(fill, tmp_path, **how)
        assert done.code == 75 and "the same command goes on" in done.err and done.out == ""
    done = crash.server().run(fill, tmp_path)
    assert done.code == 0 and json.loads(done.out)["filled"] == 1.0


def test_a_signal_is_forgotten_when_its_command_has_ended():
    """As in a notebook: after Ctrl-C the next call does its work."""
    with pytest.raises(Interrupted), signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received() is None
    signals.raise_if_received()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child")
def test_workers_end_with_their_parent_and_save_first(tmp_path):
    """Even if it is killed: else they would train on for hours, and the same command would wait for them."""
    argv = [*crash.COMMANDS["plain"], *crash.TINY, "--epochs", 2000, "--seed", 0, "--seed", 1, "--jobs", 2]
    command = crash.server().start([*argv, "--runs", "runs"], tmp_path)
    assert command.until(lambda: len(list(tmp_path.glob("runs/*/s*/checkpoint/last*"))) == 2)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()

    def states():
        return [json.loads(status.read_text())["status"] for status in tmp_path.glob("runs/*/s*/status.json")]

    end = time.monotonic() + 60
    while states() != ["interrupted", "interrupted"] and time.monotonic() < end:
        time.sleep(0.1)
    assert states() == ["interrupted", "interrupted"]


@pytest.mark.long
def test_workers_that_are_told_twice_still_save(tmp_path):
    """Ctrl-C reaches the whole group, and the parent tells its workers too: neither of them leaves without saving."""
    argv = [*crash.COMMANDS["plain"], *crash.TINY, "--epochs", 200, "--seed", 0, "--seed", 1, "--jobs", 2]
    command = crash.server().start([*argv, "--runs", "runs"], tmp_path)
    assert command.until(lambda: len(list(tmp_path.glob("runs/*/s*/checkpoint/last*"))) == 2)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait() == 75
    assert "the same command goes on" in command.err
    states = [json.loads(status.read_text())["status"] for status in tmp_path.glob("runs/*/s*/status.json")]
    assert states == ["interrupted", "interrupted"], command.err


@pytest.mark.long
def test_a_reader_that_leaves_ends_no_training(tmp_path):
    """As `ghost ... 2>&1 | head -1` does."""
    command = [sys.executable, "-m", "ghostcli", *crash.COMMANDS["plain"], *crash.TINY, "--runs", "runs"]
    with subprocess.Popen(command, cwd=tmp_path, env=crash.ENVIRONMENT, stderr=subprocess.PIPE) as process:
        process.stderr.readline()
        process.stderr.close()
        assert process.wait() == 0
    assert statuses(tmp_path / "runs") == {"done"}


def test_only_what_saves_promises_to_go_on():
    for saves in (True, False):
        with signals.handled():
            if saves:
                with signals.polled():
                    pass
            with pytest.raises(Interrupted) as stopped:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        assert ("the same command goes on" in str(stopped.value)) == saves
