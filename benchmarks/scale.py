"""Does ghost carry a sweep? Time and memory of what reads or plans many runs, at growing sizes.

    nice python benchmarks/scale.py                     some minutes; writes benchmarks/results/scale.json
    python benchmarks/scale.py --runs 1000 --json -     a smaller one, printed

The records are made by hand (tests/report_runs.py): real files, invented numbers. A tenth of the runs failed. Each
command runs in a new process, three times; the median time counts, and the largest memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from report_runs import write_run  # noqa: E402

RECORD = Path(__file__).parent / "results" / "scale.json"
SEEDS, REPEATS = 5, 3
COMMANDS = {
    "ghost table": ["table"],
    "ghost runs list": ["runs", "list"],
    "ghost reproduce --dry-run": ["reproduce", "all", "--seeds", "SEEDS", "--dry-run"],
}
#: Plans of `ghost reproduce all` with so many seeds have about as many runs as there are records.
RUNS_PER_SEED = 33


def make(runs: Path, count: int) -> None:
    """`count` runs: students without and with a teacher, with many settings, five seeds each; a tenth failed."""
    made, setting = 0, 0
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


def measured(words: list[str]) -> dict[str, float]:
    """Seconds (median) and megabytes (largest) of a command in a new process."""
    times, most = [], 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen([sys.executable, "-m", "ghostcli", *words], stdout=nowhere, cwd=ROOT)
            _, status, used = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - began)
        if status:
            sys.exit(f"scale: ghost {' '.join(words)} ended with status {status}")
        most = max(most, used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))
    return {"seconds": round(statistics.median(times), 2), "megabytes": round(most)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="the largest number of runs (default 10,000)")
    parser.add_argument("--json", default=str(RECORD), metavar="FILE", help="where the record goes; - for none")
    given = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COMMANDS}
    with tempfile.TemporaryDirectory(prefix="ghost-scale-") as folder:
        for count in sorted({given.runs // 4, given.runs // 2, given.runs}):
            runs = Path(folder) / "runs"
            shutil.rmtree(runs, ignore_errors=True)
            make(runs, count)
            for name, words in COMMANDS.items():
                seeds = str(max(1, count // RUNS_PER_SEED))
                words = [seeds if word == "SEEDS" else word for word in words]
                found[name][str(count)] = measured([*words, "--runs", str(runs)])
                print(f"{name}, {count} runs: {found[name][str(count)]}", file=sys.stderr)
    record = {"machine": machine(), "runs": given.runs, "failed": "a tenth", "figures": found}
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
