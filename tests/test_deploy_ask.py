"""`ghost predict` and `ghost evaluate`: a network asked about pictures as it was about its test images."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ghostcli.deploy import ask
from ghostcli.records import record


@pytest.fixture
def photos_run(tmp_path, monkeypatch, ghost):
    """(folder of images, id of a finished run of them, folder of runs)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("ape [small]", "bee", "cat"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    done = ghost("train-teacher", "gns:0.1", "--recipe", "smoke", "--data", "folder:photos", "--json")
    assert done.code == 0, done.err
    return tmp_path / "photos", json.loads(done.out)["run"], tmp_path / "runs"


@pytest.fixture
def pictures(digits_run, tmp_path):
    """The first test images as files, and what the run's own record says of them."""
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    folder = tmp_path / "pictures"
    folder.mkdir()
    test = data.load(DataSection(name="digits")).test
    for i, pixels in enumerate(test.pixels[:12].numpy()):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("no picture")
    logits, _ = digits_run.predictions()
    return folder, logits[:12].astype(np.float64)


def test_a_run_says_of_picture_files_what_it_said_of_its_test_images(ghost, digits_run, digits_runs, pictures):
    folder, logits = pictures
    done = ghost("predict", f"run/{digits_run.id}", folder, "--runs", digits_runs, "--json", "--top", 10)
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [row["image"] for row in rows] == [str(folder / f"{i:02}.png") for i in range(12)]
    for row, wanted in zip(rows, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), strict=True):
        assert [one["class"] for one in row["predictions"][:1]] == [str(wanted.argmax())]
        found = {one["class"]: one["probability"] for one in row["predictions"]}
        assert [found[str(i)] for i in range(10)] == pytest.approx(list(wanted), abs=2e-3)
        assert sorted(found.values(), reverse=True) == list(found.values())


def test_the_table_has_a_line_a_picture(ghost, digits_run, digits_runs, pictures):
    folder, logits = pictures
    done = ghost("predict", digits_run.id, folder / "03.png", folder / "00.png", "--runs", digits_runs, "--top", 1)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 2
    for line, i in zip(lines, (3, 0), strict=True):
        assert f"{i:02}.png" in line and line.split()[-1] == str(logits[i].argmax()) and "%" in line


