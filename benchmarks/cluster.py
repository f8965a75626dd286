"""What a cluster costs, and what it survives: this machine, a Ray cluster of three nodes on it, and a Slurm on it.

    python benchmarks/cluster.py overhead --json -      seconds from a finished teacher to its student's first step
    python benchmarks/cluster.py submit                 plan and submit 1,000 trivial jobs to a cluster that is busy
    python benchmarks/cluster.py losses --losses 20     kill, cancel and requeue at random; every byte is compared
    python benchmarks/cluster.py all                    writes benchmarks/results/cluster.json

Slurm needs slurm-wlm and munge, Ray `pip install 'ghostcli[ray]'`. What is not installed is left out and named.
`--seed` repeats the choices of a loop, as far as the machine's clock lets it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import crash
import slurm

RECORD = Path(__file__).parent / "results" / "cluster.json"
KD = [*crash.COMMANDS["kd"], *crash.TINY, "-s", "engine.checkpoint_minutes=1e-9"]
KD += ["--cpus-per-job", "1", "--runs", "runs"]
JOBS = 1000


class Place:
    """Where commands run: flags, environment, and what can be lost there."""

    name, flags = "local", ("--jobs", "2")
    losses: tuple[str, ...] = ("the command",)

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Jobs wait in this context."""
        yield

    def start(self, folder: Path, *more: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "ghostcli", *map(str, KD), *self.flags, *more]
        with open(folder / "said", "ab") as out:
            return subprocess.Popen(words, cwd=folder, env=crash.ENVIRONMENT | self.environment, stdout=out, stderr=out)

    def lose(self, what: str, folder: Path, command: subprocess.Popen[bytes]) -> None:
        """Lose something in mid-training. The command must be given again if it ends with another code than 0."""
        command.kill()
        command.wait()


class OnSlurm(Place):
    name, flags = "slurm", ("--on", "slurm")
    losses = ("the command", "a job, by scancel", "a job, near its time limit", "slurmd")

    def __init__(self, system: slurm.Slurm) -> None:
        self.system, self.environment = system, system.environment

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self.system.ask("scontrol", "update", "NodeName=one", "State=DRAIN", "Reason=benchmark")
        try:
            yield
        finally:
            self.system.ask("scancel", "--me")
            self.system.ask("scontrol", "update", "NodeName=one", "State=RESUME")

    def lose(self, what: str, folder: Path, command: subprocess.Popen[bytes]) -> None:
        ask = self.system.ask
        running = [line for line in ask("squeue", "--me", "-h", "-t", "R", "-o", "%i").split() if line.isdecimal()]
        if what == "the command" or not running:
            super().lose(what, folder, command)
        elif what == "slurmd":
            self.system.kill("slurmd")
            self.system.slurmd()
        elif what == "a job, by scancel":
            ask("scancel", running[0])
        else:
            ask("scancel", "--batch", "--signal=USR1", running[0])
            end = time.monotonic() + 30
            while "Restarts=0" in ask("scontrol", "show", "job", running[0]) and time.monotonic() < end:
                time.sleep(0.2)
            ask("scontrol", "update", f"JobId={running[0]}", "StartTime=now")


