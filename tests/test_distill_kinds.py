"""Every way of teaching through the command line, on real CIFAR-10 images and on data of CIFAR-100's shape."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from test_data_cifar import NAMES, files_of, publish

from ghostcli.data import load as load_data
from ghostcli.engine.train import make_state
from ghostcli.plan import chain, plain
from ghostcli.recipe import load
from ghostcli.recipe.models import DataSection

KINDS = ["kd", "dkd", "dist", "hint", "at", "rkd"]
WAYS = {
    **{kind: ["distill", "gns:0.35", "--student", "gns:0.2", "--kind", kind] for kind in KINDS},
    "standardised": ["distill", "gns:0.35", "--student", "gns:0.2", "-s", "distill.standardize=true"],
    "dense": ["assist-chain", "gns:0.35", "gns:0.25", "--student", "gns:0.2", "--dense", "-s", "distill.drop=1"],
    "probabilities": [
        "ensemble",
        "gns:0.35",
        "gns:0.25",
        "--student",
        "gns:0.2",
        "-s",
        "distill.combine=probabilities",
    ],
    "adaptive": ["ensemble", "gns:0.35", "gns:0.25", "--student", "gns:0.2", "--weighting", "adaptive"],
    "generations": ["distill", "gns:0.2", "--student", "gns:0.2", "--generations", "2"],
    "early teacher": ["distill", "gns:0.35", "--student", "gns:0.2", "-s", "distill.teacher_epochs=1"],
}
SMALL = ["--epochs", "2", "-s", "data.limit=64", "-s", "data.limit_test=50", "-s", "train.batch_size=32", "--json"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def teach(ghost, way, data, runs):
    done = ghost(*WAYS[way], "--data", data, *SMALL, "--runs", runs)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    result = json.loads((runs / said["run"] / "result.json").read_text())
    lines = [json.loads(line) for line in (runs / said["run"] / "metrics.jsonl").read_text().splitlines()]
    assert said["status"] == "done" and result["recipe"]["data"]["name"] == data
    assert all(line["soft"] > 0 and line["hard"] > 0 for line in lines)
    if way in KINDS:
        assert result["recipe"]["distill"]["kind"] == way
    return result


@pytest.mark.real
@pytest.mark.parametrize("way", WAYS)
def test_on_real_cifar10(ghost, cifar10, runs, way):
    assert teach(ghost, way, "cifar10", runs)["classes"] == 10


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_on_data_of_cifar100s_shape(ghost, runs, tmp_path, monkeypatch, way):
    files = files_of("cifar100")
    publish("cifar100", files, monkeypatch)
    folder = tmp_path / "data" / NAMES["cifar100"][0]
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("GHOST_DATA", str(tmp_path / "data"))
    assert teach(ghost, way, "cifar100", runs)["classes"] == 100


def test_an_early_stopped_teacher_is_another_teacher(ghost, runs):
    whole = ghost(*WAYS["kd"], "--data", "digits", *SMALL, "--runs", runs, "--dry-run")
    early = ghost(*WAYS["early teacher"], "--data", "digits", *SMALL, "--runs", runs, "--dry-run")
    (a, _), (b, _) = json.loads(whole.out), json.loads(early.out)
    assert a["run"] != b["run"] and (a["epochs"], b["epochs"]) == (2, 1)


def test_a_teacher_stopped_at_the_end_is_the_whole_one(ghost, runs):
    whole = ghost(*WAYS["kd"], "--data", "digits", *SMALL, "--runs", runs, "--dry-run")
    late = ghost(*WAYS["kd"], "--data", "digits", *SMALL, "--runs", runs, "--dry-run", "-s", "distill.teacher_epochs=2")
    assert json.loads(whole.out)[0]["run"] == json.loads(late.out)[0]["run"]


def test_a_teacher_trains_its_own_epochs_wherever_the_student_stops():
    """All of them too: 2 of 2 had been ignored, and the teacher stopped with its student."""
    for stop, epochs, expected in ((1, 2, 2), (1, None, 1), (2, 1, 1), (None, 2, 2)):
        recipe = load("smoke", ["train.epochs=2"]).recipe.changed("train", stop=stop)
        recipe = recipe.changed("distill", teacher_epochs=epochs)
        assistant = chain(("gns:0.35", "gns:0.3"), "gns:0.2", 0, recipe, "smoke", Path()).teachers[0]
        assert assistant.teachers[0].recipe.train.last_epoch == expected
        assert assistant.recipe.train.last_epoch == (stop or 2)


def test_each_generation_is_born_with_other_weights():
    """Born-again networks (Furlanello 2018) start from draws of their own, though all have one seed."""
    data = load_data(DataSection(name="digits", limit=32, limit_test=32))
    recipe = load("smoke").recipe
    jobs, starts = [], []
    for generation in range(3):
        path = ["gns:0.2"] * generation
        job = chain(path, "gns:0.2", 0, recipe, "smoke", Path()) if path else plain("gns:0.2", 0, recipe, "smoke")
        assert job.generation == generation
        jobs.append(job)
        starts.append(make_state(job, data, (), torch.device("cpu")).model.stem.conv.weight.detach())
    assert len({job.id for job in jobs}) == 3
    for a, b in itertools.combinations(starts, 2):
        assert (a - b).abs().mean() > 0.1 * a.abs().mean()
    other = chain(("gns:0.35",), "gns:0.2", 0, recipe, "smoke", Path())
    again = make_state(other, data, (), torch.device("cpu")).model.stem.conv.weight.detach()
    assert torch.equal(again, starts[0])  # taught by another kind it starts as its baseline does


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ([*WAYS["kd"], "-s", "distill.weighting=adaptive"], "distill.weighting=adaptive"),
        ([*WAYS["probabilities"], "-s", "distill.dense=true"], "distill.dense=true"),
    ],
)
def test_a_way_of_teaching_that_would_be_passed_over_is_refused(ghost, runs, command, named):
    done = ghost(*command, "--data", "digits", *SMALL, "--runs", runs)
    assert done.code == 2 and named in done.err and len(done.err.strip().splitlines()) == 1
