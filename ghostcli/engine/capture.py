"""Captures an update as a CUDA graph. Invariant: a replay gives the same result as the update."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ghostcli import zoo
from ghostcli.engine import selfcheck, turns
from ghostcli.engine.step import Update


@dataclass
class Replay:
    """The graph of one batch size: it reads `index` and writes `result`."""

    index: Tensor
    seen: int = 0  # eager steps so far
    graph: torch.cuda.CUDAGraph | None = None
    result: Tensor | None = None


class Captured:
    """An update that is replayed as a CUDA graph, one for each size of batch: a full one, and the last of an epoch.

    The first batches of a size run as eager steps, which compile the kernels and warm up the allocator. Then one step
    is captured and replayed. The graphs share their memory: they never run at once, and a result is copied out of it.
    This is only for updates with the same arithmetic at each step.
    """

    WARM = 3

    def __init__(self, update: Update, batch_size: int) -> None:
        self.update, self.batch_size = update, batch_size
        self.stream = torch.cuda.Stream(update.device)
        self.replays: dict[int, Replay] = {}
        self.refused: str | None = None  # why the capture failed; then all steps are eager
        self.waited = 0.0  # seconds in the eager steps of full batches
        #: Seconds before the first replay of a full batch: eager steps, compilation and capture.
        self.capture_seconds: float | None = None

    def __call__(self, index: Tensor) -> Tensor:
        if self.refused:
            return self.update(index)
        began, full = time.perf_counter(), len(index) == self.batch_size
        replay = self.replays.setdefault(len(index), Replay(torch.zeros_like(index)))
        if replay.graph is None and replay.seen < self.WARM:
            replay.seen += 1
            drawn = _random_state()
            here = torch.cuda.current_stream(self.update.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                result = self.update(index)
            here.wait_stream(self.stream)
            if _random_state() != drawn:
                self.refused = "the network draws random numbers outside PyTorch, which a graph would repeat"
            self.waited += full * (time.perf_counter() - began)
            return result
        replay.index.copy_(index)
        if replay.graph is None:
            if not self._capture(replay):
                return self.update(index)
            if full:
                self.capture_seconds = self.waited + time.perf_counter() - began
        replay.graph.replay()
        assert replay.result is not None
        return replay.result.clone()

    def _capture(self, replay: Replay) -> bool:
        """Capture one step. Returns False if the capture fails; it has then run nothing, and steps stay eager."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self.replays.values() if other.graph), None)
        try:
            with (
                torch.cuda.device(self.update.device),
                torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode=turns.capture_mode()),
            ):
                replay.result = self.update(replay.index)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # drivers and libraries raise any class
            for optimizer in self.update.optimizers:
                optimizer.zero_grad(set_to_none=True)  # these gradients are in the memory of the graph
            self.refused = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no message'}"
            return False
        replay.graph = graph
        return True


def _random_state() -> tuple[object, ...]:
    """The state of Python's and NumPy's own generators, which a replay neither reads nor changes."""
    name, keys, position, *gauss = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), position, *gauss


def why_eager(update: Update) -> str | None:
    """Why the step cannot be captured as a graph; None if it can."""
    if update.device.type != "cuda":
        return f"{update.device.type} has no graphs"
    if not update.recipe.engine.capture:
        return "engine.capture is false"
    if update.recipe.augment.cutout:
        return "augment.cutout draws new positions at each step"
    if zoo.recomputing(update.model):
        return "blocks are run again in the backward pass, which sets the random state"
    spec = getattr(update.model, "spec", None)
    if turns.shared() and not (spec and zoo.is_ghost(spec.name)):
        return "it may draw random numbers, and the graphs of several runs in a process would share their place"
    verdict = spec and selfcheck.verdict_for(spec.name, update.recipe.engine.branches, update.device)
    return verdict.graph if verdict else None
