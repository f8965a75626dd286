"""Triton kernels for the depthwise part of folded training on a GPU; the 1x1 part is in `triton_pointwise`.

Invariant: it agrees with `pytorch` on every operation. A thread has one channel and goes over some pixels. It keeps the
channel's coefficients, or its sums, in registers. The sums of all programs are written separately and added afterwards,
so a result depends on the shape only.

A window of U x V has T = U V taps. Tap V i + j of the patch of pixel (h, w) is the pixel i - U // 2 rows below and
j - V // 2 columns to the right, and zero outside the image.
"""

# ruff: noqa: RUF005 (Triton's compiler adds tuples, and knows no starred ones)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import pytorch
from ghostcli.zoo.kernels import triton_pointwise as pointwise
from ghostcli.zoo.kernels.pytorch import DENSE, Step, Window, pitch, pool
from ghostcli.zoo.kernels.triton_algebra import fold, unfold
from ghostcli.zoo.kernels.triton_weigh import opened, total, weigh, weigh_backward

__all__ = ["NAME", "adjoint", "beside", "convolve", "fold", "moments", "opened", "pool"]
__all__ += ["reduce", "total", "unfold", "weigh", "weigh_backward", "whole"]

NAME = "triton"
WINDOWS = ((3, 3), (1, 5), (5, 1))  # 5 x 5 has 325 products of taps, more than a thread has registers
WARPS = 8
REGISTERS = 168  # of a thread of `_adjoint`, which has most: three blocks of four warps for each multiprocessor
# Programs that sum, of float32, and that write a map: two and eight for each multiprocessor. Each that sums writes its
# sums: half as many of them stay as small beside maps of bfloat16.
SUMMED, WRITTEN = 256, 1024
# Not specialised: a kernel is compiled for each stride, precision, width and flag, but not for each size.
SIZES = ["pitch", "dz_pitch", "z_pitch", "add_pitch", "out_pitch", "H", "W", "C", "Ho", "Wo", "count", "each", "parts"]


@triton.jit
def _place(p, H, W):
    return p // (H * W), p // W % H, p % W


@triton.jit
def _patch(x, pitch, n, h, w, c, live, H, W, C, U: tl.constexpr, V: tl.constexpr):
    """Float32 values of the U x V pixels around (n, h, w), of channels c; zero outside the image."""
    base = x + ((n.to(tl.int64) * H + h) * W + w)[:, None] * pitch + c[None, :]
    taps = ()
    for k in tl.static_range(U * V):
        up, left = k // V - U // 2, k % V - V // 2
        inside = live & (h + up >= 0) & (h + up < H) & (w + left >= 0) & (w + left < W)
        value = tl.load(base + (up * W + left) * pitch, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        taps = taps + (value.to(tl.float32),)
    return taps


@triton.jit
def _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, H, W, C, RELU: tl.constexpr, U: tl.constexpr, V: tl.constexpr):
    """The gradient's values; zero where the ReLU's output `z` is."""
    values = _patch(dz, dz_pitch, n, h, w, c, live, H, W, C, U, V)
    if not RELU:
        return values
    outputs, masked = _patch(z, z_pitch, n, h, w, c, live, H, W, C, U, V), ()
    for k in tl.static_range(U * V):
        masked = masked + (tl.where(outputs[k] <= 0, 0.0, values[k]),)
    return masked


@triton.jit
def _coefficients(table, c, C, COUNT: tl.constexpr):
    """Those [C, COUNT] of channels c."""
    columns = ()
    for k in tl.static_range(COUNT):
        columns = columns + (tl.load(table + c * COUNT + k, mask=c < C, other=0.0)[None, :],)
    return columns


