"""`ghost export`: a written file, loaded elsewhere, is the run's network; what is not is never written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import edit

from ghostcli import zoo
from ghostcli.deploy import about as description
from ghostcli.deploy import int8, onnxwrite, page
from ghostcli.deploy.program import Program
from ghostcli.errors import Interrupted
from ghostcli.records import record
from ghostcli.zoo import weights


@pytest.fixture(scope="module")
def exported(digits_runs, made_once):
    """(folder, rows): one run in several formats at once. Not to be written to."""

    def export(folder: Path) -> None:
        [run] = record.scan(digits_runs)
        (folder / "files").mkdir(exist_ok=True)
        words = ["export", run.id, "--format", "onnx,pt2,safetensors,html", "--int8", "--runs", digits_runs]
        words = [sys.executable, "-m", "ghostcli", *words, "--out", folder / "files", "--json"]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / "rows.json").write_text(done.stdout)

    folder = made_once("exported", export)
    return folder / "files", json.loads((folder / "rows.json").read_text())


@pytest.fixture
def files(exported, tmp_path):
    """Copies that a test may damage, by ending."""
    folder, _ = exported
    copies = {}
    for file in folder.iterdir():
        ending = f"-int8{file.suffix}" if file.stem.endswith("-int8") else file.suffix
        copies[ending] = shutil.copy(file, tmp_path / f"network{ending}")
    return copies


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the run that a test may damage."""
    copy = tmp_path / "runs" / digits_run.id
    shutil.copytree(digits_run.path, copy)
    return record.RunRecord(copy, digits_run.id)


@pytest.fixture
def images():
    """The digits' test images as anybody would give them: float32 [N, 3, H, W] in 0..1."""
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    pixels = data.load(DataSection(name="digits")).test.pixels.numpy()
    return (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2)


def test_every_format_comes_with_its_proof(exported, digits_run):
    folder, rows = exported
    assert [row["format"] for row in rows] == ["onnx", "onnx-int8", "pt2", "safetensors", "html"]
    recorded = digits_run.result.accuracy.selected
    for row in rows:
        assert row["file"].startswith(str(folder)) and row["run"] == digits_run.id and row["images"] == 360
        assert row["problem"] is None
        assert row["runtime"].split()[0] in ("torch", "onnxruntime", "node", "chromium")
        assert row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
        if row["format"] in ("onnx", "pt2", "safetensors"):
            assert row["accuracy"] == pytest.approx(recorded, abs=0.01)
            assert row["low"] <= 0 <= row["high"] and row["disagreements"] == 0
            assert row["largest_difference"] < 1e-4 and row["images_per_second"] > 0
    assert sorted(file.stat().st_size for file in folder.iterdir()) == sorted(row["bytes"] for row in rows)
    assert rows[0]["peak_memory_mb"] > 0


