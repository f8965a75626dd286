"""The one training loop through the command line: every strategy, what it writes, and what it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

TINY = [
    "--data",
    "digits",
    "--epochs",
    "2",
    "-s",
    "data.limit=96",
    "-s",
    "data.limit_test=48",
    "-s",
    "train.batch_size=32",
]

STRATEGIES = {
    "plain": ["train-teacher", "gns:0.25"],
    "kd": ["distill", "gns:0.35", "--student", "gns:0.25"],
    "chain": ["assist-chain", "gns:0.35", "gns:0.3", "--student", "gns:0.25"],
    "dense": ["assist-chain", "gns:0.35", "gns:0.3", "--student", "gns:0.25", "--dense"],
    "ensemble": ["ensemble", "gns:0.35", "gns:0.3", "--student", "gns:0.25"],
    "adaptive": ["ensemble", "gns:0.35", "gns:0.3", "--student", "gns:0.25", "--weighting", "adaptive"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_and_says_what_the_contract_has(ghost, runs, strategy):
    done = ghost(*STRATEGIES[strategy], *TINY, "--runs", runs, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["strategy"] == strategy and said["student"] == "gns:0.25" and said["status"] == "done"
    assert said["data"] == "digits" and said["seed"] == 0 and said["epochs"] == 2
    assert set(said["accuracy"]) >= {"last", "best"} and said["seconds"] > 0
    assert 0 <= said["accuracy"]["last"] <= said["accuracy"]["best"] <= 100
    folder = runs / said["run"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "recipe.json", "env.json", "status.json", "metrics.jsonl", "model.safetensors", "predictions.npz", "result.json"
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert result["accuracy"]["last"] == lines[-1]["test"]["accuracy"]
    if strategy != "plain":
        alpha = 0.5
        for line in lines:
            assert line["loss"] == pytest.approx(alpha * line["hard"] + (1 - alpha) * line["soft"], rel=1e-5)
    with np.load(folder / "predictions.npz") as predictions:
        accuracy = (predictions["logits"].astype(np.float32).argmax(1) == predictions["labels"]).mean() * 100
    assert accuracy == pytest.approx(result["accuracy"]["selected"], abs=100 / 48 + 0.01)


def test_teachers_are_trained_once_and_found_again(ghost, runs):
    again = ghost("distill", "gns:0.35", "--student", "gns:0.3", *TINY, "--runs", runs)
    assert again.code == 0
    plan = ghost(
        "assist-chain", "gns:0.35", "gns:0.3", "--student", "gns:0.25", *TINY, "--runs", runs, "--dry-run", "--json"
    )
    states = {row["student"]: row["state"] for row in json.loads(plan.out)}
    assert states["gns:0.35"] == "reused" and states["gns:0.3"] == "reused"


def test_a_finished_run_is_found_and_does_nothing(ghost, runs):
    first = json.loads(ghost(*STRATEGIES["plain"], *TINY, "--runs", runs, "--json").out)
    before = (runs / first["run"] / "result.json").stat().st_mtime_ns
    again = ghost(*STRATEGIES["plain"], *TINY, "--runs", runs, "--json")
    assert json.loads(again.out) == first and "found" in again.err
    assert (runs / first["run"] / "result.json").stat().st_mtime_ns == before


def test_recorded_recipe_put_in_again_is_the_same_run(ghost, runs):
    first = json.loads(ghost(*STRATEGIES["plain"], *TINY, "--runs", runs, "--json").out)
    again = ghost(
        "train-teacher",
        "gns:0.25",
        "--recipe",
        runs / first["run"] / "recipe.json",
        "--runs",
        runs,
        "--dry-run",
        "--json",
    )
    (row,) = json.loads(again.out)
    assert row["run"] == first["run"] and row["state"] == "reused"


@pytest.mark.long
def test_seeds_differ_and_repeat(ghost, tmp_path):
    def train(folder):
        done = ghost(*STRATEGIES["plain"], *TINY, "--runs", tmp_path / folder, "--seed", 1, "--seed", 2, "--json")
        assert done.code == 0, done.err
        return [(tmp_path / folder / row["run"] / "model.safetensors").read_bytes() for row in json.loads(done.out)]

    one, two = train("a"), train("b")
    assert one == two
    assert one[0] != one[1]


def test_dropout_depends_on_the_seed_and_the_step_alone(ghost, tmp_path):
    """VGG13 drops half of its classifier's inputs; what ran before in this process must not show in its weights."""

    def weights(folder):
        torch.rand(len(folder))  # moves torch's own generator on
        small = ["-s", "data.limit=16", "-s", "data.limit_test=16", "-s", "train.batch_size=8", "-s", "optim.warmup=0"]
        done = ghost("train-teacher", "vgg13", "--data", "digits", "--epochs", 1, *small, "--runs", tmp_path / folder)
        assert done.code == 0, done.err
        (file,) = (tmp_path / folder).glob("*/s0/model.safetensors")
        return file.read_bytes()

    assert weights("a") == weights("bcd")


