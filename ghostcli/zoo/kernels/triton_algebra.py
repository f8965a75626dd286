"""Triton kernels for the algebra of a folded sum on a GPU: one launch to fold, one or two for the gradients.

Invariant: it agrees with `algebra` on every operation. In plain PyTorch the same algebra is some 75 launches a sum, and
each of them computes very little. All values are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import algebra
from ghostcli.zoo.kernels.algebra import EPS, Branches, Fold

__all__ = ["fold", "track", "unfold"]

TILE = 32  # rows and columns of S that a program computes, and branches that it reads at a time
SIZES = ["OUT", "T"]  # a kernel is not compiled anew for each of these
WIDEST = 1024  # inputs of a dense sum that a program holds; wider ones use plain PyTorch


@triton.jit
def _norm(gain, rstd, mean, var, at, gamma, branch_mean, branch_var, eps):
    """Stores the norm of a branch; returns its gain."""
    branch_var = tl.maximum(branch_var, 0.0)
    inverse = 1.0 / tl.sqrt(branch_var + eps)
    tl.store(mean + at, branch_mean)
    tl.store(var + at, branch_var)
    tl.store(rstd + at, inverse)
    tl.store(gain + at, gamma * inverse)
    return gamma * inverse


@triton.jit
def _changes(dgain_row, dbias, gain, rstd, mean, at):
    """dgain, dmean and dvar of a branch, from the product of its row with the kernel's gradient."""
    a, r = tl.load(gain + at), tl.load(rstd + at)
    dgain = dgain_row - dbias * tl.load(mean + at)
    return dgain * r, -dbias * a, -0.5 * dgain * a * r * r, a


@triton.jit(do_not_specialize=SIZES)
def _dense_fold(
    weight, gamma, beta, identity_gamma, identity_beta, patch_mean, cov, kernel, bias, rows_cov, gain, rstd, mean, var,
    eps, OUT, T, B: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Output channel `program_id(0)`: all its branches."""
    o = tl.program_id(0)
    j = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + j, mask=j < T, other=0.0)
    row, shift = tl.zeros((WIDTH,), tl.float32), 0.0
    for b in tl.static_range(B):
        at = b * OUT + o
        w = tl.load(weight + at * T + j, mask=j < T, other=0.0)
        product = tl.zeros((WIDTH,), tl.float32)
        for first in range(0, T, ROWS):
            i = first + tl.arange(0, ROWS)
            inside = (i < T)[:, None] & (j < T)[None, :]
            R = tl.load(cov + i[:, None] * T + j[None, :], mask=inside, other=0.0)
            of_rows = tl.load(weight + at * T + i, mask=i < T, other=0.0)
            product += tl.sum(R * of_rows[:, None], 0)
        tl.store(rows_cov + at * T + j, product, mask=j < T)
        branch_mean = tl.sum(w * m, 0)
        a = _norm(gain, rstd, mean, var, at, tl.load(gamma + at), branch_mean, tl.sum(product * w, 0), eps)
        row += a * w
        shift += tl.load(beta + at) - a * branch_mean
    if IDENTITY:
        at = B * OUT + o
        own = tl.load(patch_mean + o)
        a = _norm(gain, rstd, mean, var, at, tl.load(identity_gamma + o), own, tl.load(cov + o * T + o), eps)
        row += tl.where(j == o, a, 0.0)
        shift += tl.load(identity_beta + o) - a * own
    tl.store(kernel + o * T + j, row, mask=j < T)
    tl.store(bias + o, shift)


@triton.jit(do_not_specialize=SIZES)
def _dense_branches(
    weight, patch_mean, rows_cov, gain, rstd, mean, dkernel, dbias, dweight, dgamma, dbeta, didentity, didentity_beta,
    curve, slope, patches, OUT, T, B: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Output channel `program_id(0)`: its branches' gradients; `curve` and `slope` [B', OUT] for S and t."""
    o = tl.program_id(0)
    j = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + j, mask=j < T, other=0.0)
    dk = tl.load(dkernel + o * T + j, mask=j < T, other=0.0)
    db = tl.load(dbias + o)
    for b in tl.static_range(B):
        at = b * OUT + o
        w = tl.load(weight + at * T + j, mask=j < T, other=0.0)
        dg, dmean, dvar, a = _changes(tl.sum(dk * w, 0), db, gain, rstd, mean, at)
        wR = tl.load(rows_cov + at * T + j, mask=j < T, other=0.0)
        tl.store(dweight + at * T + j, a * dk + dmean * m + 2 * dvar * wR, mask=j < T)
        tl.store(dgamma + at, dg)
        tl.store(dbeta + at, db)
        bend = 2 * dvar / patches
        tl.store(curve + at, bend)
        tl.store(slope + at, dmean / patches - bend * tl.load(mean + at))
    if IDENTITY:
        at = B * OUT + o
        dg, dmean, dvar, _ = _changes(tl.load(dkernel + o * T + o), db, gain, rstd, mean, at)
        tl.store(didentity + o, dg)
        tl.store(didentity_beta + o, db)
        bend = 2 * dvar / patches
        tl.store(curve + at, bend)
        tl.store(slope + at, dmean / patches - bend * tl.load(mean + at))


