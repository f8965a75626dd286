"""What a finished run says of its teachers."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from report_runs import edit, write_run

from ghostcli.records.model import Answers
from ghostcli.records.record import RunRecord
from ghostcli.run import environment, results


@dataclass(frozen=True)
class Named:
    id: str
    student: str


def teacher(runs: Path, student: str, **options: object) -> Named:
    return Named(write_run(runs, student, **options), student)


def answered(runs: Path, run: str) -> tuple[np.ndarray, Answers, str]:
    found = RunRecord(runs / run, run)
    return found.predictions()[0], found.result.test, found.result.data


def test_teachers_of_one_architecture_do_not_hide_each_other(tmp_path: Path) -> None:
    first, second, other = (
        teacher(tmp_path, name, seed=seed) for name, seed in (("gns:1.0", 0), ("gns:1.0", 1), ("vgg13", 0))
    )
    found = results.agreements(*answered(tmp_path, first.id), [first, second, other], tmp_path)
    assert list(found) == [first.id, second.id, "vgg13"]
    assert found[first.id] == 100.0
    logits = [answered(tmp_path, t.id)[0].argmax(1) for t in (first, second)]
    assert found[second.id] == pytest.approx(100 * np.mean(logits[0] == logits[1]), abs=1e-4)


def test_a_teacher_of_other_test_images_is_not_asked(tmp_path: Path) -> None:
    mine, fewer, relabelled, redrawn, elsewhere, none = (
        teacher(tmp_path, name, **o)
        for name, o in (
            ("gns:1.0", {}),
            ("gns:1.3", {"test_images": 500}),
            ("resnet18", {}),
            ("resnet34", {}),
            ("resnet50", {"data": "folder:other"}),
            ("vgg13", {"predictions": False}),
        )
    )
    for one, key, value in (
        (relabelled, "labels", "0" * 64),
        (redrawn, "pixels", "1" * 64),
        (mine, "pixels", "2" * 64),
    ):
        known = json.loads((tmp_path / one.id / "result.json").read_text())["test"]
        edit(tmp_path / one.id / "result.json", test=known | {key: value})
    others = [fewer, relabelled, redrawn, elsewhere, none]
    found = results.agreements(*answered(tmp_path, mine.id), others, tmp_path)
    assert found == dict.fromkeys(("gns:1.3", "resnet18", "resnet34", "resnet50", "vgg13"))
    assert results.agreements(*answered(tmp_path, mine.id), [mine], tmp_path) == {"gns:1.0": 100.0}


def test_a_record_of_a_checkout_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked for in the package's folder, which is never a checkout's."""
    root = Path(__file__).parents[1]
    monkeypatch.delenv("GIT_DIR", raising=False)
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a checkout of git")
    assert environment.commit() == head.stdout.strip()
