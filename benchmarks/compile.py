"""What a device's first trainings wait for: their kernels compiled, their steps captured. Later ones find them cached.

    python benchmarks/compile.py --device cuda --json benchmarks/compile-cuda.json

Invariant: the seconds are those from a fresh process's first step to its first replayed one, everything included.
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

STEPS = 5  # a captured step is eager for the first three
WORK = ("gns:1.0/float32", "gns:1.0/bfloat16", "gns:2.8/float32", "gnd:1.0/float32")


def first_steps(model: str, precision: str, batch: int, device_name: str) -> float:
    """Seconds until the first replayed step of a network is done."""
    import torch

    from ghostcli.deploy import bench
    from ghostcli.engine.device import arithmetic, pick

    device = pick(device_name)
    recipe = bench.bench_recipe(batch, precision=precision)
    update = bench.make_update(model, recipe, bench.noise(batch, 10), device)
    step, index = bench.stepper(bench.captured(update)), torch.arange(batch, device=device)
    began = time.perf_counter()
    with arithmetic(recipe.engine, device):
        for _ in range(STEPS):
            step(index)
        bench.waiter(device)()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", nargs="*", default=WORK, metavar="MODEL/PRECISION", help=" ".join(WORK))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for work in asked.work:
        model, _, precision = work.partition("/")
        if precision not in ("float32", "bfloat16"):
            parser.error(f"{work}: need MODEL/float32 or MODEL/bfloat16")
        seconds = first_steps(model, precision, asked.batch, asked.device)
        rows.append({"model": model, "precision": precision, "seconds": round(seconds, 1)})
        print(f"{work:20} {seconds:6.1f} s for the first {STEPS} steps", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps({"batch": asked.batch, "device": asked.device, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
