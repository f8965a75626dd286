"""Run directories as people and accidents leave them: finished, moved aside, torn, edited, without a status."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import crash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostcli.errors import GhostError, UsageError
from ghostcli.records import record

PLAIN = [*crash.COMMANDS["plain"], *crash.TINY, "--runs", "runs"]


@pytest.fixture
def ghost(tmp_path):
    """`ghost(*ARGV, fault="") -> Command` that has ended, in tmp_path."""
    return lambda *argv, fault="": crash.server().run(argv, tmp_path, {"GHOST_FAULT": fault})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished plain run. To be copied."""
    folder = tmp_path_factory.mktemp("finished")
    assert crash.server().run(PLAIN, folder).code == 0
    return next(folder.glob("runs/*/s0"))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run of the test's own, in tmp_path/runs."""
    copy = tmp_path / "runs" / finished.relative_to(finished.parent.parent)
    shutil.copytree(finished, copy)
    return copy


def killed(ghost, tmp_path) -> Path:
    """An unfinished run: its first epoch is saved, the second one's line is written."""
    ghost(*PLAIN, fault="metrics:after@2=kill")
    return next(tmp_path.glob("runs/*/s0"))


# The same command ------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(ghost, run):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    done = ghost(*PLAIN, "--json")
    assert done.code == 0 and "found, finished earlier" in done.err and json.loads(done.out)["status"] == "done"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_no_resume_keeps_the_old_run(ghost, run, tmp_path):
    (run / "mine.txt").write_text("keep me")
    for number in (1, 2):
        done = ghost(*PLAIN, "--no-resume")
        assert done.code == 0 and f"s0.old{number}" in done.err
        assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")
    assert (run.with_name("s0.old1") / "mine.txt").read_text() == "keep me"
    assert [found.id for found in record.scan(tmp_path / "runs")] == [f"{run.parent.name}/s0"]


def test_another_recipe_is_another_directory(ghost, run, tmp_path):
    assert ghost(*PLAIN, "-s", "optim.lr=0.02").code == 0
    assert ghost(*PLAIN, "-s", "engine.checkpoint_minutes=1").code == 0  # no other result: no other run
    assert len(record.scan(tmp_path / "runs")) == 2
    assert crash.outcome(run) == next(iter(crash.uninterrupted("plain")[0].values()))


def test_a_run_on_images_that_are_no_longer_there_is_not_found_again(ghost, tmp_path):
    """A folder's name says nothing about its images: neither a result nor a teacher is that of the new ones."""
    from PIL import Image

    def fill(shade: int) -> None:
        for part, kind, number in itertools.product(("train", "test"), ("dark", "light"), range(16)):
            place = tmp_path / "pets" / part / kind / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (shade + number, number, 250 if kind == "light" else 5)).save(place)

    train = [*PLAIN, "--data", f"folder:{tmp_path / 'pets'}", "-s", "data.size=16"]
    teach = ["distill", *train[1:], "--student", "gns:0.2"]
    fill(0)
    assert ghost(*train).code == 0
    fill(100)
    for command in (train, teach):
        done = ghost(*command)
        assert done.code == 2 and "have changed since its training" in done.err and "ghost runs rm gns-" in done.err, (
            done.err
        )
    fill(0)
    assert ghost(*teach).code == 0


# Accidents -------------------------------------------------------------------------------------------------------


def test_a_torn_line_of_metrics(ghost, tmp_path):
    run = killed(ghost, tmp_path)
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    (row,) = record.scan(tmp_path / "runs")[0].metrics()
    assert row["epoch"] == 1
    assert ghost(*PLAIN).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_metrics_edited_behind_the_checkpoint_are_cut(ghost, tmp_path):
    run = killed(ghost, tmp_path)
    first, second = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{first}\n{second.replace('2', '3')}\n")
    assert ghost(*PLAIN).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


