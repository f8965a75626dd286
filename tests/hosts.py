"""Processes on two hosts that fight for one lease: real hosts for all that ghost can tell.

The second host is a process with its own host name, network and mount namespace, which sees the shared folder at
another path. Where this is not allowed, its name alone is another.

    python tests/hosts.py FIGHT FOLDER LOG TRIES SEED [NAME]     what each process runs

A fighter takes the lease, writes its token into LOG some times, and gives it back, dies, freezes or dawdles.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Heartbeats and death in the fight, in seconds: as in earnest, divided by 80.
BEAT, STALE = 0.1875, 1.5
#: What becomes of an owner, and how often.
FATES = {"gives back": 0.955, "dies": 0.015, "freezes": 0.015, "is slow": 0.015}


@cache
def namespaces() -> bool:
    """Whether this user may make namespaces."""
    words = ["unshare", "--uts", "--net", "--mount", "true"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


def command(number: int, shared: Path, log: str, tries: int, seed: int) -> list[str]:
    """A fighter on host 0 or 1. On the second the folder has another path, if that is allowed."""
    words = [sys.executable, __file__, "FIGHT"]
    if number == 0:
        return [*words, str(shared), log, str(tries), str(seed)]
    if not namespaces():
        return [*words, str(shared), log, str(tries), str(seed), "second"]
    there = shared.with_name(shared.name + "-there")
    there.mkdir(exist_ok=True)
    inner = f'hostname second; mount --bind "{shared}" "{there}"; exec "$@"'
    host = ["unshare", "--uts", "--net", "--mount", "bash", "-c", inner, "host"]
    return [*host, *words, str(there), log, str(tries), str(seed)]


def blind(hidden: Path, *words: object, shown: Path | None = None) -> list[str]:
    """A command on a second host that does not see a folder: its path shows `shown`, or an empty file system."""
    mount = ["--bind", str(shown)] if shown else ["-ttmpfs", "none"]
    inner = 'hostname second; mount "$1" "$2" "$3" && shift 3 && exec "$@"'
    return ["unshare", "--uts", "--mount", "bash", "-c", inner, "host", *mount, str(hidden), *map(str, words)]


def fight(shared: Path, log: str, tries: int, seed: int, name: str | None) -> None:
    from ghostcli.records import lease

    lease.BEAT, lease.STALE, lease.LONGEST = BEAT, STALE, 0.1
    if name is not None:
        lease.machine = lambda: name
    rng, work, file = random.Random(seed), shared / "s0", shared / log

    def write(text: str) -> None:
        with open(file, "ab", buffering=0) as out:
            out.write(text.encode() + b"\n")

    for _ in range(tries):
        held = lease.take(work)
        fate = rng.choices(list(FATES), list(FATES.values()))[0]
        try:
            for step in range(4):
                held.require()
                write(held.lease.owner)
                if step == 1 and fate != "gives back":
                    if fate == "dies":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if fate == "freezes":
                        os.kill(os.getpid(), signal.SIGSTOP)  # the test wakes it when it is taken for dead
                    time.sleep(0.8 * STALE if fate == "is slow" else 0)
        except lease.Lost:
            pass
        held.give_back()
        time.sleep(rng.uniform(0, 0.002))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    folder, log, tries, seed, *name = sys.argv[2:]
    fight(Path(folder), log, int(tries), int(seed), name[0] if name else None)
