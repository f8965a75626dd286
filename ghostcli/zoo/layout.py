"""The layout of a network's weights in memory. Invariant: no value changes."""

from __future__ import annotations

import torch
from torch import nn

from ghostcli.zoo.names import is_own


def laid_out(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """The model on `device` (None: where it is) in channels_last, which is faster.

    A user's own network stays as PyTorch makes it: with weights in channels_last its maps are so too, and code that
    reshapes a map with `view` fails.
    """
    layout = torch.contiguous_format if is_own(model.spec.name) else torch.channels_last
    return model.to(device, memory_format=layout) if device is not None else model.to(memory_format=layout)
