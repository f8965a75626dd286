"""Labels smoothed as softly as the teachers' targets: the control that a gain must beat."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from report_runs import CHAIN, write_run
from test_report_formats import data, said

from ghostcli.compare import control, tables
from ghostcli.compare import groups as arms
from ghostcli.compare.tables import Options, Row, Table
from ghostcli.records import record

TEACHER = ("resnet50",)


def build(runs: Path, name: str = "II", **options: object) -> Table:
    return tables.build(name, record.scan(runs), "paper", Options(**options))


def taught(table: Table, *teachers: str) -> Row:
    return next(r for r in table.rows if (r.student, r.teachers) == ("gns:1.0", teachers or TEACHER))


def study(runs: Path, smoothings: tuple[float, ...] = (0.1,), seeds: int = 3, **options: object) -> Path:
    """A baseline at 91, a student taught to 93, and controls at 92 for each smoothing, then 92.5, ..."""
    for seed in range(seeds):
        shift = 0.1 * seed
        common = {"seed": seed, **options}
        write_run(runs, "gns:1.0", accuracy=91.0 + shift, **common)
        write_run(runs, "gns:1.0", "kd", TEACHER, accuracy=93.0 + shift, softness=0.24, **common)
        for i, epsilon in enumerate(smoothings):
            smooth = {"label_smoothing": epsilon}
            write_run(runs, "gns:1.0", accuracy=92.0 + 0.5 * i + shift, train=smooth, **common)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


def test_a_taught_row_is_set_against_its_control_too(runs: Path) -> None:
    found = taught(build(runs))
    assert (found.delta.mean, found.verdict) == (pytest.approx(2.0, abs=0.05), "better")
    against = found.control
    assert (against.smoothing, against.ours.n) == (0.1, 3)
    assert against.delta.mean == pytest.approx(1.0, abs=0.05)
    assert against.delta.low < against.delta.mean < against.delta.high
    assert against.verdict in ("better", "not distinguished")
    assert taught(build(runs), "vgg13").control is None


def test_the_control_may_beat_what_beats_the_baseline(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=90.0 + 0.05 * seed)
        write_run(tmp_path, "gns:1.0", "kd", TEACHER, seed=seed, accuracy=93.0 + 0.05 * seed)
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=96.0 + 0.05 * seed, train={"label_smoothing": 0.1})
    found = taught(build(tmp_path))
    assert (found.verdict, found.control.verdict) == ("better", "worse")


def test_holm_counts_the_controls(runs: Path) -> None:
    found = taught(build(runs))
    p = (found.delta.p, found.control.delta.p)  # each could still be wrongly called equivalent: both count twice
    assert (found.p_adjusted, found.control.p_adjusted) == pytest.approx(tuple(min(1, 2 * value) for value in p))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_control_is_never_pooled_into_the_baseline(runs: Path, mixed: bool) -> None:
    first = next(r for r in build(runs, "I", mixed=mixed).rows if r.student == "gns:1.0")
    assert (first.ours.n, first.ours.mean) == (3, pytest.approx(91.1, abs=0.05))
    assert taught(build(runs, mixed=mixed)).delta.mean == pytest.approx(2.0, abs=0.05)
    assert taught(build(runs, mixed=mixed)).control.ours.n == 3


def test_the_control_is_left_out_of_table_one_by_name(runs: Path) -> None:
    assert {out.reason for out in build(runs, "I").left_out} == {"other protocol (train.label_smoothing=0.1)"}


def test_what_differs_in_more_than_smoothing_is_no_control(tmp_path: Path) -> None:
    study(tmp_path, ())
    for more in ({"epochs": 100}, {"data_checksum": "other"}, {"train": {"label_smoothing": 0.1, "ema": 0.9}}):
        write_run(tmp_path, "gns:1.0", **({"train": {"label_smoothing": 0.1}} | more))
    write_run(tmp_path, "gns:1.3", train={"label_smoothing": 0.1})
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, train={"label_smoothing": 0.1}, epochs=100)
    found = taught(build(tmp_path))
    assert (found.control.delta, found.control.verdict) == (None, None)


def test_an_unsmoothed_run_is_no_control_of_a_smoothed_study(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=91.0)
    for strategy, teachers in (("plain", ()), ("kd", TEACHER)):
        write_run(tmp_path, "gns:1.0", strategy, teachers, train={"label_smoothing": 0.1})
    assert taught(build(tmp_path)).control.delta is None


def test_the_control_nearest_to_the_measured_softness_is_taken(tmp_path: Path) -> None:
    study(tmp_path, (0.02, 0.11, 0.3), seeds=1)
    found = taught(build(tmp_path))
    assert control.measured(found.arm) == pytest.approx(0.113)
    assert found.control.smoothing == 0.11


def test_the_measured_smoothing_has_the_targets_entropy(tmp_path: Path) -> None:
    losses = pytest.importorskip("ghostcli.distill.losses")
    for i, share in enumerate((0.01, 0.24, 0.9)):
        write_run(tmp_path / str(i), "gns:1.0", "kd", TEACHER, softness=share)
        found = taught(build(tmp_path / str(i)))
        wanted = losses.matched_smoothing(share * math.log(10), 10)
        assert control.measured(found.arm) == pytest.approx(wanted, abs=5e-4)
    write_run(tmp_path / "none", "gns:1.0", "kd", TEACHER)
    assert control.measured(taught(build(tmp_path / "none")).arm) is None


def test_a_gain_without_a_control_names_its_command(tmp_path: Path) -> None:
    study(tmp_path, ())
    text = said("II", "--runs", tmp_path)
    wanted = f"`{taught(build(tmp_path)).control.command}`"
    assert wanted == "`ghost train-teacher gns:1.0 -s train.label_smoothing=0.113 --seed 0 --seed 1 --seed 2`"
    assert wanted.removesuffix("`") in " ".join(text.split())
    assert "No control" in text


def test_no_gain_needs_no_control(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=93.0)
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, accuracy=91.0)
    assert "No control" not in said("II", "--runs", tmp_path)
    assert "control," not in said("II", "--runs", tmp_path)


def test_a_control_of_another_softness_is_said_to_be_one(tmp_path: Path) -> None:
    study(tmp_path, (0.3,))
    text = " ".join(said("II", "--runs", tmp_path).split())
    assert "smoothed 0.3" in text
    assert "as labels smoothed by 0.113" in text
    assert "-s train.label_smoothing=0.113" in text


def test_a_baseline_of_equal_budget_has_its_own_control(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet50")
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, accuracy=94.0, teacher_runs=(top,), softness=0.24)
    for epochs in (200, 400):
        write_run(tmp_path, "gns:1.0", accuracy=91.0, epochs=epochs)
    found = taught(build(tmp_path, equal_budget=True))
    assert "--epochs 400" in found.control.command
    write_run(tmp_path, "gns:1.0", accuracy=92.0, epochs=400, train={"label_smoothing": 0.1})
    write_run(tmp_path, "gns:1.0", accuracy=93.0, train={"label_smoothing": 0.1})
    assert taught(build(tmp_path, equal_budget=True)).control.delta.mean == pytest.approx(2.0)
    assert taught(build(tmp_path)).control.delta.mean == pytest.approx(1.0)


def test_a_newer_control_does_not_take_the_baselines_place_in_table_one(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=91.0)
    for student in ("gns:1.0", "gns:1.3"):
        write_run(tmp_path, student, accuracy=92.0, train={"label_smoothing": 0.1})
    table = build(tmp_path, "I")
    assert [(r.student, r.ours.mean) for r in table.filled] == [("gns:1.0", pytest.approx(91.0))]


def test_every_form_shows_the_control(runs: Path) -> None:
    text = said("II", "--runs", runs)
    assert text.count("control,") == text.count("smoothed 0.1") == 1
    assert max(len(line) for line in text.splitlines() if not line.startswith("   ghost ")) <= 100
    assert "control, smoothed 0.1" in said("II", "--runs", runs, "--format", "markdown")
    latex = said("II", "--runs", runs, "--format", "latex")
    assert len({line.count("&") for line in latex.splitlines() if line.endswith(r"\\")}) == 1
    row = next(r for r in data("II", "--runs", runs)["rows"] if r["control"])
    assert set(row["control"]) == {
        "smoothing", "measured", "ours", "delta", "verdict", "p_value", "p_adjusted", "interval_covers", "runs",
        "command",
    }  # fmt: skip
    assert (row["control"]["smoothing"], row["control"]["ours"]["n"]) == (0.1, 3)
    lines = list(csv.DictReader(io.StringIO(said("II", "--runs", runs, "--format", "csv"))))
    assert {line["control_smoothing"] for line in lines} == {"", "0.1"}
    assert float(lines[1]["control_delta_mean"]) == row["control"]["delta"]["mean"]


def test_the_protocols_side_by_side_count_who_beats_the_control(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=90.0 + 0.05 * seed)
        write_run(tmp_path, "gns:1.0", "kd", TEACHER, seed=seed, accuracy=93.0 + 0.05 * seed)
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=96.0 + 0.05 * seed, train={"label_smoothing": 0.1})
    text = said("main", "--runs", tmp_path)
    assert "less its control" in text
    assert "Controls under paper: labels smoothed by 0.1." in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("   ghost ")) <= 100
    assert "1 better (0 of them better than their control)" in " ".join(text.split())
    assert "control" in json.dumps(data("main", "--runs", tmp_path)["rows"][0])


def test_a_table_with_one_set_of_teachers_names_the_control_too(tmp_path: Path) -> None:
    study(tmp_path)
    write_run(tmp_path, "gns:1.0", "chain", CHAIN, accuracy=93.0)
    assert "control, smoothed 0.1" in said("III", "--runs", tmp_path)


def test_a_smoothed_run_says_so_among_what_was_also_run(tmp_path: Path) -> None:
    for smooth in (0.0, 0.1):
        write_run(tmp_path, "gns:0.5", train={"label_smoothing": smooth})
    assert "smoothed 0.1" in " ".join(said("also", "--runs", tmp_path).split())


@pytest.mark.parametrize("figure", [None, float("nan"), -1.0, 7.0])
def test_a_figure_that_is_no_share_measures_nothing(figure: object, tmp_path: Path) -> None:
    check = [{"code": "near-one-hot", "level": "ok", "message": "soft", "figure": figure}]
    write_run(tmp_path, "gns:1.0")
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, check=check)
    assert control.measured(taught(build(tmp_path)).arm) is None


def test_a_recipe_of_ones_own_that_is_gone_leaves_the_smoothing_in_the_command(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", recipe_name="mine.toml")
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, recipe_name="mine.toml")
    command = taught(build(tmp_path)).control.command
    assert command == "ghost train-teacher gns:1.0 --recipe mine.toml -s train.label_smoothing=0.1"


def test_a_group_of_smoothed_labels_says_so(runs: Path) -> None:
    good, _ = arms.finished(record.scan(runs))
    said = {group.describe() for group in arms.groups(good)}
    assert said == {"cifar10, 50,000 images × 200 epochs" + end for end in ("", ", labels smoothed by 0.1")}
