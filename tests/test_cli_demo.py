"""The demo: whole, as a newcomer runs it; and what it says, from runs that are done."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_the_demo_answers_its_question(ghost, tmp_path):
    runs = tmp_path / "demo"
    done = ghost("demo", "--runs", runs, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert [row["way"] for row in said["rows"]] == ["alone", "one teacher", "via an assistant", "two teachers"]
    alone, taught = said["rows"][:2]
    assert alone["ours"]["n"] == taught["ours"]["n"] == 5 and taught["delta"]["low"] > 0
    assert said["verdict"].startswith("teaching helped: +") and taught["verdict"] == "better"
    assert all((runs / name).read_bytes().startswith(b"\x89PNG") for name in ("forest.png", "answer.png", "digit.png"))
    shown = ghost("demo", "--runs", runs)
    assert shown.code == 0 and f"Verdict: {said['verdict']}." in shown.out
    table = [line for line in shown.out.splitlines() if line.startswith(tuple(row["way"] for row in said["rows"]))]
    assert len(table) == 4 and max(map(len, table)) <= 80 and "…" not in shown.out
