"""The demo, whole, as a newcomer runs it."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_demo_tells_the_whole_story_above_its_target(ghost, tmp_path):
    done = ghost("demo", "--runs", tmp_path, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["reached"] and {run["strategy"] for run in said["runs"]} == {"plain", "kd", "chain", "ensemble"}
    assert all(run["accuracy"]["last"] > 95 for run in said["runs"])
    assert ghost("demo", "--runs", tmp_path).out.count("GN-S 0.3x") >= 4
