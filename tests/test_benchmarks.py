"""The scripts in benchmarks/: contestants that do the same work, an agenda that restarts, commands that plan."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import shlex
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from report_runs import write_run

from ghostcli.recipe import load

ROOT = Path(__file__).resolve().parent.parent


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine():
    return script("engine")


@pytest.fixture(scope="module")
def gpu():
    return script("gpu")


def test_contestants_take_the_same_step(engine, monkeypatch):
    """After one step from the same weights the same loss is left: they differ in how, not in what."""
    monkeypatch.delenv("GHOST_KERNEL", raising=False)
    setting = engine.Setting("gns:0.25", 16, torch.device("cpu"), 1)
    losses = {}
    for name, one in engine.contestants(setting.device).items():
        if name.startswith("timm"):
            continue
        monkeypatch.setenv("GHOST_KERNEL", one.kernel)
        built = []

        def make(setting, one=one, built=built):
            built.append(one.make(setting))
            return built[0]

        dataclasses.replace(one, make=make).step(setting)()
        with torch.no_grad():
            logits = built[0](setting.images(one.channels_last))
        losses[name] = torch.nn.functional.cross_entropy(logits, setting.labels()).item()
    assert {"plain NCHW", "plain channels_last", "folded, no kernel"} <= set(losses)
    assert list(losses.values()) == pytest.approx([losses["plain NCHW"]] * len(losses), rel=2e-3)


def test_ratios_are_of_medians_with_the_rounds_own_quartiles(engine, monkeypatch):
    setting = engine.Setting("gns:0.25", 1, torch.device("cpu"), 3)
    meters = {"a": engine.Meter(lambda: None), "b": engine.Meter(lambda: None)}

    def interleave(found, rounds, step):
        found[0].seconds, found[1].seconds = [4.0, 6.0, 8.0], [2.0, 2.0, 4.0]

    monkeypatch.setattr(engine, "interleave", interleave)
    found = engine.compare(meters, "a", setting, print)
    assert found["times faster"] == {"b / a": {"ratio": 3.0, "low": 2.0, "high": 2.5}}
    assert found["seconds"]["a"] == {"median": 6.0, "low": 5.0, "high": 7.0, "n": 3}


def test_each_round_is_written_down_and_timed_as_the_engine_runs(engine, monkeypatch):
    """What is stopped at its limit keeps what it measured; on a GPU the engine lets cuDNN choose what is fastest."""
    setting = engine.Setting("gns:0.25", 1, torch.device("cpu"), 3)
    kept, told = [], []

    @contextlib.contextmanager
    def arithmetic(section, device):
        told.append(device)
        yield
        told.append("over")

    monkeypatch.setattr(engine, "arithmetic", arithmetic)
    monkeypatch.setattr(engine.Meter, "warm", lambda self: told.append("warm"))
    monkeypatch.setattr(engine.Meter, "sample", lambda self: self.seconds.append(1.0))
    found = engine.compare({"a": list, "b": list}, "a", setting, kept.append)
    assert [one["seconds"]["b"]["n"] for one in kept] == [1, 2, 3]
    assert kept[-1] == found and told == [torch.device("cpu"), "warm", "warm", "over"]


def test_compiling_writes_what_each_network_took_when_it_has(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "compile.py"), "--device", "cpu", "--batch", "4"]
    command += ["--json", str(out), "gns:0.25/float32", "gns:0.25/float8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "gns:0.25/float8: need" in done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["model"], row["precision"]) == ("gns:0.25", "float32") and row["seconds"] > 0


@pytest.mark.slow
def test_the_engine_benchmark_runs_to_its_end(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "engine.py"), "--rounds", "1", "--batch", "8"]
    command += ["--images", "16", "--model", "gns:0.25", "--device", "cpu", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) >= {"machine", "date", "step", "epoch", "teaching", "inference", "latency", "memory"}
    assert found["step"]["times faster"]["folded, no kernel / plain NCHW"]["ratio"] > 0
    assert found["memory"]["MiB"]["plain NCHW"] > 0


def test_a_profile_names_what_a_step_spends_its_time_on(tmp_path, capsys):
    out = tmp_path / "profile.json"
    script("profile_steps").main(["--model", "gns:0.1", "--batch", "8", "--device", "cpu", "--json", str(out)])
    found = json.loads(out.read_text())
    assert any("Ghost" in row["name"] and row["calls"] >= 1 for row in found["rows"])
    assert [row["ms"] for row in found["rows"]] == sorted((row["ms"] for row in found["rows"]), reverse=True)
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1, abs=0.01)
    assert found["captured"] is False and found["seconds"] > 0
    assert "ms a step" in capsys.readouterr().out


def test_a_crowd_of_streams_is_measured_until_one_fails(tmp_path, monkeypatch, capsys):
    crowd, out = script("crowd"), tmp_path / "crowd.json"
    monkeypatch.setattr(crowd, "STRETCH", 2)
    words = ["--streams", "--model", "gns:0.1", "--batch", "4", "--seconds", "0.1", "--device", "cpu"]
    crowd.main([*words, "--processes", "1", "2", "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["streams"] for row in rows] == [1, 2] and all(row["images_per_second"] > 0 for row in rows)
    assert capsys.readouterr().out.count("images/s in all") == 2
    monkeypatch.setattr(crowd, "own_stream", lambda device: pytest.fail("no memory"))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with pytest.raises(SystemExit, match="one of 2 streams failed"):
        crowd.main([*words, "--processes", "2"])


@pytest.mark.parametrize("words", ["engine --rounds 0", "gpu --jobs 0", "crowd --processes 0", "gpu --minutes 0"])
def test_wrong_arguments_of_the_scripts_are_usage_errors(words, capsys, monkeypatch):
    name, *arguments = words.split()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 2 and "need" in capsys.readouterr().err


@pytest.fixture(scope="module")
def peers():
    return script("peers")


def test_a_peer_that_is_not_installed_is_named_with_its_command(peers, monkeypatch, capsys):
    monkeypatch.setattr(peers, "missing", lambda way: way == "torchdistill")
    with pytest.raises(SystemExit) as ended:
        peers.main(["--way", "torchdistill"])
    assert ended.value.code == 2 and "pip install torchdistill" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        peers.main(["--images", "100", "--batch", "64"])
    assert "need a multiple of the batch, 64" in capsys.readouterr().err


def test_peers_are_compared_with_the_same_lesson(peers):
    def one(way, lesson, *seconds):
        turns = [{"seconds": each, "call": each + 1, "peak": 10 * each} for each in seconds]
        return peers.Contestant(way, lesson, None, None, turns)

    contestants = [one("ghost", "plain", 1.0, 2.0, 3.0), one("ghost", "taught", 2.0, 2.0, 4.0)]
    contestants += [one("ghost", "taught again", 1.0, 1.0, 1.0), one("tutorial", "plain", 4.0, 6.0, 8.0)]
    found = peers.compared([*contestants, one("tutorial", "taught", 3.0, 6.0, 9.0)], 120)
    assert found["ghost's times faster"] == {
        "plain / tutorial, plain": {"ratio": 3.0, "low": 2.833, "high": 3.5},
        "taught / tutorial, taught": {"ratio": 3.0, "low": 1.875, "high": 2.625},
        "taught again / tutorial, taught": {"ratio": 6.0, "low": 4.5, "high": 7.5},
    }
    assert found["epochs"]["plain"]["tutorial"] == {
        "seconds": {"median": 6.0, "low": 5.0, "high": 7.0, "n": 3},
        "images/s": 20.0,
        "call": 7.0,
        "MiB": 80.0,
    }


@pytest.mark.real
def test_all_peers_see_the_same_images(peers, cifar10):
    from benchmarks import peer_loops
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    work = peer_loops.Work("gns:0.1", "pretrained/gns-0.25", 8, 4, 0, "")
    ours = data.load(DataSection(limit=8, limit_test=1)).train
    theirs = list(peer_loops.pictures(work, transformed=False))
    assert [label for _, label in theirs] == ours.labels.tolist()
    assert [list(picture.tobytes()) for picture, _ in theirs] == ours.pixels.flatten(1).tolist()


@pytest.mark.real
@pytest.mark.long
def test_the_peers_benchmark_runs_to_its_end(cifar10, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--way", "ghost", "--way", "tutorial"]
    command += ["--student", "gns:0.1", "--teacher", "pretrained/gns-0.25", "--images", "64", "--batch", "32"]
    command += ["--rounds", "1", "--workers", "0", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) >= {"machine", "versions", "date", "images", "batch", "rounds", "teacher", "differs"}
    epochs = found["students"]["gns:0.1"]["epochs"]
    assert {lesson: list(ways) for lesson, ways in epochs.items()} == {
        "plain": ["ghost", "tutorial"],
        "taught": ["ghost", "tutorial"],
        "taught again": ["ghost"],
    }
    assert all(one["seconds"]["median"] <= one["call"] for ways in epochs.values() for one in ways.values())
    assert len(found["students"]["gns:0.1"]["ghost's times faster"]) == 3


def test_the_agendas_dry_run_lists_every_part_in_order(gpu, tmp_path, capsys):
    (tmp_path / "state.json").write_text('{"data": {"code": 0, "seconds": 1}, "tests": {"code": 1, "seconds": 1}}')
    gpu.main(["--dry-run", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    first = ["data", "compile", "tests", "profile", "engine", "bench", "crowd", "streams", "streams-small"]
    first += ["gns-1.0-s0"]
    assert [line.split()[0] for line in lines[: len(first)]] == first
    assert [" done " in line for line in lines[:3]] == [True, False, False]
    assert any(
        line.endswith("train-teacher gns:1.0 -s data.shuffle=false --seed 2 --runs runs --device cuda")
        for line in lines
    )
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_every_run_of_the_agenda_is_a_command_that_plans_and_waits_for_its_teachers(gpu, ghost, tmp_path):
    parts = [part for part in gpu.agenda(tmp_path, tmp_path / "runs") if not part.alone]
    assert len({part.name for part in parts}) == len(parts) > 40
    plans: dict[str, list[str]] = {}
    for part in parts:
        done = ghost(*part.command[3:], "--dry-run", "--json")
        assert done.code == 0, (part.name, done.err)
        planned = [row["run"] for row in json.loads(done.out)]
        assert all(planned[-1] != other[-1] for other in plans.values()), f"{part.name} is another part again"
        for name in part.after:  # a teacher of its own, or one who trains the same assistants
            assert set(planned) & set(plans[name]), f"{part.name} waits for {name} and needs nothing of it"
        plans[part.name] = planned


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def lease(gpu, folder: Path, jobs: int = 2, seconds: float = 60.0):
    folder.mkdir(exist_ok=True)
    state = folder / "state.json"
    kept = json.loads(state.read_text()) if state.exists() else {}
    return gpu.Lease(folder, jobs, time.monotonic() + seconds, kept)


def test_a_lease_goes_on_where_the_last_one_stopped(gpu, tmp_path):
    note = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, 'log').open('a').write"
    parts = [
        gpu.Part("first", python(f"{note}('first ')"), alone=True),
        gpu.Part("fails", python(f"{note}('fails '); os._exit(3)"), alone=True),
        gpu.Part("needs", python(f"{note}('needs ')"), after=("fails",)),
        gpu.Part("last", python(f"{note}('last ')")),
    ]
    out = tmp_path / "out"
    lease(gpu, out).carry_out(parts)
    assert (tmp_path / "log").read_text() == "first fails last "
    state = json.loads((out / "state.json").read_text())
    assert {name: one["code"] for name, one in state.items()} == {"first": 0, "fails": 3, "last": 0}
    parts[1] = gpu.Part("fails", python(f"{note}('mended ')"), alone=True)
    lease(gpu, out).carry_out(parts)
    assert (tmp_path / "log").read_text() == "first fails last mended needs "


def test_what_is_over_its_limit_or_the_leases_is_stopped_by_a_signal(gpu, tmp_path):
    saves = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "print('began', flush=True); time.sleep(60)"
    )
    out = tmp_path / "out"
    began = time.monotonic()
    lease(gpu, out, seconds=8).carry_out(
        [
            gpu.Part("limited", python(saves), seconds=3, alone=True),
            gpu.Part("long", python(saves)),
            gpu.Part("beside", python("print('beside')")),
            gpu.Part("never", python("print('never')"), alone=True),
        ]
    )
    assert time.monotonic() - began < 30
    assert (out / "limited.out").read_text() == "began\nsaved\n"
    assert (out / "long.out").read_text() == "began\nsaved\n"
    assert (out / "beside.out").read_text() == "beside\n"
    state = json.loads((out / "state.json").read_text())
    assert {name: one["code"] for name, one in state.items()} == {"limited": 75, "long": 75, "beside": 0}


SAVES = """
import sys, time
from ghostcli import signals
from ghostcli.errors import Interrupted
try:
    with signals.handled(), signals.polled():
        print("began", flush=True)
        while not signals.received():
            time.sleep(0.01)
        time.sleep(1)
        print("saved", flush=True)
        signals.raise_if_received()
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""


