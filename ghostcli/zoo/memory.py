"""Blocks that are recomputed in the backward pass to save memory (Chen 2016).

Invariant: outputs, gradients, running statistics and state dict are the same as without recomputing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

#: Bytes per image of efficientnetv2, the one network with such blocks: it enlarges every image to the same size.
KEPT = 154_000_000


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


def kept_bytes(module: nn.Module) -> int:
    """Bytes that a training step keeps per image for the backward pass; 0 for a network without recomputable blocks."""
    return KEPT if _blocks(module) else 0


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
