"""What was tried before the task of `ghost demo` was chosen: each setting alone and taught, five seeds each.

A run that is in --runs already is found. The teacher is that of the demo; --teacher-threads 2 trains another one by
rounding alone. Usage:

    python benchmarks/demo_choice.py --runs runs/choice --out benchmarks/results/demo-choice.json [SETTING...]

The setting "rate R" is the untaught student alone at another rate: does the rate hold it back?
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from ghostcli import plan
from ghostcli.compare.stats import Sample, difference
from ghostcli.recipe import load
from ghostcli.run import launch
from ghostcli.run.place import Place

SEEDS = range(5)
STUDENT, TEACHER = "gns:0.2", "gns:0.5"
#: Name -> keys that differ from the recipe smoke/few.
SETTINGS: dict[str, dict[str, object]] = {
    "the demo": {},
    "half the rate": {"optim.lr": 0.015},
    "batches of 34, 36 epochs": {"train.batch_size": 34, "train.epochs": 36, "optim.lr": 0.04},
    "batches of 25, 30 epochs": {"train.batch_size": 25, "train.epochs": 30, "optim.lr": 0.04},
}


def accuracies(jobs: list[plan.Job], runs: Path, threads: int) -> list[float]:
    options = launch.Options(runs, "cpu", jobs=2, quiet=True, place=Place(cpus=threads))
    return [run.result.accuracy.last for run in launch.carry_out(plan.order(jobs), options)]


def tried(keys: dict[str, object], runs: Path, teacher: plan.Job) -> dict[str, object]:
    """Accuracies of both sides in percent, and their difference with its interval over seeds."""
    few = load("smoke/few", [f"{key}={value}" for key, value in keys.items()])
    common = (few.recipe, few.name)
    alone = accuracies([plan.plain(STUDENT, seed, *common) for seed in SEEDS], runs, 1)
    taught = accuracies([plan.chain((teacher,), STUDENT, seed, *common, runs) for seed in SEEDS], runs, 1)
    a, b = (Sample(_array(side), seeds=list(SEEDS)) for side in (taught, alone))
    found = difference(a, b, paired=True)
    return {
        "alone": {"mean": round(statistics.mean(alone), 2), "sd": round(statistics.stdev(alone), 2), "each": alone},
        "taught": {"mean": round(statistics.mean(taught), 2), "sd": round(statistics.stdev(taught), 2), "each": taught},
        "difference": [round(value, 2) for value in (found.mean, found.low, found.high)],
    }


def _array(values: list[float]):
    import numpy as np

    return np.asarray(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--teacher-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    everything = load("smoke/demo")
    teacher = plan.plain(TEACHER, 0, everything.recipe, everything.name)
    accuracies([teacher], asked.runs, asked.teacher_threads)
    known = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    count = asked.teacher_threads
    mine = known.setdefault(f"a teacher trained with {count} thread{'s' * (count != 1)}", {})
    for name in asked.settings:
        if name.startswith("rate "):
            few = load("smoke/few", [f"optim.lr={name.removeprefix('rate ')}"])
            alone = accuracies([plan.plain(STUDENT, seed, few.recipe, few.name) for seed in SEEDS[:3]], asked.runs, 1)
            mine = known.setdefault("alone, at other rates", {})
            mine[name] = {"mean": round(statistics.mean(alone), 2), "each": alone}
        else:
            mine[name] = tried(SETTINGS[name], asked.runs, teacher)
        asked.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
