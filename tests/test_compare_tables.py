"""Which runs stand in which row, against what, and what is said of the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from report_runs import CHAIN, ENSEMBLE, edit, study, write_run

from ghostcli.comparison import tables
from ghostcli.comparison.admission import Admitted, admit
from ghostcli.comparison.cost import costs
from ghostcli.comparison.groups import cohorts, same_conditions
from ghostcli.comparison.rows import Options, Row, Table
from ghostcli.records import record
from ghostcli.render import data, text_table


def build(runs: Path, name: str = "II", family: str = "paper", **options: object) -> Table:
    return tables.judged(tables.built([name], admitted(runs), family, Options(**options)))[0]


def admitted(runs: Path) -> Admitted:
    return admit(record.scan(runs))


def row(table: Table, student: str, *teachers: str) -> Row:
    return next(r for r in table.rows if (r.student, r.teachers) == (student, teachers))


def reasons(table: Table) -> Counter[str]:
    return Counter(out.reason for out in table.left_out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


def test_no_runs_gives_every_row_with_its_command(tmp_path: Path) -> None:
    assert tables.families(admitted(tmp_path)) == ("paper",)
    table = build(tmp_path / "nowhere")
    assert [r.ours for r in table.rows] == [None] * 8
    assert table.rows[0].command == "ghost distill resnet18 --student gns:1.0"
    assert build(tmp_path, family="ghost").rows[0].command.endswith("--recipe ghost")


def test_rows_stand_in_the_papers_order_with_ours_beside(runs: Path) -> None:
    table = build(runs)
    assert [r.printed.accuracy for r in table.rows] == [91.10, 91.21, 91.19, 90.90, 93.58, 92.16, 91.10, 90.93]
    found = row(table, "gns:1.0", "resnet50")
    assert found.ours.n == 3
    assert found.ours.mean == pytest.approx(93.3, abs=0.1)
    assert found.delta.mean == pytest.approx(1.8, abs=0.05)
    assert found.verdict == "better"
    assert [f.code for f in found.findings] == ["near-one-hot"]
    assert row(table, "gns:1.0", "resnet18").ours is None


def test_the_delta_is_against_the_mean_of_the_same_students_baseline(runs: Path) -> None:
    baseline = row(build(runs, "I"), "gns:1.0").ours.mean
    for name, teachers in (("II", ("vgg13",)), ("III", CHAIN), ("IV", ENSEMBLE)):
        found = row(build(runs, name), "gns:1.0", *teachers)
        assert found.delta.mean == pytest.approx(found.ours.mean - baseline)


def test_what_is_left_out_is_named_with_the_reason(runs: Path) -> None:
    assert reasons(build(runs)) == {
        "non-finite": 1,
        "unfinished": 1,
        "other protocol (2,000 images × 2 epochs)": 1,
        "another recipe for the same row (distill.temperature=4.0)": 1,
    }
    assert reasons(build(runs, "III")) == {}


def test_an_ensemble_is_a_set_and_a_chain_a_path(runs: Path, tmp_path: Path) -> None:
    assert row(build(runs, "IV"), "gns:1.0", *ENSEMBLE).ours.n == 3  # recorded in the other order
    write_run(tmp_path, "gns:1.0", "chain", CHAIN[::-1])
    assert row(build(tmp_path, "III"), "gns:1.0", *CHAIN).ours is None


def test_published_borrows_the_papers_baselines_of_equal_protocol(runs: Path) -> None:
    assert tables.families(admitted(runs)) == ("paper", "published")
    table = build(runs, "III", "published")
    found = row(table, "gns:1.0", *CHAIN)
    assert found.delta.mean == pytest.approx(found.ours.mean - row(build(runs, "I"), "gns:1.0").ours.mean)
    assert {f.code for f in found.findings} == {"near-one-hot", "unshuffled"}
    assert row(build(runs, "I", "published"), "gns:1.0").ours.n == 3


def test_unshuffled_rows_of_other_families_are_left_out_where_the_baseline_was_shuffled(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), distill={"shuffle": False})
    assert row(build(tmp_path), "gns:1.0", "vgg13").ours.n == 1  # nothing to confound it with yet
    write_run(tmp_path, "gns:1.0")
    table = build(tmp_path)
    assert row(table, "gns:1.0", "vgg13").ours is None
    assert reasons(table) == {"not shuffled, while its baseline is": 1}


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    for epochs in (10, 20):
        write_run(tmp_path, "gns:1.0", accuracy=80 + epochs / 2, epochs=epochs)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), epochs=10, accuracy=85)
    write_run(tmp_path, "gns:1.0", "kd", ("resnet50",), epochs=20, accuracy=90)
    table = build(tmp_path)
    assert row(table, "gns:1.0", "vgg13").ours is None
    assert row(table, "gns:1.0", "resnet50").delta.mean == pytest.approx(0.0)
    assert reasons(table) == {"other protocol (50,000 images × 10 epochs)": 1}
    assert not table.full_budget


def test_other_images_under_one_protocol_are_no_peers(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",))
    write_run(tmp_path, "gns:1.0", data_checksum="other")
    assert row(build(tmp_path), "gns:1.0", "vgg13").delta is None


def test_the_largest_budget_up_to_the_papers_is_shown_then_the_fullest(tmp_path: Path) -> None:
    for student in ("gns:1.0", "gns:1.3"):
        write_run(tmp_path, student)
    write_run(tmp_path, "gns:1.0", epochs=800)  # a lone longer baseline displaces nothing
    write_run(tmp_path, "gns:1.6", epochs=100)
    table = build(tmp_path, "I")
    assert (table.cohort.about.epochs, len(table.filled)) == (200, 2)
    assert sum(reasons(table).values()) == 2


def test_the_papers_own_settings_keep_their_row(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=91.0)
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=93.0, distill={"temperature": 4.0})
    assert row(build(tmp_path), "gns:1.0", "vgg13").ours.mean == pytest.approx(91.0)


def test_most_seeds_stand_for_a_ghost_row(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=91.0, family="ghost")
    for seed in range(2):
        settings = {"family": "ghost", "distill": {"kind": "dkd", "temperature": 4.0}}
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=93.0, **settings)
    table = build(tmp_path, family="ghost")
    assert row(table, "gns:1.0", "vgg13").ours.n == 2
    assert row(table, "gns:1.0", "vgg13").group.setting == "dkd T=4"


def test_the_metric_is_the_selected_epoch_unless_the_papers_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    assert row(build(tmp_path, "I"), "gns:1.0").ours.mean == pytest.approx(90.0)
    assert row(build(tmp_path, "I", metric="best"), "gns:1.0").ours.mean == pytest.approx(90.2)


def test_predictions_of_the_last_epoch_say_nothing_of_the_best(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=89.8 + 0.1 * seed, best=91.4 + 0.1 * seed)
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=91.3, best=91.4 + 0.1 * seed)
    last, best = (row(build(tmp_path, metric=metric), "gns:1.0", "vgg13").delta for metric in ("selected", "best"))
    assert (last.mean, last.test) == (pytest.approx(1.4), "two-level")
    assert (best.mean, best.test, best.covers, best.p) == (
        pytest.approx(0),
        "runs alone",
        "seeds only",
        pytest.approx(1),
    )
    assert best.high == pytest.approx(4.302653 * 0.1 * (2 / 3) ** 0.5)  # t of 2 degrees of freedom on each side


def test_one_seed_has_no_interval_at_its_best_epoch_unless_that_is_the_last(tmp_path: Path) -> None:
    for best_epoch, runs in ((150, tmp_path / "a"), (200, tmp_path / "b")):
        top = {"accuracy": 90.0, "best": 90.0, "best_epoch": best_epoch}
        write_run(runs, "gns:1.0", **top)
        write_run(runs, "gns:1.0", "kd", ("vgg13",), **top)
    apart, same = (row(build(tmp_path / n, metric="best"), "gns:1.0", "vgg13").delta for n in "ab")
    assert (apart.low, apart.p) == (None, None)
    assert same.covers == "test images only"


def test_one_seed_each_has_no_spread_and_an_exact_test(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=80.0)
    found = row(build(tmp_path), "gns:1.0", "vgg13")
    assert (found.ours.sd, found.delta.test, found.delta.covers) == (None, "McNemar, exact", "test images only")
    assert found.delta.high < 0
    assert (found.verdict, found.p_adjusted) == ("not distinguished", None)


def test_rows_without_a_possible_verdict_take_no_share_of_holms_level(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=91.0 + 0.1 * seed)
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=92.0 + 0.1 * seed)
    write_run(tmp_path, "gns:2.8", accuracy=90.0)
    write_run(tmp_path, "gns:2.8", "kd", ("vgg13",), accuracy=80.0)
    table = build(tmp_path)
    found = row(table, "gns:1.0", "vgg13")
    assert found.p_adjusted == found.delta.p
    assert row(table, "gns:2.8", "vgg13").verdict == "not distinguished"


def test_holm_counts_the_tables_rows(runs: Path) -> None:
    table = build(runs)
    tested = [r for r in table.rows if r.delta]
    smallest = min(tested, key=lambda r: r.delta.p)
    assert len(tested) == 2
    assert smallest.p_adjusted == pytest.approx(2 * smallest.delta.p)


def test_a_wider_margin_makes_rows_equivalent(runs: Path) -> None:
    assert row(build(runs), "gns:1.0", "vgg13").verdict == "not distinguished"
    assert row(build(runs, margin=1.0), "gns:1.0", "vgg13").verdict == "equivalent"


def test_a_missing_baseline_names_its_command(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), epochs=7)
    found = row(build(tmp_path), "gns:1.0", "vgg13")
    assert found.delta is None
    assert "`ghost train-teacher gns:1.0 --epochs 7" in found.missing_baseline


def test_commands_of_empty_rows_join_the_group_that_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), epochs=3, limit=2000, train_images=2000)
    command = row(build(tmp_path), "gns:1.0", "resnet18").command
    assert command == "ghost distill resnet18 --student gns:1.0 -s data.limit=2000 --epochs 3"


def test_also_run_shows_what_the_paper_has_no_row_for(runs: Path) -> None:
    found = admitted(runs)
    shown = [t for f in tables.families(found) for t in tables.built(("I", "II", "III", "IV"), found, f)]
    besides = tables.also_run(found, shown)
    rows = {(r.student, r.strategy, r.group.setting) for r in besides.rows}
    assert rows == {("gns:0.5", "kd", "dkd"), ("gns:1.0", "kd", "T=4")}
    known = {run.id for table in shown for r in table.filled for run in r.group.runs}
    known |= {run.id for r in besides.rows for run in r.group.runs}
    known |= {out.run for table in (*shown, besides) for out in table.left_out}
    assert known == {run.id for run in record.scan(runs)}  # nothing is invisible


def test_also_run_of_other_data_has_its_own_baseline(tmp_path: Path) -> None:
    for strategy, teachers in (("plain", ()), ("kd", ("resnet18",)), ("dense", ("resnet50", "resnet18"))):
        write_run(tmp_path, "gns:1.0", strategy, teachers, data="digits", family="smoke", accuracy=95.0)
    found = admitted(tmp_path)
    shown = tables.built(("I", "II", "III", "IV"), found, "paper")
    assert not any(table.filled for table in shown)
    besides = tables.also_run(found, shown)
    assert [r.delta is not None for r in besides.rows] == [False, True, True]
    assert tables.also_run(admitted(tmp_path / "none"), shown) is None


def test_damaged_runs_are_left_out_by_name(tmp_path: Path) -> None:
    broken = write_run(tmp_path, "gns:1.0")
    (tmp_path / broken / "result.json").write_text("{")
    gone = write_run(tmp_path, "gns:1.3")
    (tmp_path / gone / "result.json").unlink()
    assert reasons(build(tmp_path, "I")) == {"result.json is damaged": 1, "its files are incomplete": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [("student", None), ("epochs", "many"), ("accuracy", []), ("teachers", 3), ("recipe", {"family": "x"})],
)
def test_results_that_hold_nonsense_are_left_out(key: str, value: object, tmp_path: Path) -> None:
    edit(tmp_path / write_run(tmp_path, "gns:1.0") / "result.json", **{key: value})
    (reason,) = reasons(build(tmp_path, "I"))
    assert reason.startswith(f"result.json is damaged at {key}")


def test_costs_share_teachers_and_add_up(tmp_path: Path) -> None:
    hours = {"train_seconds": 7200.0}
    top = write_run(tmp_path, "resnet50", **hours)
    middle = write_run(tmp_path, "resnet34", "kd", ("resnet50",), teacher_runs=(top,), **hours)
    low = write_run(tmp_path, "resnet18", "chain", ("resnet50", "resnet34"), teacher_runs=(middle,), **hours)
    students = [
        write_run(tmp_path, "gns:1.0", "chain", CHAIN, seed=seed, teacher_runs=(low,), train_seconds=3600.0)
        for seed in range(2)
    ]
    direct = write_run(tmp_path, "gns:1.0", "kd", ("resnet50",), teacher_runs=(top,), train_seconds=3600.0)
    found = costs(record.scan(tmp_path))
    chain = found[students[0]]
    assert (chain.own, chain.full, chain.trainings) == (1.0, 7.0, 4)
    # resnet50 taught two runs, so the chain bears half of it; two students share the chain.
    assert chain.amortised == pytest.approx(1 + (2 + (2 + 2 / 2)) / 2)
    leaves = [*students, direct]
    assert sum(found[name].amortised for name in leaves) == pytest.approx(2 + 2 + 2 + 1 + 1 + 1)
    assert chain.images == 4 * 200 * 50_000
    (tmp_path / top / "result.json").unlink()
    assert not costs(record.scan(tmp_path))[direct].whole


def test_filling_a_table_costs_what_a_live_teacher_costs(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet18", train_seconds=7200.0)
    taught = {"teacher_runs": (top,)}
    live = write_run(tmp_path, "gns:1.0", "kd", ("resnet18",), train_seconds=5400.0, **taught)
    first = write_run(
        tmp_path, "gns:1.0", "kd", ("resnet18",), seed=1, train_seconds=3600.0, teacher_seconds=1800.0, **taught
    )
    again = write_run(tmp_path, "gns:1.3", "kd", ("resnet18",), train_seconds=3600.0, teacher_seconds=36.0, **taught)
    found = costs(record.scan(tmp_path))
    assert [found[run].own for run in (live, first, again)] == [1.5, 1.5, pytest.approx(1.01)]
    assert found[first].full == 3.5
    assert sum(found[run].amortised for run in (live, first, again)) == pytest.approx(2 + 1.5 + 1.5 + 1.01)


def test_agreement_is_of_the_teachers_that_could_be_asked(tmp_path: Path) -> None:
    by_id = {"gns-1.0-plain-0000aaaa/s0": 90.0, "gns-1.0-plain-0000aaaa/s1": 92.0, "resnet18": None}
    write_run(tmp_path, "gns:1.0", "ensemble", ("gns:1.0", "gns:1.0", "resnet18"), agreement=by_id)
    (group,) = cohorts(record.scan(tmp_path))[0].groups
    assert group.agreement == {name: percent for name, percent in by_id.items() if percent}


def test_dense_teachers_count_once(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet50")
    low = write_run(tmp_path, "resnet18", "kd", ("resnet50",), teacher_runs=(top,))
    student = write_run(tmp_path, "gns:1.0", "dense", ("resnet50", "resnet18"), teacher_runs=(top, low))
    found = costs(record.scan(tmp_path))[student]
    assert (found.full, found.trainings) == (3.0, 3)


def test_an_equal_budget_baseline_has_seen_as_many_images(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet18")
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    write_run(tmp_path, "gns:1.0", "kd", ("resnet18",), accuracy=92.0, teacher_runs=(top,))
    assert row(build(tmp_path), "gns:1.0", "resnet18").delta.mean == pytest.approx(2.0)
    asked = row(build(tmp_path, equal_budget=True), "gns:1.0", "resnet18")
    assert asked.delta is None
    assert "`ghost train-teacher gns:1.0 --epochs 400" in asked.missing_baseline
    write_run(tmp_path, "gns:1.0", accuracy=93.0, epochs=400)
    asked = row(build(tmp_path, equal_budget=True), "gns:1.0", "resnet18")
    assert asked.delta.mean == pytest.approx(-1.0)


def test_an_equal_budget_baseline_may_fold_or_not(tmp_path: Path) -> None:
    top = write_run(tmp_path, "resnet18")
    write_run(tmp_path, "gns:1.0", "kd", ("resnet18",), accuracy=92.0, teacher_runs=(top,))
    write_run(tmp_path, "gns:1.0", accuracy=93.0, epochs=400, sections={"engine": {"branches": "plain"}})
    assert row(build(tmp_path, equal_budget=True), "gns:1.0", "resnet18").delta.mean == pytest.approx(-1.0)


def test_a_result_without_what_no_comparison_needs_is_shown(tmp_path: Path) -> None:
    for run in (write_run(tmp_path, "gns:1.0"), write_run(tmp_path, "gns:0.5", "kd", ("vgg13",))):
        file = tmp_path / run / "result.json"
        content = json.loads(file.read_text())
        bare = {key: value for key, value in content.items() if key not in ("notes", "agreement", "check", "nll")}
        file.write_text(json.dumps(bare))
        edit(file)
    table = build(tmp_path, "I")
    assert row(table, "gns:1.0").ours.n == 1
    besides = tables.also_run(admitted(tmp_path), [table])
    assert [r.student for r in besides.rows] == ["gns:0.5"]
    assert text_table.results(besides).rows
    assert data.objects(besides)["rows"][0]["kind"] == "kd"


def test_predictions_of_other_images_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=92.0, test_images=500)
    assert row(build(tmp_path), "gns:1.0", "vgg13").delta.low is None


def test_the_groups_of_a_cohort_share_their_conditions(runs: Path) -> None:
    for cohort in cohorts(admitted(runs).runs):
        assert len({same_conditions(run.result) for group in cohort.groups for run in group.runs}) == 1
        for group in cohort.groups:
            seeds = [run.result.seed for run in group.runs]
            assert seeds == sorted(set(seeds))


def test_runs_of_one_job_whose_weights_started_differently_are_not_pooled(tmp_path: Path) -> None:
    """ImageNet weights that could not be had: such a run starts from scratch, under the same id."""
    for seed, start in enumerate(("pretrained", "pretrained", "kaiming")):
        accuracy = 95.0 if seed < 2 else 70.0
        write_run(tmp_path, "efficientnetv2", seed=seed, accuracy=accuracy, start=start, planned=(0, 1, 2, 3))
    write_run(tmp_path, "efficientnetv2", seed=4, status="failed", error="the loss became non-finite in epoch 3")
    found = build(tmp_path, "I")
    best = row(found, "efficientnetv2")
    [cohort] = cohorts(admitted(tmp_path).runs, admitted(tmp_path).failed)
    assert [(group.missing, len(group.failed)) for group in cohort.groups] == [((3,), 1), ((3,), 0)]
    assert (best.ours.n, best.ours.mean) == (2, pytest.approx(95.0, abs=0.1))
    assert reasons(found) == {"another recipe for the same row (a kaiming start)": 1, "non-finite": 1}
    besides = tables.also_run(admitted(tmp_path), [found])
    assert [r.ours.n for r in besides.rows] == [1]
    names = [r.name for r in tables.also_run(admitted(tmp_path), []).rows]
    assert len(set(names)) == 2 and any("kaiming start" in name for name in names)