@triton.jit(do_not_specialize=SIZES)
def _dense_patches(
    weight, curve, slope, S, t, OUT, T, B: tl.constexpr, IDENTITY: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """A tile of S = sum of curve w w'; the programs of the first column also sum t = slope w."""
    i = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    j = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    tile, line = tl.zeros((SIDE, SIDE), tl.float32), tl.zeros((SIDE,), tl.float32)
    for first in range(0, B * OUT, SIDE):
        b = first + tl.arange(0, SIDE)
        there = b < B * OUT
        bend = tl.load(curve + b, mask=there, other=0.0)
        left = tl.load(weight + b[:, None] * T + i[None, :], mask=there[:, None] & (i < T)[None, :], other=0.0)
        right = tl.load(weight + b[:, None] * T + j[None, :], mask=there[:, None] & (j < T)[None, :], other=0.0)
        tile += tl.dot(tl.trans(left * bend[:, None]), right, input_precision="ieee")
        line += tl.sum(left * tl.load(slope + b, mask=there, other=0.0)[:, None], 0)
    if IDENTITY:
        bend = tl.load(curve + B * OUT + i, mask=i < T, other=0.0)
        tile += tl.where(i[:, None] == j[None, :], bend[:, None], 0.0)
        line += tl.load(slope + B * OUT + i, mask=i < T, other=0.0)
    tl.store(S + i[:, None] * T + j[None, :], tile, mask=(i < T)[:, None] & (j < T)[None, :])
    if tl.program_id(1) == 0:
        tl.store(t + i, line, mask=i < T)


@triton.jit
def _row(weight, scale_weight, o, OUT, taps, b: tl.constexpr, T: tl.constexpr, B: tl.constexpr, SCALE: tl.constexpr):
    """The taps of branch `b` of channel `o`: its own, or only the middle one of a scale or identity branch."""
    if b < B:
        w = tl.load(weight + (b * OUT + o) * T + taps, mask=taps < T, other=0.0)
    elif SCALE and b == B:
        w = tl.where(taps == T // 2, tl.load(scale_weight + o), 0.0)
    else:
        w = tl.where(taps == T // 2, 1.0, 0.0)
    return w


@triton.jit(do_not_specialize=["OUT"])
def _depthwise_fold(
    weight, gamma, beta, scale_weight, scale_gamma, scale_beta, identity_gamma, identity_beta, patch_mean, cov, kernel,
    bias, rows_cov, gain, rstd, mean, var, eps, OUT,
    T: tl.constexpr, B: tl.constexpr, SCALE: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Channel `program_id(0)`: all its branches."""
    o = tl.program_id(0)
    j = tl.arange(0, WIDTH)
    i = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + o * T + j, mask=j < T, other=0.0)
    inside = (i < T)[:, None] & (j < T)[None, :]
    R = tl.load(cov + (o * T + i[:, None]) * T + j[None, :], mask=inside, other=0.0)
    row, shift = tl.zeros((WIDTH,), tl.float32), 0.0
    for b in tl.static_range(B + SCALE + IDENTITY):
        at = b * OUT + o
        w = _row(weight, scale_weight, o, OUT, j, b, T, B, SCALE)
        of_rows = _row(weight, scale_weight, o, OUT, i, b, T, B, SCALE)
        product = tl.sum(R * of_rows[:, None], 0)
        tl.store(rows_cov + at * T + j, product, mask=j < T)
        if b < B:
            g, s = tl.load(gamma + at), tl.load(beta + at)
        elif SCALE and b == B:
            g, s = tl.load(scale_gamma + o), tl.load(scale_beta + o)
        else:
            g, s = tl.load(identity_gamma + o), tl.load(identity_beta + o)
        branch_mean = tl.sum(w * m, 0)
        a = _norm(gain, rstd, mean, var, at, g, branch_mean, tl.sum(product * w, 0), eps)
        row += a * w
        shift += s - a * branch_mean
    tl.store(kernel + o * T + j, row, mask=j < T)
    tl.store(bias + o, shift)


@triton.jit(do_not_specialize=["OUT", "of_channel", "of_tap"])
def _depthwise_unfold(
    weight, scale_weight, patch_mean, rows_cov, gain, rstd, mean, dbias, dweight, dgamma, dbeta, dscale_weight,
    dscale, dscale_beta, didentity, didentity_beta, S, t, dkernel, of_channel, of_tap, patches, OUT,
    T: tl.constexpr, B: tl.constexpr, SCALE: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Channel `program_id(0)`: its branches' gradients, S [T, T] and t [T]. `of_*` are the strides of `dkernel`."""
    o = tl.program_id(0)
    j = tl.arange(0, WIDTH)
    i = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + o * T + j, mask=j < T, other=0.0)
    dk = tl.load(dkernel + o * of_channel + j * of_tap, mask=j < T, other=0.0)
    db = tl.load(dbias + o)
    tile, line = tl.zeros((WIDTH, WIDTH), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for b in tl.static_range(B + SCALE + IDENTITY):
        at = b * OUT + o
        w = _row(weight, scale_weight, o, OUT, j, b, T, B, SCALE)
        of_rows = _row(weight, scale_weight, o, OUT, i, b, T, B, SCALE)
        dg, dmean, dvar, a = _changes(tl.sum(dk * w, 0), db, gain, rstd, mean, at)
        wR = tl.load(rows_cov + at * T + j, mask=j < T, other=0.0)
        dw = a * dk + dmean * m + 2 * dvar * wR
        if b < B:
            tl.store(dweight + at * T + j, dw, mask=j < T)
            tl.store(dgamma + at, dg)
            tl.store(dbeta + at, db)
        elif SCALE and b == B:
            tl.store(dscale_weight + o, tl.sum(tl.where(j == T // 2, dw, 0.0), 0))
            tl.store(dscale + o, dg)
            tl.store(dscale_beta + o, db)
        else:
            tl.store(didentity + o, dg)
            tl.store(didentity_beta + o, db)
        bend = 2 * dvar / patches
        tile += bend * of_rows[:, None] * w[None, :]
        line += (dmean / patches - bend * tl.load(mean + at)) * w
    tl.store(S + (o * T + i[:, None]) * T + j[None, :], tile, mask=(i < T)[:, None] & (j < T)[None, :])
    tl.store(t + o * T + j, line, mask=j < T)


@triton.jit
def _follow(batch_mean, batch_var, mean, var, at, first, count, momentum, unbias):
    """The entries of one norm: `count` of them, from `first` of the batch's."""
    i = at - first
    mine = (i >= 0) & (i < count)
    for_mean, for_var = tl.load(batch_mean + at, mask=mine), tl.load(batch_var + at, mask=mine)
    before = tl.load(mean + i, mask=mine)
    tl.store(mean + i, before + momentum * (for_mean - before), mask=mine)
    before = tl.load(var + i, mask=mine)
    tl.store(var + i, before + momentum * (unbias * for_var - before), mask=mine)


@triton.jit(do_not_specialize=["first", "second", "third"])
def _track(
    batch_mean, batch_var, mean, var, first, mean2, var2, second, mean3, var3, third, momentum, unbias,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Up to three norms, of `first`, `second` and `third` entries, one after the other in the batch's."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _follow(batch_mean, batch_var, mean, var, at, 0, first, momentum, unbias)
    _follow(batch_mean, batch_var, mean2, var2, at, first, second, momentum, unbias)
    _follow(batch_mean, batch_var, mean3, var3, at, first + second, third, momentum, unbias)


def track(mean: Tensor, var: Tensor, count: int, momentum: float, running: list[tuple[Tensor, Tensor]]) -> None:
    if len(running) > 3 or any(kept.dtype != torch.float32 for pair in running for kept in pair):
        return algebra.track(mean, var, count, momentum, running)
    pairs = [(*pair, pair[0].numel()) for pair in running]
    pairs += [(*running[0], 0)] * (3 - len(running))
    given = [value for pair in pairs for value in pair]
    grid = (triton.cdiv(mean.numel(), 256),)
    _track[grid](mean, var, *given, momentum, count / (count - 1), BLOCK=256)


def _shape(branches: Branches) -> tuple[int, int, int, bool, bool, int]:
    """B, OUT, T, whether there are a scale and an identity branch, and T as a power of two (at least 16)."""
    b, o, t = branches.weight.flatten(2).shape
    scale, identity = branches.scale_gamma is not None, branches.identity_gamma is not None
    return b, o, t, scale, identity, max(16, triton.next_power_of_2(t))


def _ours(branches: Branches, moments: Tensor) -> bool:
    there = [p for p in branches if p is not None]
    exact = all(p.dtype == torch.float32 and p.is_contiguous() for p in there)
    return exact and moments.dtype == torch.float32 and _shape(branches)[2] <= WIDEST


def fold(branches: Branches, mean: Tensor, cov: Tensor) -> Fold:
    if not _ours(branches, mean):
        return algebra.fold(branches, mean, cov)
    p, (b, o, t, scale, identity, width) = branches, _shape(branches)
    every, new, dense = b + scale + identity, mean.new_empty, mean.dim() == 1
    kernel, bias, rows_cov = new(o, t), new(o), new(b if dense else every, o, t)
    norms = gain, rstd, means, variances = [new(every, o) for _ in range(4)]
    out = (mean.contiguous(), cov.contiguous(), kernel, bias, rows_cov, *norms, EPS, o)
    none = p.gamma  # for a branch that is not there; it is not read
    if dense:
        own = (none, none) if p.identity_gamma is None else (p.identity_gamma, p.identity_beta)
        given = (p.weight, p.gamma, p.beta, *own)
        _dense_fold[(o,)](*given, *out, t, B=b, IDENTITY=identity, WIDTH=width, ROWS=max(1, 4096 // width))
    else:
        given = (none if tensor is None else tensor for tensor in p)
        _depthwise_fold[(o,)](
            *given, *out, T=t, B=b, SCALE=scale, IDENTITY=identity, WIDTH=width, num_warps=1
        )  # fmt: skip
    return Fold(kernel, bias, None, rows_cov, gain, rstd, means, variances, mean)


def unfold(
    branches: Branches, fold: Fold, dkernel: Tensor, dbias: Tensor, count: int
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    if fold.rows is not None:
        return algebra.unfold(branches, fold, dkernel, dbias, count)
    p, (b, o, t, scale, identity, width), new = branches, _shape(branches), dkernel.new_empty
    grads = [None if parameter is None else new(parameter.shape) for parameter in p]
    some = [dbias if grad is None else grad for grad in grads]  # what is not there is not written
    dweight, dgamma, dbeta, dscale_weight, dscale, dscale_beta, didentity, didentity_beta = some
    known = (fold.patch_mean.contiguous(), fold.rows_cov, fold.gain, fold.rstd, fold.mean)
    dbias, written = dbias.contiguous(), (dweight, dgamma, dbeta)
    if fold.patch_mean.dim() == 1:
        curve, slope, S, out = new(b + identity, o), new(b + identity, o), new(t, t), new(t)
        sizes = {"B": b, "IDENTITY": identity}
        given = (p.weight, *known, dkernel.contiguous(), dbias, *written, didentity, didentity_beta, curve, slope)
        _dense_branches[(o,)](*given, float(count), o, t, **sizes, WIDTH=width)
        tiles = triton.cdiv(t, TILE)
        _dense_patches[(tiles, tiles)](p.weight, curve, slope, S, out, o, t, **sizes, SIDE=TILE)
    else:
        S, out = new(o, t, t), new(o, t)
        scales = p.gamma if p.scale_weight is None else p.scale_weight
        _depthwise_unfold[(o,)](
            p.weight, scales, *known, dbias, *written, dscale_weight, dscale, dscale_beta, didentity, didentity_beta,
            S, out, dkernel, *dkernel.stride(), float(count), o,
            T=t, B=b, SCALE=scale, IDENTITY=identity, WIDTH=width, num_warps=1,
        )  # fmt: skip
    return grads, S, out
