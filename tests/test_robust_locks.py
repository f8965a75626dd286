"""Two processes, one run or one table: one makes it, the other waits, and whoever is killed holds nobody up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import crash
import pytest

PLAIN = [*crash.COMMANDS["plain"], *crash.TINY, "--runs", "runs"]

#: Time for a second process to arrive: each step of the first one takes a tenth of a second more.
SLOWLY = """
import time
from ghostcli.engine.step import Update
step = Update.__call__
def slowly(self, index):
    time.sleep(0.1)
    return step(self, index)
Update.__call__ = slowly
"""


def begun(command: crash.Command, runs: Path) -> bool:
    return command.until(lambda: crash.at_work(runs, command))


def test_the_second_process_waits_and_finds(tmp_path):
    first = crash.server().start(PLAIN, tmp_path, before=SLOWLY)
    assert begun(first, tmp_path / "runs")
    second = crash.server().start(PLAIN, tmp_path)
    assert second.until(lambda: "working on it; waiting" in second.err), second.err
    assert first.poll() is None
    assert f": process {first.pid} on" in second.err
    assert (first.wait(), second.wait()) == (0, 0)
    assert "finished by another process" in second.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_second_process_takes_over(tmp_path, number):
    first = crash.server().start([*PLAIN, "-s", "engine.checkpoint_minutes=1e-9"], tmp_path, before=SLOWLY)
    assert first.until(lambda: list(tmp_path.glob("runs/*/s0/checkpoint/last*")))
    second = crash.server().start(PLAIN, tmp_path)
    assert second.until(lambda: "working on it; waiting" in second.err)
    first.send(number)
    assert first.wait() in (-signal.SIGKILL, 75)
    assert second.wait() == 0 and "goes on after epoch" in second.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_whoever_waits_may_leave(tmp_path):
    first = crash.server().start(PLAIN, tmp_path, before=SLOWLY)
    assert begun(first, tmp_path / "runs")
    second = crash.server().start(PLAIN, tmp_path)
    assert second.until(lambda: "working on it; waiting" in second.err)
    second.send(signal.SIGINT)
    assert second.wait() == 75 and "stopped by SIGINT" in second.err and first.poll() is None
    assert first.wait() == 0


def test_the_lock_and_status_of_a_dead_process_hold_nobody_up(tmp_path):
    first = crash.server().start(PLAIN, tmp_path, before=SLOWLY)
    assert begun(first, tmp_path / "runs")
    first.kill()
    (run,) = tmp_path.glob("runs/*/s0")
    assert crash.lease_of(run)["pid"] == first.pid
    listed = crash.server().run(["runs", "list", "--runs", "runs", "--json"], tmp_path)
    assert [row["status"] for row in json.loads(listed.out)] == ["interrupted"]
    done = crash.server().run(PLAIN, tmp_path)
    assert done.code == 0 and "waiting" not in done.err and crash.lease_file(run) is None


def test_whose_lease_counts(tmp_path):
    """A killed run names a process: one that is gone, one that began later under its number, one that lives, and one
    on another machine, which is told of for as long as its heart beats."""
    import psutil

    from ghostcli.records import record

    done = crash.server().run(PLAIN, tmp_path, {"GHOST_FAULT": "checkpoint:after=kill"})
    assert done.code == -signal.SIGKILL
    (folder,) = tmp_path.glob("runs/*/s0")
    file, lease = crash.lease_file(folder), crash.lease_of(folder)
    living = crash.server().process.pid
    born, now = psutil.Process(living).create_time(), time.time()
    for change, status in (
        ({}, "interrupted"),
        ({"pid": living}, "interrupted"),
        ({"pid": living, "process_started": born}, "running"),
        ({"machine": "elsewhere", "heartbeat": now}, "running"),
        ({"machine": "elsewhere", "heartbeat": now - 3600}, "interrupted"),
    ):
        file.write_text(json.dumps(lease | change))
        (run,) = record.scan(tmp_path / "runs")
        assert run.status == status, change
    for content in ("", "[]", "{", json.dumps(lease | {"host": None}), json.dumps(lease | {"pid": 10**30})):
        file.write_text(content)
        (run,) = record.scan(tmp_path / "runs")
        assert run.status == "interrupted", content
    assert crash.server().run(PLAIN, tmp_path).code == 0 and not file.parent.exists()
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


#: A waiting process that counts in tenths of seconds what takes minutes.
IMPATIENT = "from ghostcli.records import lease; lease.STALE = 0.5\n"


def test_an_owner_on_another_machine_is_waited_for(tmp_path):
    """While its file changes, whatever its clock says. When it no longer does, the run is taken over."""
    done = crash.server().run(PLAIN, tmp_path, {"GHOST_FAULT": "checkpoint:after=kill"})
    assert done.code == -signal.SIGKILL
    (run,) = tmp_path.glob("runs/*/s0")
    file, lease = crash.lease_file(run), crash.lease_of(run) | {"machine": "elsewhere", "host": "elsewhere"}
    file.write_text(json.dumps(lease).ljust(1024))
    command = crash.server().start(PLAIN, tmp_path, before=IMPATIENT)
    for beats in range(30):
        with file.open("r+b", buffering=0) as beating:  # in one write, as an owner does: no reader finds half of it
            beating.write(json.dumps(lease | {"beats": beats, "heartbeat": 1e9 - beats}).encode().ljust(1024))
        time.sleep(0.1)
        assert command.poll() is None and file.exists()
    assert "on elsewhere" in command.err and "waiting" in command.err
    assert command.wait() == 0 and "goes on after epoch" in command.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_a_frozen_owner_on_this_machine_keeps_its_run(tmp_path):
    """Its process lives, however long it does not respond."""
    first = crash.server().start([*PLAIN], tmp_path, before=SLOWLY)
    assert begun(first, tmp_path / "runs")
    os.kill(first.pid, signal.SIGSTOP)
    second = crash.server().start(PLAIN, tmp_path, before=IMPATIENT)
    assert second.until(lambda: "working on it; waiting" in second.err)
    assert not second.until(lambda: False, timeout=2) and second.poll() is None
    os.kill(first.pid, signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0) and "finished by another process" in second.err


def test_an_owner_that_lost_its_run_writes_no_more(tmp_path):
    """As one that was frozen for minutes: another machine has taken over meanwhile."""
    asleep = SLOWLY.replace("time.sleep(0.1)", "open('asleep', 'w').close(); time.sleep(1)")
    first = crash.server().start([*PLAIN, "--epochs", 50], tmp_path, before=asleep)
    assert first.until((tmp_path / "asleep").exists)  # not amid a write, which one process cannot take back
    os.kill(first.pid, signal.SIGSTOP)
    (run,) = tmp_path.glob("runs/*/s0")
    mine = crash.lease_file(run)
    other = json.loads(mine.read_text()) | {"owner": "f" * 32, "machine": "elsewhere", "host": "elsewhere"}
    mine.rename(mine.with_name("f" * 32)).write_text(json.dumps(other | {"heartbeat": time.time()}))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 1 and "on elsewhere" in first.err and "has taken this over" in first.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_heart_beats_while_a_run_is_made(tmp_path):
    beat = "from ghostcli.records import lease; lease.BEAT = 0.01\n"
    command = crash.server().start(PLAIN, tmp_path, before=beat + SLOWLY)
    beats = set()

    def look() -> bool:
        for file in tmp_path.glob("runs/*/s0.lease/*"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                beats.add(json.loads(file.read_text())["beats"])
        return len(beats) > 2

    assert command.until(look)
    assert command.wait() == 0 and not list(tmp_path.glob("runs/*/s0.lease"))


def test_two_students_fill_one_table(tmp_path):
    """Both begin at once, want the same views and answer for their own results."""
    shutil.copytree(crash.teacher(), tmp_path / "alone")
    shutil.copytree(crash.teacher(), tmp_path / "together")
    student = [*crash.COMMANDS["kd"], *crash.TINY, "--alpha"]
    for alpha in ("0.3", "0.7"):
        assert crash.server().run([*student, alpha, "--runs", "alone"], tmp_path).code == 0
    both = [crash.server().start([*student, alpha, "--runs", "together"], tmp_path) for alpha in ("0.3", "0.7")]
    assert [command.wait() for command in both] == [0, 0], [command.err for command in both]
    assert not crash.differences(crash.outcomes(tmp_path / "alone"), tmp_path / "together")


def test_an_answer_has_the_same_bits_whatever_else_is_asked():
    """Alone, among few and among many: a batch of another size would be rounded otherwise."""
    import torch

    from ghostcli import zoo
    from ghostcli.data import Images
    from ghostcli.data.batches import Cropper
    from ghostcli.distill import teacher
    from ghostcli.recipe.models import AugmentSection

    torch.manual_seed(0)
    model = zoo.build("gns:1.0", 10).to(memory_format=torch.channels_last).eval()
    images = Images(torch.randint(256, (80, 32, 32, 3), dtype=torch.uint8), torch.zeros(80, dtype=torch.int64))
    one = teacher.Teacher("t", "gns:1.0", Path(), model, ((0.5,) * 3, (0.25,) * 3), "")
    ask = teacher.teacher_logits_of_views(one, Cropper(images, AugmentSection()), torch.device("cpu"))
    index, views = torch.arange(80), torch.arange(80) * 2
    whole = ask(index, views)
    for some in (index[:1], index[7:8], index[3:8], index[79:], index.flip(0)):
        assert torch.equal(ask(some, views[some]), whole[some])


def test_what_a_table_holds_does_not_depend_on_who_came_first(tmp_path):
    """Seeds in either order: the second finds part of its answers there, and asks for the others in other batches."""
    student = [*crash.COMMANDS["kd"], *crash.TINY]
    for folder, seeds in (("up", "01"), ("down", "10")):
        shutil.copytree(crash.teacher(), tmp_path / folder)
        for seed in seeds:
            done = crash.server().run([*student, "--seed", seed, "--runs", folder], tmp_path)
            assert done.code == 0, done.err
    assert not crash.differences(crash.outcomes(tmp_path / "up"), tmp_path / "down")
