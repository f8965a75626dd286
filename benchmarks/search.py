"""The search behind the `ghost` recipes: every trial, its settings, and its accuracy on held-out images.

    nice -n 19 python benchmarks/search.py [STAGE...]      goes on where it was stopped; a trial is a run of ghost's own

Trials are judged by the last epoch's accuracy on 5,000 images held out of the training set. The test set plays no part:
only 100 of its images are looked at, because a run needs some, and their figure is not kept. The record is
benchmarks/results/search.json, a trial at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostcli.records import record
from ghostcli.records.storage import write_json

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "search.json"
HELD_OUT, TEST_IMAGES = 5_000, 100

#: What the first trials of this project found good together; each stage changes a part of it.
SGD = {
    "optim.name": "sgd",
    "optim.lr": 0.4,
    "optim.anneal": "linear",
    "optim.warmup": 0.2,
    "optim.weight_decay": 5e-4,
    "train.ema": 0.0,
    "train.label_smoothing": 0.1,
    "augment.pad": 2,
}
ADAMW = {"optim.name": "adamw", "optim.lr": 0.01, "optim.weight_decay": 0.05}
MUON = SGD | {"optim.name": "muon", "optim.lr": 0.05, "optim.rest_lr": 0.2}
#: The best of the first stage, of which the second changes one value at a time.
BEST = SGD | {"optim.lr": 0.8}


@dataclass(frozen=True)
class Trial:
    """One training: `settings` are what differs from the recipe `ghost`. With a `teacher`, the student is taught."""

    stage: str
    name: str
    settings: dict[str, object]
    student: str = "gns:0.25"
    epochs: int = 8
    seed: int = 0
    teacher: str | None = None

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.name}/{self.student}/{self.epochs}/s{self.seed}"

    def command(self, runs: Path) -> list[str]:
        settings = self.settings | {"data.validation": HELD_OUT, "data.limit_test": TEST_IMAGES}
        words = [word for key, value in settings.items() for word in ("-s", f"{key}={_toml(value)}")]
        common = ["--recipe", "ghost", "--epochs", str(self.epochs), "--seed", str(self.seed), "--runs", str(runs)]
        verb = ["distill", self.teacher, "--student"] if self.teacher else ["train-teacher"]
        return [*verb, self.student, *common, *words]


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def trials() -> list[Trial]:
    """All trials in order. A stage only changes values that earlier stages left open."""
    made = [Trial("optimiser", "as ghost ships", {})]
    made += [Trial("optimiser", f"sgd {lr:g}", SGD | {"optim.lr": lr}) for lr in (0.4, 0.2, 0.8, 1.6)]
    made += [
        Trial("optimiser", f"muon {lr:g}, rest {rest:g}", MUON | {"optim.lr": lr, "optim.rest_lr": rest})
        for lr, rest in ((0.05, 0.2), (0.05, 0.8), (0.1, 0.8))
    ]
    made += [Trial("optimiser", "adamw 0.01", SGD | ADAMW)]
    ways: dict[str, dict[str, object]] = {
        "average of 0.98": {"train.ema": 0.98},
        "smoothing 0.05": {"train.label_smoothing": 0.05},
        "decay 1e-3": {"optim.weight_decay": 1e-3},
        "batch 128, half the rate": {"train.batch_size": 128, "optim.lr": 0.4},
        "padding 4": {"augment.pad": 4},
        "warm-up 0.1": {"optim.warmup": 0.1},
        "random flips": {"augment.flip": "random"},
        "zeros around": {"augment.fill": "zeros"},
        "cosine": {"optim.anneal": "cosine"},
    }
    made += [Trial("one at a time", name, BEST | changed) for name, changed in ways.items()]
    # Does the rate that is best for 8 epochs stay the best when there is more time?
    made += [Trial("longer", f"sgd {lr:g}", SGD | {"optim.lr": lr}, epochs=32) for lr in (0.8, 0.4)]
    # Which teaching? The teacher has seen the held-out images too, so these figures compare with each other alone.
    kd = {"distill.kind": "kd", "distill.alpha": 0.1, "distill.temperature": 4.0}
    kinds: dict[str, dict[str, object]] = {
        "kd, T = 4": kd,
        "kd, T = 2": kd | {"distill.temperature": 2.0},
        "kd, T = 1": kd | {"distill.temperature": 1.0},
        "kd, T = 4, standardised": kd | {"distill.standardize": True},
        "dist": kd
        | {"distill.kind": "dist", "distill.alpha": 0.5, "distill.inter_weight": 2.0, "distill.intra_weight": 2.0},
        "dkd": kd | {"distill.kind": "dkd", "distill.alpha": 0.5, "distill.warmup_epochs": 2},
    }
    made += [
        Trial("teaching", name, BEST | changed, epochs=16, teacher="pretrained/gns-1.0")
        for name, changed in kinds.items()
    ]
    # What is best for a taught network that has more time? The same teacher, so again: compare these with each other.
    taught = BEST | kinds["kd, T = 2"]
    longer: dict[str, dict[str, object]] = {
        "kd, T = 2": {},
        "decay 2e-4": {"optim.weight_decay": 2e-4},
        "decay 1e-4": {"optim.weight_decay": 1e-4},
        "padding 4": {"augment.pad": 4},
        "decay 5e-5": {"optim.weight_decay": 5e-5},
        "rate 0.4": {"optim.lr": 0.4},
        "standardised": {"distill.standardize": True},
        "muon 0.05, rest 0.8": {"optim.name": "muon", "optim.lr": 0.05, "optim.rest_lr": 0.8},
    }
    made += [
        Trial("taught for longer", name, taught | changed, epochs=32, teacher="pretrained/gns-1.0")
        for name, changed in longer.items()
    ]
    return made


def carry_out(trial: Trial, runs: Path) -> dict[str, object]:
    """Train (or find) the trial's run; returns its line of the record."""
    command = trial.command(runs)
    done = subprocess.run(
        [sys.executable, "-m", "ghostcli", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode == 75:
        raise KeyboardInterrupt
    found = json.loads(done.stdout) if done.stdout else {}
    line = asdict(trial) | {"status": found.get("status")}
    if found.get("status") == "done":
        run = record.find(runs, found["run"])
        last = run.metrics()[-1]
        line |= {
            "validation": round(last["validation"]["accuracy"], 2),
            "train": round(last["train_accuracy"], 2),
            "seconds": round(run.result.train_seconds, 1),
            "run": run.id,
            "torch": run.result.environment.torch,
        }
    return line


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("stages", nargs="*", help="only these stages")
    asks.add_argument("--runs", type=Path, default=ROOT / "runs" / "search", help="where the runs lie")
    asks.add_argument("--jobs", type=int, default=1, help="how many trials run side by side, each with one thread")
    chosen = asks.parse_args()
    lines: dict[str, dict] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    left = [t for t in trials() if t.key not in lines and (not chosen.stages or t.stage in chosen.stages)]

    with ThreadPoolExecutor(chosen.jobs) as pool:
        for trial, line in zip(left, pool.map(lambda trial: carry_out(trial, chosen.runs), left), strict=True):
            lines[trial.key] = line
            write_json(RECORD, lines, "search record")
            print(trial.key, line.get("validation"), flush=True)


if __name__ == "__main__":
    main()