def test_validation_split_chooses_the_epoch(ghost, tmp_path):
    done = ghost(
        "train-teacher", "gns:0.25", *TINY, "--epochs", "4", "-s", "data.validation=32", "--runs", tmp_path, "--json"
    )
    assert done.code == 0, done.err
    folder = tmp_path / json.loads(done.out)["run"]
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(line["validation"]["accuracy"] for line in lines)
    chosen = next(line for line in lines if line["validation"]["accuracy"] == best)
    assert result["accuracy"]["selected_by"] == "validation"
    assert result["accuracy"]["selected_epoch"] == chosen["epoch"]
    assert result["accuracy"]["selected"] == chosen["test"]["accuracy"]
    assert result["validation_images"] == 32 and result["train_images"] == 64


def test_weights_on_disk_are_the_network_that_was_scored(ghost, runs):
    from ghostcli.recipe.models import Recipe
    from ghostcli.run.job import load_data
    from ghostcli.zoo import evaluate, weights

    said = json.loads(ghost(*STRATEGIES["kd"], *TINY, "--runs", runs, "--json").out)
    recipe = Recipe.model_validate(json.loads((runs / said["run"] / "recipe.json").read_text())["recipe"])
    data = load_data(recipe.data)
    loaded = weights.load(runs / said["run"] / "model.safetensors")
    logits = evaluate.logits(loaded.model, data.test, loaded.norm)
    with np.load(runs / said["run"] / "predictions.npz") as predictions:
        torch.testing.assert_close(logits, torch.from_numpy(predictions["logits"]).float(), rtol=2e-3, atol=2e-3)


def test_a_table_fed_run_equals_one_that_asks_its_teacher(ghost, runs, tmp_path):
    """To float16's rounding of the teacher's logits: one step of training, weights compared."""
    one = [*STRATEGIES["kd"], *TINY, "--epochs", "1", "-s", "train.batch_size=96", "--runs", runs, "--json"]
    teacher = json.loads(ghost("train-teacher", "gns:0.35", *TINY, "--runs", runs, "--json").out)["run"]
    name = ["distill", f"run/{teacher}", *one[2:]]
    from safetensors.torch import load_file

    fed = json.loads(ghost(*name).out)
    fed_weights = load_file(runs / fed["run"] / "model.safetensors")
    done = ghost(*name, "-s", "distill.source=live", "--no-resume")
    assert "computed at every step" in done.err
    live = load_file(runs / json.loads(done.out)["run"] / "model.safetensors")
    assert fed["run"] == json.loads(done.out)["run"]
    for key, value in live.items():
        torch.testing.assert_close(value, fed_weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("extra", [["-s", "augment.cutout=8"], ["--kind", "hint"]])
def test_what_no_table_can_hold_asks_the_teacher_and_says_so(ghost, runs, extra):
    done = ghost(*STRATEGIES["kd"], *TINY, *extra, "--runs", runs)
    assert done.code == 0 and "computed at every step" in done.err


@pytest.mark.long
def test_jobs_spread_over_processes(ghost, tmp_path):
    alone = ghost(*STRATEGIES["kd"], *TINY, "--runs", tmp_path / "a", "--seed", 3, "--seed", 4, "--json")
    spread = ghost(*STRATEGIES["kd"], *TINY, "--runs", tmp_path / "b", "--seed", 3, "--seed", 4, "--jobs", 2, "--json")
    assert spread.code == 0, spread.err
    assert [row["run"] for row in json.loads(spread.out)] == [row["run"] for row in json.loads(alone.out)]


def test_stopping_early_keeps_the_schedule_of_the_whole(ghost, tmp_path):
    whole = json.loads(ghost("train-teacher", "gns:0.25", *TINY, "--runs", tmp_path, "--json").out)
    part = json.loads(ghost("train-teacher", "gns:0.25", *TINY, "-s", "train.stop=1", "--runs", tmp_path, "--json").out)

    def first_epoch(run):
        return json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0])

    first = [first_epoch(whole["run"]), first_epoch(part["run"])]
    assert part["epochs"] == 1
    assert first[0]["lr"] == first[1]["lr"] and first[0]["test"] == first[1]["test"]


@pytest.mark.real
def test_real_images_are_learnt(ghost, cifar10, tmp_path):
    """A small student on 3,000 real images beats chance (10 %) by a wide margin: six trainings gave 32 to 38 %."""
    sizes = ["-s", "data.limit=3000", "-s", "data.limit_test=500", "-s", "train.batch_size=64", "--epochs", 4]
    rates = [
        word for key in ("name=muon", "lr=0.02", "rest_lr=0.1", "weight_decay=5e-4") for word in ("-s", f"optim.{key}")
    ]
    done = ghost("train-teacher", "gns:0.25", "--data", "cifar10", *sizes, *rates, "--runs", tmp_path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["accuracy"]["last"] > 25
