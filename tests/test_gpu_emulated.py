"""The device's path without a device: eager steps on emulated CUDA tensors (see emulated.py).

The numbers are those of the CPU's plain PyTorch, so the CPU's own run is the reference, to the bit.
"""

from __future__ import annotations

import contextlib

import emulated
import pytest
import torch
import updates

from ghostcli.engine import device
from ghostcli.engine.capture import Captured

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


def test_what_waits_for_the_device_is_found(monkeypatch):
    with emulated.gpu(monkeypatch) as gpu, gpu.no_waiting():
        x = torch.zeros(3, device="cuda")
        for wrong in (x.sum().item, x.cpu, lambda: torch.ones(3).to("cuda"), lambda: x[torch.tensor([0])]):
            with pytest.raises(AssertionError, match="waits for the device"):
                wrong()
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(x, torch.ones(3))
