"""How many trainings at once until a device gives no more: images a second of 1, 2, 4, ... processes together.

    python benchmarks/crowd.py --device cuda --json benchmarks/crowd-cuda.json

Invariant: all processes of a round train over the same seconds, each by the engine's own update.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def train(model: str, batch: int, device_name: str, seconds: float) -> None:
    """The body of one process: says `ready` when warm, trains once it is told to, prints its images a second."""
    import torch

    from ghostcli.deploy import bench
    from ghostcli.engine.device import arithmetic, pick

    device = pick(device_name)
    recipe = bench.bench_recipe(batch)
    update = bench.make_update(model, recipe, bench.noise(batch, 10), device)
    step, index, wait = bench.stepper(bench.captured(update)), torch.arange(batch, device=device), bench.waiter(device)
    with arithmetic(recipe.engine, device):
        for _ in range(6 if device.type == "cuda" else 2):
            step(index)
        wait()
        print("ready", flush=True)
        sys.stdin.readline()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            step(index)
            wait()  # or the processor would run ahead of the device for as long as its queue is deep
            steps += 1
        print(batch * steps / (time.perf_counter() - began), flush=True)


def together(count: int, asked: argparse.Namespace) -> float:
    """Images a second of `count` processes in all."""
    command = [sys.executable, __file__, "--train", "--model", asked.model, "--batch", str(asked.batch)]
    command += ["--device", asked.device, "--seconds", str(asked.seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        if any(worker.stdout.readline().strip() != "ready" for worker in workers):
            raise SystemExit(f"crowd: one of {count} processes did not start; its message stands above")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(float(worker.stdout.readline()) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16], metavar="K")
    parser.add_argument("--model", default="gns:1.0")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if min(*asked.processes, asked.batch) < 1 or asked.seconds <= 0:
        parser.error("--processes, --batch and --seconds: need more than 0")
    if asked.train:
        train(asked.model, asked.batch, asked.device, asked.seconds)
        return
    rows: list[dict[str, float]] = []
    alone = None
    for count in asked.processes:
        speed = together(count, asked)
        alone = alone or speed
        ratio = speed / alone
        rows.append({"processes": count, "images_per_second": round(speed, 1), "times the first": round(ratio, 3)})
        print(f"{count:3} at a time: {speed:10,.0f} images/s in all, {ratio:.2f} x the first")
        if asked.json:
            found = {"model": asked.model, "batch": asked.batch, "device": asked.device, "rows": rows}
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
