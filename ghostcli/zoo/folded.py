"""Trains a sum of convolution + batch norm branches as one convolution, exactly: algebra and autograd.

Invariant: outputs, gradients and batch statistics equal those of separate branches, up to rounding.

A branch with weight rows w [T] gets patches p of the input (T = I channels for a 1x1, k * k pixels of one channel for a
depthwise k x k). Let m and R be mean and covariance of the patches. The branch's output w.p has mean w.m and variance
w R w'. So the gain of its batch norm, a = gamma / sqrt(w R w' + eps), is known before the branch runs. All branches
together are one convolution K = sum a w with bias b = sum beta - a w.m. Scale and identity branches are rows too.
In the backward pass the gradient of the statistics adds S p + t to a patch, with S = 2/M sum dvar w'w and
t = 1/M sum dmean w - S m (M patches). It is added to the input gradient of the convolution.

Moments and folding use float32, or float64 for a float64 input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ghostcli.zoo import kernels
from ghostcli.zoo.kernels.algebra import EPS, Branches, Fold, Running

__all__ = [
    "EPS",
    "Branches",
    "Running",
    "Shape",
    "convolve",
    "depthwise",
    "ghost",
    "multiply",
    "normalise",
    "uncompiled",
]


DENSE, CHEAP = (1, 1), (3, 3)  # the windows of a ghost module


@functools.cache
def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(function)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.disable` for our own kernels, without its slow import if nothing is compiled.

    The import takes seconds, and only compiled networks need it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        chosen = _disabled(function) if torch.compiler.is_compiling() else function
        return chosen(*args, **kwargs)

    return call


class Shape(NamedTuple):
    """The settings of a sum of branches, without its parameters."""

    window: tuple[int, int] = (1, 1)
    stride: int = 1
    relu: bool = False


def _count(x: Tensor, stride: int) -> int:
    """The number of patches of [N, H, W, C] pixels. ValueError for a single one, which has no variance."""
    n, h, w, c = x.shape
    count = n * math.ceil(h / stride) * math.ceil(w / stride)
    if count < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size [{n}, {c}, {h}, {w}]")
    return count


@functools.cache
def _seen(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """The range (first, end) of the taps of a row or column that ever cover one of `side` pixels."""
    centres = range(0, side, stride)
    met = [any(0 <= at + tap - kernel // 2 < side for at in centres) for tap in range(kernel)]
    return met.index(True), kernel - met[::-1].index(True)


def _moments(x: Tensor, window: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the patches.

    Taps that only cover padding are set to exactly zero. Otherwise rounding errors (of sums over the image minus its
    borders) would remain, and large weights would turn them into a variance.
    """
    mean, cov = kernels.of(x).moments(x, window, stride)
    seen = [_seen(side, taps, stride) for side, taps in zip(x.shape[1:3], window, strict=True)]
    if seen == [(0, taps) for taps in window]:
        return mean, cov
    for moment, first in ((mean, 1), (cov, 1), (cov, 2)):
        grid = moment.unflatten(first, window)  # a view
        for axis, taps, (low, high) in zip((first, first + 1), window, seen, strict=True):
            grid.narrow(axis, 0, low).zero_()
            grid.narrow(axis, high, taps - high).zero_()
    return mean, cov


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] in any memory format as [N, H, W, C] with regular pixel strides. Copied only if necessary."""
    x = x.permute(0, 2, 3, 1)
    return x if kernels.pitch(x) else x.contiguous()


def _images(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class _Sum(torch.autograd.Function):
    """One sum of branches: [N, C, H, W] -> output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Shape, running: Running, *parameters: Tensor | None) -> Tensor:
        x, branches, ops = _pixels(x), Branches(*parameters), kernels.of(x)
        k, stride, relu = shape
        ctx.shape, ctx.count = shape, _count(x, stride)
        fold = ops.fold(branches, *_moments(x, k, stride), running, ctx.count)
        z = ops.convolve(x, fold.kernel, fold.bias, k, stride, relu)
        ctx.save_for_backward(x, z if relu else None, *parameters, *fold)
        return _images(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        x, z, *rest = ctx.saved_tensors
        branches, fold, ops = Branches(*rest[:8]), Fold(*rest[8:]), kernels.of(x)
        k, stride, _ = ctx.shape
        with torch.autocast(x.device.type, enabled=False):
            step = ops.reduce(_pixels(dz), z, x, fold.kernel, k, stride)
            grads, S, t = ops.unfold(branches, fold, step.dkernel, step.dbias, ctx.count)
            dx = ops.adjoint(step, x, fold.kernel, S, t, k, stride) if ctx.needs_input_grad[0] else None
        return None if dx is None else _images(dx), None, None, *grads


class _Ghost(torch.autograd.Function):
    """A 1x1 sum, and a depthwise 3x3 sum of its output, both written into one map.

    [N, C, H, W] -> [N, 2 O, H, W]. Only input and output are kept for backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, relu: bool, running: tuple[Running, Running], *parameters: Tensor | None
    ) -> Tensor:
        x, primary, cheap, ops = _pixels(x), Branches(*parameters[:8]), Branches(*parameters[8:]), kernels.of(x)
        half = primary.weight.shape[1]
        ctx.relu, ctx.count = relu, _count(x, 1)
        y = x.new_empty(*x.shape[:3], 2 * half)
        dense = ops.fold(primary, *_moments(x, DENSE, 1), running[0], ctx.count)
        z = ops.convolve(x, dense.kernel, dense.bias, DENSE, 1, relu, y[..., :half])
        depthwise = ops.fold(cheap, *_moments(z, CHEAP, 1), running[1], ctx.count)
        ops.convolve(z, depthwise.kernel, depthwise.bias, CHEAP, 1, relu, y[..., half:])
        ctx.save_for_backward(x, y, *parameters, *dense, *depthwise)
        return _images(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, y, *rest = ctx.saved_tensors
        primary, cheap = Branches(*rest[:8]), Branches(*rest[8:16])
        dense, depthwise = Fold(*rest[16 : 16 + len(Fold._fields)]), Fold(*rest[16 + len(Fold._fields) :])
        half, ops, dy = y.shape[3] // 2, kernels.of(x), _pixels(dy)
        z, z_cheap = ops.whole(y[..., :half]), y[..., half:]
        with torch.autocast(x.device.type, enabled=False):
            step = ops.reduce(dy[..., half:], z_cheap if ctx.relu else None, z, depthwise.kernel, CHEAP, 1)
            grads_cheap, S, t = ops.unfold(cheap, depthwise, step.dkernel, step.dbias, ctx.count)
            dz = ops.adjoint(step, z, depthwise.kernel, S, t, CHEAP, 1, dy[..., :half], ctx.relu)
            step = ops.reduce(dz, None, x, dense.kernel, DENSE, 1)
            grads_primary, S, t = ops.unfold(primary, dense, step.dkernel, step.dbias, ctx.count)
            dx = ops.adjoint(step, x, dense.kernel, S, t, DENSE, 1) if ctx.needs_input_grad[0] else None
        return None if dx is None else _images(dx), None, None, *grads_primary, *grads_cheap


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution [N, C, H, W] -> [N, C, H', W'] with zeros around and no bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x, kernel = _pixels(x), weight.flatten(1)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        no_bias = kernel.new_zeros(len(kernel))
        return _images(kernels.of(x).convolve(x, kernel, no_bias, tuple(weight.shape[2:]), stride, False))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        kernel, ops, window = weight.flatten(1), kernels.of(x), tuple(weight.shape[2:])
        step = ops.reduce(_pixels(dz), None, x, kernel, window, ctx.stride)
        dx = ops.adjoint(step, x, kernel, None, None, window, ctx.stride) if ctx.needs_input_grad[0] else None
        return None if dx is None else _images(dx), step.dkernel.view_as(weight), None


class _Normalise(torch.autograd.Function):
    """Batch norm in training and, perhaps, ReLU: [N, C, H, W] -> the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float, relu: bool, running: Running) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous()
        ops, ctx.eps = kernels.of(x), eps
        y, mean, var = ops.normalise(x, gamma, beta, eps, relu)
        ops.track(mean, var, _count(x, 1), running)
        ctx.save_for_backward(x, y if relu else None, gamma, mean, var)
        return _images(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, gamma, mean, var = ctx.saved_tensors
        dy = dy.permute(0, 2, 3, 1).contiguous()
        dx, dgamma, dbeta = kernels.of(x).normalise_backward(dy, y, x, gamma, ctx.eps, mean, var)
        return _images(dx), dgamma, dbeta, None, None, None


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        x, gate = _pixels(x), gate.permute(0, 2, 3, 1).contiguous()
        ctx.save_for_backward(x, gate)
        return _images(kernels.of(x).multiply(x, gate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        dx, dgate = kernels.of(x).multiply_backward(_pixels(dy), x, gate)
        return _images(dx), _images(dgate)


def _applied(function: type[torch.autograd.Function], x: Tensor, *arguments: Any) -> Tensor:
    """The result for `x`, under autocast for `x` in its precision."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return function.apply(x, *arguments)


def convolve(x: Tensor, branches: Branches, shape: Shape, running: Running) -> Tensor:
    """The sum of branches of `x` [N, C, H, W] in training, in channels_last.

    `running` follows mean and variance of the branches' outputs, with the unbiased variance as batch norm has it. Under
    autocast the output has its precision; moments stay float32. ValueError if there is one value per channel.
    """
    return _applied(_Sum, x, shape, running, *branches)


def ghost(x: Tensor, primary: Branches, cheap: Branches, relu: bool, running: tuple[Running, Running]) -> Tensor:
    """`convolve` with `primary` (1x1), then of its output with `cheap` (depthwise 3x3).

    Returns both outputs side by side [N, 2 O, H, W] without a copy.
    """
    return _applied(_Ghost, x, relu, running, *primary, *cheap)


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The convolution of `x` [N, C, H, W] with `weight` [C, 1, kh, kw], zeros around, in channels_last."""
    return _Depthwise.apply(x, weight, stride)


def normalise(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, relu: bool, running: Running) -> Tensor:
    """Batch norm of `x` [N, C, H, W] in training, then ReLU if `relu`, by the kernels of a CPU."""
    return _Normalise.apply(x, gamma, beta, eps, relu, running)


def multiply(x: Tensor, gate: Tensor) -> Tensor:
    """`x` [N, C, H, W] times `gate` [N, C, h, w], enlarged to the nearest pixel, in channels_last."""
    return _Multiply.apply(x, gate.to(x.dtype))
