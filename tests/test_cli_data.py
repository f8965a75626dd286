"""`ghost data`: what is listed, fetched and verified, on stdout and as JSON, with exit code 2 for what is bad."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image
from typer.testing import CliRunner

from ghostcli.cli.data import app
from ghostcli.data import load
from ghostcli.errors import UsageError
from ghostcli.recipe.models import DataSection


@pytest.fixture(autouse=True)
def empty_root(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOST_DATA", str(tmp_path / "data"))


def ghost_data(*arguments: str, code: int = 0) -> str:
    """Standard output; a UsageError is what the `ghost` command turns into exit code 2."""
    result = CliRunner().invoke(app, arguments)
    if code == 2:
        assert isinstance(result.exception, UsageError), result.output
        assert result.exception.exit_code == 2
        return result.stdout + str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def test_list_tells_what_there_is(tmp_path):
    rows = {row["name"]: row for row in json.loads(ghost_data("list", "--json"))}
    assert set(rows) == {"cifar10", "cifar100", "digits"}
    assert [rows[name]["present"] for name in ("cifar10", "cifar100", "digits")] == [False, False, True]
    assert rows["cifar10"]["path"] == str(tmp_path / "data" / "cifar-10-batches-py")
    assert (rows["cifar100"]["train_images"], rows["cifar100"]["test_images"], rows["cifar100"]["classes"]) == (
        50_000,
        10_000,
        100,
    )
    digits = load(DataSection(name="digits"))
    assert (rows["digits"]["train_images"], rows["digits"]["test_images"]) == (len(digits.train), len(digits.test))
    assert rows["digits"]["classes"] == len(digits.classes)
    text = ghost_data("list")
    for word in ("cifar10", "cifar100", "digits", "folder:PATH", "50,000", "downloaded at first use"):
        assert word in text
    assert not (tmp_path / "data").exists()


def test_list_counts_the_files(tmp_path):
    source = torchvision.datasets.CIFAR100
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / source.filename).write_bytes(b"")
    states = {row["name"]: row["state"] for row in json.loads(ghost_data("list", "--json"))}
    assert states == {"cifar10": "absent", "cifar100": "packed", "digits": "ready"}
    (tmp_path / "data" / source.base_folder).mkdir()
    (tmp_path / "data" / source.base_folder / "train").write_bytes(b"")
    assert json.loads(ghost_data("list", "--json"))[1]["state"] == "incomplete"


def test_verify_digits():
    assert ghost_data("verify", "digits").startswith("ok")
    assert json.loads(ghost_data("verify", "digits", "--json"))["ok"] is True


def test_verify_digits_that_changed(monkeypatch):
    monkeypatch.setattr("ghostcli.data.digits.SHA256", "0" * 64)
    assert "BAD" in ghost_data("verify", "digits", code=2)


def test_verify_names_every_bad_file(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_2").write_bytes(b"cut")
    text = ghost_data("verify", "cifar10", code=2)
    assert text.count("is missing") == 6
    assert f"BAD {folder / 'data_batch_2'}: damaged or cut short (3 bytes" in text
    assert "7 of 7" in text
    held = json.loads(CliRunner().invoke(app, ["verify", "cifar10", "--json"]).stdout)
    assert held["ok"] is False
    assert len(held["files"]) == 7
    assert all(check["problem"] for check in held["files"])


def test_verify_a_folder(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for name in ("[red]a", "b"):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((9, 12, 3), i, np.uint8)).save(tmp_path / "own" / part / name / f"{i}.png")
    assert "2 classes, 6 training and 2 test images" in ghost_data("verify", f"folder:{tmp_path / 'own'}")
    shutil.rmtree(tmp_path / "own" / "test" / "b")
    assert "only train/ holds 'b'" in ghost_data("verify", f"folder:{tmp_path / 'own'}", code=2)
    assert "need no download" in ghost_data("fetch", f"folder:{tmp_path / 'own'}", code=2)


@pytest.mark.parametrize("verb", ["fetch", "verify"])
def test_unknown_names(verb, tmp_path):
    assert "did you mean cifar10" in ghost_data(verb, "cifar1O", code=2)
    assert not (tmp_path / "data").exists()


def test_fetch_digits_has_nothing_to_do():
    assert "ready" in ghost_data("fetch", "digits")
    assert json.loads(ghost_data("fetch", "digits", "--json"))["name"] == "digits"


def test_fetch_without_a_network_says_where_to_put_the_files(tmp_path, monkeypatch):
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("no_proxy", "*")
    text = ghost_data("fetch", "cifar10", code=2)
    for word in ("cannot fetch", "(Connection refused)", source.filename, source.tgz_md5, str(tmp_path / "data")):
        assert word in text
    assert not (tmp_path / "data").exists()
