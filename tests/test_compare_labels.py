"""Recipes of one's own, what rows are called, and where advice puts its runs."""

from __future__ import annotations

from pathlib import Path

from report_runs import CHAIN, write_run
from test_compare_tables import admitted, build, reasons, row

from ghostcli.comparison import tables
from ghostcli.comparison.rows import Options
from ghostcli.render import data, formats, text_table

OWN = {"optim": {"lr": 0.3, "momentum": 0.9}}


def test_a_recipe_of_ones_own_is_named_and_takes_no_place(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, recipe_name="mine.toml", epochs=100, sections=OWN)
    assert build(tmp_path, "I").cohort.describe().endswith("× 100 epochs, with optim.lr=0.3")
    assert data.objects(build(tmp_path, "I"))["config_diff"] == {"optim.lr": 0.3}
    write_run(tmp_path, "gns:1.0", limit=64, train_images=64, epochs=1)
    table = build(tmp_path, "I")
    assert (row(table, "gns:1.0").ours.n, table.cohort.changes) == (1, {})
    assert reasons(table) == {"other protocol (50,000 images × 100 epochs, with optim.lr=0.3)": 3}


def test_what_a_family_ships_under_any_name_is_no_departure(tmp_path: Path) -> None:
    smooth = {"optim": {"lr": 0.1, "weight_decay": 5e-4}, "train": {"label_smoothing": 0.1, "ema": 0.999}}
    write_run(tmp_path, "gns:1.0", family="ghost", sections=smooth)
    assert build(tmp_path, "I", "ghost").cohort.changes == {}  # ghost/smooth


def test_published_borrows_no_baseline_of_another_recipe(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", sections=OWN)
    assert row(build(tmp_path, "I"), "gns:1.0").ours.n == 1
    assert row(build(tmp_path, "I", "published"), "gns:1.0").ours is None
    named = {"family": "published", "recipe_name": "mine.toml"}
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), sections=OWN, **named)
    assert row(build(tmp_path, "II", "published"), "gns:1.0", "vgg13").delta is not None


def test_no_two_rows_have_one_name(tmp_path: Path) -> None:
    kinds = [{"kind": kind} for kind in ("kd", "dkd", "dist", "hint")] + [{"temperature": 4.0}, {"alpha": 0.1}]
    kinds += [{"kind": "hint", "stage": 2, "weight": 7.0}]
    for distill in kinds:
        write_run(tmp_path, "gns:0.25", "kd", ("gns:0.5",), distill=distill)
    for strategy in ("chain", "dense", "ensemble"):
        write_run(tmp_path, "gns:0.25", strategy, ("resnet18", "gns:0.5"))
    write_run(tmp_path, "gns:0.25", "chain", ("gns:0.25", "gns:0.25"))
    write_run(tmp_path, "gns:0.25")
    write_run(tmp_path, "gns:0.25", train={"label_smoothing": 0.1})
    write_run(tmp_path, "gns:0.25", epochs=3)
    write_run(tmp_path, "gns:0.25", seed=1, train={"batch_size": 64})
    found = [r.name for r in tables.also_run(admitted(tmp_path), []).rows]
    one, path = "GN-S 0.25x < GN-S 0.5x", "GN-S 0.25x < ResNet-18 → GN-S 0.5x"
    assert {f"{one}, kd", f"{one}, dkd", f"{one}, dist", f"{one}, hint", f"{one}, kd T=4", f"{one}, kd α=0.1"} <= set(
        found
    )
    assert {f"{one}, hint weight=7.0", f"{path}, chain", f"{path}, dense"} <= set(found)
    assert "GN-S 0.25x < GN-S 0.25x → GN-S 0.25x, born-again" in found
    assert "GN-S 0.25x (50,000 × 200, smoothed 0.1)" in found
    assert "GN-S 0.25x (50,000 × 200, with train.batch_size=64)" in found
    assert len(set(found)) == len(found) == 15


def test_commands_put_their_runs_where_the_table_looks(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",))
    write_run(tmp_path, "gns:2.8")
    write_run(tmp_path, "gns:2.8", "kd", ("vgg13",))
    [table] = tables.built(["II"], admitted(tmp_path), "paper", Options(runs=Path("else where")))
    end = " --runs 'else where'"
    found = [r.command for r in table.rows] + [table.command, row(table, "gns:2.8", "vgg13").control.command]
    assert all(command.endswith(end) for command in found)
    assert f"{end}`" in row(table, "gns:1.0", "vgg13").missing_baseline
    assert not any("--runs" in r.command for r in build(tmp_path).rows)


def test_a_missing_baseline_is_said_once_for_all_its_rows(tmp_path: Path) -> None:
    for teacher in ("vgg13", "resnet18", "resnet50"):
        write_run(tmp_path, "gns:1.0", "kd", (teacher,))
    write_run(tmp_path, "gns:1.0", "chain", CHAIN)
    made = [text_table.results(build(tmp_path, name)) for name in ("II", "III")]
    (said,) = [note for note in formats.shared(made) if note.startswith("No baseline")]
    assert said.count("train-teacher") == 1
    assert said.count("GN-S 1.0x < ") == 4
