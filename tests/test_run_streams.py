"""Runs in threads of one process: each has the bits it has alone, one that fails harms no other, and all can stop."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace

import emulated
import pytest
import torch
from crash import server

from ghostcli import plan
from ghostcli.deploy.bench import bench_recipe
from ghostcli.engine import capture, device, turns
from ghostcli.engine.turns import Turns
from ghostcli.errors import NonFiniteError, UsageError
from ghostcli.recipe import load
from ghostcli.records import lease, record
from ghostcli.run import launch, streams
from ghostcli.zoo import ghost

TINY = ("data.name=digits", "data.limit=48", "data.limit_test=20", "train.batch_size=16", "train.epochs=2")
FLAGS = [word for value in TINY for word in ("-s", value)]


def job(seed: int, *more: str) -> plan.Job:
    found = load("smoke", [*TINY, *more])
    return plan.plain("gns:0.1", seed, found.recipe, found.name)


def options(runs, at_a_time: int) -> launch.Options:
    return launch.Options(runs, "cpu", streams=at_a_time, quiet=True)


def bits(runs, *jobs: plan.Job) -> list[bytes]:
    return [(runs / one.id / name).read_bytes() for one in jobs for name in ("model.safetensors", "predictions.npz")]


def watched(monkeypatch) -> list[str]:
    """The run of each step, in order."""
    steps: list[str] = []

    def step(self, index):
        steps.append(threading.current_thread().name)
        return update(self, index)

    update = capture.Update.__call__
    monkeypatch.setattr(capture.Update, "__call__", step)
    return steps


def test_each_run_has_the_bits_it_has_alone(tmp_path, monkeypatch):
    """A teacher, its students in turns, and beside them one that diverges."""
    steps = watched(monkeypatch)
    found = load("smoke", [*TINY, "engine.precision=bfloat16"])
    taught = [plan.chain(("gns:0.1",), "gns:0.1", seed, found.recipe, found.name, tmp_path) for seed in (0, 1)]
    lost = job(0, "optim.lr=1e30")
    outcomes = {one.job.id: one.error for one in launch.run(plan.order([*taught, lost]), options(tmp_path / "many", 3))}
    assert {name for name, error in outcomes.items() if error} == {lost.id}
    assert outcomes[lost.id].exit_code == NonFiniteError.exit_code
    one, other = ([place for place, name in enumerate(steps) if name == student.id] for student in taught)
    assert len(one) == len(other) == 6 and max(one[0], other[0]) < min(one[-1], other[-1]), "together"
    launch.carry_out(plan.order(taught), options(tmp_path / "alone", 1))
    jobs = [*taught, *taught[0].teachers]
    assert bits(tmp_path / "many", *jobs) == bits(tmp_path / "alone", *jobs)


def test_a_signal_stops_all_and_the_same_command_goes_on(tmp_path):
    command = ["train-teacher", "gns:0.1", "--recipe", "smoke", *FLAGS, "--device", "cpu", "--seed", "0", "--seed", "1"]
    strike = f"""
import os
from ghostcli.engine.step import Update
calls, once = [], Update.__call__
def step(self, index):
    calls.append(index)
    if len(calls) == 3:
        os.kill(os.getpid(), {int(signal.SIGTERM)})
    return once(self, index)
