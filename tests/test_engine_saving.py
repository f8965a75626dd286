"""When a checkpoint is written: as often as its cost allows, and always where a run may end."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from ghostcli.engine import saving


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    return clock


@pytest.fixture
def saver(clock, monkeypatch) -> saving.Saver:
    """One whose checkpoints take half a second."""

    def write(*_) -> None:
        clock.now += 0.5

    monkeypatch.setattr(saving.checkpoint, "write", write)

    class Nothing:
        path = Path()
        epoch = batch = seconds = epoch_seconds = teacher_seconds = best = None

        def metrics_mark(self):
            return 0, ""

        def tensors(self):
            return {}

    return saving.Saver(Nothing(), {}, Nothing(), longest=60)


def test_short_epochs_are_not_spent_on_writing(saver, clock):
    written = []
    for epoch in range(1, 101):  # of one second each
        clock.now += 1
        if saver.worth_it():
            saver.save()
            written.append(epoch)
    assert written[0] == 1, "the first checkpoint is written at once: its cost is not known yet"
    assert {b - a for a, b in itertools.pairwise(written)} == {11}
    assert len(written) * 0.5 < 0.06 * 100


def test_long_epochs_have_one_each_and_a_due_one_comes_between(saver, clock):
    for _ in range(5):
        clock.now += 30
        assert saver.worth_it() and not saver.due()
        saver.save()
    clock.now += 61
    assert saver.due()


def test_a_run_of_many_short_epochs_writes_few_and_ends_with_one(ghost, tmp_path, monkeypatch):
    """And its result is that of a run which writes all of them."""
    words = ("train-teacher", "gns:0.1", "--data", "digits", "--epochs", "12", "-s", "data.limit=16", "--json")
    words = (*words, "-s", "data.limit_test=16", "-s", "train.batch_size=16")
    every = ghost(*words, "--runs", tmp_path / "every", "-s", "engine.checkpoint_minutes=1e-9")
    assert every.code == 0, every.err

    epochs = []
    save = saving.Saver.save

    def slow(self) -> None:
        save(self)
        self.cost = 1e9
        epochs.append(self.state.epoch)

    monkeypatch.setattr(saving.Saver, "save", slow)
    few = ghost(*words, "--runs", tmp_path / "few")
    assert few.code == 0, few.err
    assert epochs == [1, 12]
    runs = [json.loads(one.out)["run"] for one in (every, few)]
    assert runs[0] == runs[1]
    weights = [(tmp_path / name / runs[0] / "model.safetensors").read_bytes() for name in ("every", "few")]
    assert weights[0] == weights[1]
