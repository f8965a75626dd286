"""Triton kernels for the depthwise 3 x 3 part of folded training on a GPU; the 1x1 part is in `triton_pointwise`.

Invariant: it agrees with `pytorch` on every operation. A thread has one channel and goes over some pixels. It keeps the
channel's coefficients, or its sums, in registers. The sums of all programs are written separately and added afterwards,
so a result depends on the shape only.

Tap 3 i + j of the patch of pixel (h, w) is pixel (h + i - 1, w + j - 1), and zero outside the image.
"""

# ruff: noqa: RUF005 (Triton's compiler adds tuples, and knows no starred ones)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import pytorch
from ghostcli.zoo.kernels import triton_pointwise as pointwise
from ghostcli.zoo.kernels.pytorch import DENSE, Step, Window, multiply, multiply_backward, pitch
from ghostcli.zoo.kernels.triton_algebra import fold, unfold

__all__ = ["NAME", "adjoint", "convolve", "fold", "moments"]
__all__ += ["multiply", "multiply_backward", "reduce", "unfold", "whole"]

NAME = "triton"
TAPS, SUMS = 9, 54  # of a patch; of its taps and of their products
WARPS = 8
REGISTERS = 168  # of a thread of `_adjoint`, which has most: three blocks of four warps for each multiprocessor
SUMMED, WRITTEN = 256, 1024  # programs that sum, and that write a map: two and eight for each multiprocessor
# Not specialised: a kernel is compiled for each stride, precision, width and flag, but not for each size.
SIZES = ["pitch", "dz_pitch", "z_pitch", "add_pitch", "out_pitch", "H", "W", "C", "Ho", "Wo", "count", "each", "parts"]


@triton.jit
def _place(p, H, W):
    return p // (H * W), p // W % H, p % W


@triton.jit
def _patch(x, pitch, n, h, w, c, live, H, W, C, SIDE: tl.constexpr):
    """Float32 values of the SIDE x SIDE pixels around (n, h, w), of channels c; zero outside the image."""
    base = x + ((n.to(tl.int64) * H + h) * W + w)[:, None] * pitch + c[None, :]
    taps = ()
    for k in tl.static_range(SIDE * SIDE):
        up, left = k // SIDE - SIDE // 2, k % SIDE - SIDE // 2
        inside = live & (h + up >= 0) & (h + up < H) & (w + left >= 0) & (w + left < W)
        value = tl.load(base + (up * W + left) * pitch, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        taps = taps + (value.to(tl.float32),)
    return taps


@triton.jit
def _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, H, W, C, RELU: tl.constexpr, SIDE: tl.constexpr):
    """The gradient's values; zero where the ReLU's output `z` is."""
    values = _patch(dz, dz_pitch, n, h, w, c, live, H, W, C, SIDE)
    if not RELU:
        return values
    outputs, kept = _patch(z, z_pitch, n, h, w, c, live, H, W, C, SIDE), ()
    for k in tl.static_range(SIDE * SIDE):
        kept = kept + (tl.where(outputs[k] <= 0, 0.0, values[k]),)
    return kept


