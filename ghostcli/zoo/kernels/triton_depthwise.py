"""Triton kernels for the depthwise 3 x 3 part of folded training on a GPU. The rest is plain PyTorch.

Invariant: it agrees with `pytorch` on every operation. A program computes some pixels and some channels. The sums of
all programs are written separately and added afterwards, so a result depends on the shape only.

All pitches and channels are multiples of a kernel's `V`. The compiler does not know the sizes, but `pitch // V * V`
tells it this, so it loads V channels at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import pytorch
from ghostcli.zoo.kernels.pytorch import Step, Window, multiply, multiply_backward, pitch
from ghostcli.zoo.kernels.triton_algebra import fold, track, unfold

__all__ = ["NAME", "adjoint", "convolve", "fold", "moments"]
__all__ += ["multiply", "multiply_backward", "reduce", "track", "unfold", "whole"]

NAME = "triton"
TAPS = 9
CHANNELS = 16  # of one program
# Pixels and warps of one program. A thread has four values of each tap, so nothing spills out of its registers. A
# program that sums has more pixels, because each writes its sums.
SUMMED, WRITTEN = (128, 16), (64, 8)
# Not specialised: a kernel is compiled for each stride, precision and flag, but not for each size.
SIZES = ["pitch", "dz_pitch", "z_pitch", "add_pitch", "out_pitch", "H", "W", "C", "Ho", "Wo", "count"]


@triton.jit
def _tap(x, pitch, n, h, w, c, live, H, W, C):
    """Pixels (n, h, w) of channels c in float32; zero outside the image."""
    inside = live & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = ((n.to(tl.int64) * H + h) * W + w) * pitch
    return tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, H, W, C, RELU: tl.constexpr):
    d = _tap(dz, dz_pitch, n, h, w, c, live, H, W, C)
    if RELU:
        d = tl.where(_tap(z, z_pitch, n, h, w, c, live, H, W, C) <= 0, 0.0, d)
    return d


@triton.jit(do_not_specialize=SIZES)
def _moments(
    x, pitch, pivot, out, H, W, C, Ho, Wo, count,
    S: tl.constexpr, V: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out [programs, 54, C]: sums of the taps, then of their 45 products, less the pivot inside and out."""
    pitch, C = pitch // V * V, C // V * V
    p = tl.program_id(0) * P + tl.arange(0, P)
    c = tl.program_id(1) * B + tl.arange(0, B)
    live = p < count
    n, h, w = p // (Ho * Wo), p // Wo % Ho * S - 1, p % Wo * S - 1
    shift = tl.load(pivot + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    row = out + tl.program_id(0).to(tl.int64) * 54 * C + c
    for a in tl.static_range(9):
        va = _tap(x, pitch, n, h + a // 3, w + a % 3, c, live, H, W, C)
        va = tl.where(live[:, None], va - shift, 0.0)
        tl.store(row + a * C, tl.sum(va, 0), mask=c < C)
        for b in tl.static_range(a, 9):
            vb = _tap(x, pitch, n, h + b // 3, w + b % 3, c, live, H, W, C) - shift
            tl.store(row + (9 + a * 9 - a * (a - 1) // 2 + b - a) * C, tl.sum(va * vb, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    x, pitch, kernel, bias, out, out_pitch, H, W, C, Ho, Wo, count,
    S: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    pitch, out_pitch, C = pitch // V * V, out_pitch // V * V, C // V * V
    p = tl.program_id(0) * P + tl.arange(0, P)
    c = tl.program_id(1) * B + tl.arange(0, B)
    live = p < count
    n, h, w = p // (Ho * Wo), p // Wo % Ho * S - 1, p % Wo * S - 1
    acc = tl.zeros((P, B), tl.float32) + tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    for k in tl.static_range(9):
        weight = tl.load(kernel + c * 9 + k, mask=c < C, other=0.0)
        acc += weight[None, :] * _tap(x, pitch, n, h + k // 3, w + k % 3, c, live, H, W, C)
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    at = out + p.to(tl.int64)[:, None] * out_pitch + c[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def _reduce(
    dz, dz_pitch, z, z_pitch, x, pitch, out, H, W, C, Ho, Wo, count,
    S: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """out [programs, 10, C]: sums of dz x(tap), then of dz."""
    dz_pitch, z_pitch, pitch, C = dz_pitch // V * V, z_pitch // V * V, pitch // V * V, C // V * V
    p = tl.program_id(0) * P + tl.arange(0, P)
    c = tl.program_id(1) * B + tl.arange(0, B)
    live = p < count
    n, h, w = p // (Ho * Wo), p // Wo % Ho, p % Wo
    row = out + tl.program_id(0).to(tl.int64) * 10 * C + c
    d = _masked(dz, dz_pitch, z, z_pitch, n, h, w, c, live, Ho, Wo, C, RELU)
    for k in tl.static_range(9):
        v = d * _tap(x, pitch, n, h * S + k // 3 - 1, w * S + k % 3 - 1, c, live, H, W, C)
        tl.store(row + k * C, tl.sum(v, 0), mask=c < C)
    tl.store(row + 9 * C, tl.sum(d, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def _adjoint(
    dz, dz_pitch, z, z_pitch, x, pitch, kernel, cov, mean, add, add_pitch, out, H, W, C, Ho, Wo, count,
    S: tl.constexpr, V: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr, MASK: tl.constexpr,
    P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Each input pixel gathers from the patches that hold it: K dz + S patch + t at its tap."""
    dz_pitch, z_pitch, add_pitch = dz_pitch // V * V, z_pitch // V * V, add_pitch // V * V
    pitch, C = pitch // V * V, C // V * V
    q = tl.program_id(0) * P + tl.arange(0, P)
    c = tl.program_id(1) * B + tl.arange(0, B)
    live = q < count
    n, h, w = q // (H * W), q // W % H, q % W
    acc = tl.zeros((P, B), tl.float32)
    for k in range(9):  # unrolled, it takes twenty times as long to compile
        up, left = h + 1 - k // 3, w + 1 - k % 3  # the patch's position, times the stride
        ho, wo = up // S, left // S
        held = live & (up >= 0) & (left >= 0) & (up % S == 0) & (left % S == 0) & (ho < Ho) & (wo < Wo)
        weight = tl.load(kernel + c * 9 + k, mask=c < C, other=0.0)[None, :]
        value = tl.load(mean + c * 9 + k, mask=c < C, other=0.0)[None, :]
        value += weight * _masked(dz, dz_pitch, z, z_pitch, n, ho, wo, c, held, Ho, Wo, C, RELU)
        for m in tl.static_range(9):
            weight = tl.load(cov + (c * 9 + k) * 9 + m, mask=c < C, other=0.0)[None, :]
            value += weight * _tap(x, pitch, n, up + m // 3 - 1, left + m % 3 - 1, c, held, H, W, C)
        acc += tl.where(held[:, None], value, 0.0)
    if ADD:
        acc += _tap(add, add_pitch, n, h, w, c, live, H, W, C)
    if MASK:
        acc = tl.where(_tap(x, pitch, n, h, w, c, live, H, W, C) <= 0, 0.0, acc)
    at = out + q.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=live[:, None] & (c < C)[None, :])


def _sides(x: Tensor, stride: int) -> tuple[int, ...]:
    _, h, w, c = x.shape
    return h, w, c, -(-h // stride), -(-w // stride)


def _vector(*maps: Tensor) -> int:
    """How many channels, at most 16 bytes of them, divide the pitches and the channels of all these maps."""
    return math.gcd(16 // maps[0].element_size(), maps[0].shape[3], *map(pitch, maps))


@triton.jit(do_not_specialize=["C", "count"])
def _finish(sums, pivot, mean, cov, C, count):
    """Channel `program_id(0)`: mean [9] and covariance [9, 9] from its column of `sums` [54, C]."""
    c = tl.program_id(0)
    k, m = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    inside = (k < 9) & (m < 9)
    low, high = tl.minimum(k, m), tl.maximum(k, m)
    product = tl.load(sums + (9 + low * 9 - low * (low - 1) // 2 + high - low) * C + c, mask=inside, other=0.0)
    of_k = tl.load(sums + k * C + c, mask=k < 9, other=0.0) / count
    of_m = tl.load(sums + m * C + c, mask=m < 9, other=0.0) / count
    tl.store(cov + (c * 9 + k) * 9 + m, (product / count - of_k * of_m).to(tl.float32), mask=inside)
    shifted = (of_m + tl.load(pivot + c).to(tl.float32)).to(tl.float32)
    tl.store(mean + c * 9 + m, shifted, mask=m < 9)


def moments(x: Tensor, k: Window, stride: int) -> tuple[Tensor, Tensor]:
    if k != (3, 3):
        return pytorch.moments(x, k, stride)
    sides, (pixels, warps) = _sides(x, stride), SUMMED
    c, count = sides[2], len(x) * sides[3] * sides[4]
    programs = triton.cdiv(count, pixels)
    pivot = x[0, x.shape[1] // 2, x.shape[2] // 2]  # any pixel is near enough: it keeps sums of squares small
    out = torch.empty(programs, 54, c, device=x.device)
    grid = (programs, triton.cdiv(c, CHANNELS))
    _moments[grid](
        x, pitch(x), pivot, out, *sides, count, S=stride, V=_vector(x), P=pixels, B=CHANNELS, num_warps=warps
    )
    sums = out.sum(0, dtype=torch.float64)  # [54, C]
    mean, cov = torch.empty(c, TAPS, device=x.device), torch.empty(c, TAPS, TAPS, device=x.device)
    _finish[(c,)](sums, pivot, mean, cov, c, count, num_warps=1)
    return mean, cov


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: Window, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    if k != (3, 3):
        return pytorch.convolve(x, kernel, bias, k, stride, relu, out)
    sides, (pixels, warps) = _sides(x, stride), WRITTEN
    out = x.new_empty(len(x), *sides[3:5], sides[2]) if out is None else out
    count = len(x) * sides[3] * sides[4]
    grid = (triton.cdiv(count, pixels), triton.cdiv(sides[2], CHANNELS))
    coefficients = kernel.float().contiguous(), bias.float().contiguous()
    _forward[grid](
        x, pitch(x), *coefficients, out, pitch(out), *sides, count,
        S=stride, V=_vector(x, out), RELU=relu, P=pixels, B=CHANNELS, num_warps=warps,
    )  # fmt: skip
    return out


def whole(x: Tensor) -> Tensor:
    return x  # a slice is read where it lies


def reduce(dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, k: Window, stride: int) -> Step:
    if k != (3, 3):
        return pytorch.reduce(dz, z, x, kernel, k, stride)
    sides, (pixels, warps) = _sides(x, stride), SUMMED
    c, count = sides[2], len(x) * sides[3] * sides[4]
    programs = triton.cdiv(count, pixels)
    out = torch.empty(programs, TAPS + 1, c, device=x.device)
    mask = dz if z is None else z
    _reduce[(programs, triton.cdiv(c, CHANNELS))](
        dz, pitch(dz), mask, pitch(mask), x, pitch(x), out, *sides, count,
        S=stride, V=_vector(x, dz, mask), RELU=z is not None, P=pixels, B=CHANNELS, num_warps=warps,
    )  # fmt: skip
    sums = out.sum(0)
    return Step(sums[:TAPS].t(), sums[TAPS], dz, z)


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
    if k != (3, 3):
        return pytorch.adjoint(step, x, kernel, S, t, k, stride, add, mask)
    out, (pixels, warps) = x.new_empty(x.shape), WRITTEN
    count = x.shape[:3].numel()
    z, more = step.dz if step.z is None else step.z, x if add is None else add
    coefficients = kernel.float().contiguous(), S.float().contiguous(), t.float().contiguous()
    _adjoint[(triton.cdiv(count, pixels), triton.cdiv(x.shape[3], CHANNELS))](
        step.dz, pitch(step.dz), z, pitch(z), x, pitch(x), *coefficients, more, pitch(more), out, *_sides(x, stride),
        count, S=stride, V=_vector(x, step.dz, z, more), RELU=step.z is not None, ADD=add is not None, MASK=mask,
        P=pixels, B=CHANNELS, num_warps=warps,
    )  # fmt: skip
    return out