def test_the_int8_file_is_one_of_integers(exported, files, images, digits_run):
    """Weights of 8 bits a channel, every convolution between integers, and the answers of the float network."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    row = next(row for row in exported[1] if row["format"] == "onnx-int8")
    assert row["high"] >= -2 and row["bytes"] < 0.45 * exported[1][0]["bytes"]
    assert re.search(r"\d+ of \d+ convolutions and matrix products in integers", row["note"])
    model = onnx.load(files["-int8.onnx"])
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) > 80
    whole = [node for node in convolutions if node.input[1] in makers]  # a float weight is an initialiser
    assert len(whole) >= len(convolutions) - 4  # the ladder may leave four in float
    for node in whole:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert kinds[makers[node.input[1]].input[0]] == onnx.TensorProto.INT8
    found = onnxruntime.InferenceSession(files["-int8.onnx"]).run(["logits"], {"images": images})[0]
    wanted = digits_run.predictions()[0].astype(np.float32)
    coarse = 0.4 if int8.narrow() else 0.25  # weights of 7 bits round twice as coarsely
    assert np.abs(found - wanted).mean() < coarse * np.abs(wanted).mean()


def test_the_onnx_file_runs_without_ghost_for_any_batch(files, images, digits_run):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(files[".onnx"])
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}[description.KEY])
    assert about["classes"] == list("0123456789") and about["run"] == digits_run.id
    assert about["data_licence"] and about["accuracy"] == digits_run.result.accuracy.selected
    kinds = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in kinds and kinds & {"Shape", "Gather", "Range", "Identity", "Cast"} == set()
    session = onnxruntime.InferenceSession(files[".onnx"], providers=["CPUExecutionProvider"])
    logits, _ = digits_run.predictions()
    for part in (slice(0, 1), slice(1, 8), slice(8, 360)):
        found = session.run(["logits"], {"images": images[part]})[0]
        np.testing.assert_allclose(found, logits[part].astype(np.float32), rtol=2e-3, atol=2e-3)


@pytest.mark.long
def test_the_program_runs_without_ghost(files, images, digits_run, tmp_path):
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, numpy as np, torch\n"
        "extra = {'ghost.json': ''}\n"
        "program = torch.export.load('network.pt2', extra_files=extra).module()\n"
        "images = torch.from_numpy(np.load('images.npy'))\n"
        "np.save('logits.npy', torch.cat([program(images[:1]), program(images[1:])]).detach().numpy())\n"
        "assert not any(name.startswith('ghostcli') for name in sys.modules)\n"
        "print(extra['ghost.json'])"
    )
    away = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert away.returncode == 0, away.stderr
    logits, _ = digits_run.predictions()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits.astype(np.float32), rtol=2e-3, atol=2e-3)
    assert json.loads(away.stdout)["classes"] == list("0123456789")


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_exported_files_are_evaluated_and_asked_in_their_own_runtime(
    ghost, exported, files, digits_run, tmp_path, ending
):
    from PIL import Image

    done = ghost("evaluate", files[ending], "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["accuracy"] == pytest.approx(digits_run.result.accuracy.selected, abs=0.01)
    assert found["runtime"].split()[0] == {".onnx": "onnxruntime", ".pt2": "torch"}[ending]
    Image.new("RGB", (40, 50), (9, 9, 9)).save(tmp_path / "grey.png")
    done = ghost("predict", files[ending], tmp_path / "grey.png", "--json", "--top", 10)
    [row] = json.loads(done.out)
    assert sum(each["probability"] for each in row["predictions"]) == pytest.approx(1, abs=1e-4)


def test_an_onnx_file_is_asked_without_torch(files, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 50), (9, 9, 9)).save(tmp_path / "grey.png")
    program = (
        "import sys; sys.argv = ['ghost', 'predict', 'network.onnx', 'grey.png']\n"
        "from ghostcli.cli import main\n"
        "main()\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "grey.png" in done.stdout, done.stderr


def spoiled(kind, file):
    """A hostile or damaged ONNX file made of a good one, and what the refusal must say."""
    import onnx

    model = onnx.load(file)
    if kind == "cut short":
        return open(file, "rb").read()[:20_000], "ONNX"
    if kind == "no model":
        return b"this is no model", "ONNX"
    if kind == "empty":
        return b"", "ONNX"
    if kind == "custom operator":
        model.graph.node[3].domain = "evil.example"
        return model.SerializeToString(), "custom operators"
    if kind == "weights elsewhere":
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")
        return model.SerializeToString(), "in another file"
    if kind == "huge":
        model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
        return model.SerializeToString(), "claims more values"
    if kind == "other input":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
        return model.SerializeToString(), "images are not"
    entry = next(entry for entry in model.metadata_props if entry.key == description.KEY)
    if kind == "other classes":
        entry.value = json.dumps(json.loads(entry.value) | {"classes": ["cat", "dog"]})
        return model.SerializeToString(), "logits are not"
    if kind == "a data set that is no name":
        entry.value = json.dumps(json.loads(entry.value) | {"data": {"name": "digits"}})
        return model.SerializeToString(), "says nothing"
    del model.metadata_props[:]
    return model.SerializeToString(), "ghost export"


KINDS = [
    *("cut short", "no model", "empty", "custom operator", "weights elsewhere", "huge", "other input"),
    *("other classes", "undescribed", "a data set that is no name"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_hostile_onnx_file_is_refused_in_a_line(ghost, files, tmp_path, kind):
    pytest.importorskip("onnx")
    content, told = spoiled(kind, files[".onnx"])
    (tmp_path / "bad.onnx").write_bytes(content)
    done = ghost("evaluate", tmp_path / "bad.onnx")
    assert done.code == 2, done
    assert told in done.err and len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("foreign", ["open('ran', 'w') or {}", "Min({})"])
def test_a_program_that_holds_code_is_refused(ghost, files, tmp_path, foreign):
    """torch evaluates a program's symbolic expressions: a foreign one could run anything, or take minutes."""
    import zipfile

    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(files[".pt2"]) as good, zipfile.ZipFile(bad, "w") as out:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("models/model.json"):
                known = re.search(r"Symbol\('s\d+', positive=True, integer=True\)", content.decode())[0]
                more = ", ".join(known.replace("('s", f"('s{i}") for i in range(100 if "Min" in foreign else 1))
                content = content.replace(known.encode(), foreign.format(more).encode())
            out.writestr(name, content)
    done = ghost("evaluate", bad)
    assert done.code == 2 and "refused" in done.err
    assert not (tmp_path / "ran").exists()


