"""The command that an unfinished run goes on with: typed in again, it plans that very run."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from ghostcli import plan
from ghostcli.plan import Finished, Job
from ghostcli.recipe import load
from ghostcli.records.record import RunRecord
from ghostcli.run import launch
from ghostcli.run.recover import command_of

SETTINGS = ["train.epochs=3", "data.name=digits", "augment.flip=none"]


def finished_result(student: str) -> dict[str, Any]:
    """A whole result.json of some finished run."""
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), student)
        return json.loads((Path(folder) / run / "result.json").read_text())


def begin(job: Job, runs, status: str = "interrupted") -> RunRecord:
    """The job's run directory, and its teachers', as they are a moment after each began."""
    for teacher in job.teachers:
        if not isinstance(teacher, Finished):
            begin(teacher, runs, "done")
    folder = runs / job.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(launch.describe(job)))
    (folder / "status.json").write_text(json.dumps({"status": status}))
    if status == "done":
        like = ("student", "strategy", "digest", "seed")
        result = finished_result(job.student) | {key: getattr(job, key) for key in like} | {"teachers": list(job.path)}
        (folder / "result.json").write_text(json.dumps(result))
    return RunRecord(folder, job.id)


def jobs(runs) -> dict[str, Job]:
    paper, kd, own = load("paper"), load("ghost/kd"), load("smoke", SETTINGS)
    dense = load("smoke", [*SETTINGS, "distill.dense=true", "distill.temperature=4"])
    adaptive = load("smoke", [*SETTINGS, "distill.weighting=adaptive"])
    early = load("smoke", [*SETTINGS, "distill.teacher_epochs=2"])
    dkd = load("paper", ["distill.kind=dkd", "distill.other_weight=4"])
    folder = load("smoke", ['data.name="folder:my images"'])
    path = ["resnet50", "resnet18"]
    teacher = plan.plain("resnet18", 4, own.recipe, own.name)
    begin(teacher, runs, "done")
    return {
        "paper": plan.plain("gns:1.0", 0, paper.recipe, paper.name),
        "seed": plan.plain("gns:1.3", 7, own.recipe, own.name),
        "folder": plan.plain("gns:1.0", 0, folder.recipe, folder.name),
        "kd": plan.chain(["resnet18"], "gns:1.0", 1, kd.recipe, kd.name, runs),
        "dkd": plan.chain(["resnet18"], "gns:1.0", 0, dkd.recipe, dkd.name, runs),
        "early": plan.chain(["resnet18"], "gns:1.0", 0, early.recipe, early.name, runs),
        "chain": plan.chain(path, "gns:1.0", 0, own.recipe, own.name, runs),
        "dense": plan.chain(path, "gns:1.0", 0, dense.recipe, dense.name, runs),
        "ensemble": plan.ensemble(path, "gns:1.0", 0, own.recipe, own.name, runs),
        "adaptive": plan.ensemble(path, "gns:1.0", 0, adaptive.recipe, adaptive.name, runs),
        "of a run": plan.chain([f"run/{teacher.id}"], "gns:1.0", 0, paper.recipe, paper.name, runs),
    }


CASES = ("paper", "seed", "folder", "kd", "dkd", "early", "chain", "dense", "ensemble", "adaptive", "of a run")


@pytest.mark.parametrize("case", CASES)
def test_the_command_leads_back_to_the_run(ghost, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "my runs"
    job = jobs(runs)[case]
    run = begin(job, runs)
    command = command_of(run, runs)
    assert command is not None
    program, *arguments = shlex.split(command)
    assert program == "ghost"
    done = ghost(*arguments, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)[-1]["run"] == job.id


def test_it_is_the_command_that_a_person_would_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    runs = (tmp_path / "runs").relative_to(tmp_path)
    found = jobs(runs)
    assert command_of(begin(found["paper"], runs), runs) == "ghost train-teacher gns:1.0"
    assert command_of(begin(found["kd"], runs), runs) == (
        "ghost distill resnet18 --student gns:1.0 --recipe ghost/kd --seed 1"
    )
    assert command_of(begin(found["seed"], runs), runs) == (
        "ghost train-teacher gns:1.3 --recipe smoke --data digits -s augment.flip=none --epochs 3 --seed 7"
    )
    assert "--dense" in command_of(begin(found["dense"], runs), runs)


def test_a_recipe_of_ones_own_is_named_by_the_runs_file(ghost, tmp_path):
    mine = tmp_path / "mine.toml"
    keys = "[train]\nepochs = 3\nbatch_size = 32\n[optim]\nlr = 0.1\nmomentum = 0.8\nwarmup = 0.1\nweight_decay = 0.0\n"
    mine.write_text(f'extends = "smoke"\n{keys}')
    found = load(str(mine))
    run = begin(plan.plain("gns:1.0", 0, found.recipe, found.name), tmp_path / "runs")
    mine.unlink()
    command = command_of(run, tmp_path / "runs")
    assert str(run.path / "recipe.json") in command
    done = ghost(*shlex.split(command)[1:], "--dry-run", "--json")
    assert json.loads(done.out)[-1]["run"] == run.id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "zero"},
        {"recipe": {"train": {"epochs": 0}}},
        {"student": "gns:2.0"},  # not what the run's digest was made of
        {"teachers": ["../../../etc"]},
        {"teachers": ["gns-1.0-kd-00000000/s0"]},  # a teacher that is not here
    ],
)
def test_no_command_is_given_that_would_lead_elsewhere(tmp_path, change):
    found = load("smoke")
    run = begin(plan.plain("gns:1.0", 0, found.recipe, found.name), tmp_path)
    told = json.loads((run.path / "recipe.json").read_text())
    (run.path / "recipe.json").write_text(json.dumps(told | change))
    assert command_of(RunRecord(run.path, run.id), tmp_path) is None


def test_a_damaged_recipe_gives_none(tmp_path):
    found = load("smoke")
    run = begin(plan.plain("gns:1.0", 0, found.recipe, found.name), tmp_path)
    for content in ("", "[]", '{"student": 1}', "\0"):
        (run.path / "recipe.json").write_text(content)
        assert command_of(RunRecord(run.path, run.id), tmp_path) is None


def test_doctor_shows_the_command(ghost, tmp_path):
    found = load("smoke")
    run = begin(plan.plain("gns:1.0", 0, found.recipe, found.name), tmp_path)
    done = ghost("doctor", "--runs", tmp_path)
    command = f"ghost train-teacher gns:1.0 --recipe smoke --runs {tmp_path}"
    assert f"note  {run.id}: unfinished after 0 epochs, go on: {command}" in done.out
