"""`ghost push` and `ghost pull` against a stand-in of the hub's interface: folders on this disk. No network."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from report_runs import edit, write_run

from ghostcli.records import record, tensorfile
from ghostcli.share.hub import card


class Hub:
    """Repositories as folders, with the calls that ghost makes."""

    root: Path
    extra: ClassVar[list[str]] = []
    asked: ClassVar[list[str]] = []

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        (self.root / repository).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(
        self, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]
    ) -> SimpleNamespace:
        for pattern in delete_patterns:
            for file in (self.root / repo_id).glob(pattern):
                file.unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(repo_url=f"https://hub.example/{repo_id}")

    def list_repo_files(self, repository: str) -> list[str]:
        if not (self.root / repository).is_dir():
            raise RuntimeError(f"404: {repository} not found\nRequest ID: 1")
        return self.extra + [path.name for path in sorted((self.root / repository).iterdir())]

    def hf_hub_download(self, repository: str, file: str) -> str:
        self.asked.append(file)
        return str(self.root / repository / file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    kind = type("Stand", (Hub,), {"root": tmp_path / "hub", "extra": [], "asked": []})
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=kind))
    return kind


def test_there_and_back(ghost, digits_runs: Path, digits_run, hub: type[Hub], tmp_path: Path) -> None:
    done = ghost("push", f"run/{digits_run.id}", "ada/digits", "--runs", digits_runs)
    assert (done.code, done.out) == (0, "https://hub.example/ada/digits\n"), done
    sent = hub.root / "ada" / "digits"
    card = (sent / "README.md").read_text()
    result = digits_run.result
    assert card.startswith("---\nlibrary_name: ghostcli\n") and f"**{result.accuracy.selected:.2f} %**" in card
    assert f"n = {result.test_images} test images" in card and f"ghost predict run/{digits_run.id} photo.jpg" in card
    assert "CC BY 4.0" in card and "Without a teacher." in card
    (sent / "surprise.py").write_text("raise SystemExit")
    done = ghost("pull", "ada/digits", "--runs", tmp_path / "mine")
    assert done.code == 0 and done.out.startswith(f"{digits_run.id}: "), done
    assert "surprise.py" not in hub.asked and "README.md" not in hub.asked
    place = tmp_path / "mine" / digits_run.id
    assert (place / "model.safetensors").read_bytes() == digits_run.weights.read_bytes()
    verified = ghost("runs", "verify", "--runs", tmp_path / "mine")
    assert place.stat().st_mode == place.parent.stat().st_mode, "as open as any folder that is made"
    assert verified.code == 0 and [path.name for path in (tmp_path / "mine").iterdir()] == [place.parent.name]
    again = ghost("pull", "ada/digits", "--runs", tmp_path / "mine")
    assert again.code == 2 and "is there already" in again.err


def test_no_path_of_the_machine_is_published(
    ghost, digits_runs: Path, digits_run, hub: type[Hub], tmp_path: Path
) -> None:
    shutil.copytree(digits_runs, tmp_path / "runs")
    folder = tmp_path / "runs" / digits_run.id
    command = ["train-teacher", "py:/home/ada/net.py:make", "--data=folder:/home/ada/photos", "--runs=/home/ada/runs"]
    command += ["-s", "data.name=folder:/home/ada/photos", "--recipe", "/home/ada/mine.toml"]
    edit(folder / "result.json", command=command)
    edit(folder / "recipe.json", seal=False, command=command)
    assert ghost("push", digits_run.id, "ada/digits", "--runs", tmp_path / "runs").code == 0
    for name in ("result.json", "recipe.json"):
        assert json.loads((hub.root / "ada" / "digits" / name).read_text())["command"] == [
            *("train-teacher", "py:net.py:make", "--data=folder:photos", "--runs=runs"),
            *("-s", "data.name=folder:photos", "--recipe", "mine.toml"),
        ]
    assert ghost("pull", "ada/digits", "--runs", tmp_path / "mine").code == 0
    assert ghost("runs", "verify", "--runs", tmp_path / "mine").code == 0


def test_a_folder_of_the_machine_is_published_only_if_asked(ghost, hub: type[Hub], tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", data="folder:/home/ada/photos", predictions=True)
    folder = tmp_path / "runs" / run
    weights = tensorfile.encode({"weight": torch.zeros(1)}, {})
    (folder / "model.safetensors").write_bytes(weights)
    known = json.loads((folder / "result.json").read_text())["files"]
    edit(folder / "result.json", files=known | {"model.safetensors": hashlib.sha256(weights).hexdigest()})
    told = ghost("push", run, "ada/own", "--runs", tmp_path / "runs")
    assert told.code == 2 and "would publish folder:/home/ada/photos; add --paths" in told.err, told
    assert not (hub.root / "ada").exists()
    for flag in ("--private", "--paths"):
        assert ghost("push", run, "ada/own", "--runs", tmp_path / "runs", flag).code == 0


def test_names_in_a_card_are_code_as_they_are(tmp_path: Path) -> None:
    run = record.find(tmp_path, write_run(tmp_path))
    made = run.result.model_copy(update={"recipe_name": "my_recipe.toml"})
    assert "Recipe `my_recipe.toml`, " in card(made, ())
    made = run.result.model_copy(update={"recipe_name": "a``[b](c)"})
    assert "Recipe ``` a``[b](c) ```, " in card(made, ())


def test_what_is_refused(ghost, digits_runs: Path, digits_run, hub: type[Hub], tmp_path: Path) -> None:
    def pulled(expected: int, message: str) -> None:
        done = ghost("pull", "ada/digits", "--runs", tmp_path / "mine")
        assert done.code == expected and message in done.err and len(done.err.splitlines()) == 1, done
        assert not list((tmp_path / "mine").glob("*")) and not list((tmp_path / "mine").glob(".pull*"))

    pulled(1, "ada/digits: the hub refused (404: ada/digits not found)")
    (hub.root / "ada" / "digits").mkdir(parents=True)
    pulled(2, "is no ghost model, it has no result.json")
    assert ghost("push", digits_run.id, "ada/digits", "--runs", digits_runs).code == 0
    for extra, message in (("weights.bin", "can run code"), ("../../x.json", "leads out"), ("/etc/x", "leads out")):
        hub.extra = [extra]
        pulled(2, message)
    hub.extra = []
    sent = hub.root / "ada" / "digits"
    weights = bytearray((sent / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (sent / "model.safetensors").write_bytes(weights)
    pulled(2, "its record is not to be believed: model.safetensors")
    (sent / "model.safetensors").write_bytes(digits_run.weights.read_bytes())
    edit(sent / "result.json", run="../../../escape-plain-00000000/s0")
    pulled(2, "no record of a run")


def test_bad_names_and_unfinished_runs(ghost, digits_runs: Path, digits_run, hub: type[Hub], tmp_path: Path) -> None:
    for name in ("digits", "ada/../x", "ada/digits/more", "https://hub.example/ada/x"):
        done = ghost("pull", name, "--runs", tmp_path / "mine")
        assert done.code == 2 and "type OWNER/NAME" in done.err
    shutil.copytree(digits_runs, tmp_path / "runs")
    (tmp_path / "runs" / digits_run.id / "model.safetensors").unlink()
    done = ghost("push", digits_run.id, "ada/digits", "--runs", tmp_path / "runs")
    assert done.code == 2 and "its weights are not here" in done.err and not (tmp_path / "hub").exists()


def test_a_hub_that_is_not_installed(ghost, digits_runs: Path, digits_run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = ghost("push", digits_run.id, "ada/digits", "--runs", digits_runs)
    assert done.code == 2 and "pip install 'ghostcli[hub]'" in done.err


def test_an_exported_file_is_of_the_run_and_an_older_one_goes(
    ghost, digits_runs: Path, digits_run, hub: type[Hub], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    export = ("export", f"run/{digits_run.id}", "--runs", digits_runs, "--no-timing", "--out")
    assert ghost(*export, tmp_path / "net.onnx").code == 0
    push = ("push", f"run/{digits_run.id}", "ada/digits", "--runs", digits_runs)
    assert ghost(*push, "--onnx", tmp_path / "net.onnx").code == 0
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "net.onnx", tmp_path / "other")
    told = ghost(*push, "--onnx", tmp_path / "net.onnx", "--onnx", tmp_path / "other" / "net.onnx")
    assert told.code == 2 and "two files have one name" in told.err
    assert ghost(*push).code == 0 and not list((hub.root / "ada" / "digits").glob("*.onnx"))
    content = (tmp_path / "net.onnx").read_bytes()
    other = digits_run.id[:-1] + "7"
    (tmp_path / "net.onnx").write_bytes(content.replace(digits_run.id.encode(), other.encode()))
    told = ghost(*push, "--onnx", tmp_path / "net.onnx")
    assert told.code == 2 and f"is the network of {other}, not of {digits_run.id}" in told.err
