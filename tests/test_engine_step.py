"""One update: what it may ask of the host, what stays where it is for a graph, and the graph's own bookkeeping."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
import updates
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghostcli import zoo
from ghostcli.engine import capture, step

CPU = torch.device("cpu")
#: What brings a number from the host (`torch.tensor`), draws there, or reads one back.
HOST = {"lift_fresh", "randint", "randperm", "_local_scalar_dense", "nonzero"}


class OnTheDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in HOST, f"{name}: the device would be waited for"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", updates.WAYS)
def test_nothing_is_asked_of_the_host_inside_an_epoch(way, tmp_path):
    """But for the first step, which makes what is kept for all others."""
    _, update = updates.made(way, tmp_path, CPU)
    quiet = lambda number: contextlib.nullcontext() if number == 0 else OnTheDevice()  # noqa: E731
    assert updates.run(update, 0, 8, quiet).isfinite().all()


@pytest.mark.parametrize("way", updates.WAYS)
def test_what_a_graph_reads_stays_where_it_is(way, tmp_path):
    _, update = updates.made(way, tmp_path, CPU)
    seen = []
    for number in (0, 6):
        updates.run(update, number, number + 1)
        taught = update.teacher_logits
        read = (update.views, update.terms, update.toward, taught.views, taught.targets, taught.draws, taught.partners)
        seen.append([t.data_ptr() for t in read if t is not None])
    one = way in ("from a table", "dkd", "dense", "patches", "blind", "blind patches")
    assert seen[0] == seen[1] and len(seen[0]) == 4 + one + way.startswith("blind")


def test_the_average_is_of_the_weights_after_each_step(tmp_path):
    state, update = updates.made("alone", tmp_path, CPU)
    seen = [updates.weights(state.model)]
    for number in range(4):
        updates.run(update, number, number + 1)
        seen.append(updates.weights(state.model))
    expected = seen[0]
    for kept, after in zip((1 / 10, 2 / 11, 3 / 12, 4 / 13), seen[1:], strict=True):
        expected = kept * expected + (1 - kept) * after
    floats = torch.cat([torch.full((t.numel(),), t.is_floating_point()) for t in state.model.state_dict().values()])
    assert torch.allclose(updates.weights(state.ema)[floats], expected[floats], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", ["dkd", "dense"])
def test_a_step_is_weighed_as_the_schedule_says_wherever_it_is_resumed(way, tmp_path):
    _, update = updates.made(way, tmp_path, CPU)
    seen = set()
    for first, last in ((0, 12), (13, 14), (8, 9)):
        for number in range(first, last):
            updates.run(update, number, number + 1)
            expected = update.objective.schedule(0, number // 5, number)
            assert update.terms.tolist() == pytest.approx(expected)
            seen.add(expected)
    assert len(seen) == {"dkd": 3, "dense": 2}[way]


class Graph:
    """What stands in for CUDA's graph on a CPU: it notes the one call and makes it again, into the same result."""

    replays = 0

    def pool(self) -> object:
        return Graph  # one memory for all of them

    def replay(self) -> None:
        self.replays += 1
        self.result.copy_(self.update(self.index))


class Noting:
    """An update that, while a graph is being captured, does nothing but note what it would have read."""

    def __init__(self, update: step.Update) -> None:
        self.update, self.device, self.eager, self.captures, self.capturing = update, update.device, 0, 0, None
        self.start_epoch, self.set_rates = update.start_epoch, update.set_rates
        self.batches, self.recipe, self.optimizers = update.batches, update.recipe, update.optimizers

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        if self.capturing is None:
            self.eager += 1
            return self.update(index)
        graph = self.capturing
        graph.update, graph.index, graph.result = self.update, index, torch.zeros(4)
        return graph.result


class Stream:
    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """`noting(way)`: (state, captured update that runs on a CPU)."""

    def make(way: str, folder: str = "captured"):
        state, update = updates.made(way, tmp_path / folder, CPU)
        noted = Noting(update)

        @contextlib.contextmanager
        def capturing(graph, pool, stream, capture_error_mode):
            assert pool is (Graph if noted.captures else None)  # the second graph takes the memory of the first
            noted.capturing, noted.captures = graph, noted.captures + 1
            yield
            noted.capturing = None

        for name, value in {
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda _: contextlib.nullcontext(),
            "device": lambda _: contextlib.nullcontext(),
            "CUDAGraph": Graph,
            "graph": capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return state, capture.Captured(noted, updates.BATCH)

    return make


@pytest.mark.parametrize("way", ["alone", "dense", "patches", "blind, live", "blind patches"])
def test_replaying_is_training(way, tmp_path, noting):
    """Over five epochs of four full batches and a short one, to the bit."""
    eager_state, eager = updates.made(way, tmp_path / "eager", CPU)
    expected = updates.run(eager, 0, 25)
    state, captured = noting(way)
    assert torch.equal(updates.run(captured, 0, 25), expected)
    assert torch.equal(updates.weights(state.model), updates.weights(eager_state.model))
    assert torch.equal(updates.weights(state.ema), updates.weights(eager_state.ema))
    full, short = captured.replays[updates.BATCH], captured.replays[min(captured.replays)]
    assert full.graph.replays == 20 - captured.WARM and short.graph.replays == 5 - captured.WARM
    assert captured.update.eager == 2 * captured.WARM and len(captured.replays) == 2


def test_the_capture_tells_what_there_was_to_wait_for(noting, monkeypatch):
    """Compilation happens in the eager steps before it; what lies between the steps is not the capture's."""
    clock = iter(range(1000))
    monkeypatch.setattr(capture.time, "perf_counter", lambda: float(next(clock)))
    _, captured = noting("alone")
    updates.run(captured, 0, 3)
    assert captured.capture_seconds is None
    updates.run(captured, 3, 4)
    assert captured.capture_seconds == captured.WARM + 1


def test_why_a_step_is_not_captured():
    recipe, again = updates.recipe_of("patches"), zoo.build("efficientnetv2")
    zoo.recompute(again)

    def why(recipe, device="cuda", model=None) -> str | None:
        update = SimpleNamespace(recipe=recipe, device=torch.device(device), model=model or nn.Identity())
        return capture.why_eager(update)

    assert why(recipe) is None
    assert "no graphs" in why(recipe, "cpu")
    assert "engine.capture" in why(updates.recipe_of(capture=False))
    cutout = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"cutout": 8})})
    assert "cutout" in why(cutout)
    assert "backward pass" in why(recipe, model=again)
