"""Where the time of a training step goes: the operations and kernels of ten steps, the slowest first.

    python benchmarks/profile_steps.py --device cuda --json build/gpu/profile-cuda.json       another: --model gns:0.25

On a GPU the steps are replays of the captured graph, and the rows are kernels on the device. On a CPU the rows are
operations. `idle` is the share of the ten steps in which none of them ran: on a GPU it waited for the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEPS, WARM = 10, 6  # a captured step is eager for the first three


def profiled(model: str, precision: str, batch: int, device_name: str) -> dict[str, Any]:
    """Ten steps of `model`: {"seconds", "idle", "rows": [{"name", "calls", "ms", "share"}]}, times of one step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from ghostcli.deploy import bench
    from ghostcli.engine.capture import Captured
    from ghostcli.engine.device import arithmetic, describe, pick, uncollected

    device = pick(device_name)
    recipe = bench.bench_recipe(batch, precision=precision)
    run = bench.captured(bench.make_update(model, recipe, bench.noise(batch, 10), device))
    step, wait = bench.stepper(run), bench.waiter(device)
    index = torch.arange(batch, device=device)
    on_gpu = device.type == "cuda"
    with arithmetic(recipe.engine, device), uncollected():
        for _ in range(WARM):
            step(index)
        wait()
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
            began = time.perf_counter()
            for _ in range(STEPS):
                step(index)
            wait()
            seconds = (time.perf_counter() - began) / STEPS
    rows = []
    for event in found.key_averages():
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:  # its kernels have rows of their own
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0:
            rows.append({"name": event.key[:100], "calls": event.count / STEPS, "ms": micros / 1e3 / STEPS})
    rows.sort(key=lambda row: -row["ms"])
    busy = sum(row["ms"] for row in rows)
    for row in rows:
        row |= {"ms": round(row["ms"], 4), "share": round(row["ms"] / busy, 4)}
    about = {"device": describe(device), "torch": torch.__version__, "model": model, "precision": precision}
    about |= {"batch": batch, "captured": isinstance(run, Captured) and not run.refused}
    return about | {"seconds": seconds, "idle": round(max(0.0, 1 - busy / 1e3 / seconds), 4), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gns:1.0")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--top", type=int, default=20, help="rows to print")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all rows")
    asked = parser.parse_args(arguments)
    if asked.batch < 2:
        parser.error("--batch: needs at least 2")
    found = profiled(asked.model, asked.precision, asked.batch, asked.device)
    print(f"{found['model']}, {found['device']}: {1e3 * found['seconds']:.2f} ms a step, {found['idle']:.0%} idle")
    for row in found["rows"][: asked.top]:
        print(f"{row['ms']:9.3f} ms {row['share']:6.1%} {row['calls']:7.1f} x  {row['name']}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
