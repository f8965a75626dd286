"""The long version of the crash test: kill training with signal 9, hundreds of times, and compare every bit.

    python benchmarks/kill_loop.py --kills 300 --json kills.json

Four commands are killed at random and started again until they are done, over and over: a plain run, one fed by its
teacher's table, one whose teacher is asked at every step, and a chain with an assistant. Each time one is done, its
weights, predictions, metrics and result (clocks aside) must be those of an undisturbed run, or this ends with code 1.
`--seed` repeats a loop's choices, as far as the machine's clock lets it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import crash

EVERY_STEP = ("-s", "engine.checkpoint_minutes=1e-9")


def loop(kills: int, seed: int, seconds: float) -> dict[str, object]:
    """`kills` in all, spread evenly over the commands; AssertionError at the first bit that differs."""
    rng, began = random.Random(seed), time.monotonic()
    places: dict[str, Counter[str]] = {}
    for i, name in enumerate(crash.COMMANDS):
        share = kills * (i + 1) // len(crash.COMMANDS) - kills * i // len(crash.COMMANDS)
        expected, usual = crash.uninterrupted(name)
        argv = [*crash.COMMANDS[name], *crash.TINY, *EVERY_STEP]
        left = seconds - (time.monotonic() - began)
        with tempfile.TemporaryDirectory(prefix="ghost-kills-") as folder:
            struck = crash.kill_loop(crash.server(), argv, expected, usual, Path(folder), share, rng, left)
        places[name] = Counter(struck)
        print(f"{name}: {len(struck)} kills survived, at {len(places[name])} different places", file=sys.stderr)
    return {
        "kills": sum(count.total() for count in places.values()),
        "differences": 0,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "places": {name: dict(count.most_common()) for name, count in places.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all (default 100)")
    parser.add_argument("--seed", type=int, default=None, help="of the kills' moments (default: another each time)")
    parser.add_argument("--seconds", type=float, default=3600, help="give up after so many (default 3600)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the figures go")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", file=sys.stderr)
    try:
        figures = loop(given.kills, seed, given.seconds)
    except AssertionError as error:
        sys.exit(f"kill_loop: {error}")
    text = json.dumps(figures, indent=1)
    if given.json is not None:
        given.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
