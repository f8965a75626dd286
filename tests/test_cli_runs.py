"""`ghost runs`: whole ids at any width, a page that is read and not parsed, and folders that are none."""

from __future__ import annotations

import json

import crash
import pytest
from report_runs import write_run

from ghostcli.recipe.digest import digest
from ghostcli.records import contents, record


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that is done, and one that failed for a long reason."""
    folder = tmp_path_factory.mktemp("runs")
    argv = [*crash.COMMANDS["kd"], *crash.TINY, "--runs", folder]
    assert crash.server().run(argv, folder).code == 0
    assert crash.server().run([*argv, "--seed", 1], folder, {"GHOST_FAULT": "predictions:half=enospc"}).code == 1
    return folder


def ids(runs):
    return sorted(str(path.parent.relative_to(runs)) for path in runs.glob("*/s*/status.json"))


def test_ids_are_whole_and_a_run_is_a_line(ghost, runs, monkeypatch):
    status = next(runs.glob("*/s1/status.json"))
    state = json.loads(status.read_text())
    status.write_text(json.dumps(state | {"error": "a long story " * 20}))
    done = ghost("runs", "list", "--runs", runs)
    lines = done.out.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == ids(runs) and len(ids(runs)) == 3
    failed = next(line for line in lines if "/s1" in line)
    assert "failed: a long story" in failed and "..." in failed and len(failed) < 160
    assert ghost("runs", "show", lines[0].split()[0], "--runs", runs).code == 0
    taught = {line.split()[0]: "kd by gns:0.15" in line for line in lines}
    assert taught == {run: "-kd-" in run for run in ids(runs)}


def test_a_run_is_a_page(ghost, runs):
    (student,) = (run for run in ids(runs) if "-kd-" in run and run.endswith("s0"))
    done = ghost("runs", "show", student, "--runs", runs)
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) < 40
    assert "data.limit = 48 (null)" in done.out and "optim.lr" not in done.out, "departures from the recipe alone"
    for title in ("status", "network", "taught by", "data", "recipe", "test accuracy", "time", "check", "in", "files"):
        assert any(line.startswith(title) for line in lines), title
    everything = json.loads(ghost("runs", "show", student, "--runs", runs, "--json").out)
    assert {"result", "recipe", "env"} <= everything.keys()


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_a_folder_that_is_none(ghost, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, said in (("typo", "does not exist"), ("file", "is a file")):
        done = ghost("runs", verb, "--runs", name)
        assert done.code == 2 and f"--runs {name}: {said}" in done.err and done.out == ""
    for words in ([], ["--runs", "empty"]):
        done = ghost("runs", verb, *words)
        assert done.code == 0 and "no runs" in done.out


def test_a_table_of_a_folder_that_is_none_says_so(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ghost("table", "--runs", "typo")
    assert done.code == 0 and "--runs typo: there is no such folder" in done.err
    (tmp_path / "empty").mkdir()
    assert ghost("table", "--runs", "empty").err == "" == ghost("table").err


def test_the_beginning_of_an_id_names_the_runs_that_begin_so(ghost, runs):
    first = ids(runs)[0]
    begun = first[: first.index("-") + 3]
    done = ghost("runs", "show", begun, "--runs", runs)
    assert done.code == 2 and f"{begun}: is not a run id; these begin so: {first}" in done.err


def test_a_path_that_a_command_printed_names_its_run(ghost, runs):
    run = next(run for run in ids(runs) if run.endswith("s0"))
    assert ghost("runs", "show", runs / run, "--runs", runs).out == ghost("runs", "show", run, "--runs", runs).out != ""
    done = ghost("distill", runs / run, "--student", "gns:0.1", "--dry-run", "--runs", runs)
    assert done.code == 2 and done.err.endswith(f"looks like a run's id; type run/{run}\n"), done.err
    job, _, _ = run.rpartition("/")
    assert f"type run/{job}\n" in ghost("distill", f"runs/{job}/", "--student", "gns:0.1", "--dry-run").err
    assert ghost("report", "--runs", runs, "--out", runs / ("a" * 300 + ".html")).err.count("could not be written") == 1


@pytest.mark.parametrize("spelling", ["relative", "absolute"])
def test_a_path_and_its_folder_may_be_spelled_differently(ghost, runs, monkeypatch, spelling):
    monkeypatch.chdir(runs.parent)
    run = next(run for run in ids(runs) if run.endswith("s0"))
    words = (runs / run, runs.name) if spelling == "relative" else (f"{runs.name}/{run}", runs)
    assert ghost("runs", "show", words[0], "--runs", words[1]).code == 0
    job = str(words[0]).rpartition("/")[0]
    assert ghost("plot", "curves", job, "--runs", words[1], "--out", runs.parent / "curves.png").code == 0


def test_an_untaught_run_shows_no_change_of_how_it_was_taught(ghost, tmp_path):
    done = ghost("train-teacher", "gns:0.1", *crash.TINY, "--recipe", "smoke/demo", "--runs", tmp_path, "--json")
    shown = ghost("runs", "show", json.loads(done.out)["run"], "--runs", tmp_path).out
    assert "data.limit = 48" in shown and "distill." not in shown


def test_a_study_holds_what_its_tables_need_and_no_more(ghost, runs, tmp_path):
    done = [run for run in ids(runs) if run.endswith("s0")]
    out = tmp_path / "studies" / "mine"
    assert ghost("runs", "study", *done, "--runs", runs, "--out", out).code == 0
    files = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert files == sorted(["metrics.jsonl", "result.json", "status.json"] * len(done))
    assert not [path for path in out.rglob("status.json") if set(json.loads(path.read_text())) != {"status"}]
    assert ghost("table", "also", "--runs", out).out == ghost("table", "also", "--runs", out).out != ""
    assert ghost("runs", "verify", "--runs", out).code == 0
    result = runs / done[0] / "result.json"
    written = json.loads(result.read_text())
    del written["checksum"]
    written["command"] = ["train-teacher", "gns:0.1", "--runs", str(tmp_path / "mine"), "--seed", "0"]
    result.write_text(json.dumps(written | {"checksum": digest(written)}))
    assert ghost("runs", "study", done[0], "--runs", runs, "--out", out).code == 0
    kept = json.loads((out / done[0] / "result.json").read_text())
    assert kept["command"] == ["train-teacher", "gns:0.1", "--runs", "mine", "--seed", "0"], "no path of a machine"
    assert not contents._as_written(kept)
    result.write_text(json.dumps(written | {"checksum": "another"}))
    assert ghost("runs", "study", done[0], "--runs", runs, "--out", out).code == 0
    assert ghost("runs", "verify", "--runs", out).code == 1, "a changed record gets no new checksum"
    failed = next(run for run in ids(runs) if run.endswith("s1"))
    refused = ghost("runs", "study", failed, "--runs", runs, "--out", out)
    assert refused.code == 2 and "cannot be part of a study" in refused.err


def test_a_study_is_no_folder_of_the_runs_themselves(ghost, runs):
    (student,) = (run for run in ids(runs) if "-kd-" in run and run.endswith("s0"))
    before = (runs / student / "result.json").read_bytes()
    told = ghost("runs", "study", student, "--runs", runs, "--out", f"{runs}/.")
    assert told.code == 2 and "is the folder of the runs" in told.err
    assert (runs / student / "result.json").read_bytes() == before


def test_a_study_takes_all_seeds_of_an_id(ghost, tmp_path):
    made = [write_run(tmp_path / "runs", seed=seed) for seed in range(3)]
    job = made[0].rpartition("/")[0]
    assert ghost("runs", "study", job, "--runs", tmp_path / "runs", "--out", tmp_path / "study").code == 0
    assert [run.id for run in record.scan(tmp_path / "study")] == made
    assert ghost("runs", "study", made[1], "--runs", tmp_path / "runs", "--out", tmp_path / "one").code == 0
    assert [run.id for run in record.scan(tmp_path / "one")] == made[1:2]
