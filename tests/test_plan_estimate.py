"""What a reproduction will cost: against the closed forms, from records made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from report_runs import edit, write_run

from ghostcli import plan, zoo
from ghostcli.paper import paper
from ghostcli.plan import estimate
from ghostcli.plan.estimate import Rates, costs, hours, space
from ghostcli.recipe import load
from ghostcli.records.record import scan

SPEED = {"gns:1.0": 100.0, "resnet18": 50.0}  # images a second


def never(model: str) -> float:
    raise AssertionError(f"{model} was measured though its rate is known")


def a_run(
    runs: Path, name: str, rates: list[float], images: int = 5000, strategy: str = "plain", device: str = "cpu"
) -> None:
    run = write_run(runs, name, strategy, train_images=images, seed=len(list(runs.glob("*/*"))))
    environment = json.loads((runs / run / "result.json").read_text())["environment"]
    edit(runs / run / "result.json", environment=environment | {"device_type": device})
    (runs / run / "metrics.jsonl").write_text(epochs(rates))


def finish(runs: Path, job: plan.Job) -> None:
    """Give the job a finished run."""
    made = write_run(runs / "made")
    (runs / job.id).parent.mkdir(parents=True)
    (runs / "made" / made).rename(runs / job.id)


def epochs(rates: list[float]) -> str:
    rows = ({"epoch": i, "test": {"accuracy": 90.0}, "images_per_second": rate} for i, rate in enumerate(rates, 1))
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_networks_own_largest_run_is_taken_without_its_first_epoch(tmp_path):
    a_run(tmp_path, "gns:1.0", [1.0, 90.0, 110.0, 100.0])
    a_run(tmp_path, "gns:1.0", [500.0], images=3000)
    rates = Rates(scan(tmp_path), "cpu", never)
    assert rates.seconds("gns:1.0") == pytest.approx(1 / 100)
    assert rates.basis["gns:1.0"] == "measured in finished runs"


def test_a_rate_that_is_no_number_is_passed_over(tmp_path):
    a_run(tmp_path, "gns:1.0", [1.0, 100.0, "fast"])
    assert Rates(scan(tmp_path), "cpu", never).seconds("gns:1.0") == pytest.approx(1 / 100)


@pytest.mark.parametrize("unfit", [{"device": "cuda"}, {"strategy": "kd"}, {"images": 100}])
def test_runs_that_tell_nothing_of_this_are_not_taken(unfit, tmp_path):
    a_run(tmp_path, "gns:1.0", [7.0], **unfit)
    rates = Rates(scan(tmp_path), "cpu", SPEED.get)
    assert rates.seconds("gns:1.0") == pytest.approx(1 / 100) and "steps now" in rates.basis["gns:1.0"]


def test_others_are_scaled_from_the_nearest_of_their_kind(tmp_path):
    for name, rate in (("gns:1.0", 100.0), ("gns:2.8", 40.0), ("resnet18", 50.0), ("resnet50", 10.0)):
        a_run(tmp_path, name, [rate])
    rates = Rates(scan(tmp_path), "cpu", never)
    assert rates.seconds("gns:3.4") == pytest.approx((192.4 / 131.7) ** (2 / 3) / 40)
    assert rates.seconds("gns:1.3") == pytest.approx((31.4 / 19.6) ** (2 / 3) / 100)
    assert rates.seconds("resnet34") == pytest.approx(291 / 326 / 10)
    assert rates.basis["gns:3.4"] == "scaled by MACs from gns:2.8"


def test_without_any_run_one_of_each_kind_is_measured_once():
    asked = []
    rates = Rates([], "cpu", lambda model: asked.append(model) or SPEED[model])
    values = [rates.seconds(name) for name in estimate.MACS]
    assert asked == ["gns:1.0", "resnet18"] and all(value > 0 for value in values)


def test_the_macs_are_those_of_the_networks():
    for name in ("gns:1.0", "gnd:1.0", "resnet18", "resnet50"):
        assert zoo.count_macs(zoo.build(name)) / 1e6 == pytest.approx(estimate.MACS[name], rel=0.01)
    assert set(estimate.MACS) == {row.student for row in paper().table("I").rows}


def jobs_of(*settings: str, seeds=(0,), teachers=("resnet18",)) -> list[plan.Job]:
    found = load("paper", settings)
    if not teachers:
        return [plan.plain("gns:1.0", seed, found.recipe, found.name) for seed in seeds]
    return [plan.chain(teachers, "gns:1.0", seed, found.recipe, found.name, Path("runs")) for seed in seeds]


def cost_of(jobs, runs: Path = Path("nowhere")) -> list[estimate.Cost]:
    return list(costs(plan.order(jobs), Rates([], "cpu", SPEED.get), runs).values())


def test_a_plain_run_trains_and_evaluates_each_epoch():
    (cost,) = cost_of(jobs_of(teachers=()))
    assert cost.seconds == pytest.approx(200 * (50_000 + 10_000 / 3) / 100)
    assert cost.bytes == pytest.approx(5 * 4 * 483_554 + 10_000 * 28)
    (small,) = cost_of(jobs_of("data.limit=300", "data.limit_test=60", "train.epochs=5", "train.stop=2", teachers=()))
    assert small.seconds == pytest.approx(2 * (300 + 20) / 100)


def distinct(views: int, epochs: int) -> float:
    """Views drawn at least once, by simulation."""
    draws = torch.randint(views, (20_000, epochs), generator=torch.Generator().manual_seed(0))
    return sum(len(row.unique()) for row in draws[:2000]) / 2000


def test_a_teacher_is_asked_once_about_a_view():
    own = 200 * (50_000 + 10_000 / 3) / 100
    _, first, second, third = cost_of([*jobs_of(seeds=(0, 1)), *jobs_of("distill.temperature=4")])
    asked = (first.seconds - own) / (50_000 / 3 / 50)
    assert asked == pytest.approx(distinct(162, 200), rel=0.01) and 114 < asked < 116  # 115, performance.md
    more = (second.seconds - own) / (50_000 / 3 / 50)
    assert asked + more == pytest.approx(distinct(162, 400), rel=0.01)
    assert third.seconds == pytest.approx(own)  # seed 0 again: every view is there
    assert first.bytes - second.bytes == 50_000 * 162 * 21


@pytest.mark.parametrize("live", ["distill.view=patch", "distill.source=live", "augment.cutout=8", "distill.kind=hint"])
def test_a_teacher_that_no_table_holds_is_asked_every_time(live):
    cost = cost_of(jobs_of(live))[-1]
    own = 200 * (50_000 + 10_000 / 3) / 100
    assert cost.seconds == pytest.approx(own + 200 * 50_000 / 3 / 50) and cost.bytes < 50e6


def test_what_is_done_costs_nothing_and_what_is_begun_the_rest(tmp_path):
    teacher, student = plan.order(jobs_of("train.epochs=10")).jobs
    whole = cost_of([student], tmp_path)
    begun = tmp_path / student.id
    finish(tmp_path, teacher)
    begun.mkdir(parents=True)
    (begun / "metrics.jsonl").write_text(epochs([1.0] * 4))
    cost = cost_of([student], tmp_path)
    assert cost[0] == estimate.Cost(0.0, 0, estimate.DONE)
    assert cost[1].seconds == pytest.approx(0.6 * whole[1].seconds)


def test_durations_and_sizes_as_a_person_says_them():
    assert [hours(s) for s in (0.2, 59, 90, 5400, 36_000, 250_000)] == [
        "1 s",
        "59 s",
        "1.5 min",
        "1.5 h",
        "10 h",
        "2.9 days",
    ]
    assert [space(b) for b in (12, 1500, 25e6, 3.24e9)] == ["12 B", "1.5 kB", "25 MB", "3.2 GB"]
