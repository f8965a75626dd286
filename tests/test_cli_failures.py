"""What a command says when something fails: each failure once, in one line, and what there is as JSON all the same."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import crash
import pytest

from ghostcli.errors import NonFiniteError, UsageError
from ghostcli.render import figures
from ghostcli.run import job

ONE = ("train-teacher", "gns:0.1", *crash.TINY, "--epochs", "1")
TWO = ("--seed", "0", "--seed", "1", "--json")


def by_seed(out: str) -> dict[int, dict]:
    return {row["seed"]: row for row in json.loads(out)}


@pytest.fixture
def first_fails(monkeypatch):
    """Seed 0 fails with the id in its message, as the engine does it."""
    train = job._train

    def failing(work, *rest):
        if work.seed == 0:
            raise NonFiniteError(f"{work.id}: the loss became non-finite")
        train(work, *rest)

    monkeypatch.setattr(job, "_train", failing)


def test_a_failed_run_is_an_object_too(ghost, tmp_path, first_fails):
    done = ghost(*crash.COMMANDS["plain"], *crash.TINY, "--runs", tmp_path, "--json")
    assert done.code == 3
    row = json.loads(done.out)
    assert row["status"] == "failed" and row["accuracy"] is None and row["error"] == "the loss became non-finite"
    assert done.err.count("the loss became non-finite") == 1 and done.err.count(row["run"]) == 1


def test_the_second_seed_is_tried_though_the_first_failed(ghost, tmp_path, first_fails):
    done = ghost(*crash.COMMANDS["plain"], *crash.TINY, "--runs", tmp_path, *TWO)
    assert done.code == 3
    rows = by_seed(done.out)
    assert (rows[0]["status"], rows[0]["accuracy"], rows[1]["status"]) == ("failed", None, "done")
    assert rows[1]["accuracy"]["last"] >= 0
    assert done.err.count("the loss became non-finite") == 1
    assert done.err.splitlines()[-1] == "ghost: 1 of 2 runs failed; the lines above say why"


def test_a_fault_of_a_users_own_network_costs_no_other_run(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    calls = 0\n\n"
        "    def forward(self, x):\n"
        "        Net.calls += self.training and len(x) == 16\n"
        "        if Net.calls == 2:\n"
        "            raise KeyError('no such layer')\n"
        "        return super().forward(x)\n\n\n"
        "def build(classes):\n"
        "    return Net(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))\n"
    )
    done = ghost("train-teacher", "py:mynet.py:build", *crash.TINY, "--runs", tmp_path, *TWO)
    assert done.code == 1
    rows = by_seed(done.out)
    assert (rows[0]["status"], rows[1]["status"]) == ("failed", "done")
    assert "KeyError: 'no such layer'" in rows[0]["error"]
    assert 'mynet.py", line 10, in forward' in done.err, "the traceback says where it is"


def test_what_rests_on_a_failure_is_not_started(ghost, tmp_path, first_fails):
    done = ghost(*crash.COMMANDS["kd"], *crash.TINY, "--runs", tmp_path, *TWO)
    assert done.code == 3 and done.err.count("the loss became non-finite") == 1
    assert {row["status"] for row in json.loads(done.out)} == {"not started"}
    assert done.err.count("not started, its teacher gns-0.15-plain-") == 2
    assert done.err.splitlines()[-1] == "ghost: 3 of 3 runs failed; the lines above say why"


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_failure_is_the_same_however_many_run_at_a_time(tmp_path, jobs):
    """Something that only the run itself sees, and that is a mistake of usage: a link where a file belongs."""
    argv = [*crash.COMMANDS["plain"], *crash.TINY, *TWO, "--runs", "runs"]
    first, _ = json.loads(crash.server().run([*argv, "--dry-run"], tmp_path).out)
    folder = tmp_path / "runs" / first["run"]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to(tmp_path / "diary.txt")
    done = crash.server().run([*argv, "--jobs", jobs], tmp_path)
    (line,) = (line for line in done.err.splitlines() if "is a link" in line)
    assert done.code == 2 and line.startswith(f"{first['run']}: "), done.err
    assert done.err.splitlines()[-1] == "ghost: 1 of 2 runs failed; the lines above say why"
    assert by_seed(done.out)[1]["status"] == "done" and by_seed(done.out)[0]["accuracy"] is None


@pytest.mark.long
def test_workers_failures_are_printed_once(tmp_path):
    argv = [*crash.COMMANDS["plain"], *crash.TINY, *TWO, "--jobs", 2, "--runs", "runs"]
    done = crash.server().run(argv, tmp_path, {"GHOST_FAULT": "predictions:written=enospc"})
    assert done.code == 1
    rows = by_seed(done.out)
    assert all(row["status"] == "failed" and "No space left" in row["error"] for row in rows.values())
    for row in rows.values():
        assert sum("No space" in line and line.startswith(row["run"] + ":") for line in done.err.splitlines()) == 1
    assert done.err.count("No space left") == 2
    assert done.err.splitlines()[-1] == "ghost: 2 of 2 runs failed; the lines above say why"


def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "ghostcli", "recipe", "list"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=crash.ROOT)
    assert done.returncode == 1
    assert done.stderr == "ghost: the output cannot be written: No space left on device\n"


def test_closed_streams_are_empty_ones(tmp_path):
    """Under some daemons a program begins without them."""
    ghost = f"{shlex.quote(sys.executable)} -m ghostcli"
    environment = os.environ | {"PYTHONPATH": str(crash.ROOT)}
    for words, code in (("recipe list --json >&-", 0), ("predict pretrained/gns-0.25 - --json <&-", 2)):
        words = ["sh", "-c", f"{ghost} {words}"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("ghost: standard input: not an image"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_is_imported_is_one_line(number, tmp_path):
    """It strikes in the import of the first module that the entry point needs."""
    (tmp_path / "typer.py").write_text(f"import os; os.kill(os.getpid(), {int(number)})")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ghostcli.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=crash.ROOT)
    assert done.returncode == 75 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ghost: stopped by {number.name}")


def test_damaged_weights_come_with_what_to_do(tmp_path):
    """A teacher's weights lose their end: the run that wants them names the way to whole ones."""
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    (weights,) = tmp_path.glob("runs/*/s0/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    done = crash.server().run([*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs"], tmp_path)
    run = str(weights.parent.relative_to(tmp_path / "runs"))
    assert done.code == 1 and f"(ghost runs verify, or ghost runs rm {run} to train it again)" in done.err


