"""The chain of networks that taught a network: the same for a job and for its finished run."""

from __future__ import annotations

import json

import pytest
from report_runs import write_run

from ghostcli import plan
from ghostcli.recipe import load

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
