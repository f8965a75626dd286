"""What to do with half an hour of one GPU, most worth first; started again, it goes on where it stopped.

    python benchmarks/gpu.py --minutes 30 --jobs 6        python benchmarks/gpu.py --dry-run

Invariant: every part writes its result as it goes and has a limit of its own; what is done is never done again, and
what the clock stops is stopped by a signal, so that `ghost` saves it and goes on next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds that a signalled process has to save
STUDY = 24 * 3600.0  # a study's runs end with the lease, not by a limit of their own


@dataclass(frozen=True)
class Part:
    """One command. `alone`: nothing else may run beside it; `after`: parts that must be done before."""

    name: str
    command: tuple[str, ...]
    seconds: float = STUDY
    alone: bool = False
    after: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The command as a person would type it."""
        python, *rest = self.command
        words = [
            "python" if python == sys.executable else python,
            *(word.replace(f"{ROOT}{os.sep}", "") for word in rest),
        ]
        return shlex.join(words).replace("python -m ghostcli", "ghost")


def agenda(out: Path, runs: Path) -> Iterator[Part]:
    """Minutes 0 to 10: checks and measurements, each alone, of kernels that are compiled by then. Then the study."""

    def ghost(*arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "ghostcli", *arguments)

    def script(name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, str(ROOT / "benchmarks" / name), "--device", "cuda", *arguments)

    pytest = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests"))
    speeds = ("gns:1.0", "gns:2.8", "gnd:1.0", "resnet18", "resnet50")
    yield Part("data", ghost("data", "verify", "cifar10"), 60, alone=True)
    yield Part("compile", script("compile.py", "--json", str(out / "compile-cuda.json")), 180, alone=True)
    yield Part("tests", pytest, 180, alone=True)
    yield Part("profile", script("profile_steps.py", "--json", str(out / "profile-cuda.json")), 90, alone=True)
    yield Part("engine", script("engine.py", "--json", str(out / "engine-cuda.json")), 240, alone=True)
    yield Part("bench", ghost("bench", *speeds, "--device", "cuda", "--json"), 120, alone=True)
    yield Part("crowd", script("crowd.py", "--json", str(out / "crowd-cuda.json")), 120, alone=True)
    small = ("--streams", "--model", "gns:0.25")
    yield Part("streams", script("crowd.py", "--streams", "--json", str(out / "streams-cuda.json")), 60, alone=True)
    yield Part("streams-small", script("crowd.py", *small, "--json", str(out / "streams-small.json")), 60, alone=True)

    def run(name: str, *arguments: str, seeds: Sequence[int] = (0,), after: tuple[str, ...] = ()) -> Iterator[Part]:
        for seed in seeds:
            where = ("--seed", str(seed), "--runs", str(runs), "--device", "cuda")
            yield Part(f"{name}-s{seed}", ghost(*arguments, *where), after=after)

    three, more = (0, 1, 2), (1, 2)
    taught = ("--student", "gns:1.0")
    # What the confound of Tables III and IV is worth; ResNet-18 beside it, so that it is there for what follows.
    yield from run("gns-1.0", "train-teacher", "gns:1.0", seeds=three)
    yield from run("resnet18", "train-teacher", "resnet18")
    yield from run("gns-1.0-unshuffled", "train-teacher", "gns:1.0", "-s", "data.shuffle=false", seeds=three)
    first = ("resnet18-s0",)
    yield from run("kd-resnet18", "distill", "resnet18", *taught, seeds=three, after=first)
    yield from run("kd-resnet18-t4", "distill", "resnet18", *taught, "--recipe", "paper/t4", seeds=three, after=first)
    others = ("gns:1.3", "gns:1.6", "gns:1.9", "gns:2.2", "gns:2.8", "gns:3.4", "gnd:1.0")
    for student in others:
        yield from run(student.replace(":", "-"), "train-teacher", student)
    for student in others:
        yield from run(student.replace(":", "-"), "train-teacher", student, seeds=more)
    yield from run("resnet50", "train-teacher", "resnet50")
    path = ("resnet50", "resnet34", "resnet18")
    yield from run("chain-gns-1.0", "assist-chain", *path, *taught, after=("resnet50-s0",))
    for student in ("gns:1.3", "gns:1.6"):  # the assistants are trained once, for the first of them
        name = "chain-" + student.replace(":", "-")
        yield from run(name, "assist-chain", *path, "--student", student, after=("chain-gns-1.0-s0",))
    for teacher in ("vgg13", "densenet161", "inceptionv3"):
        yield from run(teacher, "train-teacher", teacher)
    four = ("resnet50", "densenet161", "vgg13", "inceptionv3")
    for student in ("gns:1.0", "gns:2.8", "gnd:1.0"):
        name = "ensemble-" + student.replace(":", "-")
        yield from run(name, "ensemble", *four, "--student", student, after=tuple(f"{one}-s0" for one in four))
    yield from run("kd-gns-2.8", "distill", "gns:2.8", *taught, after=("gns-2.8-s0",))
    yield from run("ghost-gns-1.0", "train-teacher", "gns:1.0", "--recipe", "ghost", seeds=three)
    yield from run("ghost-resnet18", "train-teacher", "resnet18", "--recipe", "ghost")
    own = ("--recipe", "ghost/kd")
    yield from run("ghost-kd-resnet18", "distill", "resnet18", *taught, *own, seeds=three, after=("ghost-resnet18-s0",))


