"""Networks that come with ghost, by the names that commands take; made by the script that ships them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ghostcli
from ghostcli import zoo
from ghostcli.cli import complete
from ghostcli.comparison import admission
from ghostcli.errors import UsageError
from ghostcli.plan import Finished, chain, finished
from ghostcli.recipe import load as load_recipe
from ghostcli.records import record, trained
from ghostcli.records.model import RunResult, read
from ghostcli.run import spec
from ghostcli.run.job import Options
from ghostcli.share.hub import card
from ghostcli.zoo import weights
from ghostcli.zoo.names import slug

ROOT = Path(__file__).parents[1]
NAME = "pretrained/gns-0.3"
FOLDER = trained.FOLDER  # as it is in this checkout


@pytest.fixture(scope="module")
def package(digits_runs, tmp_path_factory) -> Path:
    """What a ghost comes with that ships the run of the tests."""
    found = importlib.util.spec_from_file_location("ship", ROOT / "benchmarks" / "ship.py")
    ship = importlib.util.module_from_spec(found)
    found.loader.exec_module(ship)
    at = tmp_path_factory.mktemp("package") / "pretrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "FOLDER", at)
        assert ship.ship(record.scan(digits_runs)) == at / "gns-0.3"
    return at


@pytest.fixture(autouse=True)
def folder(package, tmp_path, monkeypatch) -> Path:
    """The network's folder, while commands run in an empty one."""
    monkeypatch.setattr(trained, "FOLDER", package)
    monkeypatch.chdir(tmp_path)
    return package / "gns-0.3"


def test_those_that_ship_name_their_classes_and_what_was_checked():
    shipped = [read(path, RunResult) for path in sorted(FOLDER.glob("*/result.json"))]
    assert len(shipped) >= 3
    for one in shipped:
        written = (FOLDER / slug(one.student) / "README.md").read_text().splitlines()
        assert {line for line in card(one, []).splitlines() if line.startswith("- Check")} <= set(written)
        assert not any(found.code in line for found in one.check for line in written)
        assert one.names[:4] == ("airplane", "automobile", "bird", "cat") and len(one.names) == 10


def test_it_is_the_run_in_half_the_bytes(folder, digits_run):
    run = digits_run
    found = trained.find(Path("runs"), NAME)
    assert found.result.run == run.id and found.weights.stat().st_size < 0.75 * run.weights.stat().st_size
    whole, half = (weights.load(one.weights).model for one in (run, found))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], tensor, rtol=2**-11, atol=2**-25, msg=name)
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(zoo.deploy(half)(images), zoo.deploy(whole)(images), rtol=0.05, atol=0.05)
    assert abs(found.result.accuracy.selected - run.result.accuracy.selected) < 3
    card = (folder / "README.md").read_text()
    for said in (
        run.result.digest,
        found.result.files["model.safetensors"],
        "One seed: another training would differ",
        "ghost",
    ):
        assert said in card, said


