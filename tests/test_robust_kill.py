"""kill -9 at any instant: whoever starts the same command again ends with the very bits of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import crash
import pytest

SEED = int(os.environ.get("GHOST_KILL_SEED") or random.SystemRandom().randrange(2**32))

#: Checkpoints after every step, not only after every epoch: most kills land behind or inside one.
EVERY_STEP = ("-s", "engine.checkpoint_minutes=1e-9")


@pytest.mark.parametrize(
    ("name", "kills"), [("plain", 4), *(pytest.param(name, 8, marks=pytest.mark.long) for name in ("kd", "chain"))]
)
def test_random_kills(tmp_path, name, kills):
    """20 in all; the chain has an assistant, and its last two runs are fed by tables."""
    print(f"GHOST_KILL_SEED={SEED}")
    expected, usual = crash.uninterrupted(name)
    rng = random.Random(f"{SEED} {name}")
    argv = [*crash.COMMANDS[name], *crash.TINY, *EVERY_STEP]
    places = crash.kill_loop(crash.server(), argv, expected, usual, tmp_path, kills, rng)
    print(*places, sep="\n")
    assert len(places) == kills


@pytest.mark.long
def test_kills_of_a_new_interpreter(tmp_path):
    """`python -m ghostcli`, a network of full depth: killed behind its first checkpoint, and in its start."""
    command = [sys.executable, "-m", "ghostcli", *crash.COMMANDS["plain"], *crash.TINY, *EVERY_STEP]
    deep = "from ghostcli.zoo import ghost; ghost.ROWS['gns'] = ghost.GNS"
    done = crash.server().run([*command[3:], "--runs", "whole"], tmp_path, before=deep)
    assert done.code == 0, done.err

    def start():
        return subprocess.Popen(
            [*command, "--runs", "killed"], cwd=tmp_path, env=crash.ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )

    process = start()
    while not list(tmp_path.glob("killed/*/s0/checkpoint/last.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "goes on after epoch" in err, err
    assert not crash.differences(crash.outcomes(tmp_path / "whole"), tmp_path / "killed")


@pytest.mark.slow
def test_the_longer_loop(tmp_path):
    """The command whose figures docs/runs.md gives, over every kind of run."""
    figures = tmp_path / "kills.json"
    loop = [sys.executable, crash.ROOT / "benchmarks" / "kill_loop.py", "--kills", "60", "--json", figures]
    done = subprocess.run(loop, env=crash.ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(figures.read_text())
    assert told["kills"] == 60 and told["differences"] == 0 and set(told["places"]) == set(crash.COMMANDS)
