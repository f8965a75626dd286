"""Costs of a network: parameters and multiply-accumulates.

Invariant: a count depends only on the network's shape and the image size. No forward pass is computed, but for a
user's own network, whose code need not know the meta device.
"""

from __future__ import annotations

import copy
import sys
from contextlib import redirect_stdout

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ghostcli.errors import UsageError
from ghostcli.zoo.branches import RepConv
from ghostcli.zoo.names import is_own


def count_parameters(model: nn.Module) -> int:
    """The number of learnable values. Running statistics do not count."""
    return sum(p.numel() for p in model.parameters())


def build_shapes(name: str, classes: int = 10) -> nn.Module:
    """The network of that name on the meta device, without values. So any width can be counted.

    A user's own network is on the CPU, because its code need not know the meta device. UsageError if the width makes a
    tensor too large for torch.
    """
    from ghostcli.zoo import build

    if is_own(name):
        return build(name, classes)
    try:
        with torch.device("meta"):
            return build(name, classes)
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise UsageError(f"{name}: this width makes a tensor too large for torch; use a smaller width") from error


def count_macs(model: nn.Module, image: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image [C, H, W], by torch's own counter.

    The train form counts every branch; the deploy form counts its one convolution. By convention biases, norms, pooling
    and activations do not count.
    """
    spec = getattr(model, "spec", None)
    device = "cpu" if spec is not None and is_own(spec.name) else "meta"
    shadow = copy.deepcopy(model).to(device).eval()
    for module in shadow.modules():
        if isinstance(module, RepConv):
            module.mode = "plain"
    with FlopCounterMode(display=False) as counter, torch.no_grad(), redirect_stdout(sys.stderr):  # its code may print
        shadow(torch.zeros(1, *image, device=device, dtype=next(shadow.parameters()).dtype))
    return counter.get_total_flops() // 2
