"""The device a process trains on, and the memory it trains in."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_step_frees_the_next_one_takes():
    done = subprocess.run([sys.executable, "-c", FAULTS.format(device="cpu")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 35,000 small pages or 70 huge ones, if each map were asked for anew
    assert int(done.stdout) < 30
