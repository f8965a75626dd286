"""How `ghost bench` measures: turns, warm-up, budgets, spreads, memory; and the keys that others rely on."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from report_runs import write_run

from ghostcli import zoo
from ghostcli.deploy import bench
from ghostcli.deploy import timer as meter
from ghostcli.deploy.timer import Meter, interleave, measured_apart, p90, spread
from ghostcli.errors import GhostError, UsageError


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(meter.time, "perf_counter", lambda: self.now)
        self.told: list[str] = []

    def call(self, name: str, *seconds: float):
        durations = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run() -> None:
            self.told.append(name)
            self.now += next(durations)

        return run


def test_networks_take_turns_and_warm_ups_do_not_count(monkeypatch):
    clock = Clock(monkeypatch)
    a, b = Meter(clock.call("a", 9, 5, 1)), Meter(clock.call("b", 9, 5, 2))
    interleave([a, b], rounds=3)
    assert clock.told == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert a.seconds == [1, 1, 1]
    assert b.seconds == [2, 2, 2]


def test_a_quick_call_is_repeated_until_a_sample_is_long_enough_to_time(monkeypatch):
    clock = Clock(monkeypatch)
    quick = Meter(clock.call("a", meter.SAMPLE / 8))
    interleave([quick], rounds=2)
    assert quick.calls == 8
    assert quick.seconds == pytest.approx([meter.SAMPLE / 8] * 2)
    apart = Meter(clock.call("b", meter.SAMPLE / 8), apart=True)
    interleave([apart], rounds=2)
    assert len(apart.seconds) == 16


def test_a_slow_call_is_made_once_and_a_long_one_until_its_budget_is_spent(monkeypatch):
    clock = Clock(monkeypatch)
    slow, long, short = (
        Meter(clock.call(name, seconds), budget=10) for name, seconds in (("a", 30), ("b", 4), ("c", 1))
    )
    interleave([slow, long, short], rounds=7)
    assert slow.seconds == [30]
    assert long.seconds == [4, 4, 4]
    assert len(short.seconds) == 7


def test_what_runs_out_of_memory_is_told_and_the_others_go_on(monkeypatch):
    clock = Clock(monkeypatch)

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong() -> None:
        raise RuntimeError("shapes do not fit")

    big, small = Meter(fail), Meter(clock.call("a", 1))
    interleave([big, small], rounds=2)
    assert (big.problem, big.seconds) == ("out of memory", [])
    assert small.seconds == [1, 1]
    with pytest.raises(RuntimeError, match="shapes"):
        interleave([Meter(wrong)], rounds=1)


def test_spreads_are_quartiles():
    values = list(np.random.default_rng(0).normal(size=11))
    found = spread(values)
    assert (found.low, found.median, found.high) == pytest.approx(tuple(np.quantile(values, [0.25, 0.5, 0.75])))
    assert found.n == 11
    assert spread([3.0]) == meter.Spread(3.0, 3.0, 3.0, 1)
    assert p90(list(range(1, 101))) == 90
    assert p90([5.0]) == 5.0


def test_peak_memory_is_what_the_work_held_at_most(tmp_path):
    program = (
        "from ghostcli.deploy.timer import resident_peak\n"
        "held = bytearray(300 << 20)\n"  # what was there before is no part of it
        "def work():\n"
        "    for size in (10, 150, 20):\n"
        "        block = bytearray(size << 20); del block\n"
        "print(resident_peak(work))"
    )
    found, problem = measured_apart([sys.executable, "-c", program], "batch 1")
    assert problem is None
    assert 148 < found < 165


@pytest.mark.parametrize("killed", ["import os; os.kill(os.getpid(), 9)", "raise MemoryError('out of memory')"])
def test_a_step_that_does_not_fit_into_memory_is_no_error(killed):
    assert measured_apart([sys.executable, "-c", killed], "a training step at batch 7") == (
        None,
        "a training step at batch 7 does not fit into memory",
    )


def test_a_step_that_fails_otherwise_is_one():
    with pytest.raises(UsageError, match="batch norm"):
        measured_apart([sys.executable, "-c", "raise ValueError('batch norm needs two')"], "batch 1")
    with pytest.raises(GhostError, match="shapes"):
        measured_apart([sys.executable, "-c", "raise RuntimeError('shapes')"], "batch 1")


def test_a_users_mistake_reads_in_a_process_of_its_own_as_it_does_here():
    program = "from ghostcli.errors import UsageError; raise UsageError('net.py: there is no memory bank')"
    with pytest.raises(UsageError, match=r"^net\.py: there is no memory bank$"):
        measured_apart([sys.executable, "-c", program], "batch 1")


def test_a_users_network_finds_its_neighbours_even_where_ghost_has_a_package_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "engine.py").write_text(
        "from torch import nn\n\n\ndef body():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    (tmp_path / "mine.py").write_text(
        "import engine\nfrom torch import nn\n\n\n"
        "def make(classes):\n    return nn.Sequential(engine.body(), nn.Linear(3, classes))\n"
    )
    network = bench.Network("mine", f"py:{tmp_path}/mine.py:make", 10)
    memory, problem = bench.training_peak(network, 4, torch.device("cpu"))
    assert problem is None
    assert memory >= 0


def test_the_train_form_runs_every_branch_and_is_the_deploy_form_all_the_same():
    torch.manual_seed(0)
    model = zoo.build("gns:0.25").double()
    for _ in range(2):  # running statistics of its own
        model(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    apart, deployed = bench.train_form(model), zoo.deploy(model)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.profiler.profile() as seen:
        wanted = apart(x)
    convolutions = sum(event.count for event in seen.key_averages() if event.key == "aten::conv2d")
    with torch.profiler.profile() as seen:
        found = deployed(x)
    assert convolutions > 2 * sum(event.count for event in seen.key_averages() if event.key == "aten::conv2d")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert model.training


def test_the_measured_step_is_a_training_step():
    update = bench.make_update("gns:0.25", bench.bench_recipe(8), bench.noise(8, 10), torch.device("cpu"))
    before = {name: value.clone() for name, value in update.model.state_dict().items()}
    first = update(torch.arange(8))
    for _ in range(20):
        last = update(torch.arange(8))
    after = update.model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if not name.endswith("bias"))
    assert last[0] < first[0]


def test_json_has_the_keys_that_others_rely_on(ghost, monkeypatch):
    monkeypatch.setattr(meter, "SAMPLE", 0.01)
    done = ghost("bench", "gns:0.1", "--batch", 64, "--rounds", 2, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    [row] = json.loads(done.out)
    assert (row["device"], row["batch"], row["note"]) == ("cpu", 64, None)
    for name in ("train_images_per_second", "images_per_second", "deploy_images_per_second"):
        assert row[name] > 0
        assert row["spread"][name]["low"] <= row[name] <= row["spread"][name]["high"]
        assert row["spread"][name]["n"] == 2
    for name in ("latency_ms", "train_latency_ms"):
        assert 0 < row[name]["median"] <= row[name]["p90"]
    assert 1 < row["peak_memory_mb"] < 500


def test_the_printed_table_says_what_was_measured(ghost, monkeypatch):
    def measured(networks, batch, device, rounds, step):
        n = {"low": 90.0, "high": 110.0, "n": 7}
        few = {**n, "n": 1}
        speeds = dict.fromkeys(bench.THROUGHPUTS, 100.0)
        latencies = {key: {"median": 2.5, "p90": 3.75} for key in bench.LATENCIES}
        row = {"device": "cpu", "batch": batch, "peak_memory_mb": 412.0, "note": None, **speeds, **latencies}
        slow = {**row, "spread": dict.fromkeys(bench.FIGURES, few)}
        failed = {**row, "train_images_per_second": None, "peak_memory_mb": None, "note": "does not fit"}
        spreads = dict.fromkeys(bench.FIGURES, n)
        failed["spread"] = {**spreads, "train_images_per_second": None}
        return [{**row, "spread": spreads}, slow, failed]

    monkeypatch.setattr(bench, "measure", measured)
    done = ghost("bench", "gns:0.1", "gns:0.2", "gns:0.3", "--batch", 32, "--device", "cpu")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    timed = {line.split()[0]: line.split()[1:] for line in lines if "(3.75)" in line}
    assert timed["gns:0.1"] == ["100", "±10", "100", "±10", "100", "±10", "2.50", "2.50", "(3.75)", "412"]
    assert timed["gns:0.3"] == ["-", "100", "±10", "100", "±10", "2.50", "2.50", "(3.75)", "-"]
    assert any("batch 32" in line and "7 rounds" in line for line in lines)
    assert "gns:0.2: too slow for all rounds, some figures have 1" in lines
    assert "gns:0.3: does not fit" in lines


def test_the_measured_step_is_the_loops_own(monkeypatch):
    """With the rates of the step, under the engine's arithmetic."""
    from ghostcli.engine import device, step

    within, rates = [], []

    @contextlib.contextmanager
    def arithmetic(section, where):
        within.append(where)
        yield
        within.pop()

    def note(self, rate, number, own=step.Update.set_rates):
        rates.append((number, bool(within)))
        own(self, rate, number)

    monkeypatch.setattr(device, "arithmetic", arithmetic)
    monkeypatch.setattr(step.Update, "set_rates", note)
    monkeypatch.setattr(bench, "training_peak", lambda *_: (1.0, None))
    monkeypatch.setattr(meter, "SAMPLE", 0.0)
    bench.measure([bench.Network("gns:0.1", "gns:0.1", 10)], 4, torch.device("cpu"), 2)
    assert rates == [(number, True) for number in range(4)]
    bench.two_steps(bench.Network("gns:0.1", "gns:0.1", 10), 4, torch.device("cpu"))
    assert rates[4:] == [(0, True), (1, True)]


