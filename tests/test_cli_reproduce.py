"""`ghost reproduce` through the command line: the plan, a small reproduction to its end, and going on after a stop."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from report_runs import CHAIN, write_run

from ghostcli.cli import reproduce as cli
from ghostcli.errors import Interrupted
from ghostcli.records import record
from ghostcli.run import launch, local

ROW = ["--skip", "efficientnetv2", "--skip", "vgg13", "--skip", "resnet50", "--skip", "gns:2.8"]  # leaves one of II
TINY = ["--limit", 24, "--epochs", 1, "-s", "train.batch_size=8", "-s", "optim.lr=0.05", "--device", "cpu"]


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """No test waits for a measurement; `test_measure` makes one."""
    real = cli.measure
    monkeypatch.setattr(cli, "measure", lambda model, device: {"gns:1.0": 100.0, "resnet18": 50.0}[model])
    return real


def test_dry_run_shows_the_plan_and_writes_nothing(ghost, tmp_path):
    done = ghost("reproduce", "I", "II", "III", "IV", "--seeds", 3, "--runs", tmp_path / "runs", "--dry-run")
    assert done.code == 0 and not (tmp_path / "runs").exists()
    assert done.out.count("-plain-") == 45 and done.out.count("-ensemble-") == 9
    assert "Table II: 8 of 8 rows need 37 runs; 37 to train" in done.out
    assert "Total: 92 of 92 runs to train, about" in done.out and "GB of disk" in done.out
    assert "Rates, scaled by MACs from gns:1.0: gns:1.3" in done.out


def test_a_plan_for_a_cluster_says_whose_speed_it_counts_with(ghost, tmp_path):
    """The scripts need no Slurm here."""
    words = ("reproduce", "I", *TINY, "--runs", tmp_path, "--dry-run")
    assert "the cluster's machines can differ" in ghost(*words, "--on", "slurm").out
    assert "cluster" not in ghost(*words).out


def test_published_counts_shared_runs_in_every_table_that_rests_on_them(ghost, tmp_path):
    out = ghost("reproduce", "all", "--family", "published", "--runs", tmp_path, "--dry-run").out
    for name, rows, runs in (("I", 15, 15), ("II", 8, 15), ("III", 4, 11), ("IV", 3, 10)):
        assert f"Table {name}: {rows} of {rows} rows need {runs} runs; {runs} to train" in out
    assert "Warning" not in out
    small = ghost("reproduce", "I", "--limit", 200, "--epochs", 3, "--runs", tmp_path, "--dry-run").out
    assert "3 steps per run are too few" in small


def test_dry_run_as_data(ghost, tmp_path):
    found = json.loads(ghost("reproduce", "all", "--runs", tmp_path, "--dry-run", "--json", *ROW).out)
    assert set(found) == {"tables", "family", "runs", "left_out", "seconds", "bytes"}
    names = [(run["student"], run["strategy"]) for run in found["runs"]]
    assert ("gns:1.0", "kd") in names and ("gns:1.0", "ensemble") not in names
    kd = next(run for run in found["runs"] if run["strategy"] == "kd")
    assert kd["tables"] == ["II"] and kd["state"] == "trained" and kd["epochs"] == 200 and kd["seconds"] > 0
    assert {row["student"] for row in found["left_out"] if row["table"] == "III"} == {
        "gns:1.0",
        "gns:1.3",
        "gns:1.6",
        "gnd:1.0",
    }
    assert found["seconds"] == pytest.approx(sum(run["seconds"] for run in found["runs"]), abs=1)


@pytest.mark.parametrize(
    "wrong", [["V"], ["I", "--family", "smok"], ["I", "--skip", "resnet19"], ["I", "-s", "nope=1"], []]
)
def test_mistakes_leave_with_code_2_before_anything_is_made(wrong, ghost, tmp_path):
    done = ghost("reproduce", *wrong, "--runs", tmp_path / "runs")
    assert done.code == 2 and not (tmp_path / "runs").exists() and "Traceback" not in done.err


def test_a_small_reproduction_runs_to_its_end_is_found_again_and_goes_on(ghost, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    command = ["reproduce", "II", "--data", "digits", *ROW, *TINY, "--runs", runs]
    real, stopped = local.run_job, []

    def stop_at_the_student(job, *rest, **more):
        if job.taught and not stopped:
            stopped.append(job)
            raise Interrupted(f"{job.id}: stopped by SIGTERM")
        return real(job, *rest, **more)

    monkeypatch.setattr(local, "run_job", stop_at_the_student)
    first = ghost(*command)
    assert first.code == 75 and len(stopped) == 1
    assert {path.parent.name.partition("-plain-")[0] for path in runs.glob("*/s0")} == {"gns-1.0", "resnet18"}

    second = ghost(*command)
    assert second.code == 0, second.err
    assert second.err.count("found, finished earlier") == 2
    assert "1 of 3 runs to train" in second.err and "Left out by --skip, 7 rows" in second.err
    assert "Table II, GN-S 1.0x < ResNet-18, seed 0: " in second.err and "printed" not in second.err
    assert "Your runs" in second.out and "24 × 1" in second.out  # the paper has no row for digits

    third = json.loads(ghost(*command, "--json").out)
    assert len(third["runs"]) == 3 and len(third["left_out"]) == 7
    taught = [row for row in third["tables"][0]["rows"] if row["teachers"]]
    assert [row["teachers"] for row in taught] == [["resnet18"]] and taught[0]["delta"] is not None
    assert {item["code"] for item in taught[0]["check"]} <= {"near-one-hot", "no-better-than-chance"}


def test_a_reproduction_in_streams_of_one_process(ghost, tmp_path, monkeypatch):
    seen = []

    class Seen(launch.Streams):
        def start(self, job):
            seen.append((self.options.streams, job.student))
            super().start(job)

    monkeypatch.setattr(launch, "Streams", Seen)
    command = ["reproduce", "II", "--data", "digits", *ROW, *TINY, "--runs", tmp_path / "runs", "--streams", 2]
    refused = ghost(*command, "--jobs", 2)
    assert refused.code == 2 and "--streams: cannot be given with --jobs" in refused.err
    done = ghost(*command)
    assert done.code == 0, done.err
    assert sorted(seen) == [(2, "gns:1.0"), (2, "gns:1.0"), (2, "resnet18")] and "with --streams 2" in done.err


def test_controls_are_planned_without_a_measurement(ghost, tmp_path):
    command = ["reproduce", "II", "--data", "digits", *ROW, *TINY, "--runs", tmp_path, "--controls"]
    assert "4 of 4 runs to train" in ghost(*command, "--dry-run").out and not any(tmp_path.iterdir())
    done = ghost(*command)
    assert done.code == 0, done.err
    assert "control: blind" in done.out

    found = json.loads(ghost(*command, "--json").out)
    row = next(row for row in found["tables"][0]["rows"] if row["teachers"])
    assert row["control"]["delta"] and row["control"]["runs"] == found["runs"][-1:]
    assert len(found["runs"]) == 4


def test_a_failed_run_is_told_and_the_rest_is_made(ghost, tmp_path, monkeypatch):
    real = local.run_job

    def fail(job, *rest, **more):
        from ghostcli.errors import NonFiniteError

        if job.student == "resnet18":
            raise NonFiniteError(f"{job.id}: the loss became non-finite")
        return real(job, *rest, **more)

    monkeypatch.setattr(local, "run_job", fail)
    done = ghost("reproduce", "II", "--data", "digits", *ROW, *TINY, "--runs", tmp_path)
    assert done.code == 3 and "2 of 3 runs failed" in done.err
    assert "GN-S 1.0x" in done.out and (tmp_path / done.err.partition("gns-1.0-plain")[1]).parent.exists()


def test_hours_of_work_are_asked_about_at_a_terminal(ghost, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(cli.typer, "confirm", lambda text, **more: bool(asked.append(text)))
    monkeypatch.setattr(cli, "_run", lambda *arguments: asked.append("run") or [])
    assert ghost("reproduce", "I", "--runs", tmp_path).code == 0 and asked == ["Go ahead?"]
    asked.clear()
    ghost("reproduce", "I", "--runs", tmp_path, "--yes")
    ghost("reproduce", "II", "--runs", tmp_path, *ROW, *TINY)
    assert asked == ["run", "run"]


def test_too_little_disk_is_warned_of(ghost, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "has less free space" in ghost("reproduce", "I", "--runs", tmp_path / "a/b", "--dry-run").out


def test_measure(rates):
    assert rates("gns:1.0", "cpu") > 0


@pytest.mark.real
def test_a_table_of_a_small_version_says_its_budget(ghost, cifar10, tmp_path):
    done = ghost("reproduce", "II", *ROW, *TINY, "--runs", tmp_path)
    assert done.code == 0, done.err
    assert "Table II." in done.out and "cifar10, 24 images × 1 epoch" in done.out
    assert "Not the paper's budget" in done.out


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("family", ["paper", "published"])
def test_all_four_tables_on_real_images(family, ghost, cifar10, tmp_path):
    """A small version of everything but the two networks that take minutes an epoch on a CPU."""
    skip = ["--skip", "efficientnetv2", "--skip", "inceptionv3"]
    done = ghost(
        "reproduce", "all", "--family", family, "--limit", 200, "--epochs", 1, *skip, "--runs", tmp_path, "--yes"
    )
    assert done.code == 0, done.err
    for name in ("Table I.", "Table II.", "Table III.", "Table IV."):
        assert name in done.out
    again = ghost(
        "reproduce", "all", "--family", family, "--limit", 200, "--epochs", 1, *skip, "--runs", tmp_path, "--json"
    )
    tables = {table["table"]: table["rows"] for table in json.loads(again.out)["tables"]}
    filled = {name: sum(row["ours"] is not None for row in rows) for name, rows in tables.items()}
    assert filled == {"I": 13, "II": 7, "III": 4, "IV": 0}
    codes = {item["code"] for row in tables["III"] for item in row["check"]}
    assert ("unshuffled" in codes) == (family == "published")


def test_reading_one_table_is_no_look_at_the_others(tmp_path, monkeypatch, capsys):
    """Each printed table was judged with all others, and their rows were noted as read."""
    for seed in range(3):
        for name, how, teachers in (
            ("gns:1.0", "plain", ()),
            ("gns:1.0", "kd", ("resnet50",)),
            ("gns:1.0", "chain", CHAIN),
        ):
            if seed < 2 or how != "chain":
                write_run(tmp_path, name, how, teachers, seed=seed, accuracy=91.0 + seed / 5 + len(teachers))
    jobs = [SimpleNamespace(id=run.id, data="cifar10") for run in record.scan(tmp_path)]
    todo = SimpleNamespace(plan=SimpleNamespace(jobs=jobs), tables=("I", "II", "III", "IV"), family="paper")
    cli._print_table(todo, "II", tmp_path)
    write_run(tmp_path, "gns:1.0", "chain", CHAIN, seed=2, accuracy=92.4)
    todo.plan.jobs = [SimpleNamespace(id=run.id, data="cifar10") for run in record.scan(tmp_path)]
    cli._print_table(todo, "III", tmp_path)
    assert "Seeds were added" not in capsys.readouterr().out
