"""`--jobs auto`: the choice follows from the curve, which is measured once. Damage of its file costs a measuring."""

from __future__ import annotations

import json
import socket

import crash
import pytest

from ghostcli import packing, plan
from ghostcli.recipe import load
from ghostcli.run.job import Options


@pytest.mark.parametrize(
    ("curve", "count"),
    [
        ({1: 100.0, 2: 200.0, 3: 290.0, 4: 240.0}, 3),
        ({1: 100.0, 2: 101.0}, 1),
        ({1: 100.0, 2: 90.0}, 1),
        ({1: 100.0, 2: 150.0, 4: 152.0}, 2),
        ({1: 5.0}, 1),
    ],
)
def test_the_smallest_number_that_is_about_fastest(curve, count):
    assert packing.best(curve) == count


def test_a_curve_is_measured_once_and_kept_with_the_machines_name(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_CACHE", str(tmp_path))
    asked, known = [], {1: 100.0, 2: 180.0, 3: 170.0}

    def together(student, batch, side, options, count):
        asked.append(count)
        return [known[count] / count] * count

    monkeypatch.setattr(packing, "together", together)
    monkeypatch.setattr(packing, "_device", lambda name: ("a CPU", 16))
    found = load("smoke")
    jobs = [plan.plain("gns:0.1", seed, found.recipe, found.name) for seed in range(5)]
    count, said = packing.choose(jobs, Options(tmp_path, "cpu"))
    assert (count, asked) == (2, [1, 2, 3]) and "1: 100, 2: 180, 3: 170 (measured now" in said
    kept = json.loads((tmp_path / "packing.json").read_text())
    assert [*kept] == [socket.gethostname()] and [*kept[socket.gethostname()].values()] == [
        {"1": 100.0, "2": 180.0, "3": 170.0}
    ]
    count, said = packing.choose(jobs, Options(tmp_path, "cpu"))
    assert count == 2 and asked == [1, 2, 3] and "measured earlier" in said
    assert packing.choose(jobs[:1], Options(tmp_path, "cpu"))[0] == 1
    for damage in ("", "[]", '{"vm": 3}', json.dumps({socket.gethostname(): {key: 7 for key in kept}})):
        (tmp_path / "packing.json").write_text(damage)
        asked.clear()
        assert packing.choose(jobs, Options(tmp_path, "cpu"))[0] == 2 and asked == [1, 2, 3]


def test_a_cluster_takes_no_auto_and_a_wrong_number_is_refused(ghost):
    for words, told in {
        ("--jobs", "auto", "--on", "slurm"): "--jobs auto: is for this machine",
        ("--jobs", "many"): "--jobs many: must be a number from 1, or auto",
        ("--jobs", "0"): "--jobs 0: must be",
    }.items():
        done = ghost("train-teacher", "gns:0.1", *words)
        assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err


@pytest.mark.long
def test_it_says_what_it_chose(tmp_path):
    """The real measuring, and the runs after it."""
    words = [*crash.COMMANDS["plain"], *crash.TINY, "--seed", 0, "--seed", 1, "--jobs", "auto", "--runs", "runs"]
    done = crash.server().run(words, tmp_path, {"GHOST_CACHE": str(tmp_path / "cache")})
    assert done.code == 0 and "at a time" in done.err, done.err
    [curves] = json.loads((tmp_path / "cache" / "packing.json").read_text()).values()
    [(key, curve)] = curves.items()
    assert "gns:0.1, batch 16" in key and all(rate > 0 for rate in curve.values()) and "1" in curve


def test_the_measured_images_are_those_of_the_runs_and_a_failure_means_one_at_a_time(tmp_path, monkeypatch):
    """A network for another size could not be measured, and the command refused to train it."""
    sides = []

    def together(student, batch, side, options, count):
        sides.append(side)
        return None

    monkeypatch.setattr(packing, "together", together)
    monkeypatch.setattr(packing, "cache_folder", lambda: tmp_path)
    for data, side in (("folder:photos", 64), ("digits", 32)):
        recipe = load("smoke", [f"data.name={data}", "data.size=64"]).recipe
        jobs = [plan.plain("gns:0.1", seed, recipe, "smoke") for seed in (0, 1)]
        count, said = packing.choose(jobs, Options(tmp_path, "cpu"))
        assert (count, sides.pop()) == (1, side) and "could not be measured" in said


@pytest.mark.slow
def test_a_process_that_measures_takes_the_size(tmp_path):
    [rate] = packing.together("gns:0.1", 8, 64, Options(tmp_path, "cpu"), 1, seconds=0.1)
    assert rate > 0
