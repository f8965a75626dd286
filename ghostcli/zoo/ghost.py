"""GhostNetV3-Small (`gns`) and the deeper GhostNetV3 (`gnd`) at any width, train form.

Invariant: module and state-dict names match the published weights, row by row, so weights load directly. The deploy
form has the same structure, with every `RepConv` and batch norm folded (see fold.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.zoo import folded
from ghostcli.zoo.branches import Chain, Mode, RepConv
from ghostcli.zoo.names import Spec


class Row(NamedTuple):
    """One bottleneck at width 1. `se` is the reduction ratio of squeeze-excite, 0 for none."""

    kernel: int
    expansion: int
    out: int
    se: float
    stride: int


GNS: tuple[Row, ...] = (
    Row(3, 16, 16, 0, 1),
    Row(3, 32, 20, 0, 2),
    Row(3, 40, 20, 0, 1),
    Row(3, 48, 32, 0.25, 1),
    Row(3, 64, 32, 0.25, 1),
    Row(3, 80, 48, 0, 2),
    Row(3, 96, 48, 0, 1),
    Row(3, 120, 64, 0.25, 1),
    Row(3, 128, 80, 0.25, 1),
    Row(3, 160, 80, 0.25, 1),
)
GND: tuple[Row, ...] = (
    Row(3, 16, 16, 0, 1),
    Row(3, 48, 24, 0, 2),
    Row(3, 72, 24, 0, 1),
    Row(5, 72, 40, 0.25, 2),
    Row(5, 120, 40, 0.25, 1),
    Row(3, 240, 80, 0, 2),
    Row(3, 200, 80, 0, 1),
    Row(3, 184, 80, 0, 1),
    Row(3, 184, 80, 0, 1),
    Row(3, 480, 112, 0.25, 1),
    Row(3, 672, 112, 0.25, 1),
    Row(5, 672, 160, 0.25, 2),
    Row(5, 960, 160, 0, 1),
    Row(5, 960, 160, 0.25, 1),
    Row(5, 960, 160, 0, 1),
    Row(5, 960, 160, 0.25, 1),
)
ROWS = {"gns": GNS, "gnd": GND}

STEM = 16
HEAD = 1280
FIRST_GATED = 2  # from this row on, the expanding ghost modules have a gate


def divisible(channels: float) -> int:
    """The nearest multiple of 4 (ties round up), at least 4 and at least 90 % of `channels`."""
    rounded = max(4, int(channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


class ConvBN(Chain):
    """`conv` (square, no bias, same padding) -> `bn` -> ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, mode: Mode) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels), relu=nn.ReLU(inplace=True)))
        self.mode = mode


class Gate(Chain):
    """The long-range ("DFC") attention of a ghost module. Its output has half the side of the map it multiplies."""

    def __init__(self, in_channels: int, out_channels: int, *, mode: Mode) -> None:
        c = out_channels
        super().__init__(
            nn.Conv2d(in_channels, c, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, c, (1, 5), padding=(0, 2), groups=c, bias=False),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, c, (5, 1), padding=(2, 0), groups=c, bias=False),
            nn.BatchNorm2d(c),
        )
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        # a side of one pixel (from small images) is not pooled
        window = [min(2, side) for side in x.shape[-2:]]
        return torch.sigmoid(self.logits(F.avg_pool2d(x, window)))

    def logits(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled)


