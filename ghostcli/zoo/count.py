"""What a network costs: parameters and multiply-accumulates.

Invariant: a count depends on the network's shape and the image's size only, and nothing is computed for it.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghostcli.errors import UsageError
from ghostcli.zoo.branches import RepConv


def count_parameters(model: nn.Module) -> int:
    """Learnable numbers; running statistics are none."""
    return sum(p.numel() for p in model.parameters())


def build_shapes(name: str, classes: int = 10) -> nn.Module:
    """The network of that name without numbers, on the meta device: to be counted, however wide it is.

    UsageError for a width at which a tensor would have more numbers than can be numbered.
    """
    from ghostcli.zoo import build

    try:
        with torch.device("meta"):
            return build(name, classes)
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise UsageError(f"{name}: no tensor can be as large as this width asks for; use a smaller one") from error


def count_macs(model: nn.Module, image: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image [C, H, W], by torch's own counter.

    A train form counts every branch, a deploy form its one convolution; biases, norms, pooling and
    activations count nothing, as is the custom.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    for module in shadow.modules():
        if isinstance(module, RepConv):
            module.mode = "plain"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *image, device="meta", dtype=next(shadow.parameters()).dtype))
    return counter.get_total_flops() // 2
