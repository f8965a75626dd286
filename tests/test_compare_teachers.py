"""Several trainings of the teacher as a level of the design, and the seeds that were planned together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import write_run
from test_compare_tables import build
from test_render_formats import data, said
from typer.testing import CliRunner

from ghostcli import plan
from ghostcli.cli import app
from ghostcli.comparison.rows import Row
from ghostcli.plan import Job
from ghostcli.recipe import load

SMALL = ["--data", "digits", "--recipe", "smoke", "-s", "data.limit=64", "-s", "data.limit_test=50", "--epochs", "1"]


def study(runs: Path, teachers: int, seeds: int = 6, **common: object) -> Row:
    """A baseline and a taught group whose seeds are shared out among `teachers`, each worth another gain."""
    for number in range(teachers):
        write_run(runs, "resnet50", seed=number, accuracy=95.0)
    root = next(runs.glob("resnet50-plain-*")).name
    for seed in range(seeds):
        number = seed % teachers
        write_run(runs, "gns:1.0", accuracy=91.0 + 0.1 * (seed % 3), seed=seed, **common)
        write_run(
            runs, "gns:1.0", "kd", ("resnet50",), seed, 93.0 + 0.1 * (seed // teachers) + 0.4 * number,
            teacher_runs=(f"{root}/s{number}",), distill={"teacher_seed": number}, **common,
        )  # fmt: skip
    return next(row for row in build(runs).rows if row.group and row.student == "gns:1.0")


def test_runs_of_several_teachers_are_one_group_whose_unit_is_the_teacher(tmp_path: Path) -> None:
    row = study(tmp_path, 3)
    assert (row.group.seeds, row.group.teacher_count, row.ours.n) == ((0, 1, 2, 3, 4, 5), 3, 6)
    assert (row.delta.units, row.delta.covers) == ((3, 6), "teachers, seeds and test images")
    assert row.verdict in ("better", "not distinguished") and row.delta.mean == pytest.approx(2.35, abs=0.1)
    text = " ".join(said("II", "--runs", tmp_path).split())
    assert "(6, 3 teachers)" in text and "hold for other trainings of the teacher too" in text
    assert "for this teacher:" not in text
    shown = next(one for one in data("II", "--runs", tmp_path)["rows"] if one["teacher_trainings"])
    assert (shown["teacher_trainings"], shown["same_teacher"]) == (3, False)


def test_the_interval_is_wider_than_with_the_same_runs_under_one_teacher(tmp_path: Path) -> None:
    several, one = study(tmp_path / "a", 3), study(tmp_path / "b", 1)
    assert several.delta.high - several.delta.low > one.delta.high - one.delta.low


def test_the_control_of_several_teachers_has_the_same_ones(tmp_path: Path) -> None:
    row = study(tmp_path, 2, seeds=4)
    assert row.control.ours is None and "--teacher-seeds 2" in row.control.command
    root = next(tmp_path.glob("resnet50-plain-*")).name
    for seed in range(4):
        write_run(
            tmp_path, "gns:1.0", "kd", ("resnet50",), seed, 92.0 + 0.1 * seed,
            teacher_runs=(f"{root}/s{seed % 2}",), distill={"teacher_seed": seed % 2, "blind": True},
        )  # fmt: skip
        row = next(row for row in build(tmp_path).rows if row.group and row.student == "gns:1.0")
        assert (row.control.ours is None) == (seed < 1)  # both teachers are there from its second seed on
    assert row.control.delta.units == (2, 2)


def test_the_group_of_a_job_forgets_its_teachers_seeds_however_far_down() -> None:
    found = load("smoke")

    def job(number: int, *more: str) -> Job:
        recipe = load("smoke", [f"distill.teacher_seed={number}", *more]).recipe
        return plan.chain(("resnet34", "resnet18"), "gns:0.25", 0, recipe, found.name, Path("runs"))

    assert job(0).digest != job(1).digest and job(0).group == job(1).group
    assert job(0).group != job(0, "distill.temperature=3.0").group
    plain = plan.plain("gns:0.25", 0, found.recipe, found.name)
    assert plain.group == plain.digest


def test_seeds_are_shared_out_by_the_command(tmp_path: Path) -> None:
    seeds = [word for seed in range(4) for word in ("--seed", str(seed))]
    command = ["distill", "gns:0.5", "--student", "gns:0.25", *SMALL, *seeds, "--teacher-seeds", "2"]
    done = CliRunner().invoke(app, [*command, "--runs", str(tmp_path), "--json", "--jobs", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    records = [json.loads((tmp_path / run["run"] / "recipe.json").read_text()) for run in json.loads(done.stdout)]
    assert [record["teachers"][0]["seed"] for record in records] == [0, 1, 0, 1]
    assert len({record["group"] for record in records}) == 1 and len({record["digest"] for record in records}) == 2
    assert all(record["planned"] == [0, 1, 2, 3] for record in records)
    teachers = {record["teachers"][0]["run"] for record in records}
    planned = [json.loads((tmp_path / run / "recipe.json").read_text())["planned"] for run in sorted(teachers)]
    assert planned == [[0, 1], [0, 1]]
    verified = CliRunner().invoke(app, ["runs", "verify", "--runs", str(tmp_path)])
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gns:0.5", "--seed", "0", "--seed", "2", "--teacher-seeds", "2"], "all have the same teacher (seed mod 2)"),
        (["run/gns-0.5-plain-00000000/s0", "--teacher-seeds", "2"], "is one training; name a model instead"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["distill", *words, "--student", "gns:0.25", "--runs", str(tmp_path)])
    assert done.exit_code != 0 and told in " ".join(str(done.exception).split())


def test_a_plan_of_seeds_that_is_not_kept_is_told(tmp_path: Path) -> None:
    row = study(tmp_path, 1, seeds=3, planned=(0, 1, 2, 3, 4))
    assert row.group.missing == (3, 4)
    assert "Planned seeds without a result: 3, 4." in " ".join(said("II", "--runs", tmp_path).split())
    kept = study(tmp_path / "kept", 1, seeds=3, planned=(0, 1, 2))
    assert kept.group.missing == () and "is not complete" not in " ".join(
        said("II", "--runs", tmp_path / "kept").split()
    )


def test_a_plan_is_told_once_where_its_group_is_a_row_and_a_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "resnet50", accuracy=95.0)
    for seed in range(2):
        write_run(tmp_path, "gns:0.25", accuracy=80.0 + seed, seed=seed, planned=(0, 1, 2))
        write_run(tmp_path, "gns:0.25", "kd", ("resnet50",), seed, 82.0 + seed, planned=(0, 1, 2))
    text = " ".join(said("also", "--runs", tmp_path).split())
    plain = next(tmp_path.glob("gns-0.25-plain-*")).name
    assert text.count(f"The plan of {plain} is not complete.") == 1
    assert text.count("Planned seeds without a result: 2.") == 2


def test_an_attempt_that_goes_on_keeps_the_plan_it_began_with(tmp_path: Path) -> None:
    command = ["train-teacher", "gns:0.25", *SMALL, "--runs", str(tmp_path)]
    failing = [*command, "--seed", "0", "--seed", "1"]
    assert CliRunner().invoke(app, failing).exit_code == 0
    run = next(tmp_path.glob("*/s0"))
    (run / "result.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "interrupted"}))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((run / "result.json").read_text())["planned"] == [0, 1]


def test_a_plan_of_seeds_with_several_teachers_asks_for_teachers(ghost, tmp_path: Path) -> None:
    """The seeds of one teacher share its luck, so more of them do not help."""
    row = study(tmp_path, 2)
    [planned] = json.loads(ghost("plan-seeds", "--effect", 1, "--runs", tmp_path, "--json").out)
    assert (planned["teachers"], planned["seeds"]) == (2, None)
    assert planned["finds_now"] == pytest.approx(row.finds, abs=0.001)
    text = ghost("plan-seeds", "--effect", 1, "--runs", tmp_path).out
    assert "more teachers instead of seeds, since 2 teachers are its units" in text


def test_a_mean_over_teachers_with_unequal_seeds_is_explained(tmp_path: Path) -> None:
    def note(seeds: int) -> bool:
        study(tmp_path / f"{seeds}", 2, seeds=seeds)
        return "is a mean over teachers, which have unequal numbers" in " ".join(
            said("II", "--runs", tmp_path / f"{seeds}").split()
        )

    assert note(5) and not note(6)