@pytest.mark.parametrize("harm", ["edited", "lost"])
def test_metrics_that_the_checkpoint_did_not_see(ghost, tmp_path, harm):
    """No other result is made of them: the run is refused, and may be started over."""
    metrics = killed(ghost, tmp_path) / "metrics.jsonl"
    if harm == "lost":
        metrics.unlink()
    else:
        metrics.write_text(metrics.read_text().replace('"epoch": 1,', '"epoch": 1, "good": true,'))
    done = ghost(*PLAIN)
    assert done.code == 1 and "metrics.jsonl: has changed since last.safetensors" in done.err
    assert "--no-resume" in done.err and "Traceback" not in done.err
    assert ghost(*PLAIN, "--no-resume").code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_metrics_edited_while_the_run_is_made(ghost, tmp_path):
    edit = "open(next(__import__('pathlib').Path('runs').glob('*/s0/metrics.jsonl')), 'w').close()"
    patch = f"from ghostcli.run import results; final = results.final\ndef cut(*a):\n    {edit}; return final(*a)\n"
    done = crash.server().run(PLAIN, tmp_path, before=patch + "results.final = cut")
    assert done.code == 1 and "has 0 of 2 epochs" in done.err and "Traceback" not in done.err
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("when", ["unfinished", "finished"])
def test_a_lost_status(ghost, tmp_path, finished, when):
    if when == "finished":
        shutil.copytree(finished.parent.parent, tmp_path / "runs")
        run = next(tmp_path.glob("runs/*/s0"))
    else:
        run = killed(ghost, tmp_path)
    (run / "status.json").unlink()
    (found,) = record.scan(tmp_path / "runs")
    assert found.status == "broken" and found.problem == "its files are incomplete"
    assert ghost("runs", "list", "--runs", "runs").code == 0
    done = ghost(*PLAIN)
    assert done.code == 0 and "goes on after epoch" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_weights_that_did_not_travel_with_their_record(ghost, tmp_path):
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    next(tmp_path.glob("runs/*/s0/model.safetensors")).unlink()
    done = ghost(*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs")
    assert done.code == 2 and "its record has no weights" in done.err and "ghost runs rm" in done.err


def test_another_teacher_in_the_place_of_the_one_the_run_began_with(ghost, tmp_path):
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    argv = [*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs"]
    assert ghost(*argv, fault="metrics:after@2=kill").code < 0
    weights = next(tmp_path.glob("runs/gns-0.15*/s0/model.safetensors"))
    kept = weights.read_bytes()
    ghost("train-teacher", "gns:0.15", *crash.TINY, "--seed", 1, "--runs", "other")
    shutil.copy(next(tmp_path.glob("other/*/s1/model.safetensors")), weights)
    done = ghost(*argv)
    assert done.code == 2 and "teachers' weights have changed since this run began" in done.err
    weights.write_bytes(kept)
    assert ghost(*argv).code == 0
    assert not crash.differences(crash.uninterrupted("kd")[0], tmp_path / "runs")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"changes": 5}'])
def test_a_damaged_environment_holds_nobody_up(ghost, tmp_path, content):
    (killed(ghost, tmp_path) / "env.json").write_text(content)
    assert ghost(*PLAIN).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_a_run_that_goes_on_elsewhere_says_so(ghost, tmp_path):
    run = killed(ghost, tmp_path)
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"torch": "2.0.0"}))
    done = ghost(*PLAIN)
    assert done.code == 0 and "the environment has changed (torch 2.0.0 -> " in done.err
    note = f"environment changed during the run: torch 2.0.0 -> {env['torch']}"
    assert json.loads((run / "result.json").read_text())["notes"] == [note]


# Readers ---------------------------------------------------------------------------------------------------------


def test_verify_sees_each_file_that_is_not_the_one_that_was_written(ghost, run, tmp_path):
    assert ghost("runs", "verify", "--runs", "runs").code == 0
    for name in ("model.safetensors", "predictions.npz", "metrics.jsonl", "checkpoint/last.safetensors", "result.json"):
        path = run / name
        kept = path.read_bytes()
        for harmed in (kept[:-9], kept[: len(kept) // 2] + b"?" + kept[len(kept) // 2 + 1 :], b""):
            path.write_bytes(harmed)
            done = ghost("runs", "verify", "--runs", "runs")
            assert done.code == 1 and "damaged" in done.err and "Traceback" not in done.err, (name, done.err)
        path.write_bytes(kept)
    # another run's weights, whole in themselves
    assert ghost("train-teacher", "gns:0.1", *crash.TINY, "--seed", 1, "--runs", "other").code == 0
    shutil.copy(next(tmp_path.glob("other/*/s1/model.safetensors")), run / "model.safetensors")
    assert "model.safetensors has changed" in ghost("runs", "verify", "--runs", "runs").out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["schema", "status", "started", "error", "accuracy", "teachers", "recipe", "environment", "epoch", "test"]
)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(["status.json", "result.json", "metrics.jsonl"]), key=KEYS, value=JSON, whole=st.booleans())
def test_no_json_value_trips_a_reader(finished, tmp_path_factory, name, key, value, whole):
    runs = tmp_path_factory.mktemp("any")
    run = runs / finished.parent.name / "s0"
    run.mkdir(parents=True)
    for file in ("status.json", "result.json", "metrics.jsonl"):
        shutil.copy(finished / file, run / file)
    old = json.loads((run / name).read_text().splitlines()[0] if name == "metrics.jsonl" else (run / name).read_text())
    (run / name).write_text(json.dumps(value if whole else old | {key: value}) + "\n")
    (found,) = record.scan(runs)
    assert found.status in ("done", "interrupted", "failed", "broken")
    assert (found.problem is None) == (found.status == "done")
    assert all(row["epoch"] == i + 1 for i, row in enumerate(found.metrics()))
    assert found.owner is None