def test_half_precision_weights_load_as_the_deploy_form(ghost, digits_runs, files, tmp_path, digits_run, images):
    half = tmp_path / "half.safetensors"
    done = ghost(
        "export", digits_run.id, "-o", half, "--format", "safetensors-float16", "--runs", digits_runs, "--no-timing"
    )
    assert done.code == 0, done.err
    assert f"recorded {digits_run.result.accuracy.selected:.2f} %" in done.out
    assert half.stat().st_size < 0.6 * (tmp_path / "network.safetensors").stat().st_size
    trained, folded = weights.load(digits_run.weights), weights.load(half)
    assert sum(p.numel() for p in folded.model.parameters()) < sum(p.numel() for p in trained.model.parameters())
    x = torch.from_numpy((images[:4] - 0.5) / 0.25)
    with torch.no_grad():
        wanted = trained.model(x)
        torch.testing.assert_close(folded.model(x), wanted, rtol=0, atol=3e-3 * wanted.abs().max().item())


@pytest.mark.parametrize(
    ("out", "more", "told"),
    [
        ("student.gguf", [], ".pt2"),
        ("nowhere/student.pt2", [], "nowhere"),
        ("student.pt2", ["--int8"], "--format onnx"),
        ("student.pt2", ["--format", "onnx,pt2"], "folder"),
        ("student.onx", ["--format", "onnx"], ".onnx"),
        ("student.onnx", ["--format", "onxx"], "onnx"),
    ],
)
def test_a_wrong_destination_is_exit_code_2_and_nothing_is_written(
    ghost, digits_run, digits_runs, tmp_path, out, more, told
):
    done = ghost("export", digits_run.id, "--out", tmp_path / out, "--runs", digits_runs, *more)
    assert done.code == 2
    assert told in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_made(ghost, digits_run, digits_runs, tmp_path):
    words = ("export", digits_run.id, "--runs", digits_runs, "--no-timing", "--out")
    done = ghost(*words, f"{tmp_path}/new/two/", "--format", "safetensors,safetensors-float16")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "new" / "two").iterdir())) == 2
    done = ghost(*words, f"{tmp_path}/one/", "--format", "safetensors")
    assert done.code == 0, done.err
    assert [file.suffix for file in (tmp_path / "one").iterdir()] == [".safetensors"]
    (tmp_path / "file").touch()
    done = ghost(*words, tmp_path / "file", "--format", "safetensors")
    assert done.code == 2 and f"--out {tmp_path}/file: no folder can be made there" in done.err


def test_an_extra_that_is_not_installed_is_named_and_the_others_go_on(
    ghost, digits_run, digits_runs, tmp_path, monkeypatch
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    words = ("export", digits_run.id, "--runs", digits_runs, "--no-timing")
    done = ghost(*words, "--out", tmp_path / "student.onnx")
    assert done.code == 2 and "pip install 'ghostcli[onnx]'" in done.err
    assert list(tmp_path.iterdir()) == []
    done = ghost(*words, "--format", "onnx,safetensors", "--out", tmp_path, "--markdown")
    assert done.code == 2 and "pip install 'ghostcli[onnx]'" in done.out
    assert done.out.startswith("| format | bytes |") and [file.suffix for file in tmp_path.iterdir()] == [
        ".safetensors"
    ]


def test_runs_that_cannot_be_exported_are_refused(ghost, run, tmp_path):
    out, runs = tmp_path / "student.pt2", tmp_path / "runs"
    assert ghost("export", "gns-1.0-plain-00000000", "--out", out, "--runs", runs).code == 2
    run.weights.rename(run.path / "elsewhere")
    done = ghost("export", run.id, "--out", out, "--runs", runs)
    assert (done.code, "weights are not here" in done.err) == (2, True)
    ghost("export", run.id, "--format", "onnx,pt2", "--out", tmp_path / "folder", "--runs", runs)
    assert not (tmp_path / "folder").exists()
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
    [("environment", {"data_checksum": "other"}, 2, "no longer"), ("accuracy", {"selected": 50.0}, 1, "50.00")],
)
def test_what_does_not_match_the_record_is_never_written(ghost, run, tmp_path, key, value, code, told):
    result = json.loads((run.path / "result.json").read_text())
    edit(run.path / "result.json", **{key: result[key] | value})
    done = ghost("export", run.id, "--out", tmp_path / "student.safetensors", "--runs", tmp_path / "runs")
    assert done.code == code
    assert told in done.err
    assert not (tmp_path / "student.safetensors").exists()


def test_a_file_that_answers_otherwise_is_never_written(ghost, run, tmp_path, monkeypatch):
    from ghostcli.deploy import source

    opened = source.opened

    def wrong(*arguments):
        ask, *about = opened(*arguments)
        return lambda images: ask(images) + 0.5, *about

    monkeypatch.setattr(source, "opened", wrong)
    done = ghost("export", run.id, "--out", tmp_path / "student.safetensors", "--runs", tmp_path / "runs")
    assert done.code == 1
    assert "0.5" in done.err
    assert not (tmp_path / "student.safetensors").exists()


