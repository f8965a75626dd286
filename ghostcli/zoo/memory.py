"""Blocks that are recomputed in the backward pass to save memory (Chen 2016).

Invariant: outputs, gradients, running statistics and state dict are the same as without recomputing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputable:
    """A mixin for a block. If `recompute` is set, the block keeps only its input for the backward pass."""

    recompute = False

    def forward(self, *inputs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not (self.recompute and self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return forward(*inputs)
        again = lambda: (contextlib.nullcontext(), _frozen_statistics(self))  # noqa: E731
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=again)


def make_recomputable(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Add `Recomputable` to every block of these `kinds` inside `module`."""
    for block in module.modules():
        if isinstance(block, kinds):
            block.__class__ = type(block.__class__.__name__, (Recomputable, block.__class__), {})


def recompute(module: nn.Module) -> None:
    """Switch recomputing on for the recomputable blocks inside `module`."""
    for block in _blocks(module):
        block.recompute = True


def recomputing(module: nn.Module) -> bool:
    return any(block.recompute for block in _blocks(module))


def kept_bytes(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes that a training step keeps for the backward pass, per image [C, H, W].

    0 for a network without recomputable blocks. No forward pass is computed.
    """
    if not _blocks(model):
        return 0
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.dim() == 4:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # keeps storages alive, so that each has its own id
    shadow = copy.deepcopy(model).to("meta").train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(torch.empty(2, *image, device="meta"))
    return sum(storages.values()) // 2


def _blocks(module: nn.Module) -> list[Recomputable]:
    return [block for block in module.modules() if isinstance(block, Recomputable)]


@contextlib.contextmanager
def _frozen_statistics(block: Any) -> Iterator[None]:
    """Do not update running statistics in the second forward pass of a batch."""
    norms = [norm for norm in block.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
