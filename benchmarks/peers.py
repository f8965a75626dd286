"""An epoch of ghost against an epoch of what a user would take instead: plain, and taught by a trained network.

    pip install torchdistill lightly-train      optional: what is missing is named and left out
    python benchmarks/peers.py                  some minutes; writes benchmarks/results/peers.json

Invariant: what is compared takes turns on the same machine, on the same images, student and teacher, with as many
threads (OMP_NUM_THREADS) and loader workers. Each contestant is a process of its own, so its peak memory is its own.
Every round is written down when it is over. It runs on the CPU, and wants an otherwise idle one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peer_loops import ALPHA, DIFFERS, PAD, TEMPERATURE, Work
from ghostcli.deploy.timer import spread
from ghostcli.records.storage import write_json

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "peers.json"
#: Contestant -> (its package, the epochs that it has). `taught again` reads what `taught` has just asked.
WAYS = {
    "ghost": ("", ("plain", "taught", "taught again")),
    "torchdistill": ("torchdistill", ("plain", "taught")),
    "tutorial": ("", ("plain", "taught")),
    "lightly-train": ("lightly-train", ("taught",)),
}


Keep = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass
class Contestant:
    """A way of training, in a process that waits for its turn."""

    way: str
    lesson: str
    process: subprocess.Popen[str]
    log: Path
    turns: list[dict[str, float]] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """What it says next. SystemExit, with the last line of its log, where it has failed."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        last = (self.log.read_text(errors="replace").strip().splitlines() or ["no reason is known"])[-1]
        raise SystemExit(f"{self.way}, {self.lesson}: failed: {last}")

    def turn(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its log says why
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        self.turns.append(self.told())

    def summary(self, images: int) -> dict[str, Any]:
        seconds = spread([turn["seconds"] for turn in self.turns])
        return {
            "seconds": asdict(seconds),
            "images/s": round(images / seconds.median, 1),
            "call": spread([turn["call"] for turn in self.turns]).median,
            "MiB": max(turn["peak"] for turn in self.turns),
        }


@contextlib.contextmanager
def started(way: str, lesson: str, work: Work) -> Iterator[Contestant]:
    """A contestant, warmed up. It ends with the block."""
    log = Path(work.folder) / f"{way}-{lesson}.log"
    command = [sys.executable, str(ROOT / "benchmarks" / "peer_loops.py"), way, lesson, json.dumps(asdict(work))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as errors, subprocess.Popen(command, stderr=errors, **pipes) as process:
        try:
            yield Contestant(way, lesson, process, log)
        except BaseException:
            process.kill()
            raise


def compared(contestants: Sequence[Contestant], images: int) -> dict[str, Any]:
    """What each took, and how many times faster than each other one ghost's epochs were, as ratios of the medians.

    The quartiles of a ratio are those of the rounds' own ratios.
    """
    epochs: dict[str, dict[str, Any]] = {}
    faster: dict[str, dict[str, float]] = {}
    for one in contestants:
        epochs.setdefault(one.lesson, {})[one.way] = one.summary(images)
        for ours in contestants:
            if ours.way != "ghost" or one.way == "ghost" or ours.lesson.split()[0] != one.lesson:
                continue
            theirs, own = ([turn["seconds"] for turn in each.turns] for each in (one, ours))
            paired = spread([a / b for a, b in zip(theirs, own, strict=True)])
            ratio = spread(theirs).median / spread(own).median
            found = {"ratio": round(ratio, 3), "low": round(paired.low, 3), "high": round(paired.high, 3)}
            faster[f"{ours.lesson} / {one.way}, {one.lesson}"] = found
    return {"epochs": epochs, "ghost's times faster": faster}


def machine(said: dict[str, Any]) -> dict[str, Any]:
    """The machine; `said` is a contestant's word on the device and its threads."""
    return {
        **said,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def race(work: Work, ways: Sequence[str], rounds: int, keep: Keep) -> None:
    """All epochs of one student, in turns; `keep` is handed what is known after each round."""
    with contextlib.ExitStack() as stack:
        contestants = []
        for way in ways:
            for lesson in WAYS[way][1]:
                contestants.append(stack.enter_context(started(way, lesson, work)))
                said = contestants[-1].told()
        for _ in range(rounds):
            for one in contestants:
                one.turn()
                print(".", end="", file=sys.stderr, flush=True)
            keep(said, compared(contestants, work.images))
        print(file=sys.stderr)


def show(student: str, found: dict[str, Any]) -> None:
    print(f"\n{student}")
    for lesson, ways in found["epochs"].items():
        for way, one in ways.items():
            seconds = one["seconds"]
            quartiles = f"[{seconds['low']:.2f}, {seconds['high']:.2f}], n = {seconds['n']}"
            rate = f"{one['images/s']:8.0f} images/s  {one['MiB']:6.0f} MiB"
            print(f"  {f'{way}, {lesson}':26} {seconds['median']:8.2f} s  {quartiles}  {rate}")
    for name, one in found["ghost's times faster"].items():
        print(f"  ghost {name:40} {one['ratio']:6.2f} x  [{one['low']:.2f}, {one['high']:.2f}]")


def missing(way: str) -> bool:
    package = WAYS[way][0]
    return bool(package) and importlib.util.find_spec(package.replace("-", "_")) is None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", action="append", choices=WAYS, help="contestants (default: all that are installed)")
    parser.add_argument("--student", action="append", help="default: gns:0.25 and gns:1.0")
    parser.add_argument("--teacher", default="pretrained/gns-1.0", help="pretrained/NAME")
    parser.add_argument("--images", type=int, default=768, help="of an epoch, a multiple of the batch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes of a DataLoader")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which all take turns")
    parser.add_argument("--json", type=Path, default=RECORD, metavar="OUT", help="write all figures here")
    asked = parser.parse_args(arguments)
    if min(asked.rounds, asked.batch, asked.images) < 1 or asked.workers < 0:
        parser.error("--rounds, --batch and --images: need 1 or more; --workers: 0 or more")
    if asked.images % asked.batch:
        parser.error(f"--images: need a multiple of the batch, {asked.batch}")
    for way in asked.way or WAYS:
        if missing(way):
            told = f"{way} is not installed (pip install {WAYS[way][0]})"
            parser.error(told) if asked.way else print(f"{told}: left out", file=sys.stderr)
    ways = [way for way in WAYS if way in (asked.way or WAYS) and not missing(way)]

    packages = ["torch", "torchvision", *filter(None, (WAYS[way][0] for way in ways))]
    report: dict[str, Any] = {
        "machine": {},
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in packages},
        **{key: getattr(asked, key) for key in ("images", "batch", "workers", "rounds", "teacher")},
        "pad": PAD,
        "temperature": TEMPERATURE,
        "alpha": ALPHA,
        "differs": {way: DIFFERS[way] for way in ways},
        "students": {},
    }
    for student in asked.student or ["gns:0.25", "gns:1.0"]:

        def keep(said: dict[str, Any], found: dict[str, Any], student: str = student) -> None:
            report["machine"] = report["machine"] or machine(said)
            report["students"][student] = found
            write_json(asked.json, report)

        with tempfile.TemporaryDirectory() as folder:
            race(
                Work(student, asked.teacher, asked.images, asked.batch, asked.workers, folder), ways, asked.rounds, keep
            )
        show(student, report["students"][student])


if __name__ == "__main__":
    main()