def test_it_is_measured_asked_and_exported(ghost, folder, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
    [answer] = json.loads(ghost("predict", NAME, "black.png", "--json", "--top", "10").out)
    assert len(answer["predictions"]) == 10
    recorded = json.loads((folder / "result.json").read_text())
    said = json.loads(ghost("evaluate", NAME, "--json").out)
    assert said["model"] == NAME and said["images"] == recorded["test_images"]
    assert said["accuracy"] == pytest.approx(recorded["accuracy"]["selected"], abs=1e-3)
    [row] = json.loads(ghost("bench", NAME, "--json", "--no-timing").out)
    assert row["model"] == NAME
    assert row["deploy_parameters"] == zoo.count_parameters(zoo.deploy(zoo.build("gns:0.3")))
    ghost("export", NAME, "--out", "net.safetensors", "--no-timing")
    assert weights.load(tmp_path / "net.safetensors").name == "gns:0.3"


def test_it_teaches_and_starts_a_training(ghost, folder, tmp_path):
    few = ("--recipe", "smoke", "--data", "digits", "--epochs", "2", "-s", "data.limit=64", "-s", "data.limit_test=64")
    taught = ghost("distill", NAME, "--student", "gns:0.1", *few)
    assert taught.code == 0, taught.err
    [run] = record.scan(tmp_path / "runs")
    [teacher] = run.result.teachers
    weight = json.loads((folder / "result.json").read_text())["files"]["model.safetensors"]
    assert (teacher.run, teacher.network, teacher.weights) == (NAME, "gns:0.3", weight)
    assert "taught by" in ghost("runs", "show", run.id).out
    assert json.loads(ghost("table", "--json").out)
    problems = admission.identity_problems(run, {run.id: run.result})
    forged = run.result.model_copy(update={"teachers": (teacher.model_copy(update={"weights": "0" * 64}),)})
    assert problems == [] and admission.identity_problems(SimpleNamespace(result=forged), {})
    assert ghost("train-teacher", "gns:0.3", "--from", NAME, *few).code == 0
    begun = next(run for run in record.scan(tmp_path / "runs") if run.result.student == "gns:0.3")
    assert begun.result.recipe.model.start == NAME and begun.result.recipe.model.start_sha256 == weight


def test_one_that_was_changed_is_refused(ghost, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "FOLDER", tmp_path / "changed")
    shutil.copytree(folder, tmp_path / "changed" / "gns-0.3")
    file = tmp_path / "changed" / "gns-0.3" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for words in (("predict", NAME, "x.png"), ("distill", NAME, "--student", "gns:0.1"), ("bench", NAME)):
        said = ghost(*words)
        assert said.code == 1 and said.err.count("\n") == 1, said
        assert "its weights are not those that ghost came with; install ghost again" in said.err
    assert not (tmp_path / "runs").exists()


def test_names_that_do_not_fit(ghost):
    for words, error in (
        (
            ("predict", "pretrained/gns-9", "x.png"),
            f"pretrained/gns-9: is no network that comes with ghost; did you mean {NAME}?",
        ),
        (("train-teacher", NAME), "name a model (--from"),
        (("runs", "rm", NAME), "is not a run id"),
        (("assist-chain", "gns:0.2", NAME, "--student", "gns:0.1"), "only the first teacher"),
    ):
        said = ghost(*words)
        assert said.code == 2 and error in said.err and said.err.count("\n") == 1, said


def test_its_weights_are_in_the_identity_of_what_it_teaches(tmp_path):
    """And a job that it teaches goes to another process as it is."""
    found = finished(NAME, Path("runs"))
    assert found.digest == trained.find(Path("runs"), NAME).result.files["model.safetensors"]
    assert isinstance(found, Finished)
    resolved = load_recipe("smoke")
    job = chain((NAME,), "gns:0.1", 0, resolved.recipe, resolved.name, tmp_path)
    again = spec.read(spec.write(job, Options(tmp_path), "token")).job
    assert again == job and again.id == job.id and again.teachers == (found,)


def test_they_are_completed_and_loaded():
    assert complete.models("pre") == [NAME] and NAME in complete.models("")
    network = ghostcli.load("gns:0.3", pretrained="digits")
    assert (network.name, len(network.classes)) == (NAME, 10)
    with pytest.raises(UsageError, match="was trained on digits"):
        ghostcli.load("gns:0.3", pretrained="cifar10")


SHIPPED = [pytest.param(name, id=name) for name in trained.shipped()]


@pytest.mark.real
@pytest.mark.parametrize("name", SHIPPED)
def test_what_ghost_comes_with_is_as_good_as_its_card_says(name, ghost, cifar10, monkeypatch):
    """On the real test images, in the deploy form."""
    monkeypatch.setattr(trained, "FOLDER", FOLDER)
    recorded = trained.find(Path("runs"), name).result
    said = json.loads(ghost("evaluate", name, "--json").out)
    assert said["images"] == recorded.test_images == 10_000
    assert said["accuracy"] == pytest.approx(recorded.accuracy.selected, abs=0.05)  # another CPU rounds otherwise
    assert abs(said["accuracy"] - json.loads((FOLDER / name.partition("/")[2] / "seeds.json").read_text())["0"]) < 0.3


def test_what_ghost_comes_with_is_small_and_described():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    for name in SHIPPED:
        folder = FOLDER / name.values[0].partition("/")[2]
        result = RunResult.model_validate_json((folder / "result.json").read_text())
        assert result.recipe.data.validation == 0 and result.recipe.data.limit is None and result.seed == 0
        assert {file.name for file in folder.iterdir()} == {
            *("README.md", "model.safetensors", "result.json", "seeds.json", "status.json")
        }
        card = (folder / "README.md").read_text()
        assert f"**{result.accuracy.selected:.2f} %**" in card and result.digest in card
