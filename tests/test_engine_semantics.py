"""What a training computes has a version, and that version is part of every run's id.

Four small trainings are compared with stored results. Where one differs by more than rounding, the arithmetic has
changed: raise `SEMANTICS` in ghostcli/recipe/digest.py, so that new seeds never join old runs, and store the new
results with `python tests/test_engine_semantics.py`. Plain PyTorch computes them: the compiled kernels, which other
tests hold to it, round as each processor does, and a teacher's training enlarges that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ghostcli.recipe.digest import SEMANTICS

STORED = Path(__file__).parent / "golden" / "semantics.json"
SMALL = [
    *("--data", "digits", "--epochs", "2", "-s", "data.limit=128", "-s", "data.limit_test=64"),
    *("-s", "train.batch_size=32"),
]
#: Rates are low: after a step of a high rate, rounding alone makes trainings differ.
WAYS = {
    "plain": ["train-teacher", "gns:0.1", "-s", "optim.lr=0.002", "-s", "train.label_smoothing=0.1"],
    "adamw": ["train-teacher", "gns:0.1", "-s", "optim.name=adamw", "-s", "optim.lr=0.0005"],
    "muon": [
        "train-teacher",
        "gns:0.1",
        "-s",
        "optim.name=muon",
        "-s",
        "optim.lr=0.0002",
        *("-s", "optim.rest_lr=0.002"),
    ],
    "kd": ["distill", "gns:0.2", "--student", "gns:0.1", "-s", "optim.lr=0.001", "--temperature", "4"],
}

#: Twice what processors with and without AVX-512 differ by (3.3e-4; versions of torch differ by 2e-5). A momentum of
#: 0.89, or no decay, differs by more (7e-4 and above). Taught, also what their teachers' trainings differ by.
ROUNDING = {"kd": 8e-3}


def command(way: str, runs: Path) -> list[str]:
    return [*WAYS[way][:1], *SMALL, *WAYS[way][1:], "--runs", str(runs), "--device", "cpu", "--json"]


def figures(runs: Path, printed: str) -> list[dict[str, float]]:
    """An epoch a line: what follows from every part of the arithmetic."""
    lines = (runs / json.loads(printed)["run"] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: row[key] for key in ("loss", "hard", "soft")} for row in rows]


@pytest.fixture
def one_thread(monkeypatch):
    """Sums by one thread, as in the stored results: the number of threads changes their rounding."""
    import torch

    monkeypatch.setenv("GHOST_KERNEL", "pytorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("way", WAYS)
def test_what_is_computed_is_what_its_version_says(way, tmp_path, ghost):
    stored = json.loads(STORED.read_text())
    assert stored["semantics"] == SEMANTICS, "SEMANTICS was raised: store the new results (see this file's docstring)"
    done = ghost(*command(way, tmp_path))
    assert done.code == 0, done.err
    for now, then in zip(figures(tmp_path, done.out), stored["ways"][way], strict=True):
        assert now == pytest.approx(then, rel=ROUNDING.get(way, 6.5e-4)), "the arithmetic changed: raise SEMANTICS"


if __name__ == "__main__":
    ways = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            runs = Path(folder) / way
            argv = [sys.executable, "-m", "ghostcli", *command(way, runs)]
            env = os.environ | {"OMP_NUM_THREADS": "1", "GHOST_KERNEL": "pytorch"}
            done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
            ways[way] = figures(runs, done.stdout)
    STORED.write_text(json.dumps({"semantics": SEMANTICS, "ways": ways}, indent=1) + "\n")
