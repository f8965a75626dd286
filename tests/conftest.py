"""What every test may use: the `ghost` command in this process, and the real CIFAR-10 if it is there.

The whole suite runs in several worker processes. They share the cores: torch, and every command that a test starts,
uses one worker's part. Tests that the command line names run in one process with all cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST_WORKERS = 4  # each holds one or two gigabytes

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // workers)))  # before the first import of torch


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The meaning of `-n auto`: 0 (no workers) for single test files, which a debugger can then stop in."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if named and not any(Path(argument).is_dir() for argument in config.args):
        return 0
    return min(CORES + 1, MOST_WORKERS)  # one more than cores: many tests wait for the disk or for a process


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def ghost(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`ghost(*arguments) -> Outcome`: the real command line, without the cost of a new interpreter."""

    def run(*arguments: object) -> Outcome:
        from ghostcli.cli import main

        monkeypatch.setattr(sys, "argv", ["ghost", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


def real_cifar10() -> Path | None:
    """The folder that holds the real CIFAR-10, or None."""
    for root in (os.environ.get("GHOST_DATA"), ROOT / "data"):
        if root and (Path(root) / "cifar-10-batches-py" / "test_batch").exists():
            return Path(root)
    return None


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real CIFAR-10 as the command's data folder; the test is skipped, by name, where it is absent."""
    root = real_cifar10()
    if root is None:
        pytest.skip("the real CIFAR-10 is not under data/ or GHOST_DATA")
    monkeypatch.setenv("GHOST_DATA", str(root))
    return root


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make) -> folder`: filled by `make(folder)` in the first worker that asks, for all of them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if workers else base

    def ask(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return ask


@pytest.fixture(scope="session")
def digits_runs(made_once) -> Path:
    """A folder with one finished run: a small student that has learnt the digits well enough to be told apart."""

    def train(runs: Path) -> None:
        from ghostcli import plan
        from ghostcli.recipe import load
        from ghostcli.run import launch

        # after 4 epochs it gets 10 to 70 % right, by its rounding: too little for tests of rounded weights
        settings = ["data.name=digits", "train.epochs=10", "train.batch_size=32", "augment.flip=none", "optim.lr=0.05"]
        found = load("smoke", [*settings, "data.limit=800", "data.limit_test=360"])
        job = plan.plain("gns:0.3", 0, found.recipe, found.name)
        launch.carry_out(plan.order([job]), launch.Options(runs, "cpu", quiet=True))

    return made_once("digits", train)


@pytest.fixture
def digits_run(digits_runs: Path):
    """That run's record. Not to be written to."""
    from ghostcli.records import record

    [run] = record.scan(digits_runs)
    return run
