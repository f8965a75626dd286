"""Ways of taking one training step of a Ghost network, to be set against each other.

Invariant: they do the same work from the same weights on the same images, and differ in how.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.zoo import kernels

Call = Callable[[], Any]
BASE = "plain NCHW"


@dataclass(frozen=True)
class Setting:
    """What everybody is given."""

    model: str
    batch: int
    device: torch.device
    rounds: int

    def images(self, channels_last: bool, batch: int | None = None) -> Tensor:
        x = torch.randn(batch or self.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(self.device)
        return x.to(memory_format=torch.channels_last) if channels_last else x

    def labels(self) -> Tensor:
        return torch.randint(10, (self.batch,), generator=torch.Generator().manual_seed(1)).to(self.device)


@dataclass(frozen=True)
class Contestant:
    """A way of taking one training step. `kernel` is what GHOST_KERNEL is set to while it runs."""

    make: Callable[[Setting], nn.Module]
    channels_last: bool = True
    fused: bool = True
    kernel: str = "auto"

    def step(self, setting: Setting) -> Call:
        """Forward, cross-entropy, backward, SGD on ready images, eagerly."""
        torch.manual_seed(0)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = self.make(setting).to(setting.device, memory_format=layout).train()
        x, y = setting.images(self.channels_last), setting.labels()
        options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
        optimizer = torch.optim.SGD(model.parameters(), **options, **({"fused": True} if self.fused else {}))

        def step() -> None:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def choose_kernel(self) -> None:
        os.environ["GHOST_KERNEL"] = self.kernel


def plain(setting: Setting) -> nn.Module:
    return zoo.build(setting.model, branches="plain")


def folded(setting: Setting) -> nn.Module:
    return zoo.build(setting.model, branches="folded")


def timm_blocks(setting: Setting) -> nn.Module:
    """timm's GhostNetV3 with this project's rows, stem stride and no dropout."""
    from timm.models.ghostnet import GhostNet

    from ghostcli.zoo.ghost import ROWS

    name = zoo.parse(setting.model)
    rows = [[list(row)] for row in ROWS[name.family]]
    net = GhostNet(rows, num_classes=10, width=name.width, drop_rate=0.0, version="v3")
    net.conv_stem.stride = (1, 1)
    return net


def contestants(device: torch.device) -> dict[str, Contestant]:
    """Those that can run here."""
    found = {
        BASE: Contestant(plain, channels_last=False, fused=False),
        "plain channels_last": Contestant(plain),
        "folded, no kernel": Contestant(folded, kernel="pytorch"),
        "folded, kernel": Contestant(folded),
        "timm NCHW": Contestant(timm_blocks, channels_last=False, fused=False),
        "timm channels_last": Contestant(timm_blocks),
    }
    if device.type == "cpu" and kernels.status()["name"] == "pytorch":
        del found["folded, kernel"]
    try:
        import timm.models.ghostnet as ghostnet
    except ImportError:
        ghostnet = None
    if not hasattr(ghostnet, "GhostModuleV3"):
        found = {name: one for name, one in found.items() if not name.startswith("timm")}
    return found
