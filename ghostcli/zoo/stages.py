"""Layers named by stage, so that any student and any teacher can be compared layer by layer.

Invariant: a network is only watched. Hooks live during one call and are gone after it, so a network that has
been tapped costs, copies and saves as if it never had been.

A stage is a *level* of resolution relative to the image handed in: level 0 is its full side, level 1 half,
level 2 a quarter, and so on (rounded to the nearest power of two). A teacher that enlarges the image first is
measured against the image it was given, so that equal levels mean maps of about equal side.
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
    """What a network computed on the way to its logits."""

    maps: list[Tensor]  # [B, C, H, W], one a stage, early to late
    pooled: Tensor  # [B, D], the input of the last linear layer


class FeatureShape(NamedTuple):
    """The shape of `Features` without the batch; the tuples run over the stages, early to late."""

    levels: tuple[int, ...]
    channels: tuple[int, ...]
    sizes: tuple[int, ...]  # side of the (square) map
    pooled: int


class Stage(NamedTuple):
    """The module whose `call`-th call in a forward pass (from 0) gives the last map of a level."""

    level: int
    name: str
    call: int
    channels: int
    size: int


def as_map(x: Any) -> Tensor | None:
    """`x` as a square map [B, C, H, W], or None where it is none.

    Understood are maps, maps with the channels last, and a transformer's tokens [B, N, D], of which the last
    largest square number are the map and the ones before (class, registers) are left out.
    """
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        return None
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        x = x[:, x.shape[1] - side * side :].unflatten(1, (side, side))
    elif x.shape[2] == x.shape[3]:
        return x
    return x.permute(0, 3, 1, 2) if x.shape[1] == x.shape[2] else None


def stages(model: nn.Module, image_size: int = 32) -> list[Stage]:
    """The stages of `model` for square images of `image_size`, early to late.

    Of the maps at one level the last is taken among those made by the outermost modules (a plain chain being
    as far out as its links), which is the end of a stage and not the inside of a block. Maps of one pixel
    and images (as many channels as came in) are none. ValueError where the network makes no map at all.
    """
    return _probe(model, image_size)[0]


class Tap:
    """`logits, features = tap(x)`: an answer, with the stages and the input of the last linear layer.

    Gradients flow where the caller lets them. The layers are looked up for images of `image_size`, in eval mode,
    at construction and again where the size of `x` turns out to be another.
    """

    def __init__(self, model: nn.Module, image_size: int = 32) -> None:
        self.model = model
        self._look_up(image_size)

    def _look_up(self, image_size: int) -> None:
        self.image_size = image_size
        self.stages, self.linear, pooled = _probe(self.model, image_size)
        names = {stage.name for stage in self.stages} | ({self.linear} if self.linear else set())
        self.watched = {name: self.model.get_submodule(name) for name in names}
        self.shape = FeatureShape(
            tuple(stage.level for stage in self.stages),
            tuple(stage.channels for stage in self.stages),
            tuple(stage.size for stage in self.stages),
            pooled,
        )

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

        with _watched(self.watched, keep_input, keep_map):
            logits = self.model(x)
        found = [maps[i] for i in range(len(self.stages))]
        return logits, Features(found, pooled[-1] if pooled else found[-1].mean((2, 3)))


def common(student: FeatureShape, teacher: FeatureShape) -> list[tuple[int, int]]:
    """(student's stage, teacher's stage) at each level of both, early to late; else the deepest two."""
    both = sorted(set(student.levels) & set(teacher.levels))
    pairs = [(student.levels.index(level), teacher.levels.index(level)) for level in both]
    return pairs or [(len(student.levels) - 1, len(teacher.levels) - 1)]


def nearest(levels: Sequence[int], level: int) -> int:
    """Index of the level nearest to `level`, the deeper of two that are equally near."""
    return min(range(len(levels)), key=lambda i: (abs(levels[i] - level), -levels[i]))


@contextmanager
def _watched(modules: Mapping[str, nn.Module], before: Before, after: After) -> Iterator[None]:
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
    depth: int  # how many blocks the module is nested in; plain chains are none
    stage: Stage


def _probe(model: nn.Module, image_size: int) -> tuple[list[Stage], str | None, int]:
    """Stages, the name of the last linear layer (None: there is none), and the width of its input."""
    modules = dict(model.named_modules())
    chains = {name for name, module in modules.items() if type(module).forward is nn.Sequential.forward}
    open_calls: list[list[_Seen]] = [[]]  # maps seen within each call that has not ended; the first is the whole
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
        found = as_map(output)
        if found is not None and found.shape[1] != image.shape[1]:
            channels, size = found.shape[1:3]
            stage = Stage(round(math.log2(image_size / size)), name, calls[name], channels, size)
            # What was coarser inside a block than at its end is a side path (a gate, an excitation).
            inside = [seen for seen in inside if seen.stage.level <= stage.level]
            inside.append(_Seen(depth, stage))
        open_calls[-1] += inside
        calls[name] += 1

    weight = next(model.parameters())
    image = torch.zeros(2, 3, image_size, image_size, device=weight.device, dtype=weight.dtype)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _watched(modules, enter, leave):
            model(image)
    finally:
        for module, mode in training.items():
            module.training = mode
    found_stages = _choose(open_calls[0])
    if not found_stages:
        raise ValueError(f"{type(model).__name__} makes no feature map from an image of {image_size} pixels")
    name, width = linear or (None, found_stages[-1].channels)
    return found_stages, name, width


def _choose(seen: list[_Seen]) -> list[Stage]:
    """The last of the outermost maps at each level, of maps `seen` in the order they were made."""
    best: dict[int, _Seen] = {}
    coarsest = 0
    for depth, stage in seen:
        if stage.level < coarsest:  # a map blown up again, or larger than the image
            continue
        coarsest = stage.level
        if stage.size > 1 and (stage.level not in best or depth <= best[stage.level].depth):
            best[stage.level] = _Seen(depth, stage)
    return [best[level].stage for level in sorted(best)]
