"""Blocks that are run again in the backward pass instead of keeping what they computed (Chen 2016).

Invariant: outputs, gradients, running statistics and state dict are those of the block that keeps everything.
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
    """Mixed into a block's class: where `recompute` is set it keeps its input alone for the backward pass."""

    recompute = False

    def forward(self, *inputs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if not (self.recompute and self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return forward(*inputs)
        again = lambda: (contextlib.nullcontext(), _untracked(self))  # noqa: E731
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=again)


def make_recomputable(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Every block of one of these `kinds` inside `module` can from now on be told to `recompute`."""
    for block in module.modules():
        if isinstance(block, kinds):
            block.__class__ = type(block.__class__.__name__, (Recomputable, block.__class__), {})


def recompute(module: nn.Module) -> None:
    """Tell the recomputable blocks inside `module` to, from now on."""
    for block in _blocks(module):
        block.recompute = True


def recomputing(module: nn.Module) -> bool:
    return any(block.recompute for block in _blocks(module))


def kept_bytes(model: nn.Module, image: tuple[int, int, int]) -> int:
    """What a training step keeps of one image [C, H, W] for its backward pass, where blocks could be recomputed
    instead; 0 for a network that has none. Nothing is computed for it."""
    if not _blocks(model):
        return 0
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.dim() == 4:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no storage is counted in another's place
    shadow = copy.deepcopy(model).to("meta").train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(torch.empty(2, *image, device="meta"))
    return sum(kept.values()) // 2


def _blocks(module: nn.Module) -> list[Recomputable]:
    return [block for block in module.modules() if isinstance(block, Recomputable)]


@contextlib.contextmanager
def _untracked(block: Any) -> Iterator[None]:
    """The second time a batch passes, its statistics are not to be counted again."""
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
