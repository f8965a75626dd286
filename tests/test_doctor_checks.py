"""`ghost doctor`: what it finds, what it leaves behind (nothing), and when it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_runs import write_run

from ghostcli import doctor
from ghostcli.records import storage


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """An empty data folder, unless a test says otherwise: a machine's own data plays no part."""
    monkeypatch.setenv("GHOST_DATA", str(tmp_path / "data"))


def levels(done) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["level"], check["message"]) for check in json.loads(done.out)["checks"]}


def test_a_sound_machine_passes_and_nothing_is_left_behind(ghost, tmp_path):
    done = ghost("doctor", "--runs", tmp_path / "new" / "runs")
    assert done.code == 0, done.out
    found = {line[6:].partition(":")[0]: line[:4].strip() for line in done.out.splitlines()}
    for name in ("ghost", "python", "torch", "torchvision", "precision", "digits", "disk", "run directory", "runs"):
        assert found[name] == "ok", name
    assert {"device", "kernel"} < set(found)
    assert found["cifar10"] == found["cifar100"] == "note"
    assert set(found.values()) <= {"ok", "note"}
    assert list(tmp_path.iterdir()) == []


def test_json_says_the_same_and_an_existing_run_directory_stays(ghost, tmp_path):
    (tmp_path / "runs").mkdir()
    done = ghost("doctor", "--runs", tmp_path / "runs", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["ok"] is True
    assert {frozenset(check) for check in found["checks"]} == {frozenset({"name", "level", "message"})}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_directory_that_cannot_be_one_fails(ghost, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = ghost("doctor", "--runs", tmp_path / "file" / "runs", "--json")
    assert done.code == 1
    assert not json.loads(done.out)["ok"]
    level, message = levels(done)["run directory"]
    assert level == "FAIL"
    assert "--runs" in message


@pytest.mark.parametrize(("code", "word"), [(errno.ENOSPC, "space"), (errno.EACCES, "ermission")])
def test_a_full_or_locked_disk_fails_and_nothing_is_left_behind(ghost, tmp_path, monkeypatch, code, word):
    def passing(point):
        if point == "doctor:written":
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage, "passing", passing)
    done = ghost("doctor", "--runs", tmp_path / "runs", "--json")
    assert done.code == 1
    level, message = levels(done)["run directory"]
    assert level == "FAIL"
    assert word in message
    assert list(tmp_path.iterdir()) == []


def test_locks_that_keep_nobody_out_fail(tmp_path, monkeypatch):
    rename = os.rename

    def replacing(source, target):
        shutil.rmtree(target, ignore_errors=True)
        rename(source, target)

    monkeypatch.setattr(os, "rename", replacing)
    [finding] = doctor._trial(tmp_path)
    assert finding.level == "FAIL"
    assert "lock" in finding.message


def test_little_room_is_a_note_and_no_room_fails(tmp_path, monkeypatch):
    free = iter((5e9, 1e9, 0.1e9))

    def usage(folder):
        assert Path(folder) == tmp_path  # the nearest folder that is there
        return SimpleNamespace(free=next(free))

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    found = [finding.level for _ in range(3) for finding in doctor._disk(tmp_path / "a" / "b")]
    assert found == ["ok", "note", "FAIL"]


def test_too_old_a_package_fails_with_the_command_that_mends_it():
    assert doctor._version("torch", "2.11.0+cu128", "pip install").level == "ok"
    assert doctor._version("torch", "2.9.1", "pip install").level == "FAIL"
    assert "2.11" in doctor._version("torch", "2.9.1", "pip install").message


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(ghost, tmp_path, monkeypatch):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "_device", broken)
    done = ghost("doctor", "--runs", tmp_path, "--json")
    assert done.code == 1
    found = levels(done)
    assert found["device"] == ("FAIL", "OSError: libcudart.so.13: cannot open shared object file")
    assert found["run directory"][0] == "ok"


def test_the_kernel_in_use_is_named_with_the_reason(ghost, tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", "pytorch")
    level, message = levels(ghost("doctor", "--runs", tmp_path, "--json"))["kernel"]
    assert level == "note"
    assert message.startswith("pytorch: ")
    assert "GHOST_KERNEL" in message
    monkeypatch.setenv("GHOST_KERNEL", "abacus")
    done = ghost("doctor", "--runs", tmp_path, "--json")
    assert done.code == 1
    assert "abacus" in levels(done)["kernel"][1]


def test_damaged_cifar_files_fail_by_name(ghost, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("test_batch", "batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"half of it")
    done = ghost("doctor", "--runs", tmp_path / "runs", "--json")
    assert done.code == 1
    level, message = levels(done)["cifar10"]
    assert level == "FAIL"
    assert "data_batch_1" in message
    assert "(6 more)" in message
    assert "ghost data fetch cifar10" in message


def test_a_half_downloaded_archive_fails(ghost, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    done = ghost("doctor", "--runs", tmp_path / "runs", "--json")
    assert done.code == 1
    assert levels(done)["cifar10"][0] == "FAIL"


@pytest.mark.real
def test_the_real_cifar10_is_whole(ghost, cifar10, tmp_path):
    level, message = levels(ghost("doctor", "--runs", tmp_path, "--json"))["cifar10"]
    assert (level, message.startswith("intact, 7 files")) == ("ok", True)


def test_unfinished_runs_are_notes_and_broken_ones_fail(ghost, tmp_path):
    done_run = write_run(tmp_path, "gns:1.0", seed=0)
    stopped = write_run(tmp_path, "gns:1.0", seed=1, status="interrupted")
    failed = write_run(tmp_path, "gns:1.0", seed=2, status="failed", error="the loss became \x1b[31mnon-finite")
    done = ghost("doctor", "--runs", tmp_path)
    assert done.code == 0
    assert "ok    runs: 1 finished" in done.out
    assert f"note  {stopped}: unfinished after" in done.out
    assert f"note  {failed}: failed after" in done.out
    assert "\\x1b[31mnon-finite" in done.out
    assert "\x1b" not in done.out
    (tmp_path / done_run / "result.json").write_text("{")
    done = ghost("doctor", "--runs", tmp_path)
    assert done.code == 1
    assert f"FAIL  {done_run}: broken" in done.out
    assert f"ghost runs verify {done_run}" in done.out
