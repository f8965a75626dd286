"""Size and time of `ghost report` for a study of 60 runs of 200 epochs on 10,000 test images.

The records are made by hand (tests/report_runs.py): real files, invented numbers. Usage:

    python benchmarks/report.py        needs playwright and a Chromium for the time to open the page
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from newcomer import machine
from report_runs import CHAIN, ENSEMBLE, write_run
from scale import measured

SEEDS, REPEATS = 5, 5
STUDENTS = {"gns:1.0": 91.4, "gns:1.3": 92.4, "gns:2.8": 93.9}
WAYS = {"plain": (), "kd": ("resnet50",), "chain": CHAIN, "ensemble": ENSEMBLE}


def make(runs: Path) -> int:
    """3 students x 4 ways x 5 seeds; returns how many runs there are."""
    for student, accuracy in STUDENTS.items():
        for i, (strategy, teachers) in enumerate(WAYS.items()):
            for seed in range(SEEDS):
                reached = accuracy + 0.3 * i + 0.1 * seed
                write_run(runs, student, strategy, teachers, seed, reached, test_images=10_000)
    return len(STUDENTS) * len(WAYS) * SEEDS


def opened(file: Path) -> float | None:
    """Milliseconds until a Chromium has loaded the page, the median of `REPEATS`; None without a browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None:
        return None
    times = []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(REPEATS):
            page = chromium.new_page()
            page.goto(file.as_uri())
            times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            page.close()
        chromium.close()
    return round(statistics.median(times), 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, file = Path(folder) / "runs", Path(folder) / "report.html"
        count = make(runs)
        words = ["report", "--runs", str(runs), "--out", str(file)]
        turns = [measured(words, Path(folder) / "cache") for _ in range(REPEATS)]
        found = {
            "runs": count,
            "bytes": file.stat().st_size,
            "seconds_to_write": statistics.median(turn["seconds"] for turn in turns),
            "cpu_seconds_to_write": statistics.median(turn["processor_seconds"] for turn in turns),
            "milliseconds_to_open": opened(file),
            "machine": machine(),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
