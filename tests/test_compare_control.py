"""The control that a gain must beat: the same training with image-blind teachers."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_runs import CHAIN, ENSEMBLE, edit, write_run
from test_compare_tables import admitted, build
from test_render_formats import data, said

from ghostcli.comparison import control, tables
from ghostcli.comparison.groups import Cohort, RunGroup, cohorts, unlike
from ghostcli.comparison.rows import Row, Table

TEACHER = ("resnet50",)
BLIND = {"blind": True}


def taught(table: Table, *teachers: str) -> Row:
    return next(r for r in table.rows if (r.student, r.teachers) == ("gns:1.0", teachers or TEACHER))


def study(runs: Path, control: float | None = 92.0, **options: object) -> Path:
    """Three seeds: a baseline at 91, a student taught to 93 and, unless None, its control."""
    for seed in range(3):
        common = {"seed": seed, **options}
        write_run(runs, "gns:1.0", accuracy=91.0 + 0.1 * seed, **common)
        write_run(runs, "gns:1.0", "kd", TEACHER, accuracy=93.0 + 0.1 * seed, **common)
        if control is not None:
            write_run(runs, "gns:1.0", "kd", TEACHER, accuracy=control + 0.1 * seed, distill=BLIND, **common)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


def test_a_taught_row_is_compared_with_its_control_too(runs: Path) -> None:
    found = taught(build(runs))
    assert (found.ours.n, found.delta.mean, found.verdict) == (3, pytest.approx(2.0, abs=0.05), "better")
    against = found.control
    assert against.ours.n == 3
    assert against.delta.mean == pytest.approx(1.0, abs=0.05)
    assert against.delta.low < against.delta.mean < against.delta.high
    assert against.verdict in ("better", "not distinguished")
    assert taught(build(runs), "vgg13").control is None


def test_the_control_fills_no_row_of_its_own(runs: Path, tmp_path: Path) -> None:
    shown = build(runs)
    assert not shown.left_out
    assert tables.also_run(admitted(runs), [build(runs, "I"), shown]) is None
    for distill in ({}, BLIND):
        write_run(tmp_path, "gns:0.5", "kd", TEACHER, distill=distill)
    write_run(tmp_path, "gns:0.25", "kd", TEACHER, distill=BLIND)  # of a row that was not run
    rows = tables.also_run(admitted(tmp_path), []).rows
    assert [(row.student, row.control is not None) for row in rows] == [("gns:0.25", False), ("gns:0.5", True)]
    assert rows[0].name.endswith("blind teachers")


def test_the_control_may_beat_what_beats_the_baseline(tmp_path: Path) -> None:
    found = taught(build(study(tmp_path, control=96.0)))
    assert (found.verdict, found.control.verdict) == ("better", "worse")


def test_holm_counts_the_controls(runs: Path) -> None:
    found = taught(build(runs))
    p = (found.delta.p, found.control.delta.p)  # each could still be wrongly called equivalent: both count twice
    assert (found.p_adjusted, found.control.p_adjusted) == pytest.approx(tuple(min(1, 2 * value) for value in p))


def test_the_control_is_never_pooled_into_the_row(runs: Path) -> None:
    assert taught(build(runs)).ours.n == 3
    assert next(r for r in build(runs, "I").rows if r.student == "gns:1.0").ours.n == 3


def test_a_control_without_a_baseline_has_the_notes_of_any_comparison(tmp_path: Path, ghost) -> None:
    study(tmp_path)
    for folder in tmp_path.glob("gns-1.0-plain-*"):
        shutil.rmtree(folder)
    text = " ".join(said("II", "--runs", tmp_path).split())
    assert "Verdict for" in text and "this teacher" in text and "Verdicts are for this teacher" in text
    assert "Finds: the smallest true difference" in text and "≥" in text
    assert "Δ ours: the taught row minus its control, 95 % interval" in text and "after one correction" in text
    page = tmp_path / "page.html"
    assert ghost("report", "--runs", tmp_path, "--out", page).code == 0
    assert "GN-S 1.0x &lt; ResNet-50 minus its control" in page.read_text()
    assert ghost("table", "II", "--runs", tmp_path, "--plot", tmp_path / "forest.svg").code == 0


def test_what_differs_in_more_than_blind_teachers_is_no_control(tmp_path: Path) -> None:
    study(tmp_path, control=None)
    more: list[dict[str, object]] = [{"epochs": 100}, {"data_checksum": "other"}, {"train": {"ema": 0.9}}]
    more += [{"distill": BLIND | {"temperature": 4.0}}, {"distill": BLIND | {"alpha": 0.1}}]
    more += [{"teacher_runs": ("resnet50-plain-0000beef/s1",)}, {"start": "native", "seed": 1}]
    for options in more:
        write_run(tmp_path, "gns:1.0", "kd", TEACHER, **({"distill": BLIND} | options))
    write_run(tmp_path, "gns:1.3", "kd", TEACHER, distill=BLIND)
    assert taught(build(tmp_path)).control.delta is None


def test_a_gain_without_a_control_names_its_command(tmp_path: Path) -> None:
    study(tmp_path, control=None)
    command = taught(build(tmp_path)).control.command
    wanted = "ghost distill resnet50 --student gns:1.0 -s distill.blind=true --seed 0 --seed 1 --seed 2"
    assert command == wanted
    assert f"No control for GN-S 1.0x < ResNet-50: `{wanted}" in " ".join(said("II", "--runs", tmp_path).split())


@pytest.mark.parametrize(
    ("strategy", "teachers", "verb"),
    [
        ("chain", CHAIN, "assist-chain resnet50 resnet34 resnet18"),
        ("ensemble", ENSEMBLE, "ensemble resnet50 densenet161 vgg13 inceptionv3"),
    ],
)
def test_the_command_of_a_control_is_the_same_verb(
    strategy: str, teachers: tuple[str, ...], verb: str, tmp_path: Path
) -> None:
    settings = {"epochs": 100, "distill": {"temperature": 4.0}, "family": "ghost"}
    write_run(tmp_path, "gns:1.0", strategy, teachers, **settings)
    command = tables.also_run(admitted(tmp_path), []).rows[0].control.command
    assert command.startswith(f"ghost {verb} --student gns:1.0 --recipe ghost ")
    assert "--epochs 100" in command
    assert command.endswith("-s distill.blind=true")


def test_a_finished_run_that_taught_is_named_by_its_id(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet50", seed=3)
    taught_by_id = {"teacher_runs": (top,), "command": ["distill", f"run/{top}", "--student", "gns:1.0"]}
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, **taught_by_id)
    for run in (tmp_path).glob("gns*/s0"):  # what began it stands in both files
        edit(run / "recipe.json", seal=False, command=taught_by_id["command"])
    assert taught(build(tmp_path)).control.command.startswith(f"ghost distill run/{top} --student gns:1.0")


def test_no_gain_needs_no_control(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=93.0)
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, accuracy=91.0)
    text = said("II", "--runs", tmp_path)
    assert "No control" not in text and "control:" not in text


def test_labels_smoothed_as_softly_are_no_control(tmp_path: Path) -> None:
    study(tmp_path, control=None)
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=95.0, train={"label_smoothing": 0.6})
    assert taught(build(tmp_path)).control.delta is None
    assert {out.reason for out in build(tmp_path, "I").left_out} == {"other protocol (train.label_smoothing=0.6)"}


def test_every_form_shows_the_control(runs: Path) -> None:
    text = said("II", "--runs", runs)
    control, minus = text.index("control: blind"), text.index("taught minus")
    assert "better" not in text[control:minus], "the verdict is on the difference, not on the control"
    assert "better" in text[minus:].partition("\n")[0]
    assert text.count("control: blind") == text.count("taught minus") == 1
    assert max(len(line) for line in text.splitlines() if not line.startswith("   ghost ")) <= 100
    assert "control: blind" in said("II", "--runs", runs, "--format", "markdown")
    latex = said("II", "--runs", runs, "--format", "latex")
    assert len({line.count("&") for line in latex.splitlines() if line.endswith(r"\\")}) == 1
    row = next(r for r in data("II", "--runs", runs)["rows"] if r["control"])
    assert {"ours", "delta", "verdict", "p_value", "p_adjusted", "runs", "command"} <= row["control"].keys()
    assert row["control"]["ours"]["n"] == 3
    lines = list(csv.DictReader(io.StringIO(said("II", "--runs", runs, "--format", "csv"))))
    assert float(lines[1]["control_delta_mean"]) == row["control"]["delta"]["mean"]


def test_the_protocols_side_by_side_count_who_beats_the_control(tmp_path: Path) -> None:
    text = said("main", "--runs", study(tmp_path, control=96.0))
    assert "minus its control" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("   ghost ")) <= 100
    assert "1 better (0 of them better than their control)" in " ".join(text.split())
    assert "control" in json.dumps(data("main", "--runs", tmp_path)["rows"][0])


def test_a_table_with_one_set_of_teachers_shows_the_control_too(tmp_path: Path) -> None:
    for distill in ({}, BLIND):
        write_run(tmp_path, "gns:1.0", "chain", CHAIN, accuracy=93.0, distill=distill)
    assert "control: blind" in said("III", "--runs", tmp_path)


def test_a_smoothed_run_says_so_among_what_was_also_run(tmp_path: Path) -> None:
    for smooth in (0.0, 0.1):
        write_run(tmp_path, "gns:0.5", train={"label_smoothing": smooth})
    assert "smoothed 0.1" in " ".join(said("also", "--runs", tmp_path).split())
    found = {cohort.describe() for cohort in tables.cohorts(admitted(tmp_path).runs)}
    assert found == {"cifar10, 50,000 images × 200 epochs" + end for end in ("", ", labels smoothed by 0.1")}


def of_source(group: RunGroup, source: str) -> RunGroup:
    """The group as if its network had come from this source."""
    runs = [
        SimpleNamespace(id=f"{source}-{run.id}", result=run.result.model_copy(update={"source": source}))
        for run in group.runs
    ]
    return RunGroup(tuple(runs))


def test_the_network_of_a_baseline_and_of_a_control_has_the_same_source(runs: Path) -> None:
    """A user's own network changes under one name."""
    [cohort] = cohorts(admitted(runs).runs)
    plain, taught, blind = (
        next(group for group in cohort.groups if (bool(group.teachers), group.blind) == kind)
        for kind in ((False, False), (True, False), (True, True))
    )
    assert control.controls(blind, taught)
    old, new = (of_source(taught, source) for source in ("old", "new"))
    assert control.controls(of_source(blind, "new"), new) and not control.controls(of_source(blind, "old"), new)
    both = Cohort((of_source(plain, "old"), of_source(plain, "new"), new))
    assert both.baseline(new).about.source == "new" and both.baseline(old).about.source == "old"
    assert unlike(new, Cohort((of_source(plain, "old"), new)).baseline(new)) is not None, "the reason is told"
