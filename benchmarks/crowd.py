"""How many trainings at once until a device gives no more: images a second of 1, 2, 4, ... processes together.

    python benchmarks/crowd.py --device cuda --json benchmarks/crowd-cuda.json

The measuring is that of `--jobs auto` (ghostcli/packing.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ghostcli.packing import together
from ghostcli.run.job import Options


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16], metavar="K")
    parser.add_argument("--model", default="gns:1.0")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    asked = parser.parse_args(arguments)
    if min(*asked.processes, asked.batch) < 1 or asked.seconds <= 0:
        parser.error("--processes, --batch and --seconds: need more than 0")
    rows: list[dict[str, float]] = []
    alone, options = None, Options(Path("runs"), asked.device)
    for count in asked.processes:
        rates = together(asked.model, asked.batch, options, count, asked.seconds)
        if rates is None:
            sys.exit(f"crowd: one of {count} processes failed; `ghost bench` says why")
        speed = sum(rates)
        alone = alone or speed
        ratio = speed / alone
        rows.append({"processes": count, "images_per_second": round(speed, 1), "times the first": round(ratio, 3)})
        print(f"{count:3} at a time: {speed:10,.0f} images/s in all, {ratio:.2f} x the first")
        if asked.json:
            found = {"model": asked.model, "batch": asked.batch, "device": asked.device, "rows": rows}
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
