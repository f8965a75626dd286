"""`ghost runs sync`: what a tracker is told, by stand-ins that keep it and, where it is installed, by TensorBoard."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_runs import write_run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A stand-in with the calls of wandb and trackio; what it was told."""
    told: list[tuple] = []
    module = SimpleNamespace(
        init=lambda **options: told.append(("init", options)),
        log=lambda values, step: told.append(("log", step, values)),
        finish=lambda: told.append(("finish",)),
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module)
    return told


def append(runs: Path, run: str, epoch: int, accuracy: float) -> None:
    row = {"epoch": epoch, "loss": 0.5, "validation": None, "test": {"accuracy": accuracy, "loss": 0.4}}
    with open(runs / run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_each_epoch_is_sent_once(ghost, tmp_path: Path, wandb: list[tuple], tracker: str) -> None:
    run = write_run(tmp_path, epochs=3, status="interrupted")
    words = ("runs", "sync", "--to", tracker, "--project", "mine", "--runs", tmp_path)
    done = ghost(*words)
    assert done.code == 0 and f"{run}: 3 epochs to {tracker} mine" in done.out, done
    (first, begun), *logged, last = wandb
    assert (first, begun["project"], begun["name"], begun["config"]["train.epochs"]) == ("init", "mine", run, 3)
    assert [step for _, step, _ in logged] == [1, 2, 3] and last == ("finish",)
    rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
    assert [values["test/accuracy"] for *_, values in logged] == [row["test"]["accuracy"] for row in rows]
    wandb.clear()
    assert ghost(*words).out == "" and wandb == []
    append(tmp_path, run, 4, 93.0)
    assert ": 1 epoch to" in ghost(*words).out and wandb[1][:2] == ("log", 4) and wandb[1][2]["test/accuracy"] == 93.0


def test_a_tracker_that_refuses_is_a_line_and_no_harm(ghost, tmp_path: Path, wandb, monkeypatch) -> None:
    run = write_run(tmp_path, epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refuse(**_: object) -> None:
        raise RuntimeError("no key\nTraceback of theirs")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    done = ghost("runs", "sync", "--to", "wandb", "--runs", tmp_path)
    assert done.code == 1 and f"wandb: refused {run} (no key); the run itself is not affected" in done.err
    assert len(done.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_ctrl_c_ends_follow_while_a_tracker_is_told(ghost, tmp_path: Path, wandb, monkeypatch) -> None:
    """The call into the tracker may raise anything, so the signal's own exception is caught with it."""
    write_run(tmp_path, epochs=2)
    monkeypatch.setattr(sys.modules["wandb"], "log", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    for follow, code in ((["--follow"], 0), ([], 75)):
        done = ghost("runs", "sync", "--to", "wandb", *follow, "--runs", tmp_path)
        assert done.code == code and ("stopped by SIGINT" in done.err) == bool(code), done


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--to", "mlflow"], "choose tensorboard, wandb, trackio"), (["gns-1.0-plain-00000000/s0"], "no run")],
)
def test_bad_input(ghost, tmp_path: Path, words: list[str], message: str) -> None:
    done = ghost("runs", "sync", *words, "--runs", tmp_path)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1


def test_a_tracker_that_is_not_there(ghost, tmp_path: Path, monkeypatch) -> None:
    write_run(tmp_path, epochs=2)
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = ghost("runs", "sync", "--to", "wandb", "--runs", tmp_path)
    assert done.code == 2 and "--to wandb: is not installed; type pip install 'ghostcli[track]'" in done.err


def test_tensorboard_reads_back_what_was_sent(ghost, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = write_run(tmp_path / "runs", epochs=3)
    assert ghost("runs", "sync", "--runs", tmp_path / "runs").code == 0
    monkeypatch.chdir(tmp_path)
    assert ghost("runs", "sync", "--runs", "runs").out == "", "the same folder, spelled otherwise"
    found = EventAccumulator(str(tmp_path / "runs" / "tensorboard" / run))
    found.Reload()
    rows = [json.loads(line) for line in (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    events = found.Scalars("test/accuracy")
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx([row["test"]["accuracy"] for row in rows], rel=1e-6)
    assert run in ghost("runs", "list", "--runs", tmp_path / "runs").out
