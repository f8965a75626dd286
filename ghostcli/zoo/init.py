"""Kaiming normal initialisation, as in the authors' code for students.

Invariant: the weights depend only on the generator's state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghostcli.zoo.branches import RepConv


def init_kaiming(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Kaiming normal, fan-out, ReLU gain, for every Conv2d, Linear and branch, in module order, in place.

    Biases become 0 and batch norms are reset. Each branch is drawn like a convolution: its fan-out is O k k, because
    torch does not divide it by the groups. `generator` is on the weights' device.
    """
    for module in model.modules():
        if isinstance(module, RepConv):
            for kernel in module.kernels():
                _draw(kernel, generator)
            module.reset_norms()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            _draw(module.weight, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return model


def _draw(weight: Tensor, generator: torch.Generator | None) -> None:
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
