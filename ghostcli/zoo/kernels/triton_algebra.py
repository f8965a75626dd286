"""Triton kernels for the algebra of a folded sum on a GPU: one launch to fold, one or two for the gradients.

Invariant: it agrees with `algebra` on every operation. In plain PyTorch the same algebra is some 75 launches a sum, and
each of them computes very little. All values are float32.

Over patches of mean m and covariance R a branch of row w has mean w.m and variance w R w'. So its batch norm is the
gain a = gamma / sqrt(w R w' + eps) and the shift beta - a w.m. Backward, from those of kernel and bias, dK and db:

    da = dK.w - db w.m       dgamma = da / deviation           dbeta = db
    dmean = -db a            dvar = -da a / (2 variance)       dw = a dK + dmean m + 2 dvar w R

Each of the M patches p gets S p + t: S = sum of bend w w' and t = sum of slope w, with bend = 2 dvar / M and
slope = dmean / M - bend w.m.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import algebra
from ghostcli.zoo.kernels.algebra import EPS, Branches, Fold, Running

__all__ = ["fold", "unfold"]

TILE = 32  # rows and columns of S that a program computes, and branches that it reads at a time
AREA = 4096  # values that a program reads at a time, where it adds rows
WIDEST = 1024  # inputs of a dense sum that a program holds; wider ones use plain PyTorch
#: A kernel is not compiled anew for each of these.
SIZES = ["OUT", "T", "parts", "of_part", "of_out", "of_tap", "bias_of_part", "bias_of_out"]


@triton.jit
def _norm(
    norms, every, at, gamma, beta, branch_mean, branch_var, running_mean, running_var, own, momentum, unbias, eps,
    TRACK: tl.constexpr,
):  # fmt: skip
    """Gain and shift of a branch; `norms` [4, every] gets gain, 1 / deviation, mean and variance.

    With `TRACK` the running statistics, at `own` as gamma is, follow.
    """
    branch_var = tl.maximum(branch_var, 0.0)
    inverse = 1.0 / tl.sqrt(branch_var + eps)
    gain = tl.load(gamma + own) * inverse
    tl.store(norms + at, gain)
    tl.store(norms + every + at, inverse)
    tl.store(norms + 2 * every + at, branch_mean)
    tl.store(norms + 3 * every + at, branch_var)
    if TRACK:
        before = tl.load(running_mean + own)
        tl.store(running_mean + own, before + momentum * (branch_mean - before))
        before = tl.load(running_var + own)
        tl.store(running_var + own, before + momentum * (unbias * branch_var - before))
    return gain, tl.load(beta + own) - gain * branch_mean


@triton.jit
def _norm_gradients(norms, every, at, from_row, db, dgamma, dbeta, own, patches):
    """Gain, dmean, dvar, bend and slope of a branch, given dK.w; stores the gradients of its batch norm at `own`."""
    gain, inverse = tl.load(norms + at), tl.load(norms + every + at)
    branch_mean = tl.load(norms + 2 * every + at)
    dgain = from_row - db * branch_mean
    tl.store(dgamma + own, dgain * inverse)
    tl.store(dbeta + own, db)
    dmean, dvar = -db * gain, -0.5 * dgain * gain * inverse * inverse
    bend = 2 * dvar / patches
    return gain, dmean, dvar, bend, dmean / patches - bend * branch_mean


@triton.jit
def _sum_of_parts(rows, of_part, at, there, parts, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum [WIDTH] of `parts` rows that lie `of_part` apart."""
    total = tl.zeros((PARTS, WIDTH), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & there[None, :]
        total += tl.load(rows + part[:, None] * of_part + at[None, :], mask=inside, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _added_one(values, of_part, parts, PARTS: tl.constexpr):
    """The sum of `parts` values that lie `of_part` apart."""
    total = tl.zeros((PARTS,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        total += tl.load(values + part * of_part, mask=part < parts, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=SIZES)
def _dense_fold(
    weight, gamma, beta, identity_gamma, identity_beta, patch_mean, cov, kernel, bias, rows_cov, norms,
    running_mean, running_var, identity_running_mean, identity_running_var, batches, momentum, unbias, eps, OUT, T,
    B: tl.constexpr, IDENTITY: tl.constexpr, TRACK: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Output channel `program_id(0)`: all its branches."""
    o, every = tl.program_id(0), (B + IDENTITY) * OUT
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
        a, moved = _norm(
            norms, every, at, gamma, beta, tl.sum(w * m, 0), tl.sum(product * w, 0), running_mean, running_var, at,
            momentum, unbias, eps, TRACK,
        )  # fmt: skip
        row += a * w
        shift += moved
    if IDENTITY:
        a, moved = _norm(
            norms, every, B * OUT + o, identity_gamma, identity_beta, tl.load(patch_mean + o), tl.load(cov + o * T + o),
            identity_running_mean, identity_running_var, o, momentum, unbias, eps, TRACK,
        )  # fmt: skip
        row += tl.where(j == o, a, 0.0)
        shift += moved
    tl.store(kernel + o * T + j, row, mask=j < T)
    tl.store(bias + o, shift)
    if COUNT and o == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit(do_not_specialize=SIZES)
def _dense_branches(
    weight, patch_mean, rows_cov, norms, dkernel, of_part, of_out, of_tap, dbias, bias_of_part, bias_of_out, parts,
    dweight, dgamma, dbeta, didentity, didentity_beta, curve, slope, patches, OUT, T,
    B: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Output channel `program_id(0)`: its branches' gradients; `curve` and `slope` [B', OUT] for S and t."""
    o, every = tl.program_id(0), (B + IDENTITY) * OUT
    j = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + j, mask=j < T, other=0.0)
    dk = _sum_of_parts(dkernel + o * of_out, of_part, j * of_tap, j < T, parts, PARTS, WIDTH)
    db = _added_one(dbias + o * bias_of_out, bias_of_part, parts, 128)
    for b in tl.static_range(B):
        at = b * OUT + o
        w = tl.load(weight + at * T + j, mask=j < T, other=0.0)
        a, dmean, dvar, bend, tilt = _norm_gradients(
            norms, every, at, tl.sum(dk * w, 0), db, dgamma, dbeta, at, patches
        )
        wR = tl.load(rows_cov + at * T + j, mask=j < T, other=0.0)
        tl.store(dweight + at * T + j, a * dk + dmean * m + 2 * dvar * wR, mask=j < T)
        tl.store(curve + at, bend)
        tl.store(slope + at, tilt)
    if IDENTITY:
        at, from_row = B * OUT + o, tl.sum(tl.where(j == o, dk, 0.0), 0)
        _, _, _, bend, tilt = _norm_gradients(norms, every, at, from_row, db, didentity, didentity_beta, o, patches)
        tl.store(curve + at, bend)
        tl.store(slope + at, tilt)


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
    bias, rows_cov, norms, running_mean, running_var, scale_running_mean, scale_running_var, identity_running_mean,
    identity_running_var, batches, momentum, unbias, eps, OUT, T: tl.constexpr, B: tl.constexpr, SCALE: tl.constexpr,
    IDENTITY: tl.constexpr, TRACK: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Channel `program_id(0)`: all its branches."""
    o, every = tl.program_id(0), (B + SCALE + IDENTITY) * OUT
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
            g, s, follows, varies, own = gamma, beta, running_mean, running_var, at
        elif SCALE and b == B:
            g, s, follows, varies, own = scale_gamma, scale_beta, scale_running_mean, scale_running_var, o
        else:
            g, s, follows, varies, own = identity_gamma, identity_beta, identity_running_mean, identity_running_var, o
        a, moved = _norm(
            norms, every, at, g, s, tl.sum(w * m, 0), tl.sum(product * w, 0), follows, varies, own, momentum, unbias,
            eps, TRACK,
        )  # fmt: skip
        row += a * w
        shift += moved
    tl.store(kernel + o * T + j, row, mask=j < T)
    tl.store(bias + o, shift)
    if COUNT and o == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit(do_not_specialize=SIZES[:1] + SIZES[2:])
def _depthwise_unfold(
    weight, scale_weight, patch_mean, rows_cov, norms, dkernel, of_part, of_out, of_tap, dbias, bias_of_part,
    bias_of_out, parts, dweight, dgamma, dbeta, dscale_weight, dscale, dscale_beta, didentity, didentity_beta, S, t,
    patches, OUT, T: tl.constexpr, B: tl.constexpr, SCALE: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Channel `program_id(0)`: its branches' gradients, S [T, T] and t [T]."""
    o, every = tl.program_id(0), (B + SCALE + IDENTITY) * OUT
    j = tl.arange(0, WIDTH)
    i = tl.arange(0, WIDTH)
    m = tl.load(patch_mean + o * T + j, mask=j < T, other=0.0)
    dk = _sum_of_parts(dkernel + o * of_out, of_part, j * of_tap, j < T, parts, PARTS, WIDTH)
    db = _added_one(dbias + o * bias_of_out, bias_of_part, parts, 128)
    tile, line = tl.zeros((WIDTH, WIDTH), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for b in tl.static_range(B + SCALE + IDENTITY):
        at = b * OUT + o
        w = _row(weight, scale_weight, o, OUT, j, b, T, B, SCALE)
        of_rows = _row(weight, scale_weight, o, OUT, i, b, T, B, SCALE)
        if b < B:
            for_gamma, for_beta, own = dgamma, dbeta, at
        elif SCALE and b == B:
            for_gamma, for_beta, own = dscale, dscale_beta, o
        else:
            for_gamma, for_beta, own = didentity, didentity_beta, o
        a, dmean, dvar, bend, tilt = _norm_gradients(
            norms, every, at, tl.sum(dk * w, 0), db, for_gamma, for_beta, own, patches
        )
        wR = tl.load(rows_cov + at * T + j, mask=j < T, other=0.0)
        dw = a * dk + dmean * m + 2 * dvar * wR
        if b < B:
            tl.store(dweight + at * T + j, dw, mask=j < T)
        elif SCALE and b == B:
            tl.store(dscale_weight + o, tl.sum(tl.where(j == T // 2, dw, 0.0), 0))
        tile += bend * of_rows[:, None] * w[None, :]
        line += tilt * w
    tl.store(S + (o * T + i[:, None]) * T + j[None, :], tile, mask=(i < T)[:, None] & (j < T)[None, :])
    tl.store(t + o * T + j, line, mask=j < T)


def _shape(branches: Branches) -> tuple[int, int, int, bool, bool, int]:
    """B, OUT, T, whether there are a scale and an identity branch, and T as a power of two (at least 16)."""
    b, o, t = branches.weight.flatten(2).shape
    scale, identity = branches.scale_gamma is not None, branches.identity_gamma is not None
    return b, o, t, scale, identity, max(16, triton.next_power_of_2(t))


def _ours(branches: Branches, moments: Tensor, running: Running | None) -> bool:
    there = [p for p in branches if p is not None]
    there += [] if running is None else [statistic for pair in running.norms for statistic in pair]
    exact = all(p.dtype == torch.float32 and p.is_contiguous() for p in there)
    return exact and moments.dtype == torch.float32 and _shape(branches)[2] <= WIDEST


def fold(branches: Branches, mean: Tensor, cov: Tensor, running: Running | None = None, count: int = 0) -> Fold:
    if not _ours(branches, mean, running):
        return algebra.fold(branches, mean, cov, running, count)
    p, (b, o, t, scale, identity, width) = branches, _shape(branches)
    every, new, dense = b + scale + identity, mean.new_empty, mean.dim() == 1
    kernel, bias, rows_cov, norms = new(o, t), new(o), new(b if dense else every, o, t), new(4, every, o)
    none = p.gamma  # for what is not there; it is not read
    pairs = [(none, none)] * every if running is None else list(running.norms)
    pairs = [pairs[0], pairs[1] if scale else (none, none), pairs[-1]]
    follow = (0.0, 0.0) if running is None else (running.momentum, count / (count - 1))
    batches = None if running is None else running.batches
    follow = (none if batches is None else batches, *follow)
    track = {"TRACK": running is not None, "COUNT": batches is not None}
    out = (mean.contiguous(), cov.contiguous(), kernel, bias, rows_cov, norms)
    if dense:
        own = (none, none) if p.identity_gamma is None else (p.identity_gamma, p.identity_beta)
        _dense_fold[(o,)](
            p.weight, p.gamma, p.beta, *own, *out, *pairs[0], *pairs[-1], *follow, EPS, o, t,
            B=b, IDENTITY=identity, **track, WIDTH=width, ROWS=max(1, AREA // width),
        )  # fmt: skip
    else:
        parameters = (none if tensor is None else tensor for tensor in p)
        _depthwise_fold[(o,)](
            *parameters, *out, *(statistic for pair in pairs for statistic in pair), *follow, EPS, o,
            T=t, B=b, SCALE=scale, IDENTITY=identity, **track, WIDTH=width, num_warps=1,
        )  # fmt: skip
    return Fold(kernel, bias, None, rows_cov, *norms, mean)


def unfold(
    branches: Branches, fold: Fold, dkernel: Tensor, dbias: Tensor, count: int
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """As `algebra.unfold`; `dkernel` and `dbias` may be in parts that are to be added, [parts, O, T] and [parts, O]."""
    if dkernel.dim() == 2:
        dkernel, dbias = dkernel[None], dbias[None]
    if fold.rows is not None:
        return algebra.unfold(branches, fold, dkernel.sum(0), dbias.sum(0), count)
    p, (b, o, t, scale, identity, width), new = branches, _shape(branches), dkernel.new_empty
    grads = [None if parameter is None else new(parameter.shape) for parameter in p]
    some = [dbias if grad is None else grad for grad in grads]  # what is not there is not written
    dweight, dgamma, dbeta, dscale_weight, dscale, dscale_beta, didentity, didentity_beta = some
    norms = fold.gain  # the first of four, one after the other
    known = (fold.patch_mean.contiguous(), fold.rows_cov, norms)
    gradients = (dkernel, *dkernel.stride(), dbias, *dbias.stride(), len(dkernel))
    sizes = {"B": b, "IDENTITY": identity, "WIDTH": width}
    if fold.patch_mean.dim() == 1:
        curve, slope, S, out = new(b + identity, o), new(b + identity, o), new(t, t), new(t)
        _dense_branches[(o,)](
            p.weight, *known, *gradients, dweight, dgamma, dbeta, didentity, didentity_beta, curve, slope, float(count),
            o, t, **sizes, PARTS=max(1, AREA // width),
        )  # fmt: skip
        tiles = triton.cdiv(t, TILE)
        _dense_patches[(tiles, tiles)](p.weight, curve, slope, S, out, o, t, B=b, IDENTITY=identity, SIDE=TILE)
    else:
        S, out = new(o, t, t), new(o, t)
        scales = p.gamma if p.scale_weight is None else p.scale_weight
        _depthwise_unfold[(o,)](
            p.weight, scales, *known, *gradients, dweight, dgamma, dbeta, dscale_weight, dscale, dscale_beta, didentity,
            didentity_beta, S, out, float(count), o, **sizes, T=t, SCALE=scale, PARTS=64, num_warps=2,
        )  # fmt: skip
    return grads, S, out
