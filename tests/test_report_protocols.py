"""Recipes of one's own, what rows are called, and where advice puts its runs."""

from __future__ import annotations

import json
from pathlib import Path

from report_runs import CHAIN, write_run
from test_report_tables import build, reasons, row

from ghostcli.compare import tables
from ghostcli.compare.tables import Options
from ghostcli.records import record
from ghostcli.render import formats
from ghostcli.render import text_table as grid

OWN = {"optim": {"lr": 0.3, "momentum": 0.9}}


def change(runs: Path, run: str, sections: dict[str, dict[str, object]]) -> None:
    """Give a run's recipe other values, and the protocol that follows from them."""
    file = runs / run / "result.json"
    content = json.loads(file.read_text())
    for section, values in sections.items():
        content["recipe"][section] |= values
    file.write_text(json.dumps(content | {"protocol": content["protocol"] + json.dumps(sections)}))


def test_a_recipe_of_ones_own_is_named_and_takes_no_place(tmp_path: Path) -> None:
    for seed in range(3):
        run = write_run(tmp_path, "gns:1.0", seed=seed, recipe_name="mine.toml", epochs=100)
        change(tmp_path, run, OWN)
    assert build(tmp_path, "I").group.describe().endswith("× 100 epochs, with optim.lr=0.3")
    assert formats.objects(build(tmp_path, "I"))["departures"] == {"optim.lr": 0.3}
    write_run(tmp_path, "gns:1.0", limit=64, train_images=64, epochs=1)
    table = build(tmp_path, "I")
    assert (row(table, "gns:1.0").ours.n, table.group.departs) == (1, {})
    assert reasons(table) == {"other protocol (50,000 images × 100 epochs, with optim.lr=0.3)": 3}


def test_what_a_family_ships_under_any_name_is_no_departure(tmp_path: Path) -> None:
    run = write_run(tmp_path, "gns:1.0", family="ghost")
    change(tmp_path, run, {"optim": {"lr": 0.1, "weight_decay": 5e-4}, "train": {"label_smoothing": 0.1, "ema": 0.999}})
    assert build(tmp_path, "I", "ghost").group.departs == {}  # ghost/smooth


def test_published_borrows_no_baseline_of_another_recipe(tmp_path: Path) -> None:
    change(tmp_path, write_run(tmp_path, "gns:1.0"), OWN)
    assert row(build(tmp_path, "I"), "gns:1.0").ours.n == 1
    assert row(build(tmp_path, "I", "published"), "gns:1.0").ours is None
    taught = write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), family="published", recipe_name="mine.toml")
    change(tmp_path, taught, OWN)
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
    change(tmp_path, write_run(tmp_path, "gns:0.25", seed=1, train={"batch_size": 64}), {})
    found = [r.name for r in tables.also_run(record.scan(tmp_path), []).rows]
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
    table = tables.build("II", record.scan(tmp_path), "paper", Options(runs=Path("else where")))
    end = " --runs 'else where'"
    found = [r.command for r in table.rows] + [table.whole, row(table, "gns:2.8", "vgg13").control.command]
    assert all(command.endswith(end) for command in found)
    assert f"{end}`" in row(table, "gns:1.0", "vgg13").missing_baseline
    assert not any("--runs" in r.command for r in build(tmp_path).rows)


def test_a_missing_baseline_is_said_once_for_all_its_rows(tmp_path: Path) -> None:
    for teacher in ("vgg13", "resnet18", "resnet50"):
        write_run(tmp_path, "gns:1.0", "kd", (teacher,))
    write_run(tmp_path, "gns:1.0", "chain", CHAIN)
    made = [grid.grid(build(tmp_path, name)) for name in ("II", "III")]
    (said,) = [note for note in formats.shared(made) if note.startswith("No baseline")]
    assert said.count("train-teacher") == 1
    assert said.count("GN-S 1.0x < ") == 4
