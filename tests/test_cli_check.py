"""`ghost check` through the command line: the verb's own arguments, nothing trained, what the run's record holds."""

from __future__ import annotations

import json

import pytest

from ghostcli import plan
from ghostcli.cli import check as cli
from ghostcli.cli.options import Common
from ghostcli.recipe import load
from ghostcli.run import launch

TINY = [
    "-s",
    "data.limit=40",
    "-s",
    "data.limit_test=40",
    "-s",
    "train.batch_size=20",
    "--epochs",
    1,
    "--device",
    "cpu",
]
FLAGS = ["--data", "digits", *TINY]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished teachers, whatever they are worth."""
    folder = tmp_path_factory.mktemp("check") / "runs"
    found = load("paper", ["data.name=digits", *[str(flag) for flag in TINY[1:6:2]], "train.epochs=1"])
    jobs = [plan.plain(name, 0, found.recipe, found.name) for name in ("gns:0.3", "gns:0.4")]
    launch.carry_out(plan.order(jobs), launch.Options(folder, "cpu", quiet=True))
    return folder


def test_flags_of_training_are_refused(ghost):
    """The check trains nothing: --jobs 3 or --dry-run would change nothing."""
    for flag in (["--jobs", 3], ["--dry-run"], ["--on", "slurm"], ["--no-resume"]):
        done = ghost("check", "distill", "gns:0.3", "--student", "gns:0.2", *flag)
        assert done.code == 2 and f"No such option: {flag[0]}" in done.err


def test_findings_are_shown_and_warnings_are_no_failure(ghost, runs):
    before = sorted(runs.glob("*/s*"))
    done = ghost(
        "check", "distill", "gns:0.3", "--student", "gns:0.5", "-s", "distill.shuffle=false", *FLAGS, "--runs", runs
    )
    assert done.code == 0, done.err
    assert "not shuffled" in done.out and "distill.shuffle=true" in done.out and "2 warnings" in done.out
    assert sorted(runs.glob("*/s*")) == before  # no run was made
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert [line.split()[0] for line in lines[1:-1] if not line.startswith(" ")][:3] == ["warn", "ok", "ok"]
    for code in ("unshuffled", "other-view", "train-mode", "unlike-record", "no-better-than-chance"):
        assert code not in done.out  # it names a fault, whether it is there or not
    for subject in ("order of images", "teachers' view", "eval mode", "recorded logits"):
        assert subject in done.out


def test_findings_as_data_are_those_of_the_record(ghost, runs):
    words = ["ensemble", "gns:0.3", "gns:0.4", "--student", "gns:0.5", *FLAGS, "--runs", runs, "--json"]
    found = json.loads(ghost("check", *words).out)
    assert [set(item) for item in found] == [{"code", "level", "message", "figure"}] * len(found)
    assert {item["code"] for item in found if item["level"] != "ok"} == {"no-better-than-chance"}
    assert found[-1]["code"] == "alike-teachers"
    assert json.loads(ghost(*words).out)["check"] == found


def test_a_run_alone_is_checked_for_its_order(ghost, tmp_path):
    done = ghost("check", "train-teacher", "gns:0.5", *FLAGS, "--runs", tmp_path, "--json")
    assert [item["code"] for item in json.loads(done.out)] == ["unshuffled"]


def test_a_missing_teacher_is_named_with_the_command_that_trains_it(ghost, tmp_path):
    done = ghost("check", "distill", "gns:0.3", "--student", "gns:0.5", *FLAGS, "--runs", tmp_path / "none")
    assert done.code == 2 and not (tmp_path / "none").exists()
    assert "ghost train-teacher gns:0.3" in done.err and "-s data.limit=40" in done.err and "--runs" in done.err


COMMANDS = [
    (["resnet50", "resnet34"], [], "ghost distill resnet50 --student resnet34"),
    (["resnet50", "resnet34", "resnet18"], [], "ghost assist-chain resnet50 resnet34 --student resnet18"),
    (["resnet18"], ["distill.teacher_seed=3"], "ghost train-teacher resnet18 --seed 3"),
    (["resnet18"], ["distill.teacher_epochs=5"], "ghost train-teacher resnet18 -s train.stop=5"),
    (["resnet18"], ["distill.kind=dkd", "train.epochs=7"], "ghost train-teacher resnet18 --epochs 7"),
    (
        ["resnet50", "resnet18"],
        ["distill.temperature=4"],
        "ghost distill resnet50 --student resnet18 -s distill.temperature=4.0",
    ),
]


@pytest.mark.parametrize(("teachers", "settings", "expected"), COMMANDS)
def test_the_command_that_trains_a_teacher_makes_that_very_job(teachers, settings, expected, tmp_path, monkeypatch):
    found = load("paper", settings)
    teacher = plan.chain(teachers, "gns:1.0", 0, found.recipe, found.name, tmp_path).teachers[0]
    said = cli.command(teacher, Common())
    assert said == expected

    from ghostcli.cli import app
    from ghostcli.cli import train as verbs

    planned = []
    monkeypatch.setattr(verbs.launch, "carry_out", lambda graph, options: planned.extend(graph.requested) or [])
    app(said.split()[1:], standalone_mode=False)
    assert [job.id for job in planned] == [teacher.id]
