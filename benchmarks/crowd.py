"""How many trainings at once until a device gives no more: images a second of 1, 2, 4, ... processes or streams.

    python benchmarks/crowd.py --device cuda --json benchmarks/crowd-cuda.json
    python benchmarks/crowd.py --device cuda --streams      threads of one process, as with ghost's --streams

The measuring of processes is that of `--jobs auto` (ghostcli/packing.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ghostcli.packing import together
from ghostcli.run.job import Options
from ghostcli.run.streams import MOST, own_stream

#: Steps between two times that a thread waits for its stream.
STRETCH = 20


def streaming(model: str, batch: int, options: Options, count: int, seconds: float) -> list[float] | None:
    """Images per second of each of `count` trainings on noise, in threads that take turns, for `seconds`."""
    import torch

    from ghostcli.deploy import bench
    from ghostcli.engine import turns
    from ghostcli.engine.device import arithmetic, pick

    recipe, group, rates = bench.bench_recipe(batch), turns.Turns(), []
    ready = threading.Barrier(count)

    def train() -> None:
        try:
            with group.taking(), own_stream(device := pick(options.device)), arithmetic(recipe.engine, device):
                rates.append(rate(device))
        except BaseException:
            ready.abort()  # the others must not wait for this one
            raise

    def rate(device: torch.device) -> float:
        step = bench.stepper(bench.captured(bench.make_update(model, recipe, bench.noise(batch, 10), device)))
        index = torch.arange(batch, device=device)

        def steps(number: int) -> None:
            for _ in range(number):
                step(index)
                turns.pass_on()
            with turns.away():
                if device.type == "cuda":
                    torch.cuda.current_stream(device).synchronize()

        steps(4)
        with turns.away():
            ready.wait()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            steps(STRETCH)
            done += STRETCH
        return done * batch / (time.perf_counter() - began)

    threads = [threading.Thread(target=train) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates if len(rates) == count else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16], metavar="K")
    parser.add_argument("--streams", action="store_true", help="threads of one process instead of processes")
    parser.add_argument("--model", default="gns:1.0")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args(arguments)
    if min(*asked.processes, asked.batch) < 1 or asked.seconds <= 0:
        parser.error("--processes, --batch and --seconds: need more than 0")
    if asked.streams and max(asked.processes) > MOST:
        parser.error(f"--processes: with --streams at most {MOST}")
    rows: list[dict[str, float]] = []
    measure, kind = (streaming, "streams") if asked.streams else (together, "processes")
    alone, options = None, Options(Path("runs"), asked.device)
    for count in asked.processes:
        rates = measure(asked.model, asked.batch, options, count, asked.seconds)
        if rates is None:
            sys.exit(f"crowd: one of {count} {kind} failed; `ghost bench` says why")
        speed = sum(rates)
        alone = alone or speed
        ratio = speed / alone
        rows.append({kind: count, "images_per_second": round(speed, 1), "times the first": round(ratio, 3)})
        print(f"{count:3} at a time: {speed:10,.0f} images/s in all, {ratio:.2f} x the first")
        if asked.json:
            found = {"model": asked.model, "batch": asked.batch, "device": asked.device, "rows": rows}
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
