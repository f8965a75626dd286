"""The command that continues an unfinished run: the one that began it, from its record."""

from __future__ import annotations

import json
import shlex

import crash
import pytest

KILLED = {"GHOST_FAULT": "metrics:after@2=kill"}


def doctor(folder, runs: str = "runs") -> list[str]:
    """The lines of `ghost doctor` about runs."""
    return [line for line in crash.server().run(["doctor", "--runs", runs], folder).out.splitlines() if "/s" in line]


@pytest.mark.parametrize("more", [[], pytest.param(["--seed", "0", "--seed", "1"], marks=pytest.mark.long)])
def test_the_recorded_command_goes_on_with_the_run(tmp_path, more):
    argv = [*crash.COMMANDS["kd"], *crash.TINY, *more, "--runs", "my runs"]
    crash.server().run(argv, tmp_path, KILLED)
    (tmp_path / "elsewhere").mkdir()
    (line, *others) = [line for line in doctor(tmp_path, "my runs") if "continue: " in line]
    command = line.partition("continue: ")[2]
    assert shlex.split(command) == ["ghost", *argv]
    assert all(command in other for other in others)
    again = crash.server().run(shlex.split(command)[1:], tmp_path)
    assert again.code == 0, again.err
    assert not crash.differences(crash.uninterrupted("kd", *more)[0], tmp_path / "my runs")


def test_the_record_names_the_command_that_began_the_run(tmp_path):
    argv = ["train-teacher", "gns:0.1", *crash.TINY, "--runs", "runs"]
    crash.server().run(argv, tmp_path, KILLED)
    assert crash.server().run([*argv, "-s", "engine.checkpoint_minutes=9"], tmp_path).code == 0
    (result,) = tmp_path.glob("runs/*/s0/result.json")
    assert json.loads(result.read_text())["command"] == argv
    before = result.read_bytes()
    assert crash.server().run([*argv, "--jobs", "2"], tmp_path).code == 0  # a finished run is not touched
    assert result.read_bytes() == before


def test_the_recorded_command_never_starts_over(tmp_path):
    argv = ["train-teacher", "gns:0.1", *crash.TINY, "--runs", "runs"]
    crash.server().run([*argv, "--no-resume"], tmp_path, KILLED)
    assert f"continue: {shlex.join(['ghost', *argv])}" in doctor(tmp_path)[0]


def test_a_failed_run_goes_on_once_its_cause_is_mended(tmp_path):
    argv = ["train-teacher", "gns:0.1", *crash.TINY, "--runs", "runs"]
    crash.server().run(argv, tmp_path, {"GHOST_FAULT": "predictions:half=enospc"})
    (line,) = doctor(tmp_path)
    assert (
        "failed after 2 epochs" in line and "No space left" in line and "; then continue: ghost train-teacher" in line
    )


@pytest.mark.parametrize("harm", ["{", "[]", '{"student": 1}', "\0", None])
def test_a_damaged_record_gives_none(tmp_path, harm):
    crash.server().run(["train-teacher", "gns:0.1", *crash.TINY, "--runs", "runs"], tmp_path, KILLED)
    (recipe,) = tmp_path.glob("runs/*/s0/recipe.json")
    if harm is None:
        recipe.unlink()
    else:
        recipe.write_text(harm)
    (line,) = doctor(tmp_path)
    assert "give its command again" in line and "continue: " not in line


@pytest.mark.parametrize("schema", [1, 3])
def test_a_record_of_another_version_is_refused_by_name(tmp_path, ghost, schema):
    argv = ["train-teacher", "gns:0.1", *crash.TINY, "--runs", tmp_path]
    assert crash.server().run(argv, tmp_path).code == 0
    (result,) = tmp_path.glob("*/s0/result.json")
    result.write_text(json.dumps(json.loads(result.read_text()) | {"schema": schema}))
    run = str(result.parent.relative_to(tmp_path))
    what = "install a newer ghost" if schema > 2 else "run it again"
    for words in (["runs", "list"], ["runs", "show", run], ["table", "also"], ["doctor"]):
        done = ghost(*words, "--runs", tmp_path)
        assert f"schema {schema}" in done.out and what in done.out and "Traceback" not in done.err, words
    done = ghost("distill", f"run/{run}", "--student", "gns:0.2", *crash.TINY, "--runs", tmp_path)
    assert done.code == 2 and done.err.count("\n") == 1 and what in done.err, done.err
