"""What a network costs: parameters and multiply-accumulates.

Invariant: a count depends on the network's shape and the image's size only, and nothing is computed for it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

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
    """Multiply-accumulates of the convolutions and linear layers for one image [C, H, W].

    A train form counts every branch, a deploy form its one convolution; biases, norms, pooling and
    activations count nothing, as is the custom.
    """
    total = 0

    def add(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if output.dim() == 4 else output[..., 0].numel()
        total += positions * _per_position(module)

    shadow = copy.deepcopy(model).to("meta").eval()
    for module in shadow.modules():
        if isinstance(module, RepConv | nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        shadow(torch.empty(1, *image, device="meta", dtype=next(shadow.parameters()).dtype))
    return total


def _per_position(module: nn.Module) -> int:
    """MACs at one output position: every weight is used once."""
    if isinstance(module, RepConv):
        return module.weight.numel() + (module.scale_weight.numel() if module.has_scale else 0)
    assert isinstance(module.weight, Tensor)
    return module.weight.numel()
