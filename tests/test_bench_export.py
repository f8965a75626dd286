"""`ghost export`: the written file, loaded elsewhere, is the run's network; what is not is never written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from report_runs import edit

from ghostcli import plan
from ghostcli.recipe import load
from ghostcli.records import record
from ghostcli.run import launch
from ghostcli.run.job import load_data
from ghostcli.zoo import weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One finished run of a small student."""
    runs = tmp_path_factory.mktemp("runs")
    settings = ["data.name=digits", "data.limit=128", "data.limit_test=100", "train.epochs=2", "augment.flip=none"]
    found = load("smoke", settings)
    job = plan.plain("gns:0.3", 0, found.recipe, found.name)
    [run] = launch.carry_out(plan.order([job]), launch.Options(runs, "cpu", quiet=True))
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "runs" / trained.id
    shutil.copytree(trained.path, copy)
    return record.RunRecord(copy, trained.id)


def test_the_program_runs_without_ghost_and_gives_the_runs_predictions(ghost, run, tmp_path):
    out = tmp_path / "student.pt2"
    done = ghost("export", run.id, "--out", out, "--runs", tmp_path / "runs", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["run"], found["form"], found["images"]) == (run.id, "float32", 100)
    assert found["accuracy"] == found["recorded"] == run.result.accuracy.selected
    assert found["from_deploy_form"] < 1e-4
    assert found["bytes"] == out.stat().st_size

    data = load_data(run.result.recipe.data)
    np.save(tmp_path / "images.npy", (data.test.pixels.numpy() / 255).astype(np.float32).transpose(0, 3, 1, 2))
    program = (
        "import json, sys, numpy as np, torch\n"
        "extra = {'ghost.json': ''}\n"
        "program = torch.export.load('student.pt2', extra_files=extra).module()\n"
        "images = torch.from_numpy(np.load('images.npy'))\n"
        "one = program(images[:1])\n"
        "np.save('logits.npy', torch.cat([one, program(images[1:])]).numpy())\n"
        "assert not any(name.startswith('ghostcli') for name in sys.modules)\n"
        "print(extra['ghost.json'])"
    )
    away = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert away.returncode == 0, away.stderr
    logits, labels = run.predictions()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits.astype(np.float32), rtol=2e-3, atol=2e-3)
    about = json.loads(away.stdout)
    assert about["classes"] == list(data.classes)
    assert about["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).mean(), abs=1.0)


def test_half_precision_weights_load_as_the_deploy_form(ghost, run, tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    runs = ("--runs", tmp_path / "runs")
    assert ghost("export", f"run/{run.id}", "-o", full, *runs).code == 0
    done = ghost("export", run.id, "-o", half, "--half", *runs)
    assert done.code == 0, done.err
    assert f"recorded {run.result.accuracy.selected:.2f} %" in done.out
    assert half.stat().st_size < 0.6 * full.stat().st_size
    trained, folded = weights.load(run.weights), weights.load(half)
    assert sum(p.numel() for p in folded.model.parameters()) < sum(p.numel() for p in trained.model.parameters())
    assert folded.norm == trained.norm
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted = trained.model(x)
        torch.testing.assert_close(folded.model(x), wanted, rtol=0, atol=3e-3 * wanted.abs().max().item())


@pytest.mark.parametrize(
    ("out", "more", "told"),
    [
        ("student.onnx", [], ".pt2"),
        ("nowhere/student.pt2", [], "nowhere"),
        ("student.pt2", ["--half"], "student.safetensors"),
    ],
)
def test_a_wrong_destination_is_exit_code_2_and_nothing_is_written(ghost, run, tmp_path, out, more, told):
    done = ghost("export", run.id, "--out", tmp_path / out, "--runs", tmp_path / "runs", *more)
    assert done.code == 2
    assert told in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_runs_that_cannot_be_exported_are_refused(ghost, run, tmp_path):
    out, runs = tmp_path / "student.pt2", tmp_path / "runs"
    assert ghost("export", "gns-1.0-plain-00000000", "--out", out, "--runs", runs).code == 2
    run.weights.rename(run.path / "elsewhere")
    done = ghost("export", run.id, "--out", out, "--runs", runs)
    assert (done.code, "weights are not here" in done.err) == (2, True)
    (run.path / "status.json").write_text('{"status": "interrupted"}')
    done = ghost("export", run.id, "--out", out, "--runs", runs)
    assert (done.code, "unfinished" in done.err) == (2, True)
    assert not out.exists()


def test_damaged_weights_are_never_exported(ghost, run, tmp_path):
    content = bytearray(run.weights.read_bytes())
    content[-7] ^= 4
    run.weights.write_bytes(content)
    done = ghost("export", run.id, "--out", tmp_path / "student.pt2", "--runs", tmp_path / "runs")
    assert done.code == 1
    assert "checksum" in done.err
    assert not (tmp_path / "student.pt2").exists()


@pytest.mark.parametrize(
    ("key", "value", "code", "told"),
    [("environment", {"data_checksum": "other"}, 2, "no longer"), ("accuracy", {"selected": 99.0}, 1, "99.00")],
)
def test_what_does_not_match_the_record_is_never_written(ghost, run, tmp_path, key, value, code, told):
    result = json.loads((run.path / "result.json").read_text())
    edit(run.path / "result.json", **{key: result[key] | value})
    done = ghost("export", run.id, "--out", tmp_path / "student.safetensors", "--runs", tmp_path / "runs")
    assert done.code == code
    assert told in done.err
    assert not (tmp_path / "student.safetensors").exists()


def test_a_program_that_answers_otherwise_is_never_written(ghost, run, tmp_path, monkeypatch):
    from ghostcli.deploy import export

    ask = export._ask_program
    monkeypatch.setattr(export, "_ask_program", lambda content, data: ask(content, data) + 0.5)
    done = ghost("export", run.id, "--out", tmp_path / "student.pt2", "--runs", tmp_path / "runs")
    assert done.code == 1
    assert "0.5" in done.err
    assert not (tmp_path / "student.pt2").exists()
