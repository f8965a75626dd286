"""A student that starts from trained weights, and epochs that show each class equally often."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ghostcli.data.batches import balanced
from ghostcli.records import record, tensorfile

DIGITS = ("--recipe", "smoke", "--data", "digits", "-s", "data.limit=200", "-s", "data.limit_test=100")
DIGITS += ("-s", "train.batch_size=32")


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three shades, one of them rare."""
    folder = tmp_path_factory.mktemp("own") / "shades"
    for part in ("train", "test"):
        for shade, (name, count) in enumerate({"dark": 40, "grey": 20, "white": 4}.items()):
            (folder / part / name).mkdir(parents=True)
            for i in range(count if part == "train" else 6):
                Image.new("RGB", (32, 32), (110 * shade + i % 20, 110 * shade, 110 * shade)).save(
                    folder / part / name / f"{i}.png"
                )
    return folder


def run_of(out: str) -> str:
    return json.loads(out)["run"]


def test_a_student_starts_from_trained_weights_with_a_new_last_layer(ghost, digits_runs, tmp_path, shades):
    """After no step worth naming (rate 1e-12) all weights but the last layer's are those of the run it starts from."""
    [source] = record.scan(digits_runs)
    runs = tmp_path / "runs"
    shutil.copytree(source.path, runs / source.id)
    still = ("-s", "optim.lr=1e-12", "-s", "optim.weight_decay=0", "-s", "train.batch_size=16", "--epochs", "1")
    asked = ("train-teacher", "gns:0.3", "--recipe", "smoke", "--data", f"folder:{shades}", *still, "--runs", runs)
    asked += ("--json", "-s", "data.limit=none", "-s", "data.limit_test=none")
    done = ghost(*asked, "--from", f"run/{source.id}")
    assert done.code == 0, done.err
    run = record.find(runs, run_of(done.out))
    theirs, before = tensorfile.read(source.weights)
    mine, after = tensorfile.read(run.weights)
    assert (after["mean"], after["std"], after["classes"]) == (before["mean"], before["std"], 3)
    learnt = [key for key in mine if "running" not in key and "num_batches" not in key]
    new = {key for key in learnt if mine[key].shape != theirs[key].shape}
    assert {mine[key].shape[0] for key in new} == {3} and len(new) == 2, new
    assert all(torch.allclose(mine[key], theirs[key], atol=1e-6) for key in learnt if key not in new)
    assert run.result.start == f"weights {record.file_digest(source.weights)[:12]}"

    fresh = ghost(*asked)  # the same from new weights is another run
    assert run_of(fresh.out) != run.id and record.find(runs, run_of(fresh.out)).result.start == "kaiming"
    with (run.path / "recipe.json").open() as file:
        model = json.load(file)["recipe"]["model"]
    assert (model["start"], len(model["start_sha256"])) == (f"run/{source.id}", 64)
    again = ghost(*asked, "--from", f"run/{source.id}")
    assert run_of(again.out) == run.id and "found" in again.err


def test_a_taught_student_starts_there_too_and_its_teacher_does_not(ghost, digits_runs):
    [source] = record.scan(digits_runs)
    words = (
        "--student",
        "gns:0.3",
        "--from",
        f"run/{source.id}",
        *DIGITS,
        "--runs",
        digits_runs,
        "--dry-run",
        "--json",
    )
    with_start = json.loads(ghost("distill", "gns:0.1", *words).out)
    alone = json.loads(ghost("distill", "gns:0.1", *(w for w in words if w not in ("--from", f"run/{source.id}"))).out)
    assert with_start[0]["run"] == alone[0]["run"] and with_start[1]["run"] != alone[1]["run"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["gns:0.2", "--from", "{id}"], "is gns:0.3, which is not gns:0.2"),
        (["gns:0.3", "--from", "gns:0.3"], "--from gns:0.3: is not a trained network; name a finished run"),
        (["gns:0.3", "--from", "run/gns-0.3-plain-00000000/s0"], "gns-0.3-plain-00000000"),
        (["{id}"], "--from {id} starts it from these weights"),
        (["gns:0.3", "-s", 'model.start_sha256="x"'], "needs model.start"),
        (["gns:0.3", "--from", "{id}", "-s", 'model.start_sha256="beef"'], "are not those of the recipe"),
    ],
)
def test_a_wrong_start_is_refused_in_a_line(ghost, digits_runs, words, said):
    [source] = record.scan(digits_runs)
    words = [word.replace("{id}", f"run/{source.id}") for word in words]
    done = ghost("train-teacher", *words, *DIGITS, "--runs", digits_runs)
    assert done.code == 2 and said.replace("{id}", f"run/{source.id}") in done.err, done.err
    assert done.err.count("\n") == 1
    planned = ghost("train-teacher", *words, *DIGITS, "--runs", digits_runs, "--dry-run")
    assert (planned.code, planned.err) == (2, done.err), "a dry run promises nothing that the command refuses"