class OnRay(Place):
    name, flags = "ray", ("--on", "ray")
    losses = ("the command", "a node", "a job's process")

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.environment = cluster, {"RAY_ADDRESS": cluster.address}
        self.more = [cluster.add_node(num_cpus=1) for _ in range(2)]

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        import ray

        ray.init(address=self.cluster.address, log_to_driver=False)
        try:
            sleep = ray.remote(num_cpus=1)(lambda: time.sleep(3600))
            there = [sleep.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
            while ray.available_resources().get("CPU"):
                time.sleep(0.1)
            yield
            for one in there:
                ray.cancel(one, force=True)
        finally:
            ray.shutdown()

    def lose(self, what: str, folder: Path, command: subprocess.Popen[bytes]) -> None:
        pids = [crash.lease_of(run.parent)["pid"] for run in folder.glob("runs/*/s0/status.json")]
        alive = [pid for pid in pids if pid]
        if what == "a node":
            node = self.more.pop(0)
            self.cluster.remove_node(node, allow_graceful=False)
            self.more.append(self.cluster.add_node(num_cpus=1))
        elif what == "a job's process" and alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(alive[0], signal.SIGKILL)
        else:
            super().lose(what, folder, command)


@contextlib.contextmanager
def places() -> Iterator[list[Place]]:
    with contextlib.ExitStack() as stack:
        found = [Place()]
        if slurm.missing():
            print(f"no Slurm: {', '.join(slurm.missing())} not found", file=sys.stderr)
        else:
            found.append(OnSlurm(stack.enter_context(slurm.running())))
        # Jobs get the environment of the cluster on Ray, and that of the command elsewhere: both are the same.
        os.environ.update(crash.ENVIRONMENT, RAY_USAGE_STATS_ENABLED="0")
        os.environ["RAY_" + "worker_niceness"] = "0"
        try:
            from ray.cluster_utils import Cluster
        except ImportError:
            print("no Ray: pip install 'ghostcli[ray]'", file=sys.stderr)
        else:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            stack.callback(cluster.shutdown)
            found.append(OnRay(cluster))
        yield found


def overhead(place: Place) -> float:
    """Seconds from the teacher's finished record to the end of its student's first step."""
    with tempfile.TemporaryDirectory(prefix="ghost-cluster-") as name:
        folder = Path(name)
        command, first = place.start(folder), None
        while command.poll() is None:
            if first is None and list(folder.glob("runs/*-kd-*/s0/checkpoint/*.safetensors")):
                first = time.time()
            time.sleep(0.01)
        assert command.returncode == 0 and first, (folder / "said").read_text()
        [done] = folder.glob("runs/*-plain-*/s0/status.json")
        return round(first - done.stat().st_mtime, 2)


def submit(place: Place) -> float:
    """Seconds to plan 1,000 trivial jobs and to submit them to a cluster that is busy; with `Place`: to plan them."""
    seeds = [word for seed in range(JOBS) for word in ("--seed", str(seed))]
    flags = ("--dry-run",) if place.name == "local" else place.flags
    words = [sys.executable, "-m", "ghostcli", *crash.COMMANDS["plain"], *map(str, crash.TINY), *seeds, *flags]
    with place.busy(), tempfile.TemporaryDirectory(prefix="ghost-cluster-") as name:
        began, environment = time.perf_counter(), crash.ENVIRONMENT | place.environment
        command = subprocess.Popen(words, cwd=name, env=environment, stdout=subprocess.DEVNULL)
        last = f"runs/.jobs/*/s{JOBS - 1}.{'sh' if place.name == 'slurm' else 'json'}"
        while command.poll() is None and not list(Path(name).glob(last)):
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        command.send_signal(signal.SIGINT)  # the jobs are not wanted
        code = command.wait(600)
        assert code == (0 if place.name == "local" else 75), code
    return round(seconds, 1)


def told(folder: Path) -> str:
    """The end of what the command and its jobs said."""
    files = [folder / "said", *folder.glob("runs/.jobs/*/*.log")]
    return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in files)


def losses(place: Place, count: int, rng: random.Random, end: float) -> Counter[str]:
    """Lose things at random until a plan is done, and all over again, `count` times in all."""
    with tempfile.TemporaryDirectory(prefix="ghost-cluster-") as name:
        folder = Path(name)
        began = time.monotonic()
        assert Place().start(folder).wait() == 0, (folder / "said").read_text()
        expected, usual = crash.outcomes(folder / "runs"), time.monotonic() - began
    struck: Counter[str] = Counter()
    while struck.total() < count:
        with tempfile.TemporaryDirectory(prefix="ghost-cluster-") as name:
            folder, code = Path(name), None
            while code != 0:
                command = place.start(folder)
                while struck.total() < count and command.poll() is None:
                    assert time.monotonic() < end, f"only {struck.total()} losses: {struck}"
                    until = time.monotonic() + rng.uniform(0.1, 1.0) * usual
                    while command.poll() is None and time.monotonic() < until:
                        time.sleep(0.02)
                    if command.poll() is None and list(folder.glob("runs/*/s0/status.json")):
                        what = rng.choice(place.losses)
                        place.lose(what, folder, command)
                        struck[what] += 1
                        print(f"{place.name}: lost {what} ({struck.total()} of {count})", file=sys.stderr)
                code = command.wait(600)
                assert code in (0, 75, -signal.SIGKILL), f"code {code}\n{told(folder)}"
            wrong = crash.differences(expected, folder / "runs")
            assert not wrong, f"{place.name}, after {struck.total()} losses: {wrong}"
    return struck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "submit", "losses", "all"])
    parser.add_argument("--losses", type=int, default=20, help="in all, over Ray and Slurm (default 20)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=3600, help="give the losses up after so many (default 3600)")
    parser.add_argument("--json", default=str(RECORD), metavar="FILE", help="where the record goes; - for none")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    file = Path(given.json)
    found: dict[str, Any] = json.loads(file.read_text()) if given.json != "-" and file.exists() else {}
    found |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}"}
    with places() as there:
        away = [place for place in there if place.name != "local"]
        if given.what in ("overhead", "all"):
            seconds = {place.name: overhead(place) for place in there}
            found["overhead"] = {"load": round(os.getloadavg()[0], 1), "seconds": seconds}
            print(f"overhead: {seconds}", file=sys.stderr)
        if given.what in ("submit", "all"):
            seconds = {"plan" if place.name == "local" else place.name: submit(place) for place in there}
            found["submit"] = {"load": round(os.getloadavg()[0], 1), "jobs": JOBS, "seconds": seconds}
            print(f"submit: {found['submit']}", file=sys.stderr)
        if given.what in ("losses", "all"):
            rng, end = random.Random(seed), time.monotonic() + given.seconds
            struck = {p.name: dict(losses(p, given.losses // len(away), rng, end)) for p in away}
            found["losses"] = {"seed": seed, "differences": 0, "struck": struck}
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if given.json != "-":
        file.write_text(text)


if __name__ == "__main__":
    main()