@triton.jit(do_not_specialize=SIZES)
def _moments(
    x, pitch, pivot, out, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, U: tl.constexpr, V: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out [programs, T + T (T + 1) / 2, C]: sums of the taps, then of their products, less the pivot inside and out."""
    c = tl.program_id(1) * B + tl.arange(0, B)
    shift = tl.load(pivot + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    T: tl.constexpr = U * V
    ALL: tl.constexpr = T + T * (T + 1) // 2
    sums = (tl.zeros((P, B), tl.float32),) * ALL
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, U, V)
        shifted, added = (), ()
        for k in tl.static_range(T):
            shifted = shifted + (tl.where(live[:, None], taps[k] - shift, 0.0),)
            added = added + (sums[k] + shifted[k],)
        for k in tl.static_range(T):
            for m in tl.static_range(k, T):
                added = added + (sums[T + k * T - k * (k - 1) // 2 + m - k] + shifted[k] * shifted[m],)
        sums = added
    row = out + tl.program_id(0) * ALL * C + c
    for k in tl.static_range(ALL):
        tl.store(row + k * C, tl.sum(sums[k], 0), mask=c < C)


@triton.jit
def _total(parts_of, step, at, there, parts, PARTS: tl.constexpr, B: tl.constexpr):
    """The sum of all parts, `step` apart, in float64: it is about to lose digits to a difference."""
    part = tl.arange(0, PARTS)
    total = tl.zeros((PARTS, B), tl.float64)
    for first in range(0, parts, PARTS):
        inside = (first + part < parts)[:, None] & there[None, :]
        total += tl.load(parts_of + (first + part)[:, None] * step + at[None, :], mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=SIZES)
def _finish(sums, pivot, mean, cov, C, count, parts, T: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr):
    """Tap `program_id(1)` of some channels: its mean [C, T] and its row of the covariance [C, T, T]."""
    c, k = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1)
    there, step = c < C, (T + T * (T + 1) // 2) * C
    of_k = _total(sums, step, k * C + c, there, parts, PARTS, B) / count
    tl.store(mean + c * T + k, (of_k + tl.load(pivot + c, mask=there, other=0.0)).to(tl.float32), mask=there)
    for m in range(T):
        low, high = tl.minimum(k, m), tl.maximum(k, m)
        of_m = _total(sums, step, m * C + c, there, parts, PARTS, B) / count
        at = (T + low * T - low * (low - 1) // 2 + high - low) * C + c
        product = _total(sums, step, at, there, parts, PARTS, B) / count
        tl.store(cov + (c * T + k) * T + m, (product - of_k * of_m).to(tl.float32), mask=there)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x, pitch, kernel, bias, add, add_pitch, out, out_pitch, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, U: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, BESIDE: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The convolution; with `BESIDE` [x, the convolution] + add, 2 C channels."""
    c = tl.program_id(1) * B + tl.arange(0, B)
    weights = _coefficients(kernel, c, C, U * V)
    shift = tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, U, V)
        acc = tl.zeros((P, B), tl.float32) + shift
        for k in tl.static_range(U * V):
            acc += weights[k] * taps[k]
        if RELU:
            acc = tl.where(acc < 0, 0.0, acc)
        at, there = out + p.to(tl.int64)[:, None] * out_pitch + c[None, :], live[:, None] & (c < C)[None, :]
        if BESIDE:
            more = add + p.to(tl.int64)[:, None] * add_pitch + c[None, :]
            first = taps[U // 2 * V + V // 2] + tl.load(more, mask=there, other=0.0).to(tl.float32)
            tl.store(at, first.to(out.dtype.element_ty), mask=there)
            acc += tl.load(more + C, mask=there, other=0.0).to(tl.float32)
            at += C
        tl.store(at, acc.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=SIZES)
def _reduce(
    dz, dz_pitch, x, pitch, kernel, bias, out, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, U: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out [programs, C, T + 1]: sums of dz x(tap), then of dz.

    With `RELU` the convolution is computed again for its sign, so that its output need not be read.
    """
    c = tl.program_id(1) * B + tl.arange(0, B)
    T: tl.constexpr = U * V
    sums = (tl.zeros((P, B), tl.float32),) * (T + 1)
    if RELU:
        weights = _coefficients(kernel, c, C, T)
        shift = tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        (d,) = _patch(dz, dz_pitch, n, h, w, c, live, Ho, Wo, C, 1, 1)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, U, V)
        if RELU:
            acc = tl.zeros((P, B), tl.float32) + shift
            for k in tl.static_range(T):
                acc += weights[k] * taps[k]
            d = tl.where(acc <= 0, 0.0, d)
        added = ()
        for k in tl.static_range(T):
            added = added + (sums[k] + d * taps[k],)
        sums = added + (sums[T] + d,)
    row = out + (tl.program_id(0) * C + c) * (T + 1)
    for k in tl.static_range(T + 1):
        tl.store(row + k, tl.sum(sums[k], 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def _adjoint(
    dz, dz_pitch, z, z_pitch, x, pitch, kernel, cov, mean, add, add_pitch, out, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, U: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr, MASK: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Each input pixel gathers from the patches that hold it: K dz + S patch + t at its tap.

    All of these patches lie in the 2 U - 1 rows and 2 V - 1 columns around it. `cov` is S [C, T, T], `mean` t [C, T].
    """
    c = tl.program_id(1) * B + tl.arange(0, B)
    T: tl.constexpr = U * V
    weights, slopes = _coefficients(kernel, c, C, T), _coefficients(mean, c, C, T)
    bends = ()  # S is symmetric: half of it is read
    for k in tl.static_range(T):
        for m in tl.static_range(T):
            if m < k:
                bends = bends + (bends[m * T + k],)
            else:
                bends = bends + (tl.load(cov + (c * T + k) * T + m, mask=c < C, other=0.0)[None, :],)
    for block in range(each):
        q = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = q < count
        n, h, w = _place(q, H, W)
        near = _patch(x, pitch, n, h, w, c, live, H, W, C, 2 * U - 1, 2 * V - 1)
        if S == 1:
            gradients = _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, Ho, Wo, C, RELU, U, V)
        acc = tl.zeros((P, B), tl.float32)
        for k in tl.static_range(T):
            up, left = h + U // 2 - k // V, w + V // 2 - k % V  # the patch's position, times the stride
            inside = live & (up >= 0) & (left >= 0) & (up % S == 0) & (left % S == 0) & (up < Ho * S) & (left < Wo * S)
            if S == 1:
                d = gradients[T - 1 - k]
            else:
                (d,) = _masked(dz, dz_pitch, z, z_pitch, n, up // S, left // S, c, inside, Ho, Wo, C, RELU, 1, 1)
            value = slopes[k] + weights[k] * d
            for m in tl.static_range(T):
                value += bends[k * T + m] * near[(U - 1 + m // V - k // V) * (2 * V - 1) + V - 1 + m % V - k % V]
            acc += tl.where(inside[:, None], value, 0.0)
        if ADD:
            (more,) = _patch(add, add_pitch, n, h, w, c, live, H, W, C, 1, 1)
            acc += more
        if MASK:
            acc = tl.where(near[(U - 1) * (2 * V - 1) + V - 1] <= 0, 0.0, acc)
        at = out + q.to(tl.int64)[:, None] * C + c[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & (c < C)[None, :])


def _sides(x: Tensor, stride: int) -> tuple[int, ...]:
    _, h, w, c = x.shape
    return h, w, c, -(-h // stride), -(-w // stride)


def _tiles(count: int, channels: int, programs: int, warps: int = WARPS) -> tuple[tuple[int, int], int, dict[str, int]]:
    """For `count` pixels: the grid, how many blocks of pixels a program has, and the sides of its block."""
    width = min((32, 16, 8), key=lambda b: -(-channels // b) * b)  # the fewest threads without a channel
    pixels, across = 32 * warps // width, -(-channels // width)
    each = triton.cdiv(count, pixels * max(1, programs // across))
    return (triton.cdiv(count, pixels * each), across), each, {"P": pixels, "B": width, "num_warps": warps}


def moments(x: Tensor, k: Window, stride: int) -> tuple[Tensor, Tensor]:
    if k == DENSE:
        return pointwise.moments(x)
    if k not in WINDOWS:
        return pytorch.moments(x, k, stride)
    sides = _sides(x, stride)
    c, count = sides[2], len(x) * sides[3] * sides[4]
    pivot = x[0, x.shape[1] // 2, x.shape[2] // 2]  # any pixel is near enough: it keeps sums of squares small
    grid, each, tile = _tiles(count, c, SUMMED * x.element_size() // 4)
    taps = math.prod(k)
    sums = torch.empty(grid[0], taps + taps * (taps + 1) // 2, c, device=x.device)
    _moments[grid](x, pitch(x), pivot, sums, *sides, count, each, S=stride, U=k[0], V=k[1], **tile)
    mean, cov = torch.empty(c, taps, device=x.device), torch.empty(c, taps, taps, device=x.device)
    _finish[(triton.cdiv(c, 16), taps)](sums, pivot, mean, cov, c, count, grid[0], T=taps, PARTS=32, B=16)
    return mean, cov


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: Window, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    if k == DENSE:
        return pointwise.convolve(x, kernel, bias, relu, out)
    if k not in WINDOWS:
        return pytorch.convolve(x, kernel, bias, k, stride, relu, out)
    sides = _sides(x, stride)
    out = x.new_empty(len(x), *sides[3:5], sides[2]) if out is None else out
    _launch_forward(x, kernel, bias, None, out, k, stride, relu)
    return out


def beside(x: Tensor, kernel: Tensor, bias: Tensor, add: Tensor) -> Tensor:
    out = x.new_empty(add.shape)
    _launch_forward(x, kernel, bias, add, out, (3, 3), 1, False)
    return out


def _launch_forward(
    x: Tensor, kernel: Tensor, bias: Tensor, add: Tensor | None, out: Tensor, k: Window, stride: int, relu: bool
) -> None:
    sides = _sides(x, stride)
    count = len(x) * sides[3] * sides[4]
    grid, each, tile = _tiles(count, sides[2], WRITTEN)
    more = x if add is None else add
    maps = (x, pitch(x), kernel.float().contiguous(), bias.float().contiguous(), more, pitch(more), out, pitch(out))
    _forward[grid](*maps, *sides, count, each, S=stride, U=k[0], V=k[1], RELU=relu, BESIDE=add is not None, **tile)


def whole(x: Tensor) -> Tensor:
    return x  # a slice is read where it lies


def reduce(
    dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, bias: Tensor | None, k: Window, stride: int
) -> Step:
    """The gradients of kernel and bias are in parts [parts, C, T] and [parts, C]; `unfold` adds them."""
    if k == DENSE:
        return pointwise.reduce(dz, z, x)
    if k not in WINDOWS:
        return pytorch.reduce(dz, z, x, kernel, bias, k, stride)
    sides = _sides(x, stride)
    c, count = sides[2], len(x) * sides[3] * sides[4]
    grid, each, tile = _tiles(count, c, SUMMED * x.element_size() // 4)
    sums = torch.empty(grid[0], c, math.prod(k) + 1, device=x.device)
    coefficients = (sums, sums) if z is None else (kernel.float().contiguous(), bias.float().contiguous())
    _reduce[grid](
        dz, pitch(dz), x, pitch(x), *coefficients, sums, *sides, count, each,
        S=stride, U=k[0], V=k[1], RELU=z is not None, **tile,
    )  # fmt: skip
    return Step(sums[..., :-1], sums[..., -1], dz, z)


def adjoint(
    step: Step,
    x: Tensor,
    kernel: Tensor,
    S: Tensor,
    t: Tensor,
    k: Window,
    stride: int,
    add: Tensor | None = None,
    mask: bool = False,
    pooled: Tensor | None = None,
) -> Tensor:
    if k == DENSE and not mask:
        return pointwise.adjoint(step, x, kernel, S, t, add, pooled)
    if k not in WINDOWS or pooled is not None:
        return pytorch.adjoint(step, x, kernel, S, t, k, stride, add, mask, pooled)
    out, count = x.new_empty(x.shape), x.shape[:3].numel()
    z, more = step.dz if step.z is None else step.z, x if add is None else add
    coefficients = kernel.float().contiguous(), S.float().contiguous(), t.float().contiguous()
    grid, each, tile = _tiles(count, x.shape[3], 2 * WRITTEN, WARPS // 2)
    _adjoint[grid](
        step.dz, pitch(step.dz), z, pitch(z), x, pitch(x), *coefficients, more, pitch(more), out, *_sides(x, stride),
        count, each, S=stride, U=k[0], V=k[1], RELU=step.z is not None, ADD=add is not None, MASK=mask, **tile,
        maxnreg=REGISTERS,
    )  # fmt: skip
    return out
