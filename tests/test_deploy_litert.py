"""LiteRT files: float and int8, asked and described. What converts skips, by name, without the extra [litert]."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghostcli.deploy import about as room
from ghostcli.deploy import source, tflite, tflite8
from ghostcli.errors import UsageError

ABOUT = room.describe("a-plain-12345678/s0", "gns:0.1", "digits", ("0", "1"), 32, ((0.5,) * 3, (0.2,) * 3), 90.0)


@pytest.fixture(scope="module")
def files(digits_runs, tmp_path_factory) -> Path:
    """A folder with one network as a float file and as one of integers."""
    pytest.importorskip("litert_torch")
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("litert")
    words = ("--format", "tflite", "--int8", "--no-timing", "--json", "--out", ".", "--runs", str(digits_runs))
    [run] = [str(path.relative_to(digits_runs)) for path in digits_runs.glob("*/s0")]
    command = [sys.executable, "-m", "ghostcli", "export", run, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "rows.json").write_text(done.stdout)
    return folder


def file(folder: Path, end: str) -> Path:
    [found] = [path for path in folder.glob("*.tflite") if path.stem.endswith("-int8") == (end == "int8")]
    return found


def test_both_are_proven_and_described(files):
    whole, small = json.loads((files / "rows.json").read_text())
    assert (whole["format"], small["format"]) == ("tflite", "tflite-int8")
    assert whole["runtime"].startswith("litert") and whole["disagreements"] == 0
    assert small["bytes"] < whole["bytes"] and abs(small["accuracy"] - whole["accuracy"]) <= 5
    assert "convolutions and matrix products in integers, weights of 8 bits" in small["note"]
    for end in ("float", "int8"):
        content = file(files, end).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.namelist() == ["ghost.json"]
        assert tflite.about(content, "x").classes == tuple("0123456789")


def test_a_pixel_is_an_integer_and_its_meaning_is_said(files):
    from ai_edge_litert.interpreter import Interpreter

    content = file(files, "int8").read_bytes()
    held = Interpreter(model_content=content)
    source, target = held.get_input_details()[0], held.get_output_details()[0]
    assert (source["dtype"], target["dtype"]) == (np.int8, np.int8)
    assert source["quantization"] == (pytest.approx(1 / 255, rel=1e-6), -128)
    assert "round(p / 0.00392156" in tflite.about(content, "x").input
    pixels = np.arange(256, dtype=np.float32) / 255
    assert np.array_equal(tflite._whole(pixels, source), np.arange(-128, 128, dtype=np.int8))


@pytest.mark.parametrize("end", ["float", "int8"])
def test_a_file_is_asked_and_judged_like_its_run(ghost, files, digits_runs, digits_run, end, tmp_path):
    said = json.loads(ghost("evaluate", file(files, end), "--json").out)
    assert said["images"] == 360 and abs(said["accuracy"] - digits_run.result.accuracy.selected) <= 5
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "black.png")
    words = (tmp_path / "black.png", "--json", "--top", "10")
    [theirs] = json.loads(ghost("predict", f"run/{digits_run.id}", *words, "--runs", digits_runs).out)
    [ours] = json.loads(ghost("predict", file(files, end), *words).out)
    expected = {one["class"]: one["probability"] for one in theirs["predictions"]}
    for one in ours["predictions"]:
        assert one["probability"] == pytest.approx(expected[one["class"]], abs=1e-4 if end == "float" else 0.15)


def test_ranges_are_joined_where_tensors_are_and_never_so_narrow_that_biases_overflow():
    """A dead activation gave a scale of 4e-12, and biases of 2**31 where 1e12 was meant."""
    dead = tflite8._statistics(0.0, 0.0, 4)
    assert dead["max"].item() == tflite8.NARROWEST and dead["min"].shape == (1, 1, 1, 1)
    assert tflite8._statistics(2.0, 5.0, 2)["min"].item() == 0  # zero is always among the values

    class Held:
        def get_tensor_details(self):
            return [{"index": i, "name": name} for i, name in enumerate("abcd")]

        def _get_ops_details(self):
            return [{"op_name": "CONCATENATION", "inputs": [0, 1], "outputs": [2]}]

    ranges = {"a": (-1.0, 1.0), "b": (0.0, 3.0), "c": (-1.0, 3.0), "d": (0.0, 9.0)}
    joined = tflite8._joined(Held(), ranges)
    assert joined == {"a": (-1.0, 3.0), "b": (-1.0, 3.0), "c": (-1.0, 3.0), "d": (0.0, 9.0)}


def test_a_description_takes_the_place_of_the_earlier_one():
    once = tflite.described(b"flatbuffer", ABOUT)
    assert tflite.described(once, ABOUT) == once and once.startswith(b"flatbuffer")
    assert tflite.about(once, "x").classes == ABOUT.classes


@pytest.mark.parametrize("content", [b"", b"TFL3" * 9, b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_a_file_that_says_nothing_of_itself_is_refused(content, tmp_path):
    (tmp_path / "x.tflite").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.tflite: says nothing"):
        source.open_network(str(tmp_path / "x.tflite"), tmp_path)


def test_a_description_that_would_fill_memory_is_refused():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(room.ENTRY, b" " * (tflite.LONGEST + 1))
    with pytest.raises(UsageError, match="says nothing"):
        tflite.about(held.getvalue(), "x")


def test_a_damaged_network_is_refused_in_a_line(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "x.tflite").write_bytes(tflite.described(b"\x1c\0\0\0TFL3" + bytes(60), ABOUT))
    with pytest.raises(UsageError, match="LiteRT cannot load it"):
        source.open_network(str(tmp_path / "x.tflite"), tmp_path)
