"""The chain of networks that taught a network: the same for a job and for its finished run."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from report_runs import write_run

from ghostcli import plan
from ghostcli.comparison import commands as of_tables
from ghostcli.plan import commands
from ghostcli.recipe import load
from ghostcli.recipe.diff import config_diff, untaught

TEACHERS = ("resnet50", "vgg13")
MADE = {
    "plain": (lambda recipe, runs: plan.plain("resnet18", 0, recipe, "paper"), ()),
    "kd": (lambda recipe, runs: plan.chain(TEACHERS[:1], "resnet18", 0, recipe, "paper", runs), TEACHERS[:1]),
    "chain": (lambda recipe, runs: plan.chain(TEACHERS, "resnet18", 0, recipe, "paper", runs), TEACHERS),
    "dense": (lambda recipe, runs: plan.chain(TEACHERS, "resnet18", 0, recipe, "paper", runs), TEACHERS),
    "ensemble": (lambda recipe, runs: plan.ensemble(TEACHERS, "resnet18", 0, recipe, "paper", runs), TEACHERS),
}


@pytest.mark.parametrize("strategy", MADE)
def test_a_job_and_its_finished_run_have_one_lineage(strategy, tmp_path):
    build, teachers = MADE[strategy]
    job = build(load("paper", ["distill.dense=true"] if strategy == "dense" else []).recipe, tmp_path)
    assert job.strategy == strategy
    run = plan.finished(f"run/{write_run(tmp_path, 'resnet18', strategy, teachers)}", tmp_path)
    assert job.lineage == run.lineage

    students = [plan.Job("gns:1.0", 0, load("paper").recipe, "paper", (teacher,)) for teacher in (job, run)]
    assert students[0].strategy == students[1].strategy
    assert students[0].path == students[1].path


def test_a_key_that_changes_nothing_changes_neither_id_nor_protocol():
    """No Ghost network has ImageNet weights. A network that has starts otherwise with the key."""

    def jobs(model: str) -> list[plan.Job]:
        recipes = [load("smoke", [f"model.pretrained={value}"]).recipe for value in ("true", "false")]
        return [plan.plain(model, 0, recipe, "smoke") for recipe in recipes]

    one, other = jobs("gns:0.1")
    assert (one.id, one.protocol) == (other.id, other.protocol)
    one, other = jobs("efficientnetv2")
    assert one.id != other.id and one.protocol != other.protocol


def test_a_student_of_an_ensemble_s_student_fills_no_printed_row(ghost, tmp_path):
    assistant = write_run(tmp_path, "resnet18", "ensemble", TEACHERS)
    run = write_run(tmp_path, "gns:1.0", "kd", ("resnet18",), teacher_runs=(assistant,))
    rows = json.loads(ghost("table", "II", "--format", "json", "--runs", tmp_path).out)["rows"]
    assert not any(row["runs"] for row in rows)
    also = json.loads(ghost("table", "also", "--format", "json", "--runs", tmp_path).out)["rows"]
    assert [run] in [row["runs"] for row in also]


def test_a_printed_command_starts_from_the_same_weights_and_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('extends = "ghost/fast"\n[optim]\nlr = 0.3\n')
    changes = ["model.start=run/gns-1.0-plain-1a2b3c4d/s0", f"model.start_sha256={'0' * 64}", "train.epochs=50"]
    recipe = load("mine.toml", changes).recipe
    there = commands.settings(commands.source("mine.toml", recipe), recipe, taught=False)
    assert there == ("--from", "run/gns-1.0-plain-1a2b3c4d/s0", "--epochs", "50")
    monkeypatch.chdir(tmp_path.parent)
    name = commands.source("mine.toml", recipe)
    words = commands.settings(name, recipe, taught=False)
    assert name == "ghost" and "mine.toml" not in words
    keys = [word for flag, word in pairwise(words) if flag == "-s"]
    again = load(name, [*keys, *changes]).recipe
    assert untaught(config_diff(again, recipe)) == set()


def test_the_value_of_from_names_no_teacher():
    named = {
        "distill resnet18 --student gns:1.0 --from run/gns-1.0-plain-1a2b3c4d/s0": False,
        "distill run/resnet18-plain-1a2b3c4d/s0 --student gns:1.0": True,
        "ensemble pretrained/gns-1.0 resnet18 --student gns:0.5": True,
    }
    assert {command: of_tables._named_by_id(command.split()) for command in named} == named
