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

EPS = 1e-5


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


class Branches(NamedTuple):
    """Stacked parameters of one sum: [B, O, I/groups, k, k], [B, O], [B, O]; the rest [O] or None."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    scale_weight: Tensor | None = None
    scale_gamma: Tensor | None = None
    scale_beta: Tensor | None = None
    identity_gamma: Tensor | None = None
    identity_beta: Tensor | None = None


class Shape(NamedTuple):
    """The settings of a sum of branches, without its parameters."""

    kernel: int = 1
    stride: int = 1
    relu: bool = False


class Fold(NamedTuple):
    """One convolution, kernel [O, T] and bias [O], with the values for its backward pass. B' counts all branches."""

    kernel: Tensor
    bias: Tensor
    rows: Tensor  # [B', O, T]
    rows_cov: Tensor  # rows R
    gain: Tensor  # [B', O]
    rstd: Tensor
    mean: Tensor
    var: Tensor
    patch_mean: Tensor  # [T], or [O, T] for a depthwise


def _stack(branches: Branches, depthwise: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [B', O, T], gamma and beta [B', O] of all branches: the given ones, scale, identity."""
    p = branches
    rows = p.weight.flatten(2).to(dtype)
    gamma, beta = [p.gamma], [p.beta]
    if p.scale_gamma is not None:
        gamma.append(p.scale_gamma[None])
        beta.append(p.scale_beta[None])
    if p.identity_gamma is not None:
        gamma.append(p.identity_gamma[None])
        beta.append(p.identity_beta[None])
    known = len(gamma) - 1
    if known and depthwise:
        extra = rows.new_zeros(known, *rows.shape[1:])
        middle = extra[:, :, rows.shape[2] // 2]
        if p.identity_gamma is not None:
            middle[-1].fill_(1)
        if p.scale_weight is not None:
            middle[0] = p.scale_weight
        rows = torch.cat([rows, extra])
    elif known:
        rows = torch.cat([rows, torch.eye(rows.shape[1], dtype=dtype, device=rows.device)[None]])
    if not known:
        return rows, p.gamma.to(dtype), p.beta.to(dtype)
    return rows, torch.cat(gamma).to(dtype), torch.cat(beta).to(dtype)


def _unstack(branches: Branches, drows: Tensor, dgamma: Tensor, dbias: Tensor) -> list[Tensor | None]:
    """Gradients in the order of `Branches`. The beta of each branch has the gradient of the bias."""
    p, b = branches, branches.gamma.shape[0]
    grads = [drows[:b].reshape(p.weight.shape), dgamma[:b], dbias.expand(b, -1), None, None, None, None, None]
    if p.scale_gamma is not None:
        grads[3:6] = drows[b, :, drows.shape[2] // 2], dgamma[b], dbias
    if p.identity_gamma is not None:
        grads[6:8] = dgamma[-1], dbias
    return [None if g is None else g.to(t.dtype) for g, t in zip(grads, p, strict=True)]


def _fold(branches: Branches, mean: Tensor, cov: Tensor) -> Fold:
    """Fold the branches, given `mean` [T] and `cov` [T, T] of the patches; [O, T] and [O, T, T] for a depthwise."""
    depthwise = mean.dim() == 2
    rows, gamma, beta = _stack(branches, depthwise, mean.dtype)
    if depthwise:
        rows_cov = (rows.transpose(0, 1) @ cov).transpose(0, 1)
        branch_mean = (rows * mean).sum(-1)
    else:
        rows_cov, branch_mean = rows @ cov, rows @ mean
    var = (rows_cov * rows).sum(-1).clamp_(min=0)
    rstd = (var + EPS).rsqrt_()
    gain = gamma * rstd
    kernel = (gain[..., None] * rows).sum(0)
    bias = (beta - gain * branch_mean).sum(0)
    return Fold(kernel, bias, rows, rows_cov, gain, rstd, branch_mean, var, mean)


def _unfold(fold: Fold, dkernel: Tensor, dbias: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of rows and gamma, and S and t of the patches' gradient, from the gradients of kernel and bias."""
    dgain = (dkernel * fold.rows).sum(-1).addcmul_(dbias, fold.mean, value=-1)  # [B', O]
    dmean = -dbias * fold.gain
    dvar = -0.5 * dgain * fold.gain * fold.rstd.square()
    dgamma = dgain * fold.rstd
    drows = fold.gain[..., None] * dkernel
    drows.addcmul_(dmean[..., None], fold.patch_mean).addcmul_(dvar[..., None], fold.rows_cov, value=2)
    weighted = fold.rows * (dvar[..., None] * (2 / count))
    if fold.patch_mean.dim() == 2:
        S = weighted.permute(1, 2, 0) @ fold.rows.transpose(0, 1)
        t = (fold.rows * dmean[..., None]).sum(0).div_(count)
        t = t - (S @ fold.patch_mean[..., None])[..., 0]
    else:
        S = weighted.flatten(0, 1).t() @ fold.rows.flatten(0, 1)
        t = (dmean.flatten() @ fold.rows.flatten(0, 1)).div_(count) - S @ fold.patch_mean
    return drows, dgamma, S, t


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


def _moments(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the patches.

    Taps that only cover padding are set to exactly zero. Otherwise rounding errors (of sums over the image minus its
    borders) would remain, and large weights would turn them into a variance.
    """
    mean, cov = kernels.of(x).moments(x, kernel, stride)
    (top, bottom), (left, right) = (_seen(side, kernel, stride) for side in x.shape[1:3])
    if (top, bottom, left, right) == (0, kernel, 0, kernel):
        return mean, cov
    for moment, taps in ((mean, 1), (cov, 1), (cov, 2)):
        square = moment.unflatten(taps, (kernel, kernel))  # a view
        for axis, low, high in ((taps, top, bottom), (taps + 1, left, right)):
            square.narrow(axis, 0, low).zero_()
            square.narrow(axis, high, kernel - high).zero_()
    return mean, cov


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] in any memory format as [N, H, W, C] with regular pixel strides. Copied only if necessary."""
    x = x.permute(0, 2, 3, 1)
    return x if kernels.pitch(x) else x.contiguous()


def _images(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class _Sum(torch.autograd.Function):
    """One sum of branches: [N, C, H, W] -> output, means [B', O], variances [B', O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Shape, *parameters: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x, branches, ops = _pixels(x), Branches(*parameters), kernels.of(x)
        k, stride, relu = shape
        ctx.shape, ctx.count = shape, _count(x, stride)
        fold = _fold(branches, *_moments(x, k, stride))
        z = ops.convolve(x, fold.kernel, fold.bias, k, stride, relu)
        ctx.save_for_backward(x, z if relu else None, *parameters, *fold)
        ctx.mark_non_differentiable(fold.mean, fold.var)
        return _images(z), fold.mean, fold.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Any, ...]:
        x, z, *rest = ctx.saved_tensors
        branches, fold, ops = Branches(*rest[:8]), Fold(*rest[8:]), kernels.of(x)
        k, stride, _ = ctx.shape
        with torch.autocast(x.device.type, enabled=False):
            step = ops.reduce(_pixels(dz), z, x, fold.kernel, k, stride)
            drows, dgamma, S, t = _unfold(fold, step.dkernel, step.dbias, ctx.count)
            dx = ops.adjoint(step, x, fold.kernel, S, t, k, stride) if ctx.needs_input_grad[0] else None
            grads = _unstack(branches, drows, dgamma, step.dbias)
        return None if dx is None else _images(dx), None, *grads


class _Ghost(torch.autograd.Function):
    """A 1x1 sum, and a depthwise 3x3 sum of its output, both written into one map.

    [N, C, H, W] -> [N, 2 O, H, W], and means and variances of both. Only input and output are kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: bool, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        x, primary, cheap, ops = _pixels(x), Branches(*parameters[:8]), Branches(*parameters[8:]), kernels.of(x)
        half = primary.weight.shape[1]
        ctx.relu, ctx.count = relu, _count(x, 1)
        y = x.new_empty(*x.shape[:3], 2 * half)
        dense = _fold(primary, *_moments(x, 1, 1))
        z = ops.convolve(x, dense.kernel, dense.bias, 1, 1, relu, y[..., :half])
        depthwise = _fold(cheap, *_moments(z, 3, 1))
        ops.convolve(z, depthwise.kernel, depthwise.bias, 3, 1, relu, y[..., half:])
        ctx.save_for_backward(x, y, *parameters, *dense, *depthwise)
        statistics = dense.mean, dense.var, depthwise.mean, depthwise.var
        ctx.mark_non_differentiable(*statistics)
        return _images(y), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        x, y, *rest = ctx.saved_tensors
        primary, cheap = Branches(*rest[:8]), Branches(*rest[8:16])
        dense, depthwise = Fold(*rest[16 : 16 + len(Fold._fields)]), Fold(*rest[16 + len(Fold._fields) :])
        half, ops, dy = y.shape[3] // 2, kernels.of(x), _pixels(dy)
        z, z_cheap = ops.whole(y[..., :half]), y[..., half:]
        with torch.autocast(x.device.type, enabled=False):
            step = ops.reduce(dy[..., half:], z_cheap if ctx.relu else None, z, depthwise.kernel, 3, 1)
            drows, dgamma, S, t = _unfold(depthwise, step.dkernel, step.dbias, ctx.count)
            grads_cheap = _unstack(cheap, drows, dgamma, step.dbias)
            dz = ops.adjoint(step, z, depthwise.kernel, S, t, 3, 1, dy[..., :half], ctx.relu)
            step = ops.reduce(dz, None, x, dense.kernel, 1, 1)
            drows, dgamma, S, t = _unfold(dense, step.dkernel, step.dbias, ctx.count)
            grads_primary = _unstack(primary, drows, dgamma, step.dbias)
            dx = ops.adjoint(step, x, dense.kernel, S, t, 1, 1) if ctx.needs_input_grad[0] else None
        return None if dx is None else _images(dx), None, *grads_primary, *grads_cheap


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


def convolve(x: Tensor, branches: Branches, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of branches of `x` [N, C, H, W] in training, in channels_last.

    Also returns means and (biased) variances of the branches' outputs [B', O], in the order of `Branches`. Under
    autocast the output has its precision; moments stay float32. ValueError if there is one value per channel.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _Sum.apply(x, shape, *branches)


def ghost(x: Tensor, primary: Branches, cheap: Branches, relu: bool) -> tuple[Tensor, ...]:
    """`convolve` with `primary` (1x1), then of its output with `cheap` (depthwise 3x3).

    Returns both outputs side by side [N, 2 O, H, W] without a copy, then mean and variance of each.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _Ghost.apply(x, relu, *primary, *cheap)


def multiply(x: Tensor, gate: Tensor) -> Tensor:
    """`x` [N, C, H, W] times `gate` [N, C, h, w], enlarged to the nearest pixel, in channels_last."""
    return _Multiply.apply(x, gate.to(x.dtype))