def test_files_that_are_proven_outlive_their_timing(ghost, digits_run, digits_runs, tmp_path, monkeypatch):
    from ghostcli.deploy import export

    def stop(*arguments):
        raise Interrupted("stopped")

    monkeypatch.setattr(export, "_time", stop)
    done = ghost("export", digits_run.id, "--out", tmp_path / "student.safetensors", "--runs", digits_runs)
    assert done.code == 75
    assert weights.load(tmp_path / "student.safetensors").name == weights.load(digits_run.weights).name


def test_bench_proves_a_run_in_every_runtime_and_draws_it(ghost, digits_run, digits_runs, tmp_path):
    figure = tmp_path / "figure.png"
    words = ("bench", f"run/{digits_run.id}", "--runs", digits_runs, "--rounds", 1)
    done = ghost(*words, "--formats", "safetensors", "--plot", figure, "--json")
    assert done.code == 0, done.err
    baseline, row = json.loads(done.out)
    assert baseline["format"] == "torch" and baseline["disagreements"] == row["disagreements"] == 0
    assert row["file"] is None and figure.read_bytes().startswith(b"\x89PNG")
    assert ghost(*words, "gns:1.0", "--formats", "all").code == 2
    assert ghost(*words, "--formats", "gguf").code == 2


@pytest.mark.parametrize(("asked", "given"), [("1", 1), ("100000", None), ("0", None), ("many", None), ("", None)])
def test_runtimes_use_no_more_threads_than_torch_may(asked, given, monkeypatch):
    from ghostcli.deploy import onnxfile

    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert onnxfile.threads() == (given or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("size", [33, 50])
def test_a_network_of_maps_with_odd_sides_is_an_onnx_file_and_a_page(size):
    """Where a map of 7 pixels is gated by one of 3, which no whole factor enlarges to it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if not any(map(shutil.which, ("node", *page.BROWSERS))):
        pytest.skip("no node and no browser is here")
    torch.manual_seed(0)
    network = zoo.build("gns:0.2")
    zoo.init_kaiming(network, torch.Generator().manual_seed(0))
    norm = ((0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        for _ in range(40):  # its batch norms follow the maps, or these grow from layer to layer
            network(torch.randn(8, 3, size, size))
    program = Program(zoo.laid_out(zoo.deploy(network.eval())), norm).eval()
    about = description.describe("a-plain-12345678/s0", "mine", "digits", tuple("0123456789"), size, norm, 90.0)
    pixels = torch.randint(256, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = (pixels.permute(0, 3, 1, 2) / 255).contiguous()
    with torch.no_grad():
        wanted = program(images).numpy()
    content = onnxwrite.encode(program, about)
    found = onnxruntime.InferenceSession(content).run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    shown, _, _ = page.run(page.encode(content, about, []), pixels.numpy())
    np.testing.assert_allclose(shown, wanted, atol=3e-3 * np.abs(wanted).max())  # its weights are float16


def test_the_page_computes_the_network_in_a_browser(files, images, digits_run, tmp_path):
    """Opened from file://, in a browser without a window, asked by a script that only the test adds."""
    import base64

    from ghostcli.deploy import page

    browser = next(filter(None, map(shutil.which, page.BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium is installed")
    pixels = (images[:100] * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    with open(files[".html"], encoding="utf-8") as file:
        text = file.read()
    assert "http:" not in text and "https:" not in text  # nothing is fetched
    asked = base64.b64encode(pixels.tobytes()).decode()
    script = f"""document.body.innerHTML = `<p id="seen">${{document.querySelectorAll("#classes tr").length}}</p>` +
      `<pre>${{JSON.stringify(answers(network, bytesOf("{asked}")).logits)}}</pre>`;"""
    (tmp_path / "asked.html").write_text(text.replace("</html>", f"<script>{script}</script></html>"), encoding="utf-8")

    def opened(address: str) -> str:
        command = [browser, "--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={tmp_path}/profile"]
        return subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=300).stdout

    if "<html" not in opened("about:blank"):
        pytest.skip(f"{browser} does not start on this machine")
    said = opened((tmp_path / "asked.html").as_uri())
    found = np.array(json.loads(re.search(r"<pre>(.*?)</pre>", said, re.DOTALL)[1]), np.float32)
    assert '<p id="seen">10</p>' in said  # the page itself has shown ten classes
    wanted = digits_run.predictions()[0][:100].astype(np.float32)
    assert np.abs(found - wanted).max() < 1e-2 * np.abs(wanted).max()
