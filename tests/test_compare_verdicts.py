"""A small version of `benchmarks/verdicts.py`, the committed record of the whole one, and the plan of seeds."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from report_runs import write_run
from typer.testing import CliRunner

from ghostcli.cli import app
from ghostcli.comparison import power, stats, verdicts
from ghostcli.comparison.stats import Sample

FILE = Path(__file__).parents[1] / "benchmarks" / "verdicts.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_verdicts", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "design",
    [
        {"kind": "runs alone", "sizes": (2, 10), "spreads": (0.87, 0.2), "images": "none"},
        {"kind": "runs alone", "sizes": (3, 3), "spreads": (0.87, 0.2), "images": "none"},
        {"kind": "looks", "sizes": (10, 10), "spreads": (0.5, 0.5), "images": "none"},
        {"kind": "runs and images", "sizes": (3, 5), "spreads": (0.81, 0.0)},
        {"kind": "teachers", "sizes": (9, 5), "spreads": (0.4, 0.4), "teachers": 3, "teacher_sd": 0.4},
        {"kind": "pairs", "sizes": (5, 5), "spreads": (0.4, 0.4), "pairs": 0.4},
        {"kind": "one run", "sizes": (1, 3), "spreads": (0.81, 0.0)},
    ],
    ids=lambda design: design["kind"],
)
def test_false_verdicts_stay_below_five_percent(bench: ModuleType, design: dict) -> None:
    row = bench.simulate(bench.Cell(**design), times=60, images=500)
    assert bench.holds(bench.Cell(**design), row | {"coverage": 1.0})


def test_welchs_test_fails_where_few_runs_are_the_noisy_ones(bench: ModuleType) -> None:
    row = bench.simulate(bench.Cell("runs alone", (2, 10), (0.87, 0.2), images="none"), times=60)
    assert row["welch"] > 0.07  # what the rule is for


def test_the_record_is_of_these_cells_and_every_promise_holds(bench: ModuleType) -> None:
    record = json.loads(bench.RECORD.read_text())
    cells = bench.cells()
    assert set(record["cells"]) == {cell.name for cell in cells}
    assert [cell.name for cell in cells if cell.promised and not bench.holds(cell, record["cells"][cell.name])] == []


def test_the_constants_are_the_committed_records_own(bench: ModuleType) -> None:
    low, high = bench._loadings()
    for loading, within in zip((low, high), bench.RECORDED["within"], strict=True):
        assert sum(part**2 for part in loading) == pytest.approx(1)
        assert loading[0] ** 2 + loading[1] ** 2 > within  # of a normal behind a yes or no, correlation is larger


def test_with_teachers_the_teacher_is_the_unit() -> None:
    rng = np.random.default_rng(0)
    accuracy, baseline = rng.normal(90, 0.2, 9), Sample(rng.normal(89, 0.2, 4))
    teachers = list("aaabbbccc")
    found = stats.difference(Sample(accuracy, teachers=teachers), baseline)
    means = accuracy.reshape(3, 3).mean(axis=1)
    by_hand = stats.difference(Sample(means), baseline)
    assert (found.low, found.high) == pytest.approx((by_hand.low, by_hand.high))
    assert (found.units, found.covers) == ((3, 4), "teachers and seeds")
    alone = stats.difference(Sample(accuracy, teachers=["a"] * 9), baseline)
    assert alone.units == (9, 4)


def test_seeds_that_teachers_share_are_a_source_of_chance_of_their_own() -> None:
    rng = np.random.default_rng(0)
    luck, teacher, baseline = rng.normal(0, 0.5, 4), rng.normal(0, 0.1, 3), Sample(rng.normal(89, 0.2, 4))
    accuracy = (90 + luck[:, None] + teacher).ravel()  # every seed under every teacher
    crossed = Sample(accuracy, teachers=list("abc") * 4, seeds=np.repeat(range(4), 3))
    found = stats.difference(crossed, baseline)
    nested = stats.difference(Sample(accuracy, teachers=list("abc") * 4, seeds=range(12)), baseline)
    assert found.mean == pytest.approx(nested.mean) and found.units == (3, 4)
    by_seed = accuracy.reshape(4, 3).mean(axis=1)
    assert sum(found.parts[0].down) == pytest.approx(sum(nested.parts[0].down) + by_seed.var(ddof=1) / 4)
    assert found.high - found.low > nested.high - nested.low
    # One seed under three teachers says nothing of other seeds.
    assert stats.difference(Sample(accuracy[:3], teachers=list("abc"), seeds=[0] * 3), baseline).p is None


def test_pairs_are_used_from_five_on_whatever_they_show() -> None:
    rng = np.random.default_rng(1)
    start = rng.normal(0, 1, 6)
    a, b = 90 + start + rng.normal(0, 0.1, 6), 89 + start + rng.normal(0, 0.1, 6)
    order = rng.permutation(6)
    found = stats.difference(Sample(a, seeds=range(6)), Sample(b[order], seeds=order), paired=True)
    assert found.paired and found.high - found.low < 0.5
    for n, names in ((4, range(4)), (6, [9, 1, 2, 3, 4, 5])):
        apart = stats.difference(Sample(a[:n], seeds=range(n)), Sample(b[:n], seeds=names), paired=True)
        assert not apart.paired


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_smallest_difference_found_is_found_in_eighty_percent(n: int) -> None:
    spread = power.Spread(0.5, 0.5)
    effect = power.smallest(*spread.design(n, n))
    rng = np.random.default_rng(n)
    a, b = rng.normal(effect, 0.5, (400, n)), rng.normal(0, 0.5, (400, n))
    hits = sum(stats.difference(Sample(x), Sample(y)).p < 0.05 for x, y in zip(a, b, strict=True))
    assert hits / 400 == pytest.approx(0.8, abs=0.08)
    assert power.found(effect, *spread.design(n, n)) == pytest.approx(0.8, abs=1e-6)


def test_a_plan_is_the_smallest_number_of_seeds_that_suffices() -> None:
    spread = power.Spread(0.5, 0.5, 0.1)
    n = power.plan_seeds(1.0, spread)
    assert power.found(1.0, *spread.design(n, n)) >= 0.8 > power.found(1.0, *spread.design(n - 1, n - 1))
    assert power.plan_seeds(0.1, spread) is None  # the test images alone hide it
    assert power.plan_seeds(1.0, spread, comparisons=8) > n
    assert power.plan_seeds(0.3, power.Spread(0.5, 0.5, 0.1, pairs=0.4)) < power.plan_seeds(0.3, spread)


def test_one_run_on_a_side_is_never_distinguished_with_predictions_or_without() -> None:
    for correct in (None, np.ones((1, 20), dtype=bool)):
        one = Sample(np.array([90.0]), correct)
        three = Sample(np.array([91.0, 92.0, 93.0]), None if correct is None else np.ones((3, 20), dtype=bool))
        deltas = [stats.difference(one, three), stats.difference(one, one)]
        assert [judged.verdict for judged in verdicts.judge(deltas, 0.3)] == ["not distinguished"] * 2


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["plan-seeds", *words])
    return found.exit_code, str(found.exception or found.output)


def test_plan_seeds_reads_recorded_spreads(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=90.0 + 0.5 * seed)
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=91.0 + 0.5 * seed)
    code, text = run("--effect", "2", "--runs", str(tmp_path), "--json")
    (row,) = json.loads(text)
    assert (code, row["runs"], row["sd"]) == (0, [3, 3], [pytest.approx(0.5), pytest.approx(0.5)])
    assert row["seeds"] == power.plan_seeds(2, power.Spread(0.5, 0.5, row["images_error"]))
    assert f"{row['seeds']} seeds" in run("--effect", "2", "--runs", str(tmp_path))[1]


@pytest.mark.parametrize("words", [
    ("--effect", "0"), ("--effect", "nan"), ("--effect", "inf"), ("--effect", "1e-300"),
    ("--effect", "1", "--spread", "-1"), ("--effect", "1", "--spread", "inf"), ("--effect", "1", "--spread", "1e200"),
])  # fmt: skip
def test_what_cannot_be_planned_is_told(words: tuple[str, ...], tmp_path: Path) -> None:
    code, text = run(*words)
    assert code != 0 and f"{words[-2]} " in text and "must be" in text
    assert "pilot" in run("--effect", "1", "--runs", str(tmp_path))[1]


def test_where_the_test_images_add_nothing_that_could_be_measured_it_is_told(tmp_path: Path) -> None:
    """Accuracies so far apart, over so few images, that their choice explains none of the spread."""
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=10.0 + 40 * seed, test_images=40)
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=15.0 + 40 * seed, test_images=40)
    _, text = run("--effect", "2", "--runs", str(tmp_path))
    assert "±" not in text and "the test images is not counted: " in text and "these runs do not show" in text


def test_seeds_for_a_typed_spread_count_the_test_images_where_they_are_given(ghost) -> None:
    words = ("plan-seeds", "--effect", 0.1, "--spread", 0.05)
    assert "is not counted" in ghost(*words).out
    assert json.loads(ghost(*words, "--json").out)[0]["seeds"] == 7
    assert json.loads(ghost(*words, "--images", 10_000, "--json").out)[0]["seeds"] is None
    fewer = [json.loads(ghost(*words[:2], 5, *words[3:4], 3, "--images", n, "--json").out) for n in (10_000, 360)]
    assert fewer[0][0]["seeds"] < fewer[1][0]["seeds"]
    assert ghost("plan-seeds", "--effect", 1, "--images", 100).code == 2