def test_what_asks_for_features_is_named():
    from ghostcli.recipe import load

    for asks in ("distill.weighting=adaptive", "distill.kind=hint"):
        assert next(iter(load("paper", [asks]).recipe.why_live.values())).startswith(f"{asks} ")


@pytest.mark.parametrize(
    "words, name",
    [
        ("distil resnet18", "distill"),
        ("distill ResNte18 --student gns", "resnet18"),
        ("distill pretrained/gns-1 --student gns", "pretrained/gns-1.0"),
        ("distill resnet18 --student gns --recipe papr", "paper"),
        ("distill resnet18 --student gns -s distill.kond=kd", "distill.kind"),
        ("distill resnet18 --student gns -s distil=3", "distill"),
        ("distill resnet18 --student gns --data cifar-10", "cifar10"),
        ("data fetch cifar-10", "cifar10"),
        ("recipe show mne.toml", "mine.toml"),
        ("reproduce I --skip gns:1.01", "gns:1.0"),
        ("export pretrained/gns-1.0 --format onx --out x", "onnx"),
    ],
)
def test_every_typo_gets_the_nearest_names_in_the_same_words(ghost, tmp_path, monkeypatch, words, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("extends = 'paper'\n")
    told = ghost(*words.split())
    assert told.code == 2 and told.err.strip().count("\n") == 0
    assert f"; did you mean {name}" in told.err


def test_a_copied_run_is_not_taken_for_a_seed_that_was_never_trained(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = json.loads(ghost(*ONE, "--json").out)["run"]
    copied = run.removesuffix("s0") + "s1"
    shutil.copytree(tmp_path / "runs" / run, tmp_path / "runs" / copied)
    told = ghost(*ONE, "--seed", "1", "--json")
    assert told.code == 2 and told.out == "" and f"{copied}: its record is that of {run}" in told.err
    told = ghost("distill", f"run/{copied}", "--student", "gns:0.1", *ONE[2:])
    assert told.code == 2 and f"{copied}: its record is that of {run}" in told.err
    assert ghost("runs", "rm", copied, "--yes").code == 0
    assert ghost(*ONE, "--seed", "1").code == 0


def test_a_picture_that_cannot_be_drawn_costs_no_result(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(*_):
        raise UsageError("curves.png: cannot be written (Read-only file system); name another file")

    monkeypatch.setattr(figures, "save", refuse)
    done = ghost(*ONE, "--epochs", "2", "--json")
    assert done.code == 0 and json.loads(done.out)["status"] == "done"
    assert "no learning curve was drawn: curves.png: cannot be written" in done.err


def test_after_a_stop_of_a_fresh_start_the_advised_command_trains_every_seed(tmp_path):
    argv = [*crash.COMMANDS["plain"], *crash.TINY, "--seed", "0", "--seed", "1", "--runs", "runs"]
    assert crash.server().run(argv, tmp_path).code == 0
    before = {file.parent.name: file.stat().st_ino for file in tmp_path.glob("runs/*/*/result.json")}
    done = crash.server().run([*argv, "--no-resume"], tmp_path, {"GHOST_FAULT": "metrics:after=term"})
    assert done.code == 75 and "without --no-resume" in done.err
    assert crash.server().run(argv, tmp_path).code == 0
    after = {file.parent.name: file.stat().st_ino for file in tmp_path.glob("runs/*/*/result.json")}
    assert {seed for seed in before if after[seed] != before[seed]} == {"s0", "s1"}
    assert {after[f"{seed}.old1"] for seed in before} == set(before.values())


def test_a_fresh_start_that_cannot_begin_leaves_the_earlier_run(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = json.loads(ghost(*ONE, "--json").out)["run"]
    monkeypatch.setenv("PATH", str(tmp_path))
    told = ghost(*ONE, "--no-resume", "--on", "slurm")
    assert told.code == 2 and (tmp_path / "runs" / run / "result.json").exists()
    again = ghost(*ONE, "--no-resume", "--quiet")
    assert again.code == 0 and "renamed" not in again.err