@triton.jit
def _coefficients(table, c, C, COUNT: tl.constexpr):
    """Those [C, COUNT] of channels c."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (tl.load(table + c * COUNT + k, mask=c < C, other=0.0)[None, :],)
    return found


@triton.jit(do_not_specialize=SIZES)
def _moments(x, pitch, pivot, out, H, W, C, Ho, Wo, count, each, S: tl.constexpr, P: tl.constexpr, B: tl.constexpr):
    """out [programs, 54, C]: sums of the taps, then of their 45 products, less the pivot inside and out."""
    c = tl.program_id(1) * B + tl.arange(0, B)
    shift = tl.load(pivot + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    sums = (tl.zeros((P, B), tl.float32),) * 54
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, 3)
        shifted, added = (), ()
        for k in tl.static_range(9):
            shifted = shifted + (tl.where(live[:, None], taps[k] - shift, 0.0),)
            added = added + (sums[k] + shifted[k],)
        for k in tl.static_range(9):
            for m in tl.static_range(k, 9):
                added = added + (sums[9 + k * 9 - k * (k - 1) // 2 + m - k] + shifted[k] * shifted[m],)
        sums = added
    row = out + tl.program_id(0) * 54 * C + c
    for k in tl.static_range(54):
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
def _finish(sums, pivot, mean, cov, C, count, parts, PARTS: tl.constexpr, B: tl.constexpr):
    """Tap `program_id(1)` of some channels: its mean [C, 9] and its row of the covariance [C, 9, 9]."""
    c, k = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1)
    there = c < C
    of_k = _total(sums, 54 * C, k * C + c, there, parts, PARTS, B) / count
    tl.store(mean + c * 9 + k, (of_k + tl.load(pivot + c, mask=there, other=0.0)).to(tl.float32), mask=there)
    for m in range(9):
        low, high = tl.minimum(k, m), tl.maximum(k, m)
        of_m = _total(sums, 54 * C, m * C + c, there, parts, PARTS, B) / count
        at = (9 + low * 9 - low * (low - 1) // 2 + high - low) * C + c
        product = _total(sums, 54 * C, at, there, parts, PARTS, B) / count
        tl.store(cov + (c * 9 + k) * 9 + m, (product - of_k * of_m).to(tl.float32), mask=there)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x, pitch, kernel, bias, out, out_pitch, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, RELU: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * B + tl.arange(0, B)
    weights = _coefficients(kernel, c, C, 9)
    shift = tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, 3)
        acc = tl.zeros((P, B), tl.float32) + shift
        for k in tl.static_range(9):
            acc += weights[k] * taps[k]
        if RELU:
            acc = tl.where(acc < 0, 0.0, acc)
        at = out + p.to(tl.int64)[:, None] * out_pitch + c[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _reduce(
    dz, dz_pitch, z, z_pitch, x, pitch, out, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, RELU: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out [programs, C, 10]: sums of dz x(tap), then of dz."""
    c = tl.program_id(1) * B + tl.arange(0, B)
    sums = (tl.zeros((P, B), tl.float32),) * 10
    for block in range(each):
        p = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = p < count
        n, h, w = _place(p, Ho, Wo)
        (d,) = _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, Ho, Wo, C, RELU, 1)
        taps = _patch(x, pitch, n, h * S, w * S, c, live, H, W, C, 3)
        added = ()
        for k in tl.static_range(9):
            added = added + (sums[k] + d * taps[k],)
        sums = added + (sums[9] + d,)
    row = out + (tl.program_id(0) * C + c) * 10
    for k in tl.static_range(10):
        tl.store(row + k, tl.sum(sums[k], 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def _adjoint(
    dz, dz_pitch, z, z_pitch, x, pitch, kernel, cov, mean, add, add_pitch, out, H, W, C, Ho, Wo, count, each,
    S: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr, MASK: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Each input pixel gathers from the patches that hold it: K dz + S patch + t at its tap.

    All of these patches lie in the 5 x 5 pixels around it. `cov` is S [C, 9, 9] and `mean` is t [C, 9].
    """
    c = tl.program_id(1) * B + tl.arange(0, B)
    weights, slopes = _coefficients(kernel, c, C, 9), _coefficients(mean, c, C, 9)
    bends = ()  # S is symmetric: half of it is read
    for k in tl.static_range(9):
        for m in tl.static_range(9):
            if m < k:
                bends = bends + (bends[m * 9 + k],)
            else:
                bends = bends + (tl.load(cov + (c * 9 + k) * 9 + m, mask=c < C, other=0.0)[None, :],)
    for block in range(each):
        q = (tl.program_id(0) * each + block) * P + tl.arange(0, P)
        live = q < count
        n, h, w = _place(q, H, W)
        near = _patch(x, pitch, n, h, w, c, live, H, W, C, 5)
        if S == 1:
            gradients = _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, Ho, Wo, C, RELU, 3)
        acc = tl.zeros((P, B), tl.float32)
        for k in tl.static_range(9):
            up, left = h + 1 - k // 3, w + 1 - k % 3  # the patch's position, times the stride
            held = live & (up >= 0) & (left >= 0) & (up % S == 0) & (left % S == 0) & (up < Ho * S) & (left < Wo * S)
            if S == 1:
                d = gradients[8 - k]
            else:
                (d,) = _masked(dz, dz_pitch, z, z_pitch, n, up // S, left // S, c, held, Ho, Wo, C, RELU, 1)
            value = slopes[k] + weights[k] * d
            for m in tl.static_range(9):
                value += bends[k * 9 + m] * near[(2 + m // 3 - k // 3) * 5 + 2 + m % 3 - k % 3]
            acc += tl.where(held[:, None], value, 0.0)
        if ADD:
            (more,) = _patch(add, add_pitch, n, h, w, c, live, H, W, C, 1)
            acc += more
        if MASK:
            acc = tl.where(near[12] <= 0, 0.0, acc)
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
    if k != (3, 3):
        return pytorch.moments(x, k, stride)
    sides = _sides(x, stride)
    c, count = sides[2], len(x) * sides[3] * sides[4]
    pivot = x[0, x.shape[1] // 2, x.shape[2] // 2]  # any pixel is near enough: it keeps sums of squares small
    grid, each, tile = _tiles(count, c, SUMMED)
    sums = torch.empty(grid[0], SUMS, c, device=x.device)
    _moments[grid](x, pitch(x), pivot, sums, *sides, count, each, S=stride, **tile)
    mean, cov = torch.empty(c, TAPS, device=x.device), torch.empty(c, TAPS, TAPS, device=x.device)
    _finish[(triton.cdiv(c, 16), TAPS)](sums, pivot, mean, cov, c, count, grid[0], PARTS=32, B=16)
    return mean, cov


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: Window, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    if k == DENSE:
        return pointwise.convolve(x, kernel, bias, relu, out)
    if k != (3, 3):
        return pytorch.convolve(x, kernel, bias, k, stride, relu, out)
    sides = _sides(x, stride)
    out = x.new_empty(len(x), *sides[3:5], sides[2]) if out is None else out
    count = len(x) * sides[3] * sides[4]
    grid, each, tile = _tiles(count, sides[2], WRITTEN)
    coefficients = kernel.float().contiguous(), bias.float().contiguous()
    _forward[grid](
        x, pitch(x), *coefficients, out, pitch(out), *sides, count, each, S=stride, RELU=relu, **tile
    )  # fmt: skip
    return out


def whole(x: Tensor) -> Tensor:
    return x  # a slice is read where it lies


def reduce(dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, k: Window, stride: int) -> Step:
    """The gradients of kernel and bias are in parts [parts, C, T] and [parts, C]; `unfold` adds them."""
    if k == DENSE:
        return pointwise.reduce(dz, z, x)
    if k != (3, 3):
        return pytorch.reduce(dz, z, x, kernel, k, stride)
    sides = _sides(x, stride)
    c, count = sides[2], len(x) * sides[3] * sides[4]
    grid, each, tile = _tiles(count, c, SUMMED)
    sums, mask = torch.empty(grid[0], c, TAPS + 1, device=x.device), dz if z is None else z
    _reduce[grid](
        dz, pitch(dz), mask, pitch(mask), x, pitch(x), sums, *sides, count, each, S=stride, RELU=z is not None, **tile
    )  # fmt: skip
    return Step(sums[..., :TAPS], sums[..., TAPS], dz, z)


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
) -> Tensor:
    if k == DENSE and add is None and not mask:
        return pointwise.adjoint(step, x, kernel, S, t)
    if k != (3, 3):
        return pytorch.adjoint(step, x, kernel, S, t, k, stride, add, mask)
    out, count = x.new_empty(x.shape), x.shape[:3].numel()
    z, more = step.dz if step.z is None else step.z, x if add is None else add
    coefficients = kernel.float().contiguous(), S.float().contiguous(), t.float().contiguous()
    grid, each, tile = _tiles(count, x.shape[3], 2 * WRITTEN, WARPS // 2)
    _adjoint[grid](
        step.dz, pitch(step.dz), z, pitch(z), x, pitch(x), *coefficients, more, pitch(more), out, *_sides(x, stride),
        count, each, S=stride, RELU=step.z is not None, ADD=add is not None, MASK=mask, **tile,
        maxnreg=REGISTERS,
    )  # fmt: skip
    return out