class GhostModule(nn.Module):
    """Half of `out_channels` from a 1x1 conv (`primary`), the other half from a depthwise 3x3 of that (`cheap`)."""

    def __init__(self, in_channels: int, out_channels: int, *, relu: bool, gated: bool, mode: Mode) -> None:
        super().__init__()
        half = math.ceil(out_channels / 2)
        self.out_channels = out_channels
        self.primary = RepConv(in_channels, half, relu=relu, mode=mode)
        self.cheap = RepConv(half, half, 3, relu=relu, mode=mode)
        self.gate = Gate(in_channels, out_channels, mode=mode) if gated else None

    @property
    def folding(self) -> bool:
        return self.training and isinstance(self.primary, RepConv) and self.primary.mode == "folded"

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        y = torch.cat([y, self.cheap(y)], dim=1)[:, : self.out_channels]
        return y if self.gate is None else y * F.interpolate(self.gate(x), y.shape[-2:], mode="nearest")

    def folded(self, x: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """In training: both convolutions written side by side into one map, + `add`, not yet gated; see folded.py.

        Then `x`, for a shortcut that reads it, and the logits of the gate, if there is one.
        """
        p, c, pool = self.primary, self.cheap, self.gate is not None
        running = p.running(), c.running()
        y, x, pooled = folded.ghost(x, p.stacked(), c.stacked(), p.relu, running, pool=pool, add=add)
        return y[:, : self.out_channels], x, None if self.gate is None else self.gate.logits(pooled)


class OnePixel(nn.Conv2d):
    """A 1x1 convolution of maps of one pixel. On a CPU training computes it as a matrix product, which is faster."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and x.is_cpu):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def _means(x: Tensor) -> Tensor:
    """The means [N, C, 1, 1] of whole maps. Their gradient is a view of one value a channel, and no whole map."""
    return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


class SqueezeExcite(nn.Module):
    """Channel weights from the mean of the whole map, through a hard sigmoid."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        reduced = divisible(channels * ratio)
        self.reduce = OnePixel(channels, reduced)
        self.expand = OnePixel(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum((2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        return x * self.scale((total / (x.shape[2] * x.shape[3])).to(x.dtype))

    def scale(self, mean: Tensor) -> Tensor:
        """The channel weights [N, C, 1, 1] for the means of the map, likewise."""
        s = self.expand(F.relu(self.reduce(mean)))
        return F.relu6(s + 3) / 6  # the gradient of torch's hardsigmoid uses a float32 value of 1/6

    def folded(self, x: Tensor, gate: Tensor | None) -> Tensor:
        """`x` times the gate whose logits are given, squeezed and excited, in training."""
        return folded.excite(x, gate, lambda mean: self.scale(mean[:, :, None, None]).flatten(1))


class Bottleneck(nn.Module):
    """Expand, halve the side (stride 2 only), squeeze and excite (optional), project, add the shortcut."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, row: Row, *, gated: bool, mode: Mode) -> None:
        super().__init__()
        k, stride = row.kernel, row.stride
        self.expand = GhostModule(in_channels, middle, relu=True, gated=gated, mode=mode)
        self.depthwise = RepConv(middle, middle, k, stride, relu=False, mode=mode) if stride > 1 else None
        self.se = SqueezeExcite(middle, row.se) if row.se else None
        self.project = GhostModule(middle, out_channels, relu=False, gated=False, mode=mode)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = Chain()
        else:
            self.shortcut = Chain(
                nn.Conv2d(in_channels, in_channels, k, stride, k // 2, groups=in_channels, bias=False),
                nn.BatchNorm2d(in_channels),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.shortcut.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.expand.folding:
            return self.folded(x)
        y = self.expand(x)
        if self.depthwise is not None:
            y = self.depthwise(y)
        if self.se is not None:
            y = self.se(y)
        return self.project(y) + self.shortcut(x)

    @folded.uncompiled
    def folded(self, x: Tensor) -> Tensor:
        """The output of `forward` in training. Gradients that meet are added where one of them is written."""
        y, x, gate = self.expand.folded(x)
        if gate is not None and (self.depthwise is not None or self.se is None):
            y, gate = folded.weigh(y, gate), None
        if self.depthwise is not None:
            y = self.depthwise(y)
        if self.se is not None:
            y = self.se.folded(y, gate)
        return self.project.folded(y, self.shortcut(x))[0]


class GhostNet(nn.Module):
    """A 3x3 stem, rows of bottlenecks at `width`, and a 1x1 tail: [N, 3, H, W] to logits [N, classes].

    Images are at least 8 x 8. In training each batch norm needs two values per channel. ValueError if a batch of one
    small image gives only one.
    """

    spec: Spec
    deployed = False

    def __init__(self, rows: tuple[Row, ...], width: float, classes: int = 10, *, mode: Mode = "folded") -> None:
        super().__init__()
        self.shrinks = math.prod(row.stride for row in rows)
        channels = divisible(STEM * width)
        self.stem = ConvBN(3, channels, 3, mode=mode)
        self.bottlenecks = nn.ModuleList()
        for i, row in enumerate(rows):
            middle, out = divisible(row.expansion * width), divisible(row.out * width)
            gated = i >= FIRST_GATED
            self.bottlenecks.append(Bottleneck(channels, middle, out, row, gated=gated, mode=mode))
            channels = out
        self.tail = ConvBN(channels, divisible(rows[-1].expansion * width), 1, mode=mode)
        self.head = OnePixel(divisible(rows[-1].expansion * width), HEAD)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        # the gate of the last row sees half of each side, and its batch norm needs two pixels
        if self.training and not self.deployed and x.shape[0] == 1 and max(x.shape[2:]) <= 3 * self.shrinks:
            raise ValueError(
                f"batch norm needs at least two values per channel in training, and a batch of one image of "
                f"{x.shape[2]} x {x.shape[3]} leaves one: train on two images at a time or more, or on larger ones"
            )
        x = self.stem(x)
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        x = F.relu(self.head(_means(self.tail(x)) if self.training else F.adaptive_avg_pool2d(self.tail(x), 1)))
        return self.classifier(x.flatten(1))
