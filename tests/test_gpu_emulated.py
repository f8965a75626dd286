"""The device's path without a device: eager steps on emulated CUDA tensors (see emulated.py).

The numbers are those of the CPU's plain PyTorch, so the CPU's own run is the reference, to the bit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from types import SimpleNamespace

import emulated
import numpy as np
import pytest
import torch
import updates

from ghostcli.data import Images
from ghostcli.data.batches import Cropper
from ghostcli.distill.table import TeacherTable
from ghostcli.engine import device, optimizers
from ghostcli.engine.capture import Captured
from ghostcli.engine.step import Update
from ghostcli.recipe import load
from ghostcli.recipe.models import AugmentSection
from ghostcli.records import tensorfile
from ghostcli.zoo import evaluate
from ghostcli.zoo import ghost as networks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real device has tests of its own")


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """Triton needs a driver; its kernels are tested under its interpreter."""
    monkeypatch.setenv("GHOST_KERNEL", "pytorch")


@pytest.mark.parametrize("way", ["alone", "from a table", "live"])
def test_a_step_stays_on_the_device(way, tmp_path, monkeypatch):
    """The host waits in no step but the first, which makes what is kept for the others."""
    _, update = updates.made(way, tmp_path / "cpu", torch.device("cpu"))
    expected = updates.run(update, 0, 2)
    with emulated.gpu(monkeypatch) as gpu:
        state, update = updates.made(way, tmp_path / "gpu", device.pick("auto"))

        def quiet(number):
            return gpu.no_waiting() if number else contextlib.nullcontext()

        found = updates.run(update, 0, 2, quiet).cpu()
        assert all(p.is_cuda for p in state.model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_each_size_of_batch_is_captured_after_its_eager_steps(monkeypatch):
    """Full batches of three images and a last one of two: every step counts once, eager or replayed."""
    with emulated.gpu(monkeypatch):
        total = torch.zeros(1, device="cuda")

        def update(index):
            return total.add_(index.sum()) * 1

        update.device, update.optimizers = emulated.CUDA, ()
        captured = Captured(update, 3)
        found, expected, image = [], [], 0
        for size in [3, 3, 2] * 6:
            batch = list(range(image, image + size))
            image += size
            expected.append(sum(range(image)))
            found.append(captured(torch.tensor(batch, device="cuda")))
        assert [int(value.cpu()) for value in found] == expected
        replays = {size: replay.graph.replays for size, replay in captured.replays.items()}
        assert replays == {3: 12 - Captured.WARM, 2: 6 - Captured.WARM}
        assert captured.capture_seconds > 0


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_what_draws_random_numbers_outside_pytorch_is_not_captured(draw, monkeypatch):
    """A graph would repeat one number for ever."""
    with emulated.gpu(monkeypatch):

        def update(index):
            return index.sum() * int(100 * draw())

        update.device, update.optimizers = emulated.CUDA, ()
        captured = Captured(update, 3)
        for _ in range(6):
            captured(torch.arange(3, device="cuda"))
        assert "random numbers outside PyTorch" in captured.refused
        assert not any(replay.graph for replay in captured.replays.values())


def test_products_can_be_deterministic_from_the_first_one_on(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with emulated.gpu(monkeypatch):
        device.pick("auto")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_every_optimiser_steps_while_a_graph_is_captured(name, monkeypatch):
    """torch refuses one that counts its steps and was not told of captures. None waits for the device."""
    optim = load("paper", [f"optim.name={name}"]).recipe.optim
    start = {"weight": torch.randn(4, 3, 1, 1), "bias": torch.randn(4)}

    def made(device):
        model = torch.nn.ParameterDict({key: value.to(device, copy=True) for key, value in start.items()})
        return model, optimizers.make(model, torch.nn.Identity(), optim, device)

    def step(model, optimisers, number):
        optimizers.set_rate(optimisers, 0.01 * number)
        for p in model.values():
            p.grad = torch.full_like(p, number)
        for optimizer in optimisers:
            optimizer.step()

    capturing = SimpleNamespace(is_capturing=lambda: True)
    expected = made(torch.device("cpu"))
    for number in (1, 2, 3):
        step(*expected, number)
    with emulated.gpu(monkeypatch) as gpu:
        found = made(emulated.CUDA)
        for number in (1, 2, 3):
            # torch 2.11 asks this, later ones the stream
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda number=number: number > 1)
            if number == 2:  # the first step is eager, and makes the state
                monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: emulated.CUDA)
                monkeypatch.setattr(torch.accelerator, "current_stream", lambda: capturing)
            with gpu.no_waiting() if number > 1 else contextlib.nullcontext():
                step(*found, number)
        weights = {key: p.detach().cpu() for key, p in found[0].items()}
    for key, p in expected[0].items():
        torch.testing.assert_close(weights[key], p.detach())
        assert not torch.equal(p, start[key])


def test_what_waits_for_the_device_is_found(monkeypatch):
    with emulated.gpu(monkeypatch) as gpu, gpu.no_waiting():
        x = torch.zeros(3, device="cuda")
        for wrong in (x.sum().item, x.cpu, lambda: torch.ones(3).to("cuda"), lambda: x[torch.tensor([0])]):
            with pytest.raises(AssertionError, match="waits for the device"):
                wrong()
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(x, torch.ones(3))


def test_scores_and_grey_squares_need_no_float64(monkeypatch):
    """MPS has none."""
    pixels = torch.randint(256, (6, 8, 8, 3), dtype=torch.uint8)
    images, logits = Images(pixels, torch.arange(6)), torch.randn(6, 10)
    augment, index = AugmentSection(cutout=4), torch.arange(6)
    expected = evaluate.score(logits, images.labels), Cropper(images, augment).crop(index, index)
    with emulated.gpu(monkeypatch) as gpu:
        gpu.doubles = False
        there = images.to("cuda")
        assert evaluate.score(logits.to("cuda"), there.labels) == expected[0]
        found = Cropper(there, augment).crop(index.to("cuda"), index.to("cuda")).cpu()
        assert torch.equal(found, expected[1])


def test_a_checkpoint_is_fetched_with_one_transfer_for_each_type_of_number(monkeypatch):
    """And has the bytes of one that was on the host all along."""
    torch.manual_seed(0)
    here = {f"weight {i}": torch.randn(i, 2, 3, 3).to(memory_format=torch.channels_last) for i in range(1, 9)}
    here |= {"one": torch.tensor(3.5), "none": torch.empty(0, 4), "seen": torch.arange(6).view(2, 3)}
    expected = tensorfile.encode(here, {"epoch": 1})
    with emulated.gpu(monkeypatch) as gpu:
        there = {name: tensor.to("cuda") for name, tensor in here.items()}
        gpu.waits.clear()
        assert tensorfile.encode(there, {"epoch": 1}) == expected
        assert len(gpu.waits) == 2


def test_a_teacher_is_asked_again_before_its_last_answers_are_fetched(tmp_path, monkeypatch):
    views = {"count": 3}
    table = TeacherTable(tmp_path, {"images": 40, "classes": 5, "views": views})
    with emulated.gpu(monkeypatch) as gpu:
        answers = torch.randn(40, 5).to("cuda")
        rows = iter(answers.split(8))
        gpu.waits.clear()
        assert table.fill(np.ones(40, np.int64), lambda index, views: next(rows) * 2, 8) == 40
        assert len(gpu.waits) == 1
        torch.testing.assert_close(table.read(np.ones(40, np.int64)), (answers.cpu() * 2).half())


@pytest.mark.long
def test_whole_commands_on_the_device(ghost, tmp_path, monkeypatch):
    """A teacher and its student, stopped and continued, have the bits of an undisturbed run; and bench measures."""
    monkeypatch.chdir(tmp_path)
    # three different blocks, since every operation is slow
    monkeypatch.setitem(networks.ROWS, "gns", (networks.GNS[0], networks.GNS[1], networks.GNS[3]))
    settings = ["data.name=digits", "data.limit=40", "data.limit_test=20", "train.batch_size=16", "train.epochs=3"]
    command = ["distill", "gns:0.1", "--student", "gns:0.1", "--recipe", "smoke", "--device", "cuda"]
    command += [word for setting in settings for word in ("-s", setting)]
    steps, once = [], Update.__call__

    def struck(self, index):
        steps.append(len(index))
        if len(steps) in (4, 13):  # in the teacher's training, and in the student's
            os.kill(os.getpid(), signal.SIGTERM)
        return once(self, index)

    with emulated.gpu(monkeypatch):
        assert (done := ghost(*command, "--runs", "whole")).code == 0, done.err
        assert "capturing it as a CUDA graph took" in done.err
        monkeypatch.setattr(Update, "__call__", struck)
        assert [ghost(*command, "--runs", "again").code for _ in range(3)] == [75, 75, 0]
        done = ghost("bench", "gns:0.1", "--device", "cuda", "--batch", "4", "--json")
        assert done.code == 0, done.err
    [teacher, student] = sorted(tmp_path.glob("whole/*/s0"), key=lambda path: "kd" in path.parent.name)
    for path in (teacher, student):
        for name in ("model.safetensors", "predictions.npz"):
            again = tmp_path / "again" / path.relative_to(tmp_path / "whole")
            assert (path / name).read_bytes() == (again / name).read_bytes()
