"""What comes before integers: equalised channels, fine-tuning, and the choice among ways of quantising."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from ghostcli import zoo
from ghostcli.data import Images
from ghostcli.deploy import about as room
from ghostcli.deploy import equalise, int8, ladder, onnxwrite
from ghostcli.deploy.program import Program
from ghostcli.errors import GhostError
from ghostcli.recipe.models import AugmentSection


@pytest.fixture(scope="module")
def program():
    """A deploy form whose channels differ as those of a trained network do."""
    torch.manual_seed(0)
    model = zoo.build("gns:0.25", 10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.1, 3)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return Program(zoo.deploy(model), ((0.5,) * 3, (0.25,) * 3)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def inner_peaks(program, images):
    """The largest value of each channel that the second ghost module of each bottleneck reads."""
    peaks = []

    def watch(module, inputs):
        peaks.append(inputs[0].amax((0, 2, 3)))

    handles = [block.project.register_forward_pre_hook(watch) for block in program.net.bottlenecks]
    with torch.no_grad():
        logits = program(images)
    for handle in handles:
        handle.remove()
    return peaks, logits


def test_an_equalised_network_is_the_same_function_with_channels_more_alike(program, images):
    before, wanted = inner_peaks(program, images)
    after, found = inner_peaks(equalise.equalised(program, images), images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    spreads = [torch.stack([p.clamp_min(1e-3).log().std() for p in peaks]).mean().item() for peaks in (before, after)]
    assert spreads[1] < 0.9 * spreads[0]
    assert torch.equal(program(images), wanted)  # the network given is left as it was


def test_fine_tuning_moves_a_copy_towards_what_survives_rounding(program, images, monkeypatch):
    monkeypatch.setattr(equalise, "STEPS", 3)
    before = copy.deepcopy(program.state_dict())
    tuned = equalise.tuned(program, lambda step: images[8 * (step % 4) :][:8], 7, lambda note: None)
    after = program.state_dict()
    assert before.keys() == tuned.state_dict().keys()  # no trace of the rounding is left
    assert all(torch.equal(before[key], after[key]) for key in before)
    changed = [key for key in before if not torch.equal(before[key], tuned.state_dict()[key])]
    assert len(changed) > 50 and not {"mean", "std"} & set(changed)
    with torch.no_grad():
        torch.testing.assert_close(
            tuned(images), program(images), rtol=0.2, atol=0.1 * program(images).abs().max().item()
        )


@pytest.mark.parametrize(
    ("losses", "name", "tried"), [([0.1, 0.0], "a", 1), ([2.0, 0.2, 0.0], "b", 2), ([2.0, 0.9, 1.5], "b", 3)]
)
def test_the_first_way_inside_the_margin_is_taken_or_the_best(monkeypatch, losses, name, tried):
    made = []

    def ways(*arguments):
        for way, lost in zip("abc", losses, strict=False):
            yield way, lambda way=way, lost=lost: (made.append(way) or str(lost).encode(), "9 of 9")

    monkeypatch.setattr(ladder, "_ways", ways)
    monkeypatch.setattr(ladder, "_accuracy", lambda content, *rest: 90.0 - float(content or 0))
    train = Images(torch.zeros(40, 32, 32, 3, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64))
    task = ladder.Task(ladder.KINDS["onnx-int8"], torch.nn.Identity(), None, train, AugmentSection())
    content, note = ladder.climb(task, b"", lambda text: None)
    assert content == str(losses["abc".index(name)]).encode() and note.startswith(f"{name};") and len(made) == tried
    assert "20 training images" in note  # the other 20 are for the ranges


@pytest.mark.parametrize(("fails", "name"), [("c", "b"), ("b", "c"), ("abc", None)])
def test_a_way_that_fails_costs_no_other(monkeypatch, fails, name):
    def ways(*arguments):
        for way, lost in zip("abc", (2.0, 0.9, 1.5), strict=True):
            yield way, partial(make, way, lost)

    def make(way, lost):
        if way in fails:
            raise GhostError(f"no way {way}")
        return str(lost).encode(), "9 of 9"

    monkeypatch.setattr(ladder, "_ways", ways)
    monkeypatch.setattr(ladder, "_accuracy", lambda content, *rest: 90.0 - float(content or 0))
    train = Images(torch.zeros(40, 32, 32, 3, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64))
    task = ladder.Task(ladder.KINDS["onnx-int8"], torch.nn.Identity(), None, train, AugmentSection())
    if name is None:
        with pytest.raises(GhostError, match="no way a"):
            ladder.climb(task, b"", lambda text: None)
        return
    _, note = ladder.climb(task, b"", lambda text: None)
    assert note.startswith(f"{name};") and f"{fails} failed (no way {fails})" in note


def test_a_network_of_few_large_operators_has_its_int8_file(monkeypatch):
    """None of its operators is so small that it may stay in float, and it has no bottlenecks."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    program = Program(torch.nn.Sequential(*layers, torch.nn.Linear(8, 10)), ((0.5,) * 3, (0.25,) * 3)).eval()
    norm = ((0.5,) * 3, (0.25,) * 3)
    about = room.describe("a-plain-12345678/s0", "mine", "digits", tuple("0123456789"), 32, norm, 90.0)
    pixels = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    task = ladder.Task(
        ladder.KINDS["onnx-int8"], program, about, Images(pixels, torch.arange(64) % 10), AugmentSection()
    )
    monkeypatch.setattr(ladder, "MARGIN", -1000.0)  # every way is tried
    monkeypatch.setattr(equalise, "STEPS", 2)
    told = []
    content, note = ladder.climb(task, onnxwrite.encode(program, about), told.append)
    assert content and "2 of 2 convolutions and matrix products in integers" in note
    assert sum("points" in line for line in told) == 3


def test_the_table_says_in_words_where_integers_are_no_gain(monkeypatch):
    from ghostcli.cli import proofs
    from ghostcli.deploy.proof import Proof

    def row(form, runtime, latency, speed):
        return Proof(
            form, runtime=f"{runtime} 1.0", latency_ms={"median": latency, "p90": latency}, images_per_second=speed
        )

    rows = [row("torch", "torch", 9.0, 3000.0), row("onnx", "onnxruntime", 1.0, 2000.0)]
    assert proofs.integers(rows) is None
    fast = [*rows, row("onnx-int8", "onnxruntime", 0.5, 2000.0), row("onnx-int8", "openvino", 2.0, 6000.0)]
    said = proofs.integers(fast)
    assert "2.00 x as fast at batch 1 (onnxruntime, against onnxruntime)" in said
    assert "2.00 x as fast at batch 256 (openvino, against torch)" in said and "no gain" not in said
    slow = [*rows, row("onnx-int8", "onnxruntime", 2.0, 6000.0)]
    assert "0.50 x as fast at batch 1" in proofs.integers(slow) and "no gain" in proofs.integers(slow)
    for lacking in (True, False):  # the reason is one that holds here
        monkeypatch.setattr(int8, "narrow", lambda lacking=lacking: lacking)
        assert ("no VNNI" in proofs.integers(slow)) == lacking
