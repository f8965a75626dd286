"""Layers named by stage, so that the layers of any student and any teacher can be compared.

Invariant: a network is not changed. Hooks exist during one call only, so speed, copies and saved files stay the same.

A stage is a *level* of resolution relative to the input image: level 0 is the full side, level 1 half, level 2 a
quarter, and so on (rounded to the nearest power of two). For a teacher that enlarges images, the level is relative to
the image before enlargement. So maps of equal level have about equal side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Before = Callable[[str, tuple[Any, ...]], None]
After = Callable[[str, Any], None]


class Features(NamedTuple):
    """The intermediate features of a network."""

    maps: list[Tensor]  # [B, C, H, W], one per stage, early to late
    pooled: Tensor  # [B, D], the input of the last linear layer


class FeatureShape(NamedTuple):
    """The shape of `Features` without the batch. Tuples have one entry per stage, early to late."""

    levels: tuple[int, ...]
    channels: tuple[int, ...]
    sizes: tuple[int, ...]  # side of the (square) map
    pooled: int


class Stage(NamedTuple):
    """The module `name` whose call number `call` (from 0) in a forward pass gives the last map of a level."""

    level: int
    name: str
    call: int
    channels: int
    size: int


def as_map(x: Any) -> Tensor | None:
    """`x` as a square map [B, C, H, W], or None if it is not a map.

    It accepts maps, channels-last maps, and a transformer's tokens [B, N, D]. The map is then the last s * s tokens for
    the largest possible s; earlier tokens (class, registers) are dropped.
    """
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        return None
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, x.shape[1] - side * side :].unflatten(1, (side, side))
    elif x.shape[2] == x.shape[3]:
        return x
    return x.permute(0, 3, 1, 2) if x.shape[1] == x.shape[2] else None


class Tap:
    """`logits, features = tap(x)`: logits, the maps of all stages and the input of the last linear layer.

    Gradients flow unless the caller disables them. The layers are looked up in eval mode for images of `image_size`, at
    construction and again if the size of `x` changes.
    """

    def __init__(self, model: nn.Module, image_size: int = 32) -> None:
        self.model = model
        self._look_up(image_size)

    def _look_up(self, image_size: int) -> None:
        self.image_size = image_size
        self.stages, self.linear, pooled = _probe(self.model, image_size)
        names = {stage.name for stage in self.stages} | ({self.linear} if self.linear else set())
        self.watched = {name: self.model.get_submodule(name) for name in names}
        levels, channels, sizes = (tuple(getattr(s, of) for s in self.stages) for of in ("level", "channels", "size"))
        self.shape = FeatureShape(levels, channels, sizes, pooled)

    def __call__(self, x: Tensor) -> tuple[Tensor, Features]:
        """For square images `x` [B, 3, H, H]."""
        if x.shape[-1] != self.image_size:
            self._look_up(x.shape[-1])
        wanted = {(stage.name, stage.call): i for i, stage in enumerate(self.stages)}
        maps: dict[int, Tensor] = {}
        calls: Counter[str] = Counter()
        pooled: list[Tensor] = []

        def keep_input(name: str, args: tuple[Any, ...]) -> None:
            if name == self.linear:
                pooled.append(args[0].flatten(1))

        def keep_map(name: str, output: Any) -> None:
            if (name, calls[name]) in wanted:
                maps[wanted[name, calls[name]]] = as_map(output)
            calls[name] += 1

        with _watch(self.watched, keep_input, keep_map):
            logits = self.model(x)
        features = [maps[i] for i in range(len(self.stages))]
        return logits, Features(features, pooled[-1] if pooled else features[-1].mean((2, 3)))


def common(student: FeatureShape, teacher: FeatureShape) -> list[tuple[int, int]]:
    """(student's stage, teacher's stage) at each level of both, early to late; else the deepest two."""
    both = sorted(set(student.levels) & set(teacher.levels))
    pairs = [(student.levels.index(level), teacher.levels.index(level)) for level in both]
    return pairs or [(len(student.levels) - 1, len(teacher.levels) - 1)]


def nearest(levels: Sequence[int], level: int) -> int:
    """Index of the level nearest to `level`. Of two equally near levels, the deeper one."""
    return min(range(len(levels)), key=lambda i: (abs(levels[i] - level), -levels[i]))


@contextmanager
def _watch(modules: Mapping[str, nn.Module], before: Before, after: After) -> Iterator[None]:
    """Calls `before(name, arguments)` and `after(name, output)` around every call of one of `modules`."""
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_pre_hook(lambda _, args, name=name: before(name, args)))
        handles.append(module.register_forward_hook(lambda _, args, output, name=name: after(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Seen(NamedTuple):
    depth: int  # nesting depth in blocks; plain nn.Sequential modules do not count
    stage: Stage


def _probe(model: nn.Module, image_size: int) -> tuple[list[Stage], str | None, int]:
    """Stages early to late, the name of the last linear layer (None: there is none), and the width of its input.

    Per level it takes the last map of the outermost modules: the end of a stage, not the inside of a block. (A plain
    `nn.Sequential` has the same depth as its members.) Maps of one pixel, and maps with as many channels as the image,
    do not count, so an MLP has no stage. ValueError if there is neither a stage nor a linear layer.
    """
    modules = dict(model.named_modules())
    chains = {name for name, module in modules.items() if type(module).forward is nn.Sequential.forward}
    open_calls: list[list[_Seen]] = [[]]  # maps seen within each open call; the first entry is the whole network
    depth = 0
    calls: Counter[str] = Counter()
    linear: tuple[str, int] | None = None

    def enter(name: str, args: tuple[Any, ...]) -> None:
        nonlocal depth, linear
        depth += name not in chains
        open_calls.append([])
        if isinstance(modules[name], nn.Linear):
            linear = (name, args[0].flatten(1).shape[1])

    def leave(name: str, output: Any) -> None:
        nonlocal depth
        depth -= name not in chains
        inside = open_calls.pop()
        feature_map = as_map(output)
        if feature_map is not None and feature_map.shape[1] != image.shape[1]:
            channels, size = feature_map.shape[1:3]
            stage = Stage(round(math.log2(image_size / size)), name, calls[name], channels, size)
            # A map inside a block that is coarser than the block's output is a side path (a gate, an excitation).
            inside = [seen for seen in inside if seen.stage.level <= stage.level]
            inside.append(_Seen(depth, stage))
        open_calls[-1] += inside
        calls[name] += 1

    weight = next(model.parameters())
    image = torch.zeros(2, 3, image_size, image_size, device=weight.device, dtype=weight.dtype)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _watch(modules, enter, leave):
            model(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    stages = _choose(open_calls[0])
    if not stages and not linear:
        raise ValueError(f"{type(model).__name__} makes no features from an image of {image_size} pixels")
    name, width = linear or (None, stages[-1].channels)
    return stages, name, width


def _choose(seen: list[_Seen]) -> list[Stage]:
    """The last of the outermost maps at each level. `seen` is in the order of computation."""
    best: dict[int, _Seen] = {}
    coarsest = 0
    for depth, stage in seen:
        if stage.level < coarsest:  # an upsampled map, or one larger than the image
            continue
        coarsest = stage.level
        if stage.size > 1 and (stage.level not in best or depth <= best[stage.level].depth):
            best[stage.level] = _Seen(depth, stage)
    return [best[level].stage for level in sorted(best)]