@settings(max_examples=40, deadline=None)
@given(
    content=st.binary(max_size=200),
    name=st.sampled_from(["status.json", "result.json", "metrics.jsonl", "predictions.npz"]),
)
def test_no_bytes_trip_a_reader(finished, tmp_path_factory, content, name):
    runs = tmp_path_factory.mktemp("any")
    run = runs / finished.parent.name / "s0"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "done"}')
    (run / name).write_bytes(content if content[:1] != b"P" else b"PK\x03\x04" + content)
    (found,) = record.scan(runs)
    assert found.status == "broken" and found.metrics() == [] and found.predictions() is None


STAGES = ("before", "half", "written", "renamed")


@pytest.mark.parametrize("action", ["kill", "enospc"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_file_holds_the_old_or_the_new_at_every_instant(tmp_path, stage, action):
    (tmp_path / "file").write_bytes(b"old" * 1000)
    write = "import pathlib; from ghostcli.records import storage\n"
    write += "storage.write_bytes(pathlib.Path('file'), b'new' * 999, 'x')"
    done = crash.server().run(["--version"], tmp_path, {"GHOST_FAULT": f"x:{stage}={action}"}, before=write)
    assert done.code == (-9 if action == "kill" else 1)
    assert (tmp_path / "file").read_bytes() == (b"new" * 999 if stage == "renamed" else b"old" * 1000)
    if action == "enospc":
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_readers_see_whole_files_while_a_run_is_made(tmp_path):
    """Whatever is there can be read, at any moment, and a run that says it is done has its result."""
    command = crash.server().start([*PLAIN, "-s", "engine.checkpoint_minutes=1e-9"], tmp_path)
    seen: set[str] = set()

    def look() -> bool:
        for path in tmp_path.glob("runs/*/s0/*.json"):
            json.loads(path.read_bytes())
        for found in record.scan(tmp_path / "runs"):
            seen.add(found.status)
            assert found.status != "done" or (found.result is not None and found.predictions() is not None)
        return False

    command.until(look)
    look()
    assert command.code == 0 and seen >= {"running", "done"}


# Names -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(max_size=12)
    | st.sampled_from(["../s0", "/etc", "a/../../b", "run/../../x", "gns-1.0-plain-0000000/s0/.."])
)
def test_no_name_of_a_run_leaves_the_folder(tmp_path_factory, name):
    runs = tmp_path_factory.mktemp("none")
    with pytest.raises(UsageError) as error:
        record.find(runs, name)
    assert str(error.value).isprintable()


def test_links_are_neither_read_nor_written_through(ghost, run, tmp_path):
    away = tmp_path / "away"
    shutil.move(run.parent, away)
    run.parent.symlink_to(away)
    assert record.scan(tmp_path / "runs") == []
    done = ghost(*PLAIN)
    assert done.code == 2 and "is a link" in done.err
    run.parent.unlink()
    run.mkdir(parents=True)
    (tmp_path / "diary.txt").write_text("dear diary\n")
    (run / "metrics.jsonl").symlink_to(tmp_path / "diary.txt")
    done = ghost(*PLAIN)
    assert done.code == 2 and "is a link" in done.err
    assert (tmp_path / "diary.txt").read_text() == "dear diary\n"


@pytest.mark.parametrize(
    "model", ["timm/../../../x", "timm/\x1b[31mred", "timm/a b", "run/../../x", "timm//etc/passwd"]
)
def test_no_name_of_a_model_leaves_the_folder(ghost, tmp_path, model):
    before = set(tmp_path.parent.iterdir())
    done = ghost("train-teacher", model, *crash.TINY, "--runs", "runs")
    assert done.code == 2 and "\x1b" not in done.err and "Traceback" not in done.err, done.err
    assert set(tmp_path.parent.iterdir()) == before and not list(tmp_path.glob("runs/**/*"))


def test_control_characters_do_not_reach_the_screen(ghost, run, tmp_path):
    evil = "\x1b]0;owned\x07"
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"recipe_name": evil}))
    (run / "status.json").write_text(json.dumps({"status": "failed", "error": evil}))
    shutil.copytree(run, tmp_path / "runs" / f"{evil}-plain-00000000" / "s0")
    shutil.copytree(tmp_path / "runs", tmp_path / evil)
    for argv in (["runs", "list"], ["runs", "verify"], ["runs", "show", f"{run.parent.name}/s0"]):
        for runs in ("runs", evil, f"{evil}/none"):
            done = ghost(*argv, "--runs", runs)
            assert "\x1b" not in done.out + done.err and "\x07" not in done.out + done.err, (argv, runs)
            assert "Traceback" not in done.err
    done = ghost(*PLAIN[:-1], f"{evil}/s0.lock\n")
    assert "\x1b" not in done.err


def test_errors_of_files_are_one_printable_line(tmp_path):
    from ghostcli.records.storage import read_json, write_bytes

    evil = tmp_path / "\x1b[2J"
    for action in (lambda: read_json(evil), lambda: write_bytes(evil / "x", b"")):
        with pytest.raises(GhostError) as error:
            action()
        assert str(error.value).isprintable()
