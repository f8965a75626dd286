"""Does ghost carry a sweep? Time and memory of what reads or plans many runs, at growing sizes.

    nice python benchmarks/scale.py                     some minutes; writes benchmarks/results/scale.json
    python benchmarks/scale.py --runs 1000 --json -     a smaller one, printed

The records are made by hand (tests/report_runs.py): real files, invented numbers. A tenth of the runs failed. Each
command runs in a new process. `again` is the second reading of the same records. On a busy machine the seconds of the
processor tell more than those on the clock: each command is one thread, but for its imports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from report_runs import write_run  # noqa: E402

RECORD = Path(__file__).parent / "results" / "scale.json"
SEEDS = 5
#: Name -> the words of the command; RUNS stands for one --seed for each run, from 0.
COMMANDS = {
    "ghost table, first": ["table"],
    "ghost table, again": ["table"],
    "ghost runs list": ["runs", "list"],
    "ghost train-teacher --dry-run": ["train-teacher", "gns:1.0", "RUNS", "--dry-run"],
}


def make(runs: Path, count: int, made: int = 0) -> None:
    """`count` runs, of which the first `made` are there: students without and with a teacher, with many settings, five
    seeds each. A tenth failed."""
    setting = made // SEEDS
    while made < count:
        taught = setting % 2 == 1
        sections = {"optim": {"lr": round(0.01 * 1.001 ** (setting // 2), 9)}}
        for seed in range(SEEDS):
            if made == count:
                return
            failed = made % 10 == 9
            how = {"status": "failed", "error": "the loss became non-finite in epoch 3"} if failed else {}
            teachers = ("resnet18",) if taught else ()
            strategy = "kd" if taught else "plain"
            reached = 80 + 10 * math.sin(setting) ** 2 + 0.2 * seed
            write_run(
                runs, "gns:1.0", strategy, teachers, seed, reached, epochs=20, sections=sections, **how
            )  # fmt: skip
            made += 1
        setting += 1


def measured(words: list[str], cache: Path) -> dict[str, float]:
    """Seconds on the clock and of the processor, and the most megabytes, of a command in a new process."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        environment = os.environ | {"GHOST_CACHE": str(cache)}
        process = subprocess.Popen(
            [sys.executable, "-m", "ghostcli", *words], stdout=nowhere, cwd=ROOT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"scale: ghost {' '.join(words)} ended with status {status}")
    most = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    busy = used.ru_utime + used.ru_stime
    return {"seconds": round(seconds, 2), "processor_seconds": round(busy, 2), "megabytes": round(most)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="the largest number of runs (default 10,000)")
    parser.add_argument("--json", default=str(RECORD), metavar="FILE", help="where the record goes; - for none")
    given = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COMMANDS}
    with tempfile.TemporaryDirectory(prefix="ghost-scale-") as folder:
        runs, made = Path(folder) / "runs", 0
        for count in sorted({given.runs // 4, given.runs // 2, given.runs}):
            make(runs, count, made)
            made = count
            for name, words in COMMANDS.items():
                seeds = [word for seed in range(count) for word in ("--seed", str(seed))]
                words = [more for word in words for more in (seeds if word == "RUNS" else [word])]
                cache = Path(folder) / f"cache{count}"
                found[name][str(count)] = measured([*words, "--runs", str(runs)], cache)
                print(f"{name}, {count} runs: {found[name][str(count)]}", file=sys.stderr)
    record = {
        "machine": machine(),
        "load": round(os.getloadavg()[0], 1),
        "runs": given.runs,
        "failed": "a tenth",
        "figures": found,
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if given.json != "-":
        Path(given.json).write_text(text)


def machine() -> str:
    """Processor and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB, python {platform.python_version()}"


if __name__ == "__main__":
    main()
