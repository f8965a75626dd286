"""The device a process trains on, and the memory it trains in."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest
import torch

from ghostcli.engine import device
from ghostcli.recipe.models import EngineSection

FAULTS = """
import resource
import torch
from ghostcli.engine.device import pick
pick({device!r})
counts = []
for _ in range(12):  # holes of the right size come about in two to four rounds, as the addresses happen to lie
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(12_000_000) for _ in range(3)]  # 48 MB each, more than malloc keeps by itself
    del maps
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


def test_garbage_collection_leaves_out_what_exists_and_is_restored():
    with pytest.raises(ValueError), device.uncollected():
        assert gc.get_freeze_count() > 1000
        raise ValueError
    assert gc.get_freeze_count() == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_step_frees_the_next_one_takes():
    done = subprocess.run([sys.executable, "-c", FAULTS.format(device="cpu")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 35,000 small pages or 70 huge ones, if each map were asked for anew
    assert int(done.stdout) < 30


@pytest.mark.parametrize("asked, index", [("auto", 1), ("cuda", 1), ("cuda:0", 0)])
def test_a_device_without_a_number_is_the_current_one(asked, index, monkeypatch):
    chosen = []
    for name, value in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    assert device.pick(asked) == torch.device("cuda", index)
    assert chosen == [index]


def test_a_recipe_chooses_tf32_and_float32_stays_float32():
    def allowed():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    cuda, before = torch.device("cuda", 0), allowed()
    for precision, expected in (("tf32", True), ("float32", False), ("bfloat16", False)):
        with device.arithmetic(EngineSection(precision=precision, deterministic=False), cuda):
            assert allowed() == (expected, expected)
        assert allowed() == before


def test_a_device_without_tf32_refuses_it(ghost):
    done = ghost("train-teacher", "gns:0.1", "--data", "digits", "-s", "engine.precision=tf32", "--device", "cpu")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "engine.precision=tf32" in done.err and "float32 or bfloat16" in done.err


@pytest.mark.parametrize(
    "flags, compiled, said",
    [
        ("flags: avx2", True, "no bfloat16 arithmetic and emulates it; try float32"),
        ("flags: avx2", False, "no bfloat16 arithmetic and emulates it; try float32"),
        ("flags: avx512_bf16", True, "the compiled kernels are for float32 and are not used"),
        ("flags: avx512_bf16", False, None),
        ("", True, None),  # nothing is known of this processor
    ],
)
def test_bfloat16_is_slow_where_hardware_or_kernels_lack_it(monkeypatch, flags, compiled, said):
    monkeypatch.setattr(device, "cpuinfo", lambda: flags)
    found = device.slow_precision(EngineSection(precision="bfloat16"), torch.device("cpu"), compiled)
    assert found is None if said is None else said in found
    assert device.slow_precision(EngineSection(), torch.device("cpu"), compiled) is None


def test_a_run_says_that_bfloat16_costs_time(monkeypatch, ghost, tmp_path):
    monkeypatch.setattr(device, "cpuinfo", lambda: "flags: avx2")
    tiny = ["--data", "digits", "--recipe", "smoke", "-s", "data.limit=32", "-s", "data.limit_test=16"]
    done = ghost("train-teacher", "gns:0.1", *tiny, "-s", "engine.precision=bfloat16", "--runs", str(tmp_path))
    assert done.code == 0 and "engine.precision=bfloat16: this hardware has no" in done.err, done.err
