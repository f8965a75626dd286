"""`import ghostcli as ghost`: what its functions return, that docs/python.md runs, and what they say of mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import edit, write_run
from test_compare_tables import build, row
from test_docs import ROOT, blocks

import ghostcli
from ghostcli.api import _typed
from ghostcli.errors import UsageError


def test_the_page_runs(digits_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(digits_runs, tmp_path / "runs")
    [run] = ghostcli.runs(tmp_path / "runs")
    Image.new("RGB", (40, 30), (200, 30, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for _, code in blocks(ROOT / "docs" / "python.md", "python"):
        exec(code.replace("run/ID", f"run/{run.id}"), names)
    alone, taught = names["alone"], names["taught"]
    assert [r.result.seed for r in alone] == [0, 1] and taught[0].result.strategy == "kd"
    assert taught[0].result.recipe.train.epochs == 1
    compared = ghostcli.compare(taught, alone)
    assert compared.mean == pytest.approx(np.mean([r.accuracy for r in taught]) - np.mean([r.accuracy for r in alone]))
    assert run.id in run._repr_html_() and "<table>" in compared._repr_html_()


def test_a_network_answers_as_the_command_does(ghost, digits_runs: Path, tmp_path: Path) -> None:
    [run] = ghostcli.runs(digits_runs)
    file = tmp_path / "digit.png"
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[6:26, 14:18] = 255
    Image.fromarray(pixels).save(file)
    net = run.network()
    said = json.loads(ghost("predict", f"run/{run.id}", file, "--runs", digits_runs, "--json", "--top", 10).out)
    shares = {each["class"]: each["probability"] for each in said[0]["predictions"]}
    ours = net(file)
    assert ours.shape == (10,) and ours == pytest.approx([shares[name] for name in net.classes], abs=1e-5)
    assert net.predict(file) == said[0]["predictions"][0]["class"]
    both = net(np.stack([pixels, pixels]))
    assert both.shape == (2, 10) and both == pytest.approx(np.stack([ours, ours]), abs=1e-6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    turned = tmp_path / "turned.png"
    Image.fromarray(np.rot90(pixels).copy()).save(turned, exif=exif)
    assert net([file, Image.open(file), pixels, turned, Image.open(turned)]) == pytest.approx(
        np.stack([ours] * 5), abs=1e-6
    )
    with pytest.raises(UsageError, match="more than 8 bits a channel"):
        net(Image.new("I;16", (32, 32)))
    assert ghostcli.load(str(run.record.path)).predict(file) == net.predict(file)


def test_a_comparison_is_that_of_the_table(tmp_path: Path) -> None:
    alone = [write_run(tmp_path, "gns:1.0", seed=s, accuracy=91.4 + 0.1 * s, epochs=20) for s in range(3)]
    taught = [
        write_run(tmp_path, "gns:1.0", "kd", ("resnet50",), seed=s, accuracy=93.2 + 0.1 * s, epochs=20)
        for s in range(3)
    ]
    found = ghostcli.compare(taught, alone, runs=tmp_path)
    theirs = row(build(tmp_path), "gns:1.0", "resnet50")
    assert (found.mean, found.low, found.high) == (theirs.delta.mean, theirs.delta.low, theirs.delta.high)
    assert found.verdict == theirs.verdict == "better" and str(found).startswith("better: +1.80 points, 95 % interval")
    with pytest.raises(UsageError, match="no run twice"):
        ghostcli.compare(alone, alone, runs=tmp_path)
    with pytest.raises(UsageError, match="runs of one job"):
        ghostcli.compare([taught[0], alone[0]], alone, runs=tmp_path)
    native = [write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), s, 93.2, epochs=20, start="native") for s in range(2)]
    assert ghostcli.compare(native, alone, runs=tmp_path).differs["start"] == ("kaiming", "native")
    shorter = write_run(tmp_path, "gns:1.0", seed=0, epochs=2)
    found = ghostcli.compare(shorter, alone, runs=tmp_path)
    assert found.differs == {"train.epochs": (20, 2)} and str(found).endswith("; train.epochs: 20 → 2")
    other = write_run(tmp_path, "gns:1.0", seed=0, epochs=3, test_images=500)
    with pytest.raises(UsageError, match="they were tested on different images"):
        ghostcli.compare(other, alone, runs=tmp_path)
    edit(tmp_path / alone[0] / "result.json", seal=False, nll=0.1)
    with pytest.raises(UsageError, match=r"cannot be compared, result\.json was changed"):
        ghostcli.compare(taught, alone, runs=tmp_path)


def test_mistakes_are_the_commands_errors(digits_runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no runs at all"):
        ghostcli.load("run/gns-1.0-plain-00000000/s0", runs=tmp_path)
    with pytest.raises(UsageError, match="resnet18"):
        ghostcli.train("resnet19", runs=tmp_path)
    with pytest.raises(UsageError, match=r"train\.epochs"):
        ghostcli.train("gns:1.0", settings={"train.epoch": 3}, runs=tmp_path)
    [run] = ghostcli.runs(digits_runs)
    net = run.network()
    for wrong in (np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3), np.float32)):
        with pytest.raises(UsageError, match="must be uint8"):
            net([wrong])
    with pytest.raises(UsageError, match="there is no image"):
        net([])
    with pytest.raises(AttributeError):
        _ = ghostcli.nothing
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_loaded_and_names_are_listed(digits_runs: Path) -> None:
    [run] = ghostcli.runs(digits_runs)
    assert ghostcli.load(run).classes == ghostcli.load(run.id, runs=digits_runs).classes
    assert {"load", "train", "compare", "runs"} <= set(dir(ghostcli)) and "annotations" not in dir(ghostcli)


def test_importing_it_costs_nothing() -> None:
    code = "import sys; import ghostcli as g; assert 'numpy' not in sys.modules; assert callable(g.compare)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_may_be_numbers_of_numpy_and_paths() -> None:
    from ghostcli.recipe import load

    settings = {
        "train.epochs": np.int64(3),
        "optim.lr": np.float32(0.5),
        "augment.cutout": None,
        "data.name": f"folder:{Path('photos')}/\U0001f63a",
        "data.shuffle": np.bool_(False),
    }
    found = load(
        "paper", [f"{key}={_typed(key, value)}" for key, value in settings.items() if value is not None]
    ).recipe
    assert (found.train.epochs, found.optim.lr, found.data.shuffle) == (3, 0.5, False)
    assert found.data.name.endswith("photos/\U0001f63a")
    assert (_typed("a", Path("b/c")), _typed("a", None)) == ('"b/c"', "none")
    with pytest.raises(UsageError, match=r"settings\['train.epochs'\]: is set; give"):
        ghostcli.train("gns:0.1", settings={"train.epochs": {3}})


def test_pictures_come_in_every_usual_way(digits_runs: Path, tmp_path: Path, monkeypatch) -> None:
    [run] = ghostcli.runs(digits_runs)
    net = ghostcli.load(run)
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 30, 40)).save(tmp_path / f"{i}.png")
    files = sorted(tmp_path.glob("*.png"))
    expected = net(files)
    np.testing.assert_array_equal(net(file for file in files), expected)
    np.testing.assert_array_equal(net(map(Image.open, files)), expected)
    np.testing.assert_array_equal(net(np.array(list(map(str, files)), dtype=object)), expected)
    grey = np.full((32, 32), 70, np.uint8)
    np.testing.assert_array_equal(net(grey), net(np.stack([grey] * 3, axis=-1)))
    monkeypatch.chdir(run.record.path.parent)
    np.testing.assert_array_equal(ghostcli.load("s0")(files), expected)


def test_what_is_no_picture_and_no_seed_is_a_line(digits_runs: Path, tmp_path: Path) -> None:
    net = ghostcli.load(ghostcli.runs(digits_runs)[0])
    shut = Image.new("RGB", (8, 8))
    shut.close()
    for wrong, said in ((b"abc", "is bytes"), ([{}], "is dict"), (shut, "cannot be read"), (7, "is int")):
        with pytest.raises(UsageError, match=said):
            net(wrong)
    with pytest.raises(UsageError, match="goes with a model's name"):
        ghostcli.load(ghostcli.runs(digits_runs)[0], pretrained="digits")
    for seeds in ([-1], [0.0], [], [0, 0], [True], 1.0, None):
        with pytest.raises(UsageError, match="different whole numbers from 0"):
            ghostcli.train("gns:0.1", recipe="smoke", seeds=seeds, runs=tmp_path)