def test_every_run_under_way_is_left_the_time_to_save(gpu, tmp_path):
    """To `ghost`, a second signal means to leave at once."""
    out = tmp_path / "out"
    runs = [gpu.Part(name, python(SAVES)) for name in ("a", "b", "c")]
    lease(gpu, out, jobs=3, seconds=4).carry_out(runs)
    assert [(out / f"{run.name}.out").read_text() for run in runs] == ["began\nsaved\n"] * 3
    state = json.loads((out / "state.json").read_text())
    assert [state[run.name]["code"] for run in runs] == [75] * 3


def test_what_does_not_heed_the_signal_is_killed(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PATIENCE", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    lease(gpu, tmp_path / "out").carry_out([gpu.Part("deaf", python(deaf), seconds=3, alone=True)])
    assert time.monotonic() - began < 30
    assert json.loads((tmp_path / "out" / "state.json").read_text())["deaf"]["code"] == -9


def test_commands_are_shown_as_a_person_would_type_them(gpu):
    part = gpu.Part("a", (sys.executable, "-m", "ghostcli", "distill", "resnet18"))
    assert part.shown == "ghost distill resnet18"
    assert gpu.Part("b", (sys.executable, str(ROOT / "benchmarks" / "x.py"))).shown == shlex.join(
        ["python", "benchmarks/x.py"]
    )


def test_every_trial_of_the_search_is_another_valid_run_that_holds_images_out(ghost, tmp_path):
    search = script("search")
    trials = search.trials()
    assert len({trial.key for trial in trials}) == len(trials)
    for trial in trials:
        words = trial.command(tmp_path)
        recipe = load("ghost", [setting for flag, setting in pairwise(words) if flag == "-s"]).recipe
        assert all(str(recipe_value(recipe, key)) == str(value) for key, value in trial.settings.items())
    planned = json.loads(ghost(*trials[0].command(tmp_path), "--dry-run", "--json").out)
    assert [row["student"] for row in planned] == ["gns:0.25"]
    assert all("data.validation=5000" in trial.command(tmp_path) for trial in trials)


def recipe_value(recipe, key: str):
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def test_the_search_keeps_each_trial_and_goes_on_with_the_next(tmp_path, monkeypatch, capsys):
    search = script("search")
    monkeypatch.setattr(search, "RECORD", tmp_path / "search.json")
    small = {"data.name": "digits", "data.limit": 64}
    monkeypatch.setattr(search, "HELD_OUT", 40)
    pair = [search.Trial("a", name, small, "gns:0.2", 1, seed) for seed, name in enumerate(("one", "two"))]
    monkeypatch.setattr(search, "trials", lambda: pair)
    monkeypatch.setattr(sys, "argv", ["search.py", "--runs", str(tmp_path / "runs")])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    search.main()
    lines = json.loads((tmp_path / "search.json").read_text())
    assert [line["status"] for line in lines.values()] == ["done", "done"]
    for line in lines.values():
        rows = (tmp_path / "runs" / line["run"] / "metrics.jsonl").read_text().splitlines()
        assert line["validation"] == round(json.loads(rows[-1])["validation"]["accuracy"], 2)
    capsys.readouterr()
    search.main()
    assert capsys.readouterr().out == ""  # nothing is trained twice


def test_the_calibration_counts_verdicts_where_nothing_differs_and_where_something_does(tmp_path):
    """Ten runs that differ by their seeds, ten that are 20 points worse: seldom a verdict among one, always between."""
    calibration = script("calibration")
    for seed in range(10):
        write_run(tmp_path, "gns:0.25", seed=seed, accuracy=80 + 0.1 * seed, epochs=8)
        write_run(tmp_path, "gns:0.25", seed=seed, accuracy=60 + 0.1 * seed, epochs=6)
    found = calibration.judged([tmp_path], draws=30)
    longer, shorter = found["groups"]
    assert (longer["epochs"], longer["runs"], longer["mean"], shorter["epochs"]) == (8, 10, 80.45, 6)
    assert longer["sd"] == pytest.approx(0.303, abs=1e-3)
    assert [row["runs a side"] for row in longer["nothing differs"]] == [3, 5]
    assert all(row["better"] + row["worse"] <= 0.2 for row in longer["nothing differs"])
    [against] = longer["against"]
    assert against["difference"] == pytest.approx(20) and [row["better"] for row in against["verdicts"]] == [1, 1, 1]
    group = calibration.cohorts([run for run in calibration.record.scan(tmp_path) if run.result.epochs == 8])[0].groups[
        0
    ]
    for a, b in calibration.sides(group, group, 5, 20):
        assert not a.ids & b.ids and len(a.runs) == len(b.runs) == 5
