"""What was tried before the task of `ghost demo` was chosen: each setting alone and taught, five seeds each.

A run that is in --runs already is found. The teacher is that of the demo. Usage:

    python benchmarks/demo_choice.py --runs runs/choice --out benchmarks/results/demo-choice.json [SETTING...]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from ghostcli import plan
from ghostcli.comparison.stats import Sample, difference
from ghostcli.recipe import load
from ghostcli.run import launch
from ghostcli.run.place import Place

SEEDS = range(5)
STUDENT, TEACHER = "gns:0.2", "gns:0.5"
#: Name -> keys that differ from the recipe smoke/few.
SETTINGS: dict[str, dict[str, object]] = {
    "the demo": {},
    "no average": {"train.ema": 0.0},
    "no average, 20 epochs": {"train.ema": 0.0, "train.epochs": 20},
    "no average, 28 epochs": {"train.ema": 0.0, "train.epochs": 28},
    "SGD, no average, 20 epochs": {
        "train.ema": 0.0,
        "train.epochs": 20,
        "optim.name": "sgd",
        "optim.lr": 0.03,
        "optim.momentum": 0.9,
        "optim.warmup": 0.1,
    },
    "no average, 20 epochs, batches of 25": {"train.ema": 0.0, "train.epochs": 20, "train.batch_size": 25},
}


def accuracies(jobs: list[plan.Job], runs: Path) -> list[float]:
    options = launch.Options(runs, "cpu", jobs=2, quiet=True, place=Place(cpus=1))
    return [run.result.accuracy.last for run in launch.carry_out(plan.order(jobs), options)]


def tried(keys: dict[str, object], runs: Path, teacher: plan.Job) -> dict[str, object]:
    """Accuracies of both sides in percent, and their difference with its interval over seeds."""
    few = load("smoke/few", [f"{key}={value}" for key, value in keys.items()])
    common = (few.recipe, few.name)
    alone = accuracies([plan.plain(STUDENT, seed, *common) for seed in SEEDS], runs)
    taught = accuracies([plan.chain((teacher,), STUDENT, seed, *common, runs) for seed in SEEDS], runs)
    a, b = (Sample(np.array(side), seeds=list(SEEDS)) for side in (taught, alone))
    found = difference(a, b, paired=True)
    return {
        "alone": {"mean": round(statistics.mean(alone), 2), "sd": round(statistics.stdev(alone), 2), "each": alone},
        "taught": {"mean": round(statistics.mean(taught), 2), "sd": round(statistics.stdev(taught), 2), "each": taught},
        "difference": [round(value, 2) for value in (found.mean, found.low, found.high)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    everything = load("smoke/demo")
    teacher = plan.plain(TEACHER, 0, everything.recipe, everything.name)
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for name in asked.settings:
        found[name] = tried(SETTINGS[name], asked.runs, teacher)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