@dataclass
class Running:
    """A part under way. `told`: when it was asked to stop, which happens once: to `ghost` twice means at once."""

    process: subprocess.Popen[bytes]
    began: float
    told: float | None = None

    def stop(self) -> None:
        """Ask it to; kill it where it was asked long ago."""
        if self.told is None:
            self.process.terminate()
            self.told = time.monotonic()
        elif time.monotonic() - self.told > PATIENCE:
            self.process.kill()


@dataclass
class Lease:
    """The parts under way. `state` is kept in state.json: of each part its exit code and seconds."""

    out: Path
    jobs: int
    deadline: float
    state: dict[str, dict[str, float]]
    running: dict[Part, Running] = field(default_factory=dict)

    def done(self, name: str) -> bool:
        return self.state.get(name, {}).get("code") == 0

    def startable(self, waiting: Sequence[Part]) -> Part | None:
        """The first that may start now. Parts that need to be alone keep their place in the order."""
        for part in waiting:
            if part.alone:
                return None if self.running else part
            if len(self.running) >= self.jobs or any(other.alone for other in self.running):
                return None
            if all(self.done(name) for name in part.after):
                return part
        return None

    def start(self, part: Part) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {part.name}: {part.shown}", flush=True)
        threads = (os.cpu_count() or 1) // (1 if part.alone else self.jobs)
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads))}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.out / f"{part.name}.out", "ab") as out, open(self.out / f"{part.name}.log", "ab") as log:
            process = subprocess.Popen(part.command, stdout=out, stderr=log, env=environment)
        self.running[part] = Running(process, time.monotonic())

    def end(self, part: Part) -> None:
        """Write down how a part ended."""
        one = self.running.pop(part)
        seconds = round(time.monotonic() - one.began, 1)
        self.state[part.name] = {"code": one.process.returncode, "seconds": seconds}
        state = self.out / "state.json"
        state.with_suffix(".tmp").write_text(json.dumps(self.state, indent=1) + "\n")
        state.with_suffix(".tmp").replace(state)
        code = one.process.returncode
        how = {0: "done", 75: "stopped, goes on next time"}.get(code, f"ended with {code}")
        print(f"{time.strftime('%H:%M:%S')}  {part.name}: {how} after {seconds:.0f} s", flush=True)

    def carry_out(self, parts: Sequence[Part]) -> None:
        waiting = [part for part in parts if not self.done(part.name)]
        while waiting or self.running:
            while time.monotonic() < self.deadline and (part := self.startable(waiting)):
                waiting.remove(part)
                self.start(part)
            over = time.monotonic() >= self.deadline
            if not self.running:  # the clock, or a part that failed, keeps the rest back
                break
            for part, one in list(self.running.items()):
                if one.process.poll() is not None:
                    self.end(part)
                elif over or time.monotonic() - one.began > part.seconds:
                    one.stop()
            time.sleep(0.2)
        for part in waiting:
            print(f"          {part.name}: left for next time", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of the whole lease")
    parser.add_argument("--jobs", type=int, default=6, help="trainings at a time (crowd.py says how many pay)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="logs, figures and what is done")
    parser.add_argument("--dry-run", action="store_true", help="print the agenda and leave")
    asked = parser.parse_args(arguments)
    if asked.jobs < 1 or not asked.minutes > 0:
        parser.error("--jobs and --minutes: need more than 0")
    parts = list(agenda(asked.out, asked.runs))
    state_file = asked.out / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    if asked.dry_run:
        for part in parts:
            limit = f"{part.seconds:.0f} s" if part.seconds < STUDY else ""
            done = "done" if state.get(part.name, {}).get("code") == 0 else ""
            print(f"{part.name:24} {limit:>6} {done:5} {part.shown}")
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    Lease(asked.out, asked.jobs, time.monotonic() + 60 * asked.minutes, state).carry_out(parts)


if __name__ == "__main__":
    main()
