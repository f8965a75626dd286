"""Captures an update as a CUDA graph. Invariant: a replay gives the same result as the update."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ghostcli import zoo
from ghostcli.engine import selfcheck
from ghostcli.engine.step import Update


class Captured:
    """An update that is replayed as a CUDA graph for every full batch. Short batches run eagerly.

    The first batches run as eager steps, which compile the kernels and warm up the allocator. Then one step is captured
    and replayed. This is only for updates with the same arithmetic at each step.
    """

    WARM = 3

    def __init__(self, update: Update, batch_size: int) -> None:
        self.update, self.batch_size = update, batch_size
        self.index = torch.zeros(batch_size, dtype=torch.long, device=update.device)
        self.stream = torch.cuda.Stream(update.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor | None = None
        self.seen = 0
        self.refused: str | None = None  # why the capture failed; then all steps are eager
        self.waited = 0.0  # seconds in the eager steps
        #: Seconds before the first replay: eager steps, compilation and capture.
        self.capture_seconds: float | None = None

    def start_epoch(self, epoch: int, views: Tensor) -> None:
        self.update.start_epoch(epoch, views)

    def set_rates(self, rate: float, step: int) -> None:
        self.update.set_rates(rate, step)

    def __call__(self, index: Tensor) -> Tensor:
        if len(index) != self.batch_size or self.refused:
            return self.update(index)
        began = time.perf_counter()
        if self.graph is None and self.seen < self.WARM:
            self.seen += 1
            here = torch.cuda.current_stream(self.update.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                result = self.update(index)
            here.wait_stream(self.stream)
            self.waited += time.perf_counter() - began
            return result
        self.index.copy_(index)
        if self.graph is None:
            if not self._capture():
                return self.update(index)
            self.capture_seconds = self.waited + time.perf_counter() - began
        self.graph.replay()
        assert self.result is not None
        return self.result.clone()

    def _capture(self) -> bool:
        """Capture one step. Returns False if the capture fails; it has then run nothing, and steps stay eager."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.update.device), torch.cuda.graph(graph, stream=self.stream):
                self.result = self.update(self.index)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # drivers and libraries raise any class
            self.update.optimizer.zero_grad(set_to_none=True)  # these gradients are in the memory of the graph
            self.refused = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no message'}"
            return False
        self.graph = graph
        return True


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
    verdict = spec and selfcheck.verdict_for(spec.name, update.recipe.engine.branches, update.device)
    return verdict.graph if verdict else None
