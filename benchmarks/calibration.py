"""How often does `ghost` call one side better where nothing differs but seeds? On real trainings.

    python benchmarks/calibration.py train --runs runs/calibration      twenty seeds, and twenty of a shorter training
    python benchmarks/calibration.py judge --runs runs/calibration --out benchmarks/results/calibration.json

`judge` draws two sets of n runs without a common run, many times, and asks for the verdict of each pair. Within one
group a verdict of "better" or "worse" is false; between the two groups, "better" for the longer training is right. The
draws share runs, so what a rate is worth follows from the number of runs, not of draws: `apart` is how many pairs of
sets have no run in common.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ghostcli.comparison.admission import admit
from ghostcli.comparison.groups import RunGroup, cohorts
from ghostcli.comparison.rows import MARGIN
from ghostcli.comparison.verdicts import UNDECIDED, judge
from ghostcli.records import record
from ghostcli.records.storage import write_json

SIZES = (3, 5, 10)
SEEDS = range(20)
EPOCHS = {"whole": 4, "shorter": 3}


def commands(runs: Path, student: str, recipe: str) -> list[list[str]]:
    """The trainings: those of one seed side by side, so that an interrupted queue leaves pairs."""
    common = ("--recipe", recipe, "--runs", str(runs))
    return [
        ["train-teacher", student, *common, "--epochs", str(epochs), "--seed", str(seed)]
        for seed in SEEDS
        for epochs in EPOCHS.values()
    ]


def sides(ours: RunGroup, theirs: RunGroup, n: int, draws: int) -> list[tuple[RunGroup, RunGroup]]:
    """`draws` random pairs of n runs each, the same at each call. One group: two sets without a common run."""
    random = np.random.default_rng(n)

    def part(group: RunGroup, chosen: Sequence[int]) -> RunGroup:
        return replace(group, runs=tuple(group.runs[i] for i in sorted(chosen)), failed=())

    found = []
    for _ in range(draws):
        first = random.permutation(len(ours.runs))
        second = first[n:] if ours is theirs else random.permutation(len(theirs.runs))
        found.append((part(ours, first[:n]), part(theirs, second[:n])))
    return found


def counted(ours: RunGroup, theirs: RunGroup, draws: int) -> list[dict[str, object]]:
    """Verdicts by the number of runs a side, as far as there are enough."""
    rows = []
    for n in SIZES:
        apart = len(ours.runs) // (2 * n) if ours is theirs else min(len(ours.runs), len(theirs.runs)) // n
        if not apart:
            continue
        pairs = sides(ours, theirs, n, draws)
        verdicts = Counter(judge([a.minus(b)], MARGIN)[0].verdict or UNDECIDED for a, b in pairs)
        rows.append(
            {"runs a side": n, "draws": draws, "apart": apart}
            | {name: round(verdicts[name] / draws, 4) for name in ("better", "worse", "equivalent", UNDECIDED)}
        )
    return rows


def judged(folders: Sequence[Path], draws: int) -> dict[str, object]:
    """The record: for each group of runs that differ in their seeds alone, and for each two groups of one student."""
    admitted = admit([run for folder in folders for run in record.scan(folder)])
    groups = [group for cohort in cohorts(admitted.runs) for group in cohort.groups if len(group.runs) > 1]
    groups.sort(key=lambda group: (group.student, group.strategy, -group.steps))
    found = []
    for i, group in enumerate(groups):
        scores = group.accuracy()
        about = {"group": group.about.group, "student": group.student, "strategy": group.strategy}
        about |= {"epochs": group.about.epochs, "runs": len(group.runs), "mean": round(float(scores.mean()), 3)}
        about |= {"sd": round(float(scores.std(ddof=1)), 3), "accuracies": [round(float(s), 2) for s in scores]}
        about["nothing differs"] = counted(group, group, draws)
        others = [other for other in groups[i + 1 :] if other.student == group.student]
        about["against"] = [
            {
                "epochs": other.about.epochs,
                "strategy": other.strategy,
                "difference": round(float(scores.mean() - other.accuracy().mean()), 3),
                "its standard error": round(
                    math.hypot(*(float(g.accuracy().std(ddof=1)) / len(g.runs) ** 0.5 for g in (group, other))), 3
                ),
                "verdicts": counted(group, other, draws),
            }
            for other in others
        ]
        found.append(about)
    return {"left out": len(admitted.left_out), "groups": found}


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("what", choices=("train", "judge"))
    asks.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/calibration")])
    asks.add_argument("--student", default="gns:0.25")
    asks.add_argument("--recipe", default="ghost/fast")
    asks.add_argument("--draws", type=int, default=1000)
    asks.add_argument("--out", type=Path)
    chosen = asks.parse_args()
    if chosen.what == "train":
        for command in commands(chosen.runs[0], chosen.student, chosen.recipe):
            code = subprocess.run([sys.executable, "-m", "ghostcli", *command], check=False).returncode
            if code:
                sys.exit(code)
        return
    found = judged(chosen.runs, chosen.draws)
    if chosen.out:
        write_json(chosen.out, found, "calibration record")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
