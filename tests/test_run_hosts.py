"""One run, several machines: there is one writer at any time, and whoever is dead, frozen or slow is known as such."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import hosts
import psutil
import pytest


def owners(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def turns(written: list[str]) -> list[str]:
    """The owners in the order of their writing. An owner that wrote again after another did comes twice."""
    return [one for i, one in enumerate(written) if i == 0 or written[i - 1] != one]


def frozen_since(process: subprocess.Popen[bytes], since: dict[int, float]) -> float:
    """Seconds for which a fighter has been frozen."""
    with contextlib.suppress(psutil.Error):
        if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
            return time.monotonic() - since.setdefault(process.pid, time.monotonic())
    since.pop(process.pid, None)
    return 0.0


@pytest.mark.long
def test_a_thousand_tries_have_one_writer_each(tmp_path):
    """Two fighters on each of two hosts. Some die in office, some are frozen for longer than the stated time, some are
    slow. Each writes only while it holds the lease, so no two of them ever take turns."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    shared, tries, since = tmp_path / "shared", 1000, dict[int, float]()
    shared.mkdir()
    log = shared / "log"
    fighters: dict[int, subprocess.Popen[bytes]] = {}
    began, end = 0, time.monotonic() + 400
    try:
        while len(set(turns(owners(log)))) < tries:
            assert time.monotonic() < end, f"only {len(set(turns(owners(log))))} turns"
            for place in range(4):
                if place not in fighters or fighters[place].poll() is not None:
                    words = hosts.command(place % 2, shared, "log", tries, seed + began)
                    fighters[place] = subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ)
                    began += 1
                elif frozen_since(fighters[place], since) > 2 * hosts.STALE:
                    os.kill(fighters[place].pid, signal.SIGCONT)
            time.sleep(0.05)
    finally:
        for process in fighters.values():
            process.kill()
            process.wait()
    found = turns(owners(log))
    assert len(found) == len(set(found)), "an owner wrote after another one had written"
    assert began > 8, "some died"
