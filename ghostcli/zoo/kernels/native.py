"""The operations of folded training by the C++ kernels, for float32 on a CPU.

Invariant: they agree with plain PyTorch, up to rounding.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ghostcli.zoo.kernels import algebra, pytorch
from ghostcli.zoo.kernels.algebra import Branches, Running
from ghostcli.zoo.kernels.library import NARROW, WIDE, Argument, address, available, call, reason
from ghostcli.zoo.kernels.pytorch import DENSE, Step, Window, pitch

__all__ = ["available", "reason"]

NAME = "c++"
WINDOWS = ((3, 3), (5, 5), (1, 5), (5, 1))  # (height, width) of the depthwise kernels
BETAS = 2, 5, 7  # places in `Branches`, whose gradient is that of the bias

opened, pool = pytorch.opened, pytorch.pool  # PyTorch's own are as fast


def _wide(*channels: int) -> bool:
    """Whether wide vectors pay where work grows with padding: they add at most a quarter to any count of channels.

    Products of 1x1 convolutions gain even where they add half: only a few channels keep them narrow.
    """
    return all(-(-c // WIDE) * WIDE <= 1.25 * (-(-c // NARROW) * NARROW) for c in channels)


def _map(x: Tensor | None) -> tuple[Tensor | None, int]:
    return x, 0 if x is None else pitch(x)


def _rows(x: Tensor) -> tuple[int, int]:
    n, h, w, c = x.shape
    return n * h * w, c


@functools.lru_cache(maxsize=256)
def _nearest(side: int, coarse: int) -> Tensor:
    """[side] int32: the pixel of `coarse` that covers each pixel, by PyTorch's rule for nearest."""
    where = F.interpolate(torch.arange(coarse, dtype=torch.float32)[None, None], side, mode="nearest")
    return where.flatten().to(torch.int32)


def _covering(x: Tensor, gate: Tensor | None) -> tuple[Argument, ...]:
    if gate is None:
        return None, 0, 0, None, None
    h, w = gate.shape[1:3]
    return gate, h, w, _nearest(x.shape[1], h), _nearest(x.shape[2], w)


def _gradients(branches: Branches, dbias: Tensor) -> list[Tensor | None]:
    """Memory for the gradient of each parameter; those of the betas are that of the bias."""
    return [
        None if p is None else dbias.expand(p.shape) if place in BETAS else dbias.new_empty(p.shape)
        for place, p in enumerate(branches)
    ]


def _norms(running: Running) -> list[Argument]:
    """Channels, mean and variance of three norms, as `track` takes them: of no channels where there are fewer."""
    norms = [(mean.numel(), mean, var) for mean, var in running.norms]
    return [*itertools.chain(*norms), *(0, None, None) * (3 - len(norms))]


def track(mean: Tensor, var: Tensor, count: int, running: Running) -> None:
    if any(statistic.dtype != mean.dtype for pair in running.norms for statistic in pair):
        return algebra.track(mean, var, count, running)
    call("track", mean, var, float(running.momentum), count / (count - 1), *_norms(running))
    if running.batches is not None:
        running.batches.add_(1)