def test_a_dry_run_refuses_a_teacher_of_other_images(ghost, tmp_path):
    words = ("distill", "pretrained/gns-0.25", "--student", "gns:0.1", *DIGITS, "--runs", tmp_path)
    planned, done = ghost(*words, "--dry-run"), ghost(*words)
    assert planned.code == done.code == 2 and planned.err == done.err and "was trained on cifar10" in done.err


def test_the_papers_tables_begin_with_new_weights(ghost):
    done = ghost("reproduce", "I", "--dry-run", "-s", "model.start=run/gns-0.1-plain-00000000/s0")
    assert done.code == 2 and "model.start: all networks of the paper's tables begin with new weights" in done.err


def test_weights_that_changed_are_refused(ghost, digits_runs, tmp_path):
    shutil.copytree(digits_runs, tmp_path / "runs")
    [source] = record.scan(tmp_path / "runs")
    source.weights.write_bytes(source.weights.read_bytes()[:-1] + b"\0")
    words = ("gns:0.3", "--from", f"run/{source.id}", *DIGITS, "--epochs", "1", "--runs", tmp_path / "runs")
    done = ghost("train-teacher", *words)
    assert done.code == 2 and "its weights have changed since its training" in done.err


def test_a_balanced_epoch_shows_each_class_equally_often():
    labels = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    first, second = (balanced(labels, 7, epoch) for epoch in (0, 1))
    for drawn in (first, second):
        counts = torch.bincount(labels[drawn]).tolist()
        assert len(drawn) == 100 and sorted(counts) == [33, 33, 34]
        rare = torch.bincount(drawn, minlength=100)[95:]
        assert rare.min() >= 6 and rare.max() <= 7, "each image of a small class as often as the others"
        assert torch.bincount(drawn)[:70].max() == 1, "no image of a large class twice"
    assert not torch.equal(first, second) and torch.equal(first, balanced(labels, 7, 0))
    assert labels[first][:30].unique().numel() == 3, "classes come mixed"


def test_balance_is_a_key_of_the_recipe(ghost, shades, tmp_path):
    words = ("train-teacher", "gns:0.1", "--recipe", "smoke", "--data", f"folder:{shades}", "--runs", tmp_path)
    words += ("-s", "data.limit=none", "-s", "data.limit_test=none", "-s", "train.batch_size=16", "--json")
    found = {run_of(ghost(*words, *more).out) for more in ((), ("-s", "data.balance=true"))}
    assert len(found) == 2
    refused = ghost(*words, "-s", "data.balance=true", "-s", "data.shuffle=false")
    assert refused.code == 2 and "data.balance" in refused.err


def test_results_by_class(ghost, digits_runs):
    [source] = record.scan(digits_runs)
    done = ghost("evaluate", f"run/{source.id}", "--runs", digits_runs, "--by-class", "--confusion", "--json")
    said = json.loads(done.out)
    rows = {row["class"]: row for row in said["by_class"]}
    assert sum(row["images"] for row in rows.values()) == said["images"]
    for name, counts in zip(said["classes"], said["confusion"], strict=True):
        right, images = counts[said["classes"].index(name)], sum(counts)
        assert rows[name]["images"] == images and rows[name]["accuracy"] == pytest.approx(
            100 * right / images, abs=1e-3
        )
        assert rows[name]["low"] <= rows[name]["accuracy"] <= rows[name]["high"]
    accuracies = [row["accuracy"] for row in said["by_class"]]
    assert accuracies == sorted(accuracies) and said["class_mean"] == pytest.approx(sum(accuracies) / 10, abs=1e-3)
    shown = ghost("evaluate", f"run/{source.id}", "--runs", digits_runs, "--by-class").out
    assert "mean over the classes" in shown