def test_a_pipe_of_the_shell_is_a_picture(digits_run, digits_runs, pictures):
    folder, logits = pictures
    ghost = [sys.executable, "-m", "ghostcli", "predict", digits_run.id, "/dev/stdin", "--runs", digits_runs]
    with subprocess.Popen(["cat", folder / "03.png"], stdout=subprocess.PIPE) as cat:
        done = subprocess.run([*ghost, "--top", "1"], stdin=cat.stdout, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == str(logits[3].argmax()), done.stderr


def test_a_name_with_a_line_end_has_one_line(ghost, digits_run, digits_runs, pictures):
    folder, _ = pictures
    odd = (folder / "00.png").rename(folder / "a\nb.png")
    done = ghost("predict", digits_run.id, odd, "--runs", digits_runs, "--top", 1)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "b.png" in done.out


def test_a_picture_is_turned_upright_as_its_camera_says(ghost, digits_run, digits_runs, tmp_path):
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    upright = Image.fromarray(data.load(DataSection(name="digits")).test.pixels[4].numpy())
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.convert("RGBA").save(tmp_path / "alpha.png")
    names = ("upright.png", "turned.png", "alpha.png")
    done = ghost("predict", digits_run.id, *(tmp_path / name for name in names), "--runs", digits_runs, "--json")
    first, *others = [row["predictions"] for row in json.loads(done.out)]
    assert others == [first, first]


def test_pictures_that_cannot_be_read_cost_no_others(ghost, digits_run, digits_runs, pictures):
    folder, logits = pictures
    (folder / "01.png").write_text("no picture")
    (folder / "06.png").write_bytes((folder / "05.png").read_bytes()[:60])
    done = ghost("predict", digits_run.id, folder, "--runs", digits_runs, "--top", 1)
    assert done.code == 2
    assert [line.split()[0][-6:] for line in done.out.splitlines()] == [
        f"{i:02}.png" for i in range(12) if i not in (1, 6)
    ]
    assert done.err.count("not an image that can be read") == 2 and "01.png" in done.err and "06.png" in done.err
    rows = json.loads(ghost("predict", digits_run.id, folder, "--runs", digits_runs, "--json").out)
    assert [i for i, row in enumerate(rows) if "error" in row] == [1, 6] and rows[1]["predictions"] == []
    assert [row["predictions"][0]["class"] for i, row in enumerate(rows) if i not in (1, 6)] == [
        str(best) for i, best in enumerate(logits.argmax(1)) if i not in (1, 6)
    ]


def test_a_class_keeps_its_name_whatever_becomes_of_its_folder(ghost, photos_run, tmp_path):
    """Names come from the record: a folder that was renamed or left behind changes no answer."""
    photos, run, runs = photos_run
    picture = next((photos / "test" / "cat").iterdir())

    def said() -> str:
        done = ghost("predict", run, picture, "--runs", runs, "--json", "--top", 3)
        return json.loads(done.out)[0]["predictions"]

    before = said()
    assert sorted(one["class"] for one in before) == ["ape [small]", "bee", "cat"]
    for part in ("train", "test"):
        (photos / part / "bee").rename(photos / part / "zebra")
    assert said() == before
    assert ghost("report", run, "--runs", runs, "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "bee" in page and "zebra" not in page
    refused = ghost("evaluate", run, "--runs", runs)
    assert refused.code == 2 and "its 3 classes are not the 3" in refused.err
    for part in ("train", "test"):
        (photos / part / "zebra").rename(photos / part / "bee")
    picture.rename(tmp_path / "moved.png")
    picture = tmp_path / "moved.png"
    done = ghost("evaluate", run, "--runs", runs, "--confusion")
    assert done.code == 0 and "are no longer those of its record" in done.err
    assert done.out.count("ape [small]") == 2, "a column and a row"


def test_standard_input_is_a_picture(ghost, digits_run, digits_runs, pictures, monkeypatch):
    folder, _ = pictures
    content = io.BytesIO((folder / "05.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
    done = ghost("predict", digits_run.id, "-", folder / "05.png", "--runs", digits_runs, "--json")
    piped, named = json.loads(done.out)
    assert piped["image"] == "-" and piped["predictions"] == named["predictions"]


def test_evaluate_gives_the_recorded_accuracy_with_wilsons_interval(ghost, digits_run, digits_runs):
    done = ghost("evaluate", f"run/{digits_run.id}", "--runs", digits_runs, "--json", "--confusion")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    logits, labels = (array.astype(np.float64) for array in digits_run.predictions())
    n = len(labels)
    share = digits_run.result.accuracy.selected / 100
    assert (found["data"], found["images"]) == ("digits", n)
    assert found["accuracy"] == pytest.approx(100 * share, abs=0.3)
    p, z = found["accuracy"] / 100, 1.959964
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found["low"] == pytest.approx(100 * (middle - reach) / (1 + z * z / n), abs=1e-3)
    assert found["high"] == pytest.approx(100 * (middle + reach) / (1 + z * z / n), abs=1e-3)
    chosen = logits[np.arange(n), labels.astype(int)]
    assert found["nll"] == pytest.approx(float(np.mean(np.log(np.exp(logits).sum(1)) - chosen)), abs=5e-3)
    assert 0 <= found["ece"] <= 1
    confusion = np.array(found["confusion"])
    assert confusion.sum(1).tolist() == np.bincount(labels.astype(int)).tolist()
    assert np.trace(confusion) == round(p * n)
    words = ghost("evaluate", digits_run.id, "--runs", digits_runs, "--confusion").out
    assert f"{found['accuracy']:.2f} %" in words and "95 % interval" in words and "true" in words


def test_evaluate_takes_other_images_of_the_same_classes(ghost, digits_run, digits_runs, tmp_path):
    """Classes are matched by name, so a folder's order is no matter."""
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    test = data.load(DataSection(name="digits")).test[:100]
    for i, (pixels, label) in enumerate(zip(test.pixels.numpy(), test.labels.tolist(), strict=True)):
        for part in ("train", "test"):
            folder = tmp_path / "mine" / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    done = ghost("evaluate", digits_run.id, "--data", f"folder:{tmp_path / 'mine'}", "--runs", digits_runs, "--json")
    assert done.code == 0, done.err
    found, (logits, labels) = json.loads(done.out), digits_run.predictions()
    assert found["images"] == 100
    assert found["accuracy"] == pytest.approx(100 * (logits[:100].argmax(1) == labels[:100]).mean(), abs=1.0)
    for name in ("0", "1"):
        shutil.rmtree(tmp_path / "mine" / "train" / name)
        shutil.rmtree(tmp_path / "mine" / "test" / name)
    done = ghost("evaluate", digits_run.id, "--data", f"folder:{tmp_path / 'mine'}", "--runs", digits_runs)
    assert done.code == 2 and "same classes" in done.err


@pytest.fixture
def bad(tmp_path):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipes" / "pipe.png")
    (tmp_path / "model.bin").write_text("no model")
    (tmp_path / "model.pt2").write_text("no model")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "image", "told"),
    [
        ("RUN", "text.png", "not an image"),
        ("RUN", "half.png", "not an image"),
        ("RUN", "nowhere.png", "nowhere.png: cannot be read"),
        ("RUN", "empty", "holds no images"),
        ("RUN", "pipe.png", "is not a file"),
        ("RUN", "pipes", "is not a file"),
        ("RUN", "", "names no picture"),
        ("", "good.png", "names no network"),
        ("model.bin", "good.png", "is no model"),
        ("model.pt2", "good.png", "no whole torch program"),
        ("nowhere.pt2", "good.png", "nowhere.pt2: cannot be read"),
        ("nowhere.onnx", "good.png", "nowhere.onnx: cannot be read"),
        ("gns-1.0-plain-00000000/s0", "good.png", "no run"),
        ("gns:1.0", "good.png", "id"),
    ],
)
def test_bad_input_is_one_line(ghost, digits_run, digits_runs, bad, monkeypatch, model, image, told):
    monkeypatch.chdir(bad)
    before = sorted(path.name for path in bad.iterdir())
    done = ghost("predict", digits_run.id if model == "RUN" else model, image, "--runs", digits_runs)
    assert done.code == 2, done
    assert done.err.startswith("ghost: ") and len(done.err.strip().splitlines()) == 1 and told in done.err
    assert done.out == "" and sorted(path.name for path in bad.iterdir()) == before


def test_data_that_are_elsewhere_are_asked_for(ghost, photos_run, tmp_path, monkeypatch):
    _, run, runs = photos_run
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = ghost("evaluate", run, "--runs", runs)
    assert done.code == 2 and "there is no such folder here" in done.err and "with --data" in done.err, done.err


def test_data_that_have_no_place_of_their_own_are_not_asked_for(ghost, monkeypatch):
    from ghostcli.deploy import ask
    from ghostcli.errors import UsageError

    def load(section):
        raise UsageError(f"{section.name}: cannot be fetched")

    monkeypatch.setattr(ask, "load", load)
    assert ghost("evaluate", "pretrained/gns-0.25").err == "ghost: cifar10: cannot be fetched\n"


def test_unknown_data_are_named_as_by_a_training(ghost, digits_run, digits_runs):
    done = ghost("evaluate", f"run/{digits_run.id}", "--runs", digits_runs, "--data", "digit")
    assert done.code == 2 and "--data" in done.err and "digits" in done.err and done.err.count("\n") <= 2


def test_an_unfinished_run_is_not_asked(ghost, digits_run, tmp_path, bad):
    copy = tmp_path / "runs" / digits_run.id
    shutil.copytree(digits_run.path, copy)
    assert record.find(tmp_path / "runs", digits_run.id).status == "done"
    (copy / "status.json").write_text('{"status": "interrupted"}')
    for words in (("predict", digits_run.id, bad / "good.png"), ("evaluate", digits_run.id)):
        done = ghost(*words, "--runs", tmp_path / "runs")
        assert done.code == 2 and "unfinished" in done.err and len(done.err.strip().splitlines()) == 1


def test_a_data_set_may_be_named_with_any_character(ghost, tmp_path, monkeypatch):
    """JSON wrote an emoji as two halves, which are no TOML."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (tmp_path / "foto😀" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (90 * shade + i, 60, 100)).save(
                    tmp_path / "foto😀" / part / name / f"{i}.png"
                )
    tiny = ("--recipe", "smoke", "--epochs", "1", "-s", "train.batch_size=8", "--device", "cpu")
    run = json.loads(ghost("train-teacher", "gns:0.1", "--data", "folder:foto😀", *tiny, "--json").out)["run"]
    assert ghost("export", run, "--out", "net.pt2", "--no-timing").code == 0
    for asked in (["evaluate", "net.pt2"], ["evaluate", f"run/{run}", "--data", "folder:foto😀"]):
        done = ghost(*asked, "--json")
        assert done.code == 0 and json.loads(done.out)["images"] == 8, done.err
    shutil.rmtree(tmp_path / "foto😀" / "test")
    assert ghost("predict", "net.pt2", "foto😀/train/cat/0.png").code == 0, "predicting needs no data set"


def test_a_name_that_is_no_utf_8_is_printed_as_json(ghost, digits_run, digits_runs, tmp_path):
    odd = tmp_path / os.fsdecode(b"pic\xe9.png")
    Image.new("RGB", (32, 32)).save(odd)
    done = ghost("predict", f"run/{digits_run.id}", odd, "--runs", digits_runs, "--json")
    assert done.code == 0, done
    done.out.encode("utf-8")  # a terminal's encoding refuses halves of a character
    assert json.loads(done.out)[0]["image"] == str(odd)


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "real" / "deep" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "photos")
    assert ask.list_pictures([str(tmp_path / "photos")]) == [str(tmp_path / "photos" / "link" / "deep" / "a.png")]
