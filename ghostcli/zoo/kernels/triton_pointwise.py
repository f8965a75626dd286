"""Triton kernels for the 1x1 part of folded training on a GPU: two matrix products over the pixels of a map.

Invariant: it agrees with `pytorch` on every operation. Maps are [pixels, channels] with any pitch, so a slice of a
wider map is read and written where it lies. With a map x, the kernel K [O, C] and the gradient d of the output:

    output             z = relu(x K' + b)     `_apply`
    moments            x' x and sums of x     `_outer`, then `_finish`
    kernel's gradient  d' x and sums of d     `_outer`; its parts are added by `unfold`
    input's gradient   d K + x S + t          `_apply`, S is symmetric

`_outer` gives each program a stretch of pixels and writes what each has summed, so a result depends on the shape only.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels.pytorch import Step, pitch, window

__all__ = ["adjoint", "convolve", "moments", "reduce"]

PIXELS, DEPTH = 64, 16  # of a program of `_apply`, and channels of one of its steps
AREA = 2048  # pixels of one step of `_outer`, times the channels of its tile
FEWEST, MOST = 128, 512  # programs of `_outer`, of float32: one to four for each multiprocessor of a large GPU
PARTS = 64  # that `_finish` adds at a time
#: Not specialised: a kernel is compiled for each precision, width of tiles and flag, but not for each size.
SIZES = ["pitch", "of_out", "of_in", "more_pitch", "more_of_out", "more_of_in", "out_pitch", "count", "inner"]
SIZES += ["more_inner", "outer", "left_pitch", "right_pitch", "each", "LEFT", "RIGHT", "parts", "C"]
SIZES += ["add_pitch", "H", "W", "tall", "wide"]


@triton.jit
def _times(acc, x, pitch, kernel, of_out, of_in, p, o, count, inner, outer, DEPTH: tl.constexpr, EXACT: tl.constexpr):
    """acc [pixels p, channels o] + x kernel'."""
    for first in range(0, inner, DEPTH):
        i = first + tl.arange(0, DEPTH)
        at = x + p.to(tl.int64)[:, None] * pitch + i[None, :]
        v = tl.load(at, mask=(p < count)[:, None] & (i < inner)[None, :], other=0.0)
        w = tl.load(
            kernel + i[:, None] * of_in + o[None, :] * of_out,
            mask=(i < inner)[:, None] & (o < outer)[None, :],
            other=0.0,
        )
        w = w.to(v.dtype).to(tl.float32)  # the map's precision; bfloat16 values are exact in TF32
        acc = tl.dot(v.to(tl.float32), w, acc, input_precision="ieee" if EXACT else "tf32")
    return acc


