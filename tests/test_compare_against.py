"""`ghost compare`: any trainings, each against the first, with what differs between them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import edit, write_run
from scipy import stats

from ghostcli.records import record

SEEDS = range(4)


def job(run: str) -> str:
    return run.rpartition("/")[0]


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, list[str]]:
    """A baseline, the same with an average of weights, the same for longer, and a student taught twice as softly."""
    made = []
    for settings in (
        {"accuracy": 91.0},
        {"accuracy": 95.0, "train": {"ema": 0.9}},
        {"accuracy": 91.1, "epochs": 100},
        {"accuracy": 93.0, "strategy": "kd", "teachers": ("resnet50",), "distill": {"temperature": 2.0}},
    ):
        options = {"strategy": "plain", **settings}
        for seed in SEEDS:
            accuracy = options["accuracy"] + 0.2 * seed
            last = write_run(tmp_path, "gns:1.0", seed=seed, **{**options, "accuracy": accuracy})
        made.append(job(last))
    return tmp_path, made


def compared(ghost, runs: Path, *names: str) -> list[dict]:
    return json.loads(ghost("compare", *names, "--runs", runs, "--json").out)["rows"]


def test_each_training_is_compared_with_the_first(ghost, study) -> None:
    runs, names = study
    base, *others = compared(ghost, runs, *names)
    assert (base["delta"], base["verdict"], base["ours"]["n"]) == (None, None, 4)
    of = {name: [r.result.accuracy.selected for r in record.scan(runs) if job(r.id) == name] for name in names}
    for name, row in zip(names[1:], others, strict=True):
        assert [job(run) for run in row["runs"]] == [name] * 4
        assert row["delta"]["mean"] == pytest.approx(np.mean(of[name]) - np.mean(of[names[0]]))
        # scipy's interval is of the seeds alone, so ours contains it.
        welch = stats.ttest_ind(of[name], of[names[0]], equal_var=False).confidence_interval()
        assert row["delta"]["low"] <= welch.low < welch.high <= row["delta"]["high"]
    assert [row["verdict"] for row in others] == ["better", "not distinguished", "better"]


def test_what_differs_is_named_and_nothing_else(ghost, study) -> None:
    runs, names = study
    _, averaged, longer, taught = compared(ghost, runs, *names)
    assert averaged["differs"] == {"train.ema": [0.0, 0.9]}
    assert longer["differs"] == {"train.epochs": [200, 100]}
    assert taught["differs"] == {"teaching": ["alone", "kd T=2 from ResNet-50"]}
    text = ghost("compare", *names, "--runs", runs, "--format", "markdown").out
    assert "train.ema: 0.0 → 0.9" in text and "train.epochs: 200 → 100" in text
    assert f"minus its baseline ({names[0]})" in " ".join(text.split())


def test_two_ways_of_teaching_are_compared_key_by_key(ghost, tmp_path: Path) -> None:
    names = []
    for temperature, teachers in ((2.0, ("resnet50",)), (4.0, ("resnet50",)), (4.0, ("vgg13",))):
        for seed in SEEDS:
            taught = {"distill": {"temperature": temperature}, "accuracy": 90 + seed / 5 + temperature / 10}
            last = write_run(tmp_path, "gns:1.0", "kd", teachers, seed=seed, **taught)
        names.append(job(last))
    _, hotter, other = compared(ghost, tmp_path, *names)
    assert hotter["differs"] == {"distill.temperature": [2.0, 4.0]}
    assert other["differs"] == {
        "teaching": ["kd from ResNet-50", "kd from VGG13"],
        "distill.temperature": [2.0, 4.0],
    }
    assert "Verdicts are for this teacher" in ghost("compare", *names, "--runs", tmp_path).out


def test_one_correction_covers_all_that_are_named(ghost, study) -> None:
    runs, names = study
    [alone] = compared(ghost, runs, names[0], names[3])[1:]
    among = compared(ghost, runs, *names)[3]
    assert alone["p_value"] == among["p_value"]
    assert alone["p_adjusted"] == pytest.approx(alone["p_value"])
    assert among["p_adjusted"] > alone["p_adjusted"]


def test_names_are_ids_or_paths_as_a_shell_completes_them(ghost, study) -> None:
    runs, names = study
    plain = compared(ghost, runs, *names[:2])
    assert compared(ghost, runs, f"run/{names[0]}", f"{runs}/{names[1]}/") == plain


def test_the_formats_hold_the_same_comparison(ghost, study, tmp_path: Path) -> None:
    runs, names = study
    arguments = ("compare", *names[:2], "--runs", runs)
    value = compared(ghost, runs, *names[:2])[1]["delta"]["mean"]
    [_, line] = csv.DictReader(io.StringIO(ghost(*arguments, "--format", "csv").out))
    assert float(line["delta_mean"]) == value
    assert "| " in ghost(*arguments, "--format", "markdown").out
    assert r"\begin{tabular}" in ghost(*arguments, "--format", "latex").out
    figure = tmp_path / "differences.svg"
    ghost(*arguments, "--plot", figure)
    assert names[1] in figure.read_text()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["{0}"], "name at least two trainings"),
        (["{0}", "run/{0}"], "is the same training as"),
        (["{0}", "{1}/s0"], "is one seed; all seeds are compared, so name {1}"),
        (["{0}", "{1}x"], "there are no runs with this id; did you mean {1}"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(ghost, study, named: list[str], message: str) -> None:
    runs, names = study
    said = ghost("compare", *(name.format(*names) for name in named), "--runs", runs)
    assert said.code == 2 and not said.out
    assert message.format(*names) in said.err and said.err.count("\n") == 1


def test_what_cannot_be_compared_says_why(ghost, study) -> None:
    runs, names = study
    few = job(write_run(runs, "gns:1.0", epochs=50, test_images=500))
    said = ghost("compare", names[0], few, "--runs", runs)
    assert said.code == 2 and "they were tested on different images" in said.err and "on 500 of cifar10" in said.err
    stopped = job(write_run(runs, "gns:1.3", status="interrupted"))
    said = ghost("compare", names[0], stopped, "--runs", runs)
    assert said.code == 2 and f"none of its runs can be compared ({stopped}/s0: unfinished)" in said.err


def test_runs_that_are_left_out_are_named(ghost, study) -> None:
    runs, names = study
    edit(runs / names[1] / "s3" / "result.json", seal=False, nll=0.5)
    value = json.loads(ghost("compare", *names[:2], "--runs", runs, "--json").out)
    assert value["rows"][1]["ours"]["n"] == 3
    assert [out["run"] for out in value["left_out"]] == [f"{names[1]}/s3"]


def test_other_pictures_with_equal_labels_are_not_compared(ghost, tmp_path: Path) -> None:
    """The labels of two folders with as many images in each class are equal."""
    names = []
    for folder, pixels in (("folder:cats", "a" * 64), ("folder:cars", "b" * 64), ("folder:copy", "a" * 64)):
        for seed in range(2):
            run = write_run(tmp_path, "gns:1.0", seed=seed, data=folder, accuracy=90 + seed)
            file = tmp_path / run / "result.json"
            edit(file, test=json.loads(file.read_text())["test"] | {"pixels": pixels})
        names.append(job(run))
    cats, cars, copy = names
    told = ghost("compare", cats, cars, "--runs", tmp_path)
    assert told.code == 2 and "they were tested on different images" in told.err
    assert compared(ghost, tmp_path, cats, copy)[1]["delta"] is not None


def test_seeds_of_one_id_on_other_images_are_passed_over_by_name(ghost, tmp_path: Path) -> None:
    """An image was added to the folder between two seeds, and the id stayed."""

    def train(accuracy: float, images: str, seeds: range, **settings) -> str:
        for seed in seeds:
            made = {"accuracy": accuracy + seed / 10, "data_checksum": images, "data": "folder:photos", **settings}
            run = write_run(tmp_path, "gns:1.0", seed=seed, **made)
        return job(run)

    for images, seeds, gain in (("a" * 64, range(2), 4.0), ("b" * 64, range(2, 6), -3.0)):
        base = train(90.0, images, seeds)
        other = train(90.0 + gain, images, seeds, train={"ema": 0.9})
    found = json.loads(ghost("compare", base, other, "--runs", tmp_path, "--json").out)
    assert [row["ours"]["n"] for row in found["rows"]] == [4, 4]
    assert found["rows"][1]["delta"]["mean"] == pytest.approx(-3.0, abs=0.2)
    left = {(out["run"], out["reason"]) for out in found["left_out"]}
    assert left == {
        (f"{name}/s{seed}", "other images than the compared runs") for name in (base, other) for seed in (0, 1)
    }
    alone = train(91.0, "c" * 64, range(2), train={"ema": 0.5})
    told = ghost("compare", alone, base, "--runs", tmp_path)
    assert told.code == 2 and f"{base}: its runs were not all trained on the same images" in told.err
