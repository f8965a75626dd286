"""Triton kernels for gates and squeeze-excite on a GPU: a map times a coarser gate and times a scale for each channel.

Invariant: it agrees with `pytorch` on every operation, but for `opened`: a gate stays as logits here, and a kernel
takes the sigmoid where it reads one. Each pixel of a gate covers a tile of `tall` x `wide` pixels; other gates are left
to PyTorch. A thread has one channel and goes over some pixels, so a result depends on the shape only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghostcli.zoo.kernels import pytorch
from ghostcli.zoo.kernels.pytorch import pitch

__all__ = ["opened", "total", "weigh", "weigh_backward"]

LARGEST = 16  # pixels of a tile that a thread of the gradient goes over; a larger tile is left to PyTorch's pooling
WARPS = 8
#: Not specialised: a kernel is compiled for each precision, width and flag, but not for each size.
SIZES = ["pitch", "by_pitch", "dout_pitch", "H", "W", "C", "tall", "wide", "count"]


@triton.jit
def _gate_sigmoid(gate, n, i, j, c, there, H, W, C, tall, wide):
    """The sigmoid of the gate over the pixels (n, i, j)."""
    at = (n.to(tl.int64) * (H // tall) + i // tall) * (W // wide) + j // wide
    return tl.sigmoid(tl.load(gate + at[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32))


@triton.jit(do_not_specialize=SIZES)
def _weigh(
    x, pitch, gate, scale, out, H, W, C, tall, wide, count,
    GATE: tl.constexpr, SCALE: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    p, c = tl.program_id(0) * P + tl.arange(0, P), tl.program_id(1) * B + tl.arange(0, B)
    there, n = (p < count)[:, None] & (c < C)[None, :], p // (H * W)
    value = tl.load(x + p.to(tl.int64)[:, None] * pitch + c[None, :], mask=there, other=0.0).to(tl.float32)
    if GATE:
        value *= _gate_sigmoid(gate, n, p // W % H, p % W, c, there, H, W, C, tall, wide)
    if SCALE:
        value *= tl.load(scale + n[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
    tl.store(out + p.to(tl.int64)[:, None] * C + c[None, :], value.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=SIZES)
def _total(
    x, pitch, gate, by, by_pitch, out, H, W, C, tall, wide,
    GATE: tl.constexpr, BY: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Some channels of image `program_id(0)`."""
    n, c = tl.program_id(0), tl.program_id(1) * B + tl.arange(0, B)
    sums = tl.zeros((P, B), tl.float32)
    for first in range(0, H * W, P):
        q = first + tl.arange(0, P)
        there, pixel = (q < H * W)[:, None] & (c < C)[None, :], n.to(tl.int64) * H * W + q
        value = tl.load(x + pixel[:, None] * pitch + c[None, :], mask=there, other=0.0).to(tl.float32)
        if GATE:
            value *= _gate_sigmoid(gate, n + tl.zeros_like(q), q // W, q % W, c, there, H, W, C, tall, wide)
        if BY:
            value *= tl.load(by + pixel[:, None] * by_pitch + c[None, :], mask=there, other=0.0).to(tl.float32)
        sums += value
    tl.store(out + n * C + c, tl.sum(sums, 0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def _weigh_backward(
    dout, dout_pitch, x, pitch, gate, scale, dtotal, dx, dgate, H, W, C, tall, wide, count,
    GATE: tl.constexpr, SCALE: tl.constexpr, TOTAL: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """`count` tiles. With d = dout scale + dtotal: dx = d gate, and the logits' gradient from the tile's sum of d x."""
    g, c = tl.program_id(0) * P + tl.arange(0, P), tl.program_id(1) * B + tl.arange(0, B)
    there, h, w = (g < count)[:, None] & (c < C)[None, :], H // tall, W // wide
    n, i, j = g // (h * w), g // w % h, g % w
    at, of_image = g.to(tl.int64)[:, None] * C + c[None, :], n[:, None] * C + c[None, :]
    weight, factor, more = tl.full((P, B), 1.0, tl.float32), tl.full((P, B), 1.0, tl.float32), 0.0
    if GATE:
        weight = tl.sigmoid(tl.load(gate + at, mask=there, other=0.0).to(tl.float32))
    if SCALE:
        factor = tl.load(scale + of_image, mask=there, other=0.0).to(tl.float32)
    if TOTAL:
        more = tl.load(dtotal + of_image, mask=there, other=0.0).to(tl.float32)
    sums = tl.zeros((P, B), tl.float32)
    for tile in range(tall * wide):
        pixel = ((n.to(tl.int64) * H + i * tall + tile // wide) * W + j * wide + tile % wide)[:, None]
        d = tl.load(dout + pixel * dout_pitch + c[None, :], mask=there, other=0.0).to(tl.float32) * factor + more
        if GATE:
            sums += d * tl.load(x + pixel * pitch + c[None, :], mask=there, other=0.0).to(tl.float32)
        tl.store(dx + pixel * C + c[None, :], (d * weight).to(dx.dtype.element_ty), mask=there)
    if GATE:
        tl.store(dgate + at, (sums * weight * (1.0 - weight)).to(dgate.dtype.element_ty), mask=there)


def opened(gate: Tensor) -> Tensor:
    return gate


def _tile(x: Tensor, gate: Tensor | None) -> tuple[int, int] | None:
    """The sides of the tile that a pixel of the gate covers; (1, 1) without a gate, None if tiles are not equal."""
    if gate is None:
        return 1, 1
    (h, w), (coarse_h, coarse_w) = x.shape[1:3], gate.shape[1:3]
    return (h // coarse_h, w // coarse_w) if h % coarse_h == 0 and w % coarse_w == 0 else None


def _block(channels: int) -> dict[str, int]:
    width = min((32, 16, 8), key=lambda b: -(-channels // b) * b)  # the fewest threads without a channel
    return {"P": 32 * WARPS // width, "B": width, "num_warps": WARPS}


def _plain(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else pytorch.opened(gate)


def total(x: Tensor, gate: Tensor | None, by: Tensor | None = None) -> Tensor:
    tile = _tile(x, gate)
    if tile is None:
        return pytorch.total(x, _plain(gate), by)
    n, c, block = x.shape[0], x.shape[3], _block(x.shape[3])
    out = torch.empty(n, c, device=x.device)
    maps = (x, pitch(x), x if gate is None else gate, x if by is None else by, pitch(x if by is None else by))
    _total[(n, triton.cdiv(c, block["B"]))](
        *maps, out, *x.shape[1:], *tile, GATE=gate is not None, BY=by is not None, **block
    )
    return out


def weigh(x: Tensor, gate: Tensor | None, scale: Tensor | None) -> Tensor:
    tile = _tile(x, gate)
    if tile is None:
        return pytorch.weigh(x, _plain(gate), scale)
    out, count, block = x.new_empty(x.shape), x.shape[:3].numel(), _block(x.shape[3])
    factors = (x if gate is None else gate, x if scale is None else scale.contiguous())
    _weigh[(triton.cdiv(count, block["P"]), triton.cdiv(x.shape[3], block["B"]))](
        x, pitch(x), *factors, out, *x.shape[1:], *tile, count, GATE=gate is not None, SCALE=scale is not None, **block
    )
    return out


def weigh_backward(
    dout: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    tile = _tile(x, gate)
    if tile is None or tile[0] * tile[1] > LARGEST:
        return pytorch.weigh_backward(dout, x, _plain(gate), scale, dtotal)
    dx, dgate, block = x.new_empty(x.shape), None if gate is None else gate.new_empty(gate.shape), _block(x.shape[3])
    count = x.shape[0] * (x.shape[1] // tile[0]) * (x.shape[2] // tile[1])
    factors = (x if rows is None else rows.contiguous() for rows in (gate, scale, dtotal))
    _weigh_backward[(triton.cdiv(count, block["P"]), triton.cdiv(x.shape[3], block["B"]))](
        dout, pitch(dout), x, pitch(x), *factors, dx, dx if dgate is None else dgate, *x.shape[1:], *tile, count,
        GATE=gate is not None, SCALE=scale is not None, TOTAL=dtotal is not None, **block,
    )  # fmt: skip
    return dx, dgate
