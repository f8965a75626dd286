"""One sum of branches in training, forward and backward: moments, fold, running statistics, convolution, and back.

Invariant: the C++ kernels compute it in one call each way where they can, elsewhere plain PyTorch step by step: for
maps of one or two pixels a side, and for parameters that the kernels cannot read as they are.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

from torch import Tensor

from ghostcli.zoo.kernels import native, pytorch
from ghostcli.zoo.kernels.algebra import Branches, Fold, Running
from ghostcli.zoo.kernels.pytorch import Window

#: What the backward pass needs besides the maps: one tensor of the C++ kernels, or the parts of a `Fold`.
Kept = tuple[Tensor | None, ...]


@functools.cache
def _taps_seen(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """The range (first, end) of the taps of a row or column that ever cover one of `side` pixels."""
    centres = range(0, side, stride)
    met = [any(0 <= at + tap - kernel // 2 < side for at in centres) for tap in range(kernel)]
    return met.index(True), kernel - met[::-1].index(True)


def _all_taps_seen(x: Tensor, k: Window, stride: int) -> bool:
    return all(_taps_seen(side, taps, stride) == (0, taps) for side, taps in zip(x.shape[1:3], k, strict=True))


def moments(ops: ModuleType, x: Tensor, k: Window, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the patches.

    Taps that only cover padding are set to exactly zero. Otherwise rounding errors (of sums over the image minus its
    borders) would remain, and large weights would turn them into a variance.
    """
    mean, cov = ops.moments(x, k, stride)
    if _all_taps_seen(x, k, stride):
        return mean, cov
    for moment, first in ((mean, 1), (cov, 1), (cov, 2)):
        grid = moment.unflatten(first, k)  # a view
        for axis, side, taps in zip((first, first + 1), x.shape[1:3], k, strict=True):
            low, high = _taps_seen(side, taps, stride)
            grid.narrow(axis, 0, low).zero_()
            grid.narrow(axis, high, taps - high).zero_()
    return mean, cov


def count(x: Tensor, stride: int) -> int:
    """The number of patches of [N, H, W, C] pixels. ValueError for a single one, which has no variance."""
    n, h, w, c = x.shape
    patches = n * math.ceil(h / stride) * math.ceil(w / stride)
    if patches < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size [{n}, {c}, {h}, {w}]")
    return patches


def _stepwise(ops: ModuleType) -> ModuleType:
    return pytorch if ops is native else ops


def forward(
    ops: ModuleType,
    x: Tensor,
    branches: Branches,
    running: Running,
    k: Window,
    stride: int,
    relu: bool,
    *,
    out: Tensor | None = None,
    add: Tensor | None = None,
) -> tuple[Tensor, Kept]:
    """The sum's output for pixels `x`, written to `out` if it is given: (output, what the backward pass needs).

    With `add` the output is [x, the sum's] + add, as by `beside`.
    """
    patches = count(x, stride)
    if ops is native and native.reads(branches, running) and _all_taps_seen(x, k, stride):
        z, state = native.sum_forward(x, branches, running, k, stride, relu, out, add)
        return z, (state,)
    ops = _stepwise(ops)
    fold = ops.fold(branches, *moments(ops, x, k, stride), running, patches)
    if add is None:
        return ops.convolve(x, fold.kernel, fold.bias, k, stride, relu, out), tuple(fold)
    return ops.beside(x, fold.kernel, fold.bias, add), tuple(fold)


def backward(
    ops: ModuleType,
    dz: Tensor,
    z: Tensor | None,
    x: Tensor,
    branches: Branches,
    kept: Kept,
    k: Window,
    stride: int,
    *,
    needed: bool = True,
    add: Tensor | None = None,
    mask: bool = False,
    pooled: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradient of `x`, None if it is not `needed`, and those of the branches, given `dz`.

    `z`: the output whose ReLU masks `dz`; None without ReLU. `add`, `mask`, `pooled`: as for `adjoint`.
    """
    if len(kept) == 1:
        return native.sum_backward(dz, z, x, branches, kept[0], k, stride, needed, add, mask, pooled)
    ops, fold = _stepwise(ops), Fold(*kept)
    step = ops.reduce(dz, z, x, fold.kernel, fold.bias if z is not None else None, k, stride)
    grads, S, t = ops.unfold(branches, fold, step.dkernel, step.dbias, count(x, stride))
    dx = ops.adjoint(step, x, fold.kernel, S, t, k, stride, add, mask, pooled) if needed else None
    return dx, grads