@triton.jit(do_not_specialize=SIZES)
def _apply(
    x, pitch, kernel, of_out, of_in, bias, more, more_pitch, more_kernel, more_of_out, more_of_in,
    add, add_pitch, pooled, H, W, tall, wide, out, out_pitch, count, inner, more_inner, outer,
    V: tl.constexpr, RELU: tl.constexpr, MORE: tl.constexpr, ADD: tl.constexpr, POOL: tl.constexpr,
    EXACT: tl.constexpr, P: tl.constexpr, B: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """out = x kernel' + bias, then + more more_kernel' with `MORE`, then a ReLU with `RELU`.

    With `ADD` + add. With `POOL` + the gradient of an average pool of maps H x W, over windows of `tall` x `wide`
    pixels, of which each is 1 or 2.
    """
    pitch, more_pitch = pitch // V * V, more_pitch // V * V
    out_pitch, add_pitch = out_pitch // V * V, add_pitch // V * V
    p = tl.program_id(0) * P + tl.arange(0, P)
    o = tl.program_id(1) * B + tl.arange(0, B)
    acc = tl.zeros((P, B), tl.float32) + tl.load(bias + o, mask=o < outer, other=0.0)[None, :]
    acc = _times(acc, x, pitch, kernel, of_out, of_in, p, o, count, inner // V * V, outer, D, EXACT)
    if MORE:
        acc = _times(
            acc, more, more_pitch, more_kernel, more_of_out, more_of_in, p, o, count, more_inner // V * V, outer, D,
            EXACT,
        )  # fmt: skip
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    there = (p < count)[:, None] & (o < outer // V * V)[None, :]
    if ADD:
        acc += tl.load(add + p.to(tl.int64)[:, None] * add_pitch + o[None, :], mask=there, other=0.0).to(tl.float32)
    if POOL:
        row = p // W  # few divisions, and shifts: a division takes some twenty instructions
        n, h, w = row // H, H >> (tall - 1), W >> (wide - 1)
        i, j = (row - n * H) >> (tall - 1), (p - row * W) >> (wide - 1)
        at, covered = ((n * h + i) * w + j) * (outer // V * V), (p < count) & (i < h) & (j < w)
        v = tl.load(pooled + at[:, None] + o[None, :], mask=covered[:, None] & (o < outer // V * V)[None, :], other=0.0)
        acc += v.to(tl.float32) * (1.0 / (tall * wide))
    at = out + p.to(tl.int64)[:, None] * out_pitch + o[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=there)


@triton.jit
def _stretch(x, pitch, pivot, p, c, last, C, PIVOT: tl.constexpr):
    """Pixels p of channels c in float32, less the pivot; zero past the last pixel."""
    inside = (p < last)[:, None] & (c < C)[None, :]
    v = tl.load(x + p.to(tl.int64)[:, None] * pitch + c[None, :], mask=inside, other=0.0).to(tl.float32)
    if PIVOT:
        shift = tl.load(pivot + c, mask=c < C, other=0.0).to(tl.float32)
        v = tl.where(inside, v - shift[None, :], 0.0)
    return v


@triton.jit(do_not_specialize=SIZES)
def _outer(
    left, left_pitch, right, right_pitch, pivot, products, sums, count, each, LEFT, RIGHT,
    V: tl.constexpr, SAME: tl.constexpr, EXACT: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """products [parts, LEFT, RIGHT]: left' right of `each` pixels; sums [parts, LEFT] of left.

    With `SAME` both are one map less a pivot, and only the tiles on and above the diagonal are computed.
    """
    part, row, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if SAME and row > column:
        return
    left_pitch, right_pitch = left_pitch // V * V, right_pitch // V * V
    i, j = row * B + tl.arange(0, B), column * B + tl.arange(0, B)
    tile, line = tl.zeros((B, B), tl.float32), tl.zeros((B,), tl.float32)
    last = tl.minimum((part + 1) * each, count)
    for first in range(part * each, last, P):
        p = first + tl.arange(0, P)
        a = _stretch(left, left_pitch, pivot, p, i, last, LEFT // V * V, SAME)
        b = _stretch(right, right_pitch, pivot, p, j, last, RIGHT // V * V, SAME)
        tile = tl.dot(tl.trans(a), b, tile, input_precision="ieee" if EXACT else "tf32")
        line += tl.sum(a, 0)
    at = products + (part.to(tl.int64) * LEFT + i)[:, None] * RIGHT + j[None, :]
    tl.store(at, tile, mask=(i < LEFT)[:, None] & (j < RIGHT)[None, :])
    if column == row if SAME else column == 0:
        tl.store(sums + part * LEFT + i, line, mask=i < LEFT)


@triton.jit
def _total(parts_of, step, at, there, parts, PARTS: tl.constexpr, B: tl.constexpr):
    """The sum of all parts, `step` apart, in float64: it is about to lose digits to a difference."""
    total = tl.zeros((B,), tl.float64)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & there[None, :]
        total += tl.sum(
            tl.load(parts_of + part[:, None] * step + at[None, :], mask=inside, other=0.0).to(tl.float64), 0
        )
    return total


@triton.jit(do_not_specialize=SIZES)
def _finish(products, sums, pivot, mean, cov, count, parts, C, PARTS: tl.constexpr, B: tl.constexpr):
    """Some of row `program_id(0)` of the covariance [C, C] from the tiles above the diagonal, and its mean [C]."""
    i, j = tl.program_id(0), tl.program_id(1) * B + tl.arange(0, B)
    there = j < C
    product = _total(products, C * C, tl.minimum(i, j) * C + tl.maximum(i, j), there, parts, PARTS, B) / count
    of_j = _total(sums, C, j, there, parts, PARTS, B) / count
    of_i = _total(sums, C, i + tl.zeros_like(j), there, parts, PARTS, B) / count
    tl.store(cov + i * C + j, (product - of_i * of_j).to(tl.float32), mask=there)
    if i == 0:
        tl.store(mean + j, (of_j + tl.load(pivot + j, mask=there, other=0.0).to(tl.float64)).to(tl.float32), mask=there)


def _exact(x: Tensor) -> bool:
    """Whether products are of float32 values: not of bfloat16, and TF32 is not allowed."""
    return x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32


def _vector(*maps: Tensor) -> int:
    """How many channels, at most 16 bytes of them, divide the pitches and the channels of all these maps."""
    return math.gcd(16 // maps[0].element_size(), *(x.shape[3] for x in maps), *map(pitch, maps))


def _width(channels: int) -> int:
    return min(64, max(16, triton.next_power_of_2(channels)))


def _warps(side: int) -> int:
    return 4 if side < 64 else 8


def _sums(left: Tensor, right: Tensor, pivot: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Parts [parts, LEFT, RIGHT] of left' right and [parts, LEFT] of left's sums."""
    count, of_left, of_right = left.shape[:3].numel(), left.shape[3], right.shape[3]
    side = _width(max(of_left, of_right))
    tiles = triton.cdiv(of_left, side), triton.cdiv(of_right, side)
    pixels = AREA // side
    # each program writes a matrix: together these stay small beside the maps, which bfloat16 makes smaller
    wide = left.element_size() / 4
    programs = int(wide * min(max(FEWEST, count // (8 * max(of_left, of_right))), MOST))
    each = triton.cdiv(count, max(1, programs // math.prod(tiles)) * pixels) * pixels
    parts = triton.cdiv(count, each)
    new = torch.empty(parts, of_left, of_right + 1, device=left.device).flatten()
    products = new[: parts * of_left * of_right].view(parts, of_left, of_right)
    sums = new[products.numel() :].view(parts, of_left)
    _outer[(parts, *tiles)](
        left, pitch(left), right, pitch(right), left if pivot is None else pivot, products, sums, count, each,
        of_left, of_right, V=_vector(left, right), SAME=pivot is not None, EXACT=pivot is not None or _exact(left),
        P=pixels, B=side, num_warps=_warps(side),
    )  # fmt: skip
    return products, sums


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] of the pixels."""
    c, count = x.shape[3], x.shape[:3].numel()
    pivot = x[0, x.shape[1] // 2, x.shape[2] // 2]  # any pixel is near enough: it keeps sums of squares small
    products, sums = _sums(x, x, pivot)
    mean, cov = torch.empty(c, device=x.device), torch.empty(c, c, device=x.device)
    _finish[(c, triton.cdiv(c, 32))](products, sums, pivot, mean, cov, count, len(sums), c, PARTS=PARTS, B=32)
    return mean, cov


def convolve(x: Tensor, kernel: Tensor, bias: Tensor, relu: bool, out: Tensor | None = None) -> Tensor:
    out = x.new_empty(*x.shape[:3], len(kernel)) if out is None else out
    _launch(x, kernel, bias, None, None, out, relu)
    return out


def reduce(dz: Tensor, z: Tensor | None, x: Tensor) -> Step:
    """Gradients of kernel and bias in parts [parts, O, C] and [parts, O]; `unfold` adds them."""
    if z is not None:
        dz = torch.ops.aten.threshold_backward(dz, z, 0)
    return Step(*_sums(dz, x), dz)


def adjoint(
    step: Step, x: Tensor, kernel: Tensor, S: Tensor, t: Tensor, add: Tensor | None, pooled: Tensor | None
) -> Tensor:
    out = x.new_empty(x.shape)
    _launch(step.dz, kernel.t(), t, x, S, out, False, add, pooled)
    return out


def _launch(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    more: Tensor | None,
    more_kernel: Tensor | None,
    out: Tensor,
    relu: bool,
    add: Tensor | None = None,
    pooled: Tensor | None = None,
) -> None:
    count, outer = x.shape[:3].numel(), len(kernel)
    with_more, by = (x, kernel) if more is None else (more, more_kernel)
    side = _width(outer)
    extra = [out if tensor is None else tensor for tensor in (add, pooled)]
    _apply[(triton.cdiv(count, PIXELS), triton.cdiv(outer, side))](
        x, pitch(x), kernel, *kernel.stride(), bias, with_more, pitch(with_more), by, *by.stride(),
        extra[0], pitch(extra[0]), extra[1], *x.shape[1:3], *window(x), out, pitch(out),
        count, x.shape[3], with_more.shape[3], outer, V=_vector(x, with_more, *extra, out), RELU=relu,
        MORE=more is not None, ADD=add is not None, POOL=pooled is not None, EXACT=_exact(x), P=PIXELS, B=side,
        D=DEPTH, num_warps=_warps(side),
    )  # fmt: skip
