"""A sweep: what was checked is not read again until it changes, and a thousand failures are told in a few lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import crash
import pytest
from report_runs import edit, write_run

from ghostcli import plan
from ghostcli.comparison import admission, checked
from ghostcli.errors import GhostError, NonFiniteError
from ghostcli.recipe import load
from ghostcli.records import record
from ghostcli.run import launch
from ghostcli.run.launch import Outcome


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """Records are remembered from the first on. Yields the ids whose content was read."""
    read = []
    monkeypatch.setattr(checked, "LEAST", 1)
    monkeypatch.setenv("GHOST_CACHE", str(tmp_path / "cache"))
    real = admission.content_problems
    monkeypatch.setattr(admission, "content_problems", lambda run, **how: read.append(run.id) or real(run, **how))
    return read


def test_a_record_is_checked_again_when_it_changes(remembered, tmp_path):
    runs = tmp_path / "runs"
    ids = [write_run(runs, seed=seed, accuracy=90 + seed, epochs=3) for seed in range(3)]

    def admitted() -> set[str]:
        remembered.clear()
        return {run.id for run in admission.admit(record.scan(runs)).runs}

    assert admitted() == {*ids} and remembered == ids
    assert admitted() == {*ids} and remembered == []
    for name in ("metrics.jsonl", "result.json", "predictions.npz", "recipe.json", "status.json"):
        os.utime(runs / ids[1] / name)
        assert admitted() == {*ids} and remembered == [ids[1]], name
    edit(runs / ids[2] / "result.json", epochs=2)
    for _ in range(2):  # one that is refused is read each time
        assert admitted() == {*ids[:2]} and remembered == [ids[2]]


def test_a_record_is_checked_again_when_its_teachers_does(remembered, tmp_path):
    runs = tmp_path / "runs"
    teacher = write_run(runs, "resnet18", accuracy=93, epochs=3)
    student = write_run(runs, "gns:1.0", "kd", ("resnet18",), accuracy=91, epochs=3, teacher_runs=(teacher,))
    assert {run.id for run in admission.admit(record.scan(runs)).runs} == {teacher, student}
    file = runs / teacher / "recipe.json"
    file.write_text(file.read_text().replace(json.loads(file.read_text())["digest"], "0" * 64))
    edit(runs / teacher / "result.json", digest="0" * 64)
    remembered.clear()
    assert student not in {run.id for run in admission.admit(record.scan(runs)).runs}
    assert student in remembered


def test_a_thousand_failures_are_ten_lines_and_a_summary(capfd):
    found = load("smoke")
    jobs = [plan.plain("gns:0.1", seed, found.recipe, found.name) for seed in range(1000)]
    errors = [NonFiniteError("the loss became non-finite"), GhostError("not started, its teacher t/s0 failed")]
    failed = [Outcome(job, errors[i % 2]) for i, job in enumerate(jobs)]
    for number, outcome in enumerate(failed, 1):
        launch.warn(outcome, number)
    assert len(capfd.readouterr().err.splitlines()) == launch.NAMED
    error = launch.together(failed, 10_000)
    assert error.exit_code == 3 and "\n" not in str(error)
    assert re.search(r"^1000 of 10000 runs failed; .*495 non-finite, 495 not started", str(error)), error


def test_a_list_of_many_runs_has_aligned_columns(ghost, tmp_path):
    for seed in range(3):
        write_run(tmp_path, seed=10**seed, accuracy=90, epochs=3)
    write_run(tmp_path, "gns:2.8", status="failed", error="the loss became non-finite", epochs=3)
    lines = ghost("runs", "list", "--runs", tmp_path).out.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    starts = [lines[0].index(title) for title in ("status", "accuracy", "epoch", "data", "recipe")]
    assert all(line[at - 1] == " " and line[at] != " " for line in lines for at in starts)


SHARED = """
import sys
from pathlib import Path
from ghostcli import signals
from ghostcli.comparison import admission, checked
from ghostcli.records import record

checked.MANY = int(sys.argv[2])
counted = []
real = admission.content_problems
admission.content_problems = lambda run, **how: counted.append(run.id) or real(run, **how)
with signals.handled():  # as in every command
    found = admission.contradictions(record.scan(Path(sys.argv[1])), for_table=True)
for run, problem in sorted(found.items()):
    print(run, problem)
print(len(counted), "here", file=sys.stderr)
"""


def test_many_processes_find_what_one_finds(tmp_path):
    """Records with contradictions among good ones, checked by one process and by one for each core."""
    ids = [write_run(tmp_path, seed=seed, accuracy=80 + seed, epochs=3) for seed in range(8)]
    edit(tmp_path / ids[2] / "result.json", epochs=2)
    edit(tmp_path / ids[5] / "result.json", seal=False, nll=0.1)
    (tmp_path / ids[6] / "predictions.npz").write_bytes(b"PK")
    said = {}
    for least in (1, 1000):
        words = [sys.executable, "-c", SHARED, str(tmp_path), str(least)]
        environment = os.environ | {"PYTHONPATH": str(crash.ROOT), "GHOST_CACHE": str(tmp_path / f"cache{least}")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        said[least] = done.stdout.splitlines()
        elsewhere = least == 1 and sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1
        assert done.stderr == ("0 here\n" if elsewhere else "8 here\n")
    assert said[1] == said[1000] and [line.split()[0] for line in said[1]] == sorted(ids[i] for i in (2, 5, 6))
