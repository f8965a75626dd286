"""Anybody's networks by the command line: trained, teaching, loaded again; and every mistake told as the user's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from ghostcli import plan
from ghostcli.recipe import load
from ghostcli.records import record, tensorfile
from ghostcli.run import job, local
from ghostcli.run.job import Options
from ghostcli.run.prepare import prepare
from ghostcli.zoo import own

NET = """
from torch import nn

def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
    )

def wide(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, classes))

def none(classes):
    return {"classes": classes}

def more(classes):
    return tiny(classes + 1)

def early(classes):
    raise RuntimeError("no such width")

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x)

def broken(classes):
    return Broken()

class Pair(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net = tiny(classes)

    def forward(self, x):
        return self.net(x), x

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def lazier(classes):
    return nn.Sequential(nn.LazyBatchNorm2d(affine=False), nn.Flatten(), nn.Linear(3072, classes))

def pair(classes):
    return Pair(classes)

def bare(classes):
    return nn.Sequential(nn.Conv2d(3, classes, 32), nn.Flatten())
"""
FEW = ("data.limit=60", "data.limit_test=40", "train.batch_size=20")
TINY = ["--epochs", "1", "--device", "cpu", "--data", "digits", *[word for key in FEW for word in ("-s", key)]]


@pytest.fixture
def net(tmp_path, monkeypatch):
    """`net.py` in the current folder; what this user has named before is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(own, "_TRUSTED", set())
    monkeypatch.setattr(sys, "path", sys.path[:])
    file = tmp_path / "net.py"
    file.write_text(NET)
    return file


def test_an_own_network_trains_teaches_and_loads_again(ghost, net, monkeypatch):
    done = ghost("distill", "py:./net.py:tiny", "--student", "py:net.py:tiny", *TINY, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["student"] == "py:net.py:tiny" and result["run"].startswith("py-net-tiny-kd-")
    assert result["teachers"] == ["py:net.py:tiny"]
    chain = ["distill", f"run/{result['run']}", "--student", "gns:0.1", *TINY]
    assert ghost(*chain).code == 0
    assert ghost("check", *chain).code == 0

    monkeypatch.setattr(own, "_TRUSTED", set())  # another process, which knows it from the cache
    assert ghost("export", result["run"], "--out", "net.safetensors").code == 0
    shutil.rmtree(net.parent / "cache" / "sources")
    monkeypatch.setattr(own, "_TRUSTED", set())
    told = ghost(*chain, "--no-resume")
    assert told.code == 2 and "name it yourself" in told.err

    net.write_text(NET + "\n# changed\n")
    told = ghost(*chain, "--no-resume")
    assert told.code == 2 and "the source has changed" in told.err and told.err.strip().count("\n") == 0
    again = json.loads(ghost("train-teacher", "py:net.py:tiny", "--dry-run", "--json", *TINY).out)
    assert again[0]["state"] == "trained"


@pytest.mark.parametrize("name", ["py:net.py:tiny", "py:store.nets:tiny"])
def test_a_trained_network_keeps_its_source_when_the_file_changes(ghost, net, monkeypatch, name):
    (net.parent / "store").mkdir()
    (net.parent / "store" / "__init__.py").write_text("")
    (net.parent / "store" / "sizes.py").write_text("WIDTH = 8\n")
    source = NET if name.startswith("py:net") else NET.replace("import nn\n", "import nn\nfrom .sizes import WIDTH\n")
    file = net if name.startswith("py:net") else net.parent / "store" / "nets.py"
    file.write_text(source)
    run = json.loads(ghost("train-teacher", name, *TINY, "--json").out)["run"]
    before = json.loads(ghost("evaluate", f"run/{run}", "--json").out)

    monkeypatch.setattr(own, "_TRUSTED", set())
    for changed in (source.replace("8, 3, 2, 1", "9, 3, 2, 1").replace("BatchNorm2d(8)", "BatchNorm2d(9)"), None):
        file.write_text(changed) if changed else file.unlink()
        done = ghost("evaluate", f"run/{run}", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["accuracy"] == before["accuracy"]
        taught = ghost("distill", f"run/{run}", "--student", "gns:0.1", *TINY, "--no-resume", "-s", "distill.kind=rkd")
        assert taught.code == 0, taught.err
        told = ghost("bench", f"run/{run}", "--no-timing")
        assert told.code == 2 and ("its network's source has changed" in told.err or not changed), told.err


@pytest.mark.parametrize(
    "command, strategy",
    [
        (["assist-chain", "py:net.py:wide", "py:net.py:tiny", "--student", "py:net.py:wide"], "chain"),
        (["assist-chain", "gns:0.1", "py:net.py:wide", "--student", "py:net.py:tiny", "--dense"], "dense"),
        (["ensemble", "py:net.py:wide", "py:net.py:tiny", "--student", "gns:0.1"], "ensemble"),
    ],
)
def test_own_networks_in_chains_and_ensembles(ghost, net, command, strategy):
    done = ghost(*command, *TINY, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    *teachers, _, student = [word for word in command[1:] if word != "--dense"]
    assert (result["status"], result["strategy"]) == ("done", strategy)
    assert (result["student"], result["teachers"]) == (student, teachers)
    again = json.loads(ghost(*command, *TINY, "--dry-run", "--json").out)
    assert {row["state"] for row in again} == {"reused"} and len(again) == 3


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("key", ["distill.kind=at", "distill.kind=hint", "distill.weighting=adaptive"])
def test_an_mlp_has_no_maps_to_compare_and_nothing_is_trained(ghost, net, role, key):
    teacher, student = ("wide", "tiny") if role == "teacher" else ("tiny", "wide")
    command = ["ensemble", f"py:net.py:{teacher}", "gns:0.1", "--student", f"py:net.py:{student}"]
    told = ghost(*command, *TINY, "-s", key, "--runs", "runs")
    assert told.code == 2 and told.err.strip().count("\n") == 0
    assert f"py:net.py:wide: has no feature maps, which {key} compares; use -s distill." in told.err
    assert not list(net.parent.glob("runs/*/*"))


def test_each_own_network_is_built_once_before_the_first_run(net, monkeypatch):
    """For both seeds, and for the comparison of features too."""
    built, real = [], own.build
    monkeypatch.setattr(own, "build", lambda name, *rest: built.append(name) or real(name, *rest))
    found = load("smoke", ["data.name=digits", "distill.kind=rkd"])
    names = ("py:net.py:wide", "py:net.py:tiny")
    jobs = [plan.chain(names, "py:net.py:wide", seed, found.recipe, found.name, net.parent) for seed in (0, 1)]
    prepare(plan.order(jobs), Options(net.parent, "cpu"))
    assert sorted(built) == sorted(names)


def test_a_finished_teacher_without_maps_is_refused_before_others_are_trained(ghost, net):
    teacher = json.loads(ghost("train-teacher", "py:net.py:wide", *TINY, "--runs", "runs", "--json").out)["run"]
    command = ["ensemble", f"run/{teacher}", "gns:0.1", "--student", "gns:0.1"]
    told = ghost(*command, *TINY, "-s", "distill.kind=at", "--runs", "runs")
    assert told.code == 2 and told.err.strip().count("\n") == 0
    assert "py:net.py:wide: has no feature maps, which distill.kind=at compares" in told.err
    assert [path.name for path in net.parent.glob("runs/*") if path.is_dir()] == [teacher.split("/")[0]]


@pytest.mark.parametrize("key", ["distill.kind=rkd", "distill.kind=at", "distill.weighting=adaptive"])
def test_a_network_without_any_features_is_one_line(ghost, net, key):
    told = ghost("ensemble", "gns:0.1", "gns:0.2", "--student", "py:net.py:bare", *TINY, "-s", key, "--runs", "runs")
    assert told.code == 2 and told.err.strip().count("\n") == 0
    assert f"py:net.py:bare: has no features, which {key} compares; use -s distill." in told.err
    assert not list(net.parent.glob("runs/*/*"))


def test_relations_need_no_maps(ghost, net):
    """At another size than the usual one too: the first layer of an MLP takes no other."""
    net.write_text(NET.replace("3 * 32 * 32", "3 * 16 * 16"))
    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (net.parent / "pets" / part / name).mkdir(parents=True)
            for i in range(4):
                image = Image.new("RGB", (16, 16), (90 * shade + 9 * i, 70, 50))
                image.save(net.parent / f"pets/{part}/{name}/{i}.png")
    command = ["distill", "py:net.py:wide", "--student", "py:net.py:wide", "--kind", "rkd", "-s", "data.size=16"]
    done = ghost(*command, *TINY, "--data", "folder:pets", "-s", "data.limit=none", "-s", "data.limit_test=none")
    assert done.code == 0, done.err


def test_bench_measures_an_own_network(ghost, net):
    done = ghost("bench", "py:net.py:wide", "--json", "--batch", "4", "--rounds", "1", "--device", "cpu")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    linear = [3 * 32 * 32 * 16, 16 * 10]
    assert row["model"] == "py:net.py:wide"
    assert row["parameters"] == row["deploy_parameters"] == sum(linear) + 16 + 10
    assert row["macs"] == row["train_macs"] == sum(linear)
    assert row["images_per_second"] > 0 and row["latency_ms"]["median"] > 0


def test_the_source_is_part_of_the_id_and_the_spelling_of_the_path_is_not(ghost, net):
    def planned(name):
        return json.loads(ghost("train-teacher", name, "--dry-run", "--json").out)[0]["run"]

    first = planned("py:net.py:tiny")
    assert planned("py:./net.py:tiny") == first != planned("py:net.py:more")
    net.write_text(NET.replace("8, 3, 2, 1", "9, 3, 2, 1"))
    assert planned("py:net.py:tiny") != first


def test_the_seeds_of_a_command_train_the_source_that_it_began_with(ghost, net, monkeypatch):
    """The file was read again for each seed, so a change in between went into runs of the old id."""
    real, changed = job.run_job, NET.replace("8, 3, 2, 1", "9, 3, 2, 1").replace("BatchNorm2d(8)", "BatchNorm2d(9)")

    def and_then_edit(*arguments, **more):
        real(*arguments, **more)
        net.write_text(changed.replace("Linear(32", "Linear(36"))

    monkeypatch.setattr(local, "run_job", and_then_edit)
    done = ghost("train-teacher", "py:net.py:tiny", *TINY, "--seed", "0", "--seed", "1", "--json")
    assert done.code == 0, done.err
    first, second = (record.find(net.parent / "runs", run["run"]) for run in json.loads(done.out))
    sources = [tensorfile.read(run.weights)[1]["source"] for run in (first, second)]
    assert sources == [first.result.source, second.result.source] and len(set(sources)) == 1
    assert first.result.parameters == second.result.parameters
    assert json.loads(ghost("runs", "verify", "--json").out)[0]["problems"] == []


def test_planning_imports_neither_torch_nor_the_users_code(net):
    net.write_text("raise SystemExit('imported')")
    code = (
        "import sys; sys.argv = ['ghost', 'train-teacher', 'py:net.py:tiny', '--dry-run', '--json']\n"
        "from ghostcli.cli import main\ntry: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=net.parent)
    assert done.returncode == 0 and "py-net-tiny-plain" in done.stdout, done.stderr


WRONG = {
    "py:gone.py:tiny": "there is no file gone.py",
    "py:net.py:tinny": "has no function tinny; did you mean tiny?",
    "py:net.py:none": "returned dict, not a torch.nn.Module",
    "py:net.py:more": "forward returned shape [2, 11] for 2 images; logits must be [2, 10]",
    "py:net.py:early": "early(10) raised RuntimeError: net.py:20: no such width",
    "py:net.py:broken": "raised RuntimeError: net.py:28:",
    "py:net.py:pair": "forward returned tuple",
    "py:net.py:lazy": "the network has lazy layers",
    "py:net.py:lazier": "the network has lazy layers",
    "py:no_such_package.net:tiny": "there is no module no_such_package",
    "py:bad.py:tiny": "importing it raised ModuleNotFoundError: bad.py:1: No module named 'not_there'",
    "py:worse.py:tiny": "importing it raised SyntaxError: worse.py:1:",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_the_users_code_is_one_line_that_says_so(ghost, net, name):
    (net.parent / "bad.py").write_text("import not_there\n")
    (net.parent / "worse.py").write_text("def tiny(:\n")
    done = ghost("train-teacher", name, *TINY)
    assert done.code == 2, done.err
    assert f"your own network {name}: " in done.err and WRONG[name] in done.err
    assert done.err.strip().count("\n") == 0 and "Traceback" not in done.err
    assert not list((net.parent / "runs").glob("*/*"))


@pytest.mark.parametrize("name", ["py:", "py:net.py", "py:net.py:", "py::tiny", "py:net.py:a b", "py:a/b:c"])
def test_a_name_that_is_none_says_how_it_is_written(ghost, net, name):
    done = ghost("train-teacher", name)
    assert done.code == 2 and "py:path/to/file.py:function" in done.err


def test_a_module_of_a_package_is_a_network(ghost, net):
    (net.parent / "shop").mkdir()
    (net.parent / "shop" / "__init__.py").write_text("")
    net.rename(net.parent / "shop" / "nets.py")
    done = ghost("train-teacher", "py:shop.nets:tiny", *TINY, "--json")
    assert done.code == 0 and json.loads(done.out)["run"].startswith("py-nets-tiny-plain-"), done.err


VIEWED = """
import torch
from torch import nn

print("loading my networks")

class Viewed(nn.Module):
    def __init__(self, classes):
        super().__init__()
        print("building one")
        self.maps = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.line = nn.Linear(8 * 8 * 8 + 1, classes)
        self.register_buffer("one", torch.ones(1, 1))

    def forward(self, x):
        print("asked")
        maps = self.maps(x)
        flat = maps.view(x.size(0), -1)
        return self.line(torch.cat([flat, torch.ones(len(flat), 1)], 1))

def viewed(classes):
    return Viewed(classes)
"""


def test_code_that_reshapes_with_view_and_prints_is_trained_asked_and_measured(ghost, net):
    """It passed the check and failed at the first step, whose maps had another layout."""
    net.write_text(VIEWED)
    taught = ["distill", "py:net.py:viewed", "--student", "py:net.py:viewed", *TINY, "--json"]
    done = ghost(*taught)
    assert done.code == 0, done.err
    run = f"run/{json.loads(done.out)['run']}"
    assert json.loads(ghost("evaluate", run, "--json").out)["images"] > 0
    assert json.loads(ghost("teach", "fill", run, "--json").out)["filled"] > 0
    several = ghost(
        "train-teacher", "py:net.py:viewed", *TINY, "--json", "--seed", "5", "--seed", "6", "--streams", "2"
    )
    assert [row["status"] for row in json.loads(several.out)] == ["done", "done"]
    measured = ghost("bench", run, "py:net.py:viewed", "--batch", "8", "--rounds", "1", "--json")
    assert measured.code == 0, measured.err
    assert all(row["peak_memory_mb"] > 0 for row in json.loads(measured.out))


def test_an_own_network_is_exported_with_constants_beside_its_maps(ghost, net):
    pytest.importorskip("onnxruntime")
    net.write_text(VIEWED.replace("torch.ones(len(flat), 1)", "self.one.expand(x.shape[0], 1)"))
    run = json.loads(ghost("train-teacher", "py:net.py:viewed", *TINY, "--json").out)["run"]
    Image.new("RGB", (32, 32), (90, 20, 160)).save("shown.png")
    for form in ("onnx-int8", "pt2"):
        done = ghost("export", run, "--format", form, "--out", "files", "--no-timing", "--json")
        assert done.code == 0, done.err
        [row] = json.loads(done.out)
        assert row["problem"] is None and ghost("predict", row["file"], "shown.png").code == 0


def trains_and_is_read_again(ghost, name: str) -> None:
    run = json.loads(ghost("train-teacher", f"py:net.py:{name}", *TINY, "--json").out)["run"]
    assert ghost("export", run, "--out", "net.pt2", "--no-timing").code == 0
    assert ghost("evaluate", "net.pt2").code == 0


def test_a_program_with_the_number_of_images_in_a_shape_is_read_again(ghost, net):
    net.write_text(
        NET.replace(
            "def wide",
            "class Folded(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
            "        self.net = tiny(classes)\n    def forward(self, x):\n"
            "        return self.net(x.reshape(x.shape[0] * 3, 32, 32).reshape(x.shape[0], 3, 32, 32))\n\n"
            "def folded(classes):\n    return Folded(classes)\n\ndef wide",
        )
    )
    trains_and_is_read_again(ghost, "folded")


def test_a_program_of_attention_is_read_again(ghost, net):
    """torch clamps a slice at the end of a map, which depends on the number of images: Min(32, 4 N)."""
    net.write_text(
        NET.replace(
            "def wide",
            "class Attentive(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
            "        self.cut = nn.Conv2d(3, 16, 8, 8)\n"
            "        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)\n"
            "        self.last = nn.Linear(16, classes)\n    def forward(self, x):\n"
            "        return self.last(self.layer(self.cut(x).flatten(2).transpose(1, 2)).mean(1))\n\n"
            "def attentive(classes):\n    return Attentive(classes)\n\ndef wide",
        )
    )
    trains_and_is_read_again(ghost, "attentive")


def test_a_module_that_was_imported_before_a_change_is_imported_anew(net):
    """In a notebook a second training took the old code under the new id."""
    (net.parent / "mill").mkdir()
    (net.parent / "mill" / "__init__.py").write_text("")
    sizes = []
    for width in (32, 320):
        (net.parent / "mill" / "nets.py").write_text(
            NET.replace("3 * 32 * 32, 16", f"3 * 32 * 32, {width}").replace("Linear(16", f"Linear({width}")
        )
        sizes.append(sum(p.numel() for p in own.build("py:mill.nets:wide", 10).parameters()))
    assert sizes == [3 * 32 * 32 * width + width + 10 * width + 10 for width in (32, 320)]