def whole(x: Tensor) -> Tensor:
    return x  # a slice needs no copy


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: Window, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    n, h, w, _ = x.shape
    o = len(bias)
    if out is None:
        out = x.new_empty(n, -(-h // stride), -(-w // stride), o)
    kernel, bias = kernel.contiguous(), bias.contiguous()
    if k == DENSE:
        call("pointwise_forward", *_map(x), *_rows(x), kernel, bias, o, relu, *_map(out), wide=o > NARROW)
    else:
        call("depthwise_forward", *_map(x), *x.shape, *k, stride, kernel, bias, relu, *_map(out), wide=_wide(o))
    return out


# ---- the backward pass of a depthwise convolution alone ----------------------------------------------------------


def reduce(
    dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, bias: Tensor | None, k: Window, stride: int
) -> Step:
    c = x.shape[3]
    dkernel, dbias = x.new_empty(kernel.shape), x.new_empty(c)
    maps = *_map(dz), *_map(z), *_map(x)
    call("depthwise_reduce", *maps, *x.shape, *k, stride, dkernel, dbias, wide=_wide(c))
    return Step(dkernel, dbias, dz, z)


def adjoint(step: Step, x: Tensor, kernel: Tensor, S: None, t: None, k: Window, stride: int) -> Tensor:
    dx, no_statistics, nothing_added, mask = x.new_empty(x.shape), (None, None), _map(None), False
    arguments = *_map(step.dz), *_map(step.z), *_map(x), *x.shape, *k, stride, kernel.contiguous()
    call("depthwise_adjoint", *arguments, *no_statistics, *nothing_added, mask, *_map(dx), wide=_wide(x.shape[3]))
    return dx


# ---- a sum of branches, and the rest ----------------------------------------------------------------------------


def reads(branches: Branches, running: Running) -> bool:
    """Whether `sum_forward` can read these parameters and statistics as they are."""
    tensors = (*branches, *itertools.chain(*running.norms))
    return all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors)


def sum_forward(
    x: Tensor,
    branches: Branches,
    running: Running,
    k: Window,
    stride: int,
    relu: bool,
    out: Tensor | None,
    add: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `sums.forward`: the output, and what `sum_backward` needs."""
    p, (n, h, w, c), (b, o) = branches, x.shape, branches.gamma.shape
    if out is None:
        out = x.new_empty(add.shape if add is not None else (n, -(-h // stride), -(-w // stride), o))
    norms, momentum = _norms(running), float(running.momentum)
    every = b + (p.scale_gamma is not None) + (p.identity_gamma is not None)
    # the size of `state`: as `Fold` in algebra.h lays it out
    if k == DENSE:
        state = x.new_empty(o * (c + 1 + b * c + 4 * every) + c)
        steps = address("pointwise_moments", _wide(c)), address("pointwise_forward", o > NARROW)
        arguments = *p[:3], *p[6:], b, o, momentum, *norms[:6]
        call("pointwise_sum", *steps, *_map(x), *_rows(x), *arguments, relu, *_map(out), state)
    else:
        t = math.prod(k)
        state = x.new_empty(o * (t + 1 + every * t + 4 * every + t))
        steps = address("depthwise_forward", _wide(o)), address("depthwise_beside", _wide(o))
        arguments = *p, b, momentum, *norms
        call("depthwise_sum", *steps, *_map(x), *x.shape, *k, stride, *arguments, relu, *_map(add), *_map(out), state)
    if running.batches is not None:
        running.batches.add_(1)
    return out, state


def sum_backward(
    dz: Tensor,
    z: Tensor | None,
    x: Tensor,
    branches: Branches,
    state: Tensor,
    k: Window,
    stride: int,
    needed: bool,
    add: Tensor | None,
    mask: bool,
    pooled: Tensor | None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """See `sums.backward`."""
    p, c, (b, o) = branches, x.shape[3], branches.gamma.shape
    dx, dbias = x.new_empty(x.shape) if needed else None, x.new_empty(o)
    grads = _gradients(p, dbias)
    dweight, dgamma, _, dscale_weight, dscale, _, didentity, _ = grads
    maps, after = (*_map(dz), *_map(z), *_map(x)), (*_map(add), mask, *_map(dx))
    if k == DENSE:
        steps = address("pointwise_reduce", _wide(o, c)), address("pointwise_adjoint", c > NARROW)
        into = dweight, dgamma, didentity, dbias
        pool = (None, 1, 1) if pooled is None else (pooled.contiguous(), *pytorch.window(x))
        sizes = (*x.shape[1:3], *_rows(x))
        call("pointwise_sum_backward", *steps, *maps, *sizes, p.weight, b, o, state, *into, *pool, *after)
    else:
        steps = address("depthwise_reduce", _wide(o)), address("depthwise_adjoint", _wide(o))
        into = dweight, dgamma, dscale_weight, dscale, didentity, dbias
        known = p.weight, p.scale_weight, b, state
        call("depthwise_sum_backward", *steps, *maps, *x.shape, *k, stride, *known, *into, *after)
    return dx, grads


def total(x: Tensor, gate: Tensor | None, by: Tensor | None = None) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[3])
    call("weigh_total", *_map(x), *x.shape, *_covering(x, gate), *_map(by), out)
    return out


def weigh(x: Tensor, gate: Tensor | None, scale: Tensor | None) -> Tensor:
    out = x.new_empty(x.shape)
    scale = None if scale is None else scale.contiguous()
    call("weigh_forward", *_map(x), *x.shape, *_covering(x, gate), scale, out)
    return out


def weigh_backward(
    dout: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    dx, dgate = x.new_empty(x.shape), None if gate is None else gate.new_empty(gate.shape)
    each = (None if rows is None else rows.contiguous() for rows in (scale, dtotal))
    call("weigh_backward", *_map(dout), *_map(x), *x.shape, *_covering(x, gate), *each, dx, dgate)
    return dx, dgate


def normalise(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of gapless pixels in training, and ReLU if `relu`: the output, and mean and biased variance [C]."""
    out, mean, var = x.new_empty(x.shape), x.new_empty(len(gamma)), x.new_empty(len(gamma))
    call("norm_forward", x, *_rows(x), gamma, beta, eps, relu, mean, var, out, wide=True)
    return out, mean, var


def normalise_backward(
    dout: Tensor, out: Tensor | None, x: Tensor, gamma: Tensor, eps: float, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dgamma, dbeta = x.new_empty(x.shape), x.new_empty(len(gamma)), x.new_empty(len(gamma))
    call("norm_backward", dout, out, x, *_rows(x), gamma, eps, mean, var, dx, dgamma, dbeta, wide=True)
    return dx, dgamma, dbeta
