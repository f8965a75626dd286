"""Worker processes: one takes several jobs, gives each the bits of a run alone, and leaves after a failure."""

from __future__ import annotations

import os

import pytest
import torch

from ghostcli import plan
from ghostcli.engine.device import dealt
from ghostcli.errors import NonFiniteError
from ghostcli.recipe import load
from ghostcli.run import launch
from ghostcli.run.place import Place
from ghostcli.run.spawned import Spawned, Worker

TINY = ("data.name=digits", "data.limit=48", "data.limit_test=20", "train.batch_size=16", "train.epochs=1")


def job(seed: int, *more: str) -> plan.Job:
    found = load("smoke", [*TINY, *more])
    return plan.plain("gns:0.1", seed, found.recipe, found.name)


@pytest.mark.long
def test_two_workers_do_five_jobs(tmp_path, monkeypatch):
    hired, hire = [], Spawned._hire

    def counted(self):
        hired.append(worker := hire(self))
        return worker

    monkeypatch.setattr(Spawned, "_hire", counted)
    good, bad = [job(seed) for seed in range(4)], job(0, "optim.lr=1e30")
    options = launch.Options(tmp_path / "many", "cpu", jobs=2, quiet=True, place=Place(cpus=1))
    outcomes = {outcome.job.id: outcome.error for outcome in launch.run(plan.order([*good, bad]), options)}
    assert {name for name, error in outcomes.items() if error} == {bad.id}
    assert outcomes[bad.id].exit_code == NonFiniteError.exit_code and "became non-finite" in str(outcomes[bad.id])
    assert len(hired) <= 3, "two, and one more if a job was left when the failed worker had gone"
    assert all(worker.process.exitcode is not None for worker in hired), "none outlives the plan"

    alone = launch.Options(tmp_path / "alone", "cpu", quiet=True, place=Place(cpus=1))
    launch.carry_out(plan.order([good[-1]]), alone)
    path = f"{good[-1].id}/model.safetensors"
    assert (tmp_path / "many" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()


def test_a_job_that_ends_between_two_looks_shows_its_last_epoch(tmp_path, capsys):
    one = job(0)
    launch.carry_out(plan.order([one]), launch.Options(tmp_path, "cpu", quiet=True, place=Place(cpus=1)))
    capsys.readouterr()
    Spawned(launch.Options(tmp_path, "cpu", jobs=2), 1)._told(one, None)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{one.id}  epoch 1/1") and last.startswith(f"{one.id}: done")


def test_two_workers_that_fail_together_are_both_heard(tmp_path):
    """While the end of one was awaited the other failed, and its answer was thrown away: the plan waited for ever."""

    class Process:
        exitcode = None

        def __init__(self, meanwhile=lambda: None):
            self.meanwhile = meanwhile

        def join(self):
            self.exitcode = 2
            self.meanwhile()

    class Line:
        ready = False

        def poll(self):
            return self.ready

        def recv(self):
            return 2, "not writable"

    executor = Spawned(launch.Options(tmp_path, "cpu", jobs=2, quiet=True), 2)
    first = Worker(0, Process(), Line(), job(0))

    def fails():
        first.line.ready, first.process.exitcode = True, 2

    other = Worker(1, Process(fails), Line(), job(1))
    other.line.ready = True
    executor.workers = [first, other]
    ended = [*executor.wait(), *executor.wait()]
    assert {one.seed: str(error) for one, error in ended} == {0: "not writable", 1: "not writable"}
    assert executor.workers == []


@pytest.mark.parametrize(
    ("device", "visible", "cards", "seen"),
    [
        ("auto", None, 2, ["0", "1", "0"]),
        ("cuda", "3, GPU-5", 2, ["3", "GPU-5", "3"]),
        ("auto", None, 1, [None] * 3),
        ("auto", None, 0, [None] * 3),
        ("cuda:1", None, 2, [None] * 3),
        ("cpu", None, 2, [None] * 3),
    ],
)
def test_processes_get_the_gpus_of_the_machine_in_turn(device, visible, cards, seen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [dealt(device, number).get("CUDA_VISIBLE_DEVICES") for number in range(3)] == seen


NETWORK = """
import os
from pathlib import Path
from torch import nn

def build(classes):
    with open(Path(__file__).parent / "seen", "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""


def test_a_worker_sees_its_own_gpu(tmp_path, monkeypatch):
    """What a network finds that a worker builds. The driver is only asked how many cards there are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "mynet.py").write_text(NETWORK)
    found = load("smoke", list(TINY))
    jobs = [plan.plain(f"py:{tmp_path / 'mynet.py'}:build", seed, found.recipe, found.name) for seed in (0, 1)]
    options = launch.Options(tmp_path / "runs", jobs=2, quiet=True, place=Place(cpus=1))
    launch.carry_out(plan.order(jobs), options)
    workers = dict(line.split() for line in (tmp_path / "seen").read_text().splitlines())
    workers.pop(str(os.getpid()), None)
    assert sorted(workers.values()) == ["0", "1"]
