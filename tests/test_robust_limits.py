"""What a run must not survive quietly: numbers that are none, memory that is not there, a batch of one image."""

from __future__ import annotations

import json
import shutil

import crash
import pytest

PLAIN = [*crash.COMMANDS["plain"], *crash.TINY, "--runs", "runs"]


def run_of(tmp_path, pattern="gns-0.1-*"):
    (run,) = tmp_path.glob(f"runs/{pattern}/s0")
    return run


def status_of(run):
    return json.loads((run / "status.json").read_text())


@pytest.fixture
def ghost(tmp_path):
    return lambda *argv, **how: crash.server().run(argv, tmp_path, **how)


def spoil(nth: int) -> str:
    """Python for `before`: the nth update of a weight is not a number."""
    return f"""
from ghostcli.engine.step import Update
step, calls = Update.__call__, []
def spoilt(self, index):
    calls.append(1)
    if len(calls) == {nth}:
        self.model.classifier.weight.data[0, 0] = float("nan")
    return step(self, index)
Update.__call__ = spoilt
"""


# Numbers that are none -------------------------------------------------------------------------------------------


def test_a_rate_that_is_far_too_high(ghost, tmp_path):
    done = ghost(*PLAIN, "-s", "optim.lr=1e12", "-s", "optim.warmup=0")
    assert done.code == 3 and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert "non-finite in epoch 1, step 2 of 3" in last and "a lower optim.lr (now 1e+12)" in last
    assert "temperature" not in last, "nobody teaches this run"
    run = run_of(tmp_path)
    assert status_of(run)["status"] == "failed" and "non-finite" in status_of(run)["error"]
    assert status_of(run)["exit_code"] == 3
    assert not (run / "result.json").exists() and not (run / "model.safetensors").exists()
    assert ghost(*PLAIN, "-s", "optim.lr=1e12", "-s", "optim.warmup=0").code == 3, "it fails again, and is not repaired"


def test_the_last_good_checkpoint_is_kept(ghost, tmp_path):
    done = ghost(*PLAIN, before=spoil(5))
    assert done.code == 3 and "epoch 2, step 2 of 3" in done.err
    checkpoints = {path.name for path in (run_of(tmp_path) / "checkpoint").iterdir()}
    assert checkpoints == {"last.safetensors"}
    done = ghost(*PLAIN)
    assert done.code == 0 and "goes on after epoch 1" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_a_bad_step_never_reaches_a_checkpoint(ghost, tmp_path):
    """Saved after every step, and asked to stop at the very step that goes wrong."""
    both = spoil(5) + crash.strike("ghostcli.engine.step:Update.__call__", nth=5)
    done = ghost(*PLAIN, "-s", "engine.checkpoint_minutes=1e-9", before=both)
    assert done.code == 3
    done = ghost(*PLAIN)
    assert done.code == 0 and "goes on after epoch 1, batch 1" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_the_last_update_is_looked_at_too(ghost, tmp_path):
    """Its loss was still finite: the weights are not."""
    after = """
from ghostcli.engine.step import Update
step, calls = Update.__call__, []
def spoilt(self, index):
    calls.append(1)
    log = step(self, index)
    if len(calls) == 6:
        self.model.classifier.weight.data[0, 0] = float("inf")
    return log
Update.__call__ = spoilt
"""
    done = ghost(*PLAIN, before=after)
    assert done.code == 3 and "a weight became non-finite in epoch 2, step 3 of 3" in done.err


def test_finite_weights_with_infinite_logits_are_no_result(ghost, tmp_path):
    huge = """
from ghostcli.zoo import evaluate
logits = evaluate.logits
evaluate.logits = lambda *a, **k: logits(*a, **k) * float("inf")
"""
    done = ghost(*PLAIN, before=huge)
    assert done.code == 3 and "logit became non-finite in epoch 1" in done.err and "Traceback" not in done.err
    assert not (run_of(tmp_path) / "metrics.jsonl").exists()


def test_a_taught_run_names_the_temperature(ghost, tmp_path):
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    done = ghost(*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs", before=spoil(2))
    assert done.code == 3 and "a lower distill.temperature" in done.err


def test_a_failed_teacher_stops_its_students_alone(ghost, tmp_path):
    done = ghost(*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs", before=spoil(2))
    assert done.code == 3
    assert [path.parent.name[:8] for path in tmp_path.glob("runs/*/s0")] == ["gns-0.15"]


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["ghostcli.engine.step:Update.__call__", "ghostcli.engine.train:make_state"])
@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
        'RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can\'t allocate memory")',
        "RuntimeError('could not create a primitive')",
    ],
)
def test_memory_that_is_not_there(ghost, tmp_path, where, error):
    raising = crash.strike(where, nth=1).replace("    strikes.append(1)\n", f"    raise {error}\n")
    done = ghost(*PLAIN, before="import torch\n" + raising)
    assert done.code == 4 and "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert "out of memory at train.batch_size=16" in last and "-s train.batch_size=8" in last
    assert status_of(run_of(tmp_path))["status"] == "failed"
    assert ghost(*PLAIN).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_memory_that_is_really_not_there(ghost):
    """A limit on the address space, and a batch that does not fit under it."""
    limit = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
"""
    big = ["-s", "data.limit=1400", "-s", "train.batch_size=1400"]
    done = ghost(*PLAIN, *big, before=limit)
    assert done.code == 4, done.err
    assert "out of memory at train.batch_size=1400" in done.err and "Traceback" not in done.err


# A batch of one --------------------------------------------------------------------------------------------------


def test_a_last_batch_of_one_is_refused_before_anything_is_begun(ghost, tmp_path):
    """At 8 x 8 the three rows of the tests' network leave a gate's batch norm one value of one image."""
    from PIL import Image

    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(4 + (name == "cat")):
                Image.new("RGB", (16, 16), (90 * shade + 9 * i, 70, 50)).save(tmp_path / f"pets/{part}/{name}/{i}.png")
    deep = "from ghostcli.zoo import ghost; ghost.ROWS['gns'] = ghost.GNS"
    argv = ["train-teacher", "gns:0.1", "--data", "folder:pets", "--epochs", "1", "--runs", "runs"]
    small = [*argv, "-s", "data.size=8"]
    for size, better in ((4, 5), (8, 9), (1, 3)):
        done = ghost(*small, "-s", f"train.batch_size={size}", before=deep)
        # nine images: 4 + 4 + 1, 8 + 1, one at a time; two at a time would leave one as well
        assert done.code == 2, done.err
        assert f"train.batch_size={size}" in done.err and f"use train.batch_size={better}" in done.err
        assert not (tmp_path / "runs").exists()
    assert ghost(*small, "-s", "train.batch_size=5", before=deep).code == 0
    # a larger image, and a network without such a batch norm, take one
    assert ghost(*argv, "-s", "data.size=32", "-s", "train.batch_size=4", before=deep).code == 0