Update.__call__ = step
"""
    done = server().run([*command, "--streams", "2", "--runs", "runs"], tmp_path, before=strike)
    assert done.code == 75 and "stopped by SIGTERM" in done.err.splitlines()[-1], done.err
    begun = record.scan(tmp_path / "runs")
    assert [run.status for run in begun] == ["interrupted"] * 2
    assert all(list((run.path / "checkpoint").iterdir()) for run in begun), "both have saved"
    done = server().run([*command, "--streams", "2", "--runs", "runs"], tmp_path)
    assert done.code == 0, done.err
    assert server().run([*command, "--runs", "alone"], tmp_path).code == 0
    for run in begun:
        for name in ("model.safetensors", "predictions.npz"):
            assert (run.path / name).read_bytes() == (tmp_path / "alone" / run.id / name).read_bytes()


def test_a_run_that_another_process_has_keeps_no_other_waiting(tmp_path):
    """The lease of the first is given back when the second is done."""
    held, free = job(0), job(1)
    other = lease.take(tmp_path / held.id)
    order = [held.id, free.id]
    for outcome in launch.run(plan.order([held, free]), options(tmp_path, 2)):
        assert outcome.error is None
        if order[-1] == outcome.job.id:
            other.give_back()
        order.remove(outcome.job.id)
    assert order == []


def test_a_fault_ends_the_command_and_the_other_run_saves(tmp_path, monkeypatch):
    whole = launch.Streams._run

    def faulty(self, one):
        if one.seed:
            raise ZeroDivisionError("a fault")
        whole(self, one)

    monkeypatch.setattr(launch.Streams, "_run", faulty)
    good, bad = job(0, "train.epochs=500"), job(1)
    with pytest.raises(ZeroDivisionError):
        launch.carry_out(plan.order([good, bad]), options(tmp_path, 2))
    [run] = record.scan(tmp_path)
    assert run.id == good.id and run.status == "interrupted"


def test_the_settings_of_the_process_go_with_the_turn():
    """Three threads, each with its own; the one that has waited longest comes next."""
    before, group, seen = device.Settings.now(), Turns(), []

    def body(number: int) -> None:
        with group.taking():
            assert device.Settings.now() == before
            mine = before._replace(benchmark=number == 1, tf32_convolutions=number == 2)
            mine.apply()
            for _ in range(5):
                assert device.Settings.now() == mine
                seen.append(number)
                turns.pass_on()
            before.apply()

    threads = [threading.Thread(target=body, args=(number,)) for number in range(3)]
    with group.taking():
        for thread in threads:
            thread.start()
            while len(group.waiting) <= threads.index(thread):
                time.sleep(0.01)
    for thread in threads:
        thread.join(60)
    assert seen == [0, 1, 2] * 5 and device.Settings.now() == before


def test_alone_there_is_no_turn():
    turns.pass_on()
    with turns.away():
        assert not turns.shared()


def test_a_network_that_may_draw_random_numbers_is_not_captured_beside_others():
    """Graphs of one process share the place of the generator's state."""
    update = SimpleNamespace(
        device=torch.device("cuda"), recipe=bench_recipe(8), model=torch.nn.Sequential(torch.nn.Dropout())
    )
    assert capture.why_eager(update) is None
    with Turns().taking():
        assert "random numbers" in capture.why_eager(update)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real device has tests of its own")
def test_on_an_emulated_gpu_each_run_has_its_own_graph_and_the_bits_it_has_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", "pytorch")
    monkeypatch.setitem(ghost.ROWS, "gns", (ghost.GNS[0], ghost.GNS[3]))  # a small network: every operation is slow
    jobs = [job(seed) for seed in (0, 1)]
    found = {}
    with emulated.gpu(monkeypatch) as gpu:
        whole = streams.run_job
        graphs: dict[str, list[capture.Replay]] = {}

        def run_job(one, *rest):
            with gpu.entered():
                whole(one, *rest)

        def captured(self, replay):
            graphs.setdefault(threading.current_thread().name, []).append(replay)
            return take(self, replay)

        take = capture.Captured._capture
        monkeypatch.setattr(capture.Captured, "_capture", captured)
        monkeypatch.setattr(streams, "run_job", run_job)
        for at_a_time in (2, 1):
            runs = tmp_path / str(at_a_time)
            launch.carry_out(plan.order(jobs), launch.Options(runs, "cuda", streams=at_a_time, quiet=True))
            found[at_a_time] = bits(runs, *jobs)
        assert all(record.find(tmp_path / "2", one.id).result.environment.device == "Emulated" for one in jobs)
    assert found[2] == found[1]
    modes = {name: {replay.graph.mode for replay in replays} for name, replays in graphs.items()}
    assert modes == {one.id: {"thread_local"} for one in jobs} | {"MainThread": {"global"}}
    assert all(replay.graph.replays > 1 for replays in graphs.values() for replay in replays)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--streams", "2", "--jobs", "2"], "cannot be given with --jobs"),
        (["--streams", "2", "--on", "slurm"], "cannot be given with --on"),
        (["--streams", "17"], "less than or equal to 16"),
    ],
)
def test_flags_that_contradict(more, said, tmp_path):
    done = server().run(["train-teacher", "gns:0.1", "--recipe", "smoke", *FLAGS, *more, "--runs", "runs"], tmp_path)
    assert done.code == UsageError.exit_code == 2 and said in done.err
    assert not (tmp_path / "runs").exists()