def test_a_run_is_measured_with_images_of_the_size_that_it_was_trained_on(ghost, tmp_path, monkeypatch):
    small, large = (
        write_run(tmp_path, "gns:0.1", sections={"data": {"size": size}}, data="folder:photos") for size in (32, 64)
    )
    done = ghost("bench", f"run/{small}", f"run/{large}", "--runs", tmp_path, "--no-timing", "--json")
    assert done.code == 0, done.err
    few, more = json.loads(done.out)
    assert (few["image_size"], more["image_size"]) == (32, 64)
    assert 3.5 < more["macs"] / few["macs"] < 4.1
    told = ghost("bench", f"run/{small}", f"run/{large}", "--runs", tmp_path, "--no-timing").out
    assert f"run/{large}: with images of 64 x 64 pixels, as it was trained" in told and "32 x 32" not in told
    sides = []
    monkeypatch.setattr(bench, "noise", lambda n, c, side, own=bench.noise: (sides.append(side), own(n, c, side))[1])
    monkeypatch.setattr(bench, "measured_apart", lambda words, what: (json.loads(words[-1])["network"]["side"], None))
    monkeypatch.setattr(meter, "SAMPLE", 0.0)
    [network] = bench.resolve([f"run/{large}"], 10, tmp_path)
    [row] = bench.measure([network], 2, torch.device("cpu"), 1)
    bench.two_steps(network, 2, torch.device("cpu"))
    assert sides == [64, 64] and row["peak_memory_mb"] == 64
