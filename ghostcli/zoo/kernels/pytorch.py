"""The operations of folded training in plain PyTorch: any device, any precision, no compiler.

Invariant: every other implementation must agree with this one. Pixels are [N, H, W, C]. A window `k` of (1, 1)
means a dense 1x1 with kernel [O, C]. Any other window (odd height and width) means a depthwise convolution with kernel
[C, T], T = height x width, and zeros around.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghostcli.zoo.kernels.algebra import fold, track, unfold

__all__ = ["adjoint", "beside", "convolve", "fold", "moments", "opened", "reduce"]
__all__ += ["total", "track", "unfold", "weigh", "weigh_backward", "whole"]

NAME = "pytorch"
DENSE = (1, 1)

Window = tuple[int, int]


class Step(NamedTuple):
    """The result of `reduce`, which `adjoint` needs."""

    dkernel: Tensor
    dbias: Tensor
    dz: Tensor
    z: Tensor | None = None  # mask for `dz`, if it is not masked yet
    dx: Tensor | None = None  # the input gradient of the convolution, if it is computed already


def pitch(x: Tensor) -> int:
    """Elements from one pixel of [N, H, W, C] to the next; 0 if the stride between pixels is not constant."""
    n, h, w, c = x.shape
    sn, sh, sw, sc = x.stride()
    step = sw if w > 1 else sh if h > 1 else sn if n > 1 else c
    regular = (c == 1 or sc == 1) and step >= c
    regular = regular and (h == 1 or sh == w * step) and (n == 1 or sn == h * w * step)
    return step if regular else 0


def precision(x: Tensor) -> torch.dtype:
    """The precision of moments and folding."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def moments(x: Tensor, k: Window, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the patches: [C] and [C, C] for a dense window, else [C, T] and [C, T, T]."""
    if k == DENSE:
        return _pointwise_moments(x)
    return _lag_moments(x) if k == (3, 3) and stride == 1 else _patch_moments(x, k, stride)


def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor, k: Window, stride: int, relu: bool, out: Tensor | None = None
) -> Tensor:
    """[N, H', W', O] in the precision of `x`. If `out` (a slice of a wider map) is given, it is written there too."""
    kernel, bias = kernel.to(x.dtype), bias.to(x.dtype)
    groups = 1 if k == DENSE else x.shape[3]
    z = F.conv2d(_images(x), _weight(kernel, k), bias, stride, _padding(k), 1, groups)
    z = _pixels(z)
    z = z.relu_() if relu else z
    if out is not None:
        out.copy_(z)
    return z


def beside(x: Tensor, kernel: Tensor, bias: Tensor, add: Tensor) -> Tensor:
    """[x, its depthwise 3 x 3 convolution] + add: [N, H, W, C] -> [N, H, W, 2 C], the shape of `add`."""
    return torch.cat([x, convolve(x, kernel, bias, (3, 3), 1, False)], 3).add_(add)


def whole(x: Tensor) -> Tensor:
    """A contiguous copy of a channel slice, because several operations read it."""
    return x.contiguous()


def reduce(
    dz: Tensor, z: Tensor | None, x: Tensor, kernel: Tensor, bias: Tensor | None, k: Window, stride: int
) -> Step:
    """Gradients of kernel and bias. `z`: the output whose ReLU masks `dz`; None without ReLU.

    `bias` is there for those who find the mask faster by computing it again.
    """
    if z is not None:
        dz = torch.ops.aten.threshold_backward(dz, z, 0)
    if k == DENSE:
        flat = dz.flatten(0, 2).to(kernel.dtype)
        return Step(flat.t() @ x.flatten(0, 2).to(kernel.dtype), flat.sum(0), dz)
    dx, dkernel, dbias = torch.ops.aten.convolution_backward(
        _images(dz), _images(x), _weight(kernel.to(x.dtype), k), [x.shape[3]], [stride] * 2, _padding(k), [1, 1],
        False, [0, 0], x.shape[3], [True, True, True],
    )  # fmt: skip
    return Step(dkernel.flatten(1).to(kernel.dtype), dbias.to(kernel.dtype), dz, dx=_pixels(dx))


def adjoint(
    step: Step,
    x: Tensor,
    kernel: Tensor,
    S: Tensor | None,
    t: Tensor | None,
    k: Window,
    stride: int,
    add: Tensor | None = None,
    mask: bool = False,
    pooled: Tensor | None = None,
) -> Tensor:
    """Input gradient: that of the convolution, plus S patch + t of every patch, added at the patch's position.

    Without S and t (of a depthwise window only) it is that of the convolution alone. Then `add` is added, and the
    gradient of the average pool of `x` (see `pool`) whose output has the gradient `pooled`. With `mask` the gradient is
    kept only where `x`, the output of a ReLU, is positive.
    """
    if k == DENSE:
        dx = _pixels(F.conv2d(_images(x), _weight(S.t().to(x.dtype), DENSE), t.to(x.dtype)))
        dx.view(-1, x.shape[3]).addmm_(step.dz.flatten(0, 2), kernel.to(x.dtype))
    elif S is None:
        dx = step.dx
    elif k == (3, 3) and stride == 1:
        dx = _add_lag_adjoint(step.dx, x, S, t)
    else:
        dx = _add_patch_adjoint(step.dx, x, S, t, k, stride)
    dx = dx if add is None else dx.add_(add)
    if pooled is not None:
        size = window(x)
        even = F.interpolate(_images(pooled), scale_factor=[float(side) for side in size], mode="nearest")
        odd = [side - other for side, other in zip(x.shape[1:3], even.shape[2:], strict=True)]  # not pooled: 0 or 1
        dx = dx.add_(_pixels(F.pad(even, (0, odd[1], 0, odd[0]))), alpha=1 / math.prod(size))
    return torch.ops.aten.threshold_backward.grad_input(dx, x, 0, grad_input=dx) if mask else dx


def window(x: Tensor) -> tuple[int, int]:
    """The window of `pool` for pixels [N, H, W, C]: 2 x 2, but a side of one pixel is not pooled."""
    return min(2, x.shape[1]), min(2, x.shape[2])


def pool(x: Tensor) -> Tensor:
    """The average of each window of pixels; an odd last row or column is left out."""
    return _pixels(F.avg_pool2d(_images(x), window(x)))


def opened(gate: Tensor) -> Tensor:
    """A gate's logits [N, h, w, C] in the form that `total`, `weigh` and `weigh_backward` take: here their sigmoid."""
    return torch.sigmoid(gate)


def total(x: Tensor, gate: Tensor | None, by: Tensor | None = None) -> Tensor:
    """[N, C], moments' precision: the sum of x gate over the pixels of an image, or of x gate by.

    `x` and `by` are pixels [N, H, W, C]. The opened `gate` [N, h, w, C] is enlarged to the nearest pixel.
    """
    gated = x if gate is None else _gate(x, gate)
    return (gated if by is None else gated * by).sum((1, 2), dtype=precision(x))


def weigh(x: Tensor, gate: Tensor | None, scale: Tensor | None) -> Tensor:
    """x gate scale: pixels [N, H, W, C], an opened gate [N, h, w, C] as in `total`, a scale [N, C]."""
    out = x if gate is None else _gate(x, gate)
    return out if scale is None else out * scale[:, None, None]


def weigh_backward(
    dout: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, dtotal: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of pixels and of the gate's logits, given those of `weigh` (`dout`) and of `total` ([N, C])."""
    d = dout if scale is None else dout * scale[:, None, None]
    d = d if dtotal is None else d + dtotal[:, None, None].to(d.dtype)
    if gate is None:
        return d, None
    dgate = _sum_under_gate(d * x, gate)
    return _gate(d, gate), torch.ops.aten.sigmoid_backward(dgate, gate)


def _tiles(x: Tensor, gate: Tensor) -> bool:
    return x.shape[1] % gate.shape[1] == 0 and x.shape[2] % gate.shape[2] == 0


def _gate(x: Tensor, gate: Tensor) -> Tensor:
    """x times the gate, enlarged to the nearest pixel."""
    if not _tiles(x, gate):
        return _pixels(F.interpolate(_images(gate), x.shape[1:3], mode="nearest")).mul_(x)
    tiled = x.unflatten(2, (gate.shape[2], -1)).unflatten(1, (gate.shape[1], -1))  # [N, h, H / h, w, W / w, C]
    return (tiled * gate[:, :, None, :, None]).view(x.shape)


def _sum_under_gate(x: Tensor, gate: Tensor) -> Tensor:
    """The sums of `x` over the pixels that each pixel of the gate covers."""
    n, h, w, c = gate.shape
    if not _tiles(x, gate):
        return _pixels(torch.ops.aten.upsample_nearest2d_backward(_images(x), x.shape[1:3], [n, c, h, w]))
    # pooling sums over tiles many times as fast as sum() over two axes that are not adjacent
    return _pixels(F.avg_pool2d(_images(x), (x.shape[1] // h, x.shape[2] // w), divisor_override=1))


def _weight(kernel: Tensor, k: Window) -> Tensor:
    return kernel.view(*kernel.shape, 1, 1) if k == DENSE else kernel.view(-1, 1, *k)


def _padding(k: Window) -> list[int]:
    return [taps // 2 for taps in k]


def _images(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _pointwise_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    flat, dtype = x.flatten(0, 2), precision(x)
    mean = flat.mean(0, dtype=dtype)
    cov = mean.new_empty(len(mean), len(mean))
    size = 1 + (1 << 18) // len(mean) if x.is_cpu else len(flat)  # to stay within a core's cache
    for i, rows in enumerate(flat.split(size)):
        centred = rows - mean
        cov.addmm_(centred.t(), centred, beta=float(i > 0), alpha=1 / len(flat))
    return mean, cov


# ---- any stride: the patches themselves, a few images at a time -------------------------------------------------


def _patches(x: Tensor, k: Window, stride: int, pivot: Tensor | None = None) -> Tensor:
    """[C, T, patches] of a few images, less `pivot` [C], in the moments' precision."""
    above, left = _padding(k)
    x = F.pad(x.to(precision(x)), (0, 0, left, left, above, above))
    x = x if pivot is None else x - pivot
    return x.unfold(1, k[0], stride).unfold(2, k[1], stride).permute(3, 4, 5, 0, 1, 2).flatten(3).flatten(1, 2)


def _chunks(x: Tensor, k: Window) -> tuple[Tensor, ...]:
    return x.split(max(1, (1 << 22) // (math.prod(k) * x[0].numel())))


def _patch_moments(x: Tensor, k: Window, stride: int) -> tuple[Tensor, Tensor]:
    pivot = x.mean((0, 1, 2), dtype=precision(x))
    total = product = count = 0
    for chunk in _chunks(x, k):
        p = _patches(chunk, k, stride, pivot)
        total, product, count = total + p.sum(2), product + p @ p.transpose(1, 2), count + p.shape[2]
    mean = total / count
    return mean + pivot[:, None], product / count - mean[:, :, None] * mean[:, None]


def _add_patch_adjoint(dx: Tensor, x: Tensor, S: Tensor, t: Tensor, k: Window, stride: int) -> Tensor:
    for chunk, out in zip(_chunks(x, k), _chunks(dx, k), strict=True):
        n, h, w, c = chunk.shape
        gradient = torch.baddbmm(t[..., None], S, _patches(chunk, k, stride))  # [C, T, patches]
        columns = gradient.view(c * math.prod(k), n, -1).transpose(0, 1)
        out += F.fold(columns, (h, w), k, 1, _padding(k), stride).permute(0, 2, 3, 1).to(out.dtype)
    return dx


# ---- stride 1, 3 x 3: patches overlap so much that lagged products of the map say everything --------------------
# Taps k and l of a patch meet wherever two pixels lie l - k apart, but tap +1 never sees the first row (column), tap
# -1 never the last: the edges' own lagged products are taken off, the corners' put back.

#: (row, column, the tap that sees neither the row nor the column) of the four corners of a map.
CORNERS = ((0, 0, 8), (0, -1, 6), (-1, 0, 2), (-1, -1, 0))


@functools.lru_cache(maxsize=64)
def _tap_tables(device: torch.device) -> dict[str, Tensor]:
    """Index and coefficient tables between pairs of taps [9, 9] and lags."""
    tap = torch.arange(3, device=device) - 1
    ky, kx = tap.repeat_interleave(3), tap.repeat(3)
    dy, dx = ky - ky[:, None], kx - kx[:, None]
    same_y, same_x = ky == ky[:, None], kx == kx[:, None]
    return {
        "lag": (dy + 2) * 5 + dx + 2,
        "forward lag": torch.where(dy < 0, -5 * dy - dx, 5 * dy + dx) + 2,  # a lag and its opposite are one product
        "dy": dy + 2,
        "dx": dx + 2,
        "top": same_y & (ky == 1),
        "bottom": same_y & (ky == -1),
        "left": same_x & (kx == 1),
        "right": same_x & (kx == -1),
    }


@functools.lru_cache(maxsize=256)
def _sees(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[3, 3, side]: whether tap l holds position q while tap k of the same patch lies inside too."""
    q, tap = torch.arange(side, device=device), torch.arange(3, device=device) - 1
    centre = q - tap[:, None]  # [l, q]
    other = centre + tap[:, None, None]  # [k, l, q]
    inside = (centre >= 0) & (centre < side) & (other >= 0) & (other < side)
    return inside.to(dtype)


def _lag_products(x: Tensor, other: Tensor, kernel: tuple[int, int], padding: list[int] | None = None) -> Tensor:
    """[C, lags]: sums of x(q) other(q + d), zero outside: a depthwise kernel's gradient is just that."""
    c = x.shape[3]
    weight = x.new_empty(c, 1, *kernel)
    padding = padding or [kernel[0] // 2, kernel[1] // 2]
    _, products, _ = torch.ops.aten.convolution_backward(
        _images(x), _images(other), weight, None, [1, 1], padding, [1, 1], False, [0, 0], c, [False, True, False]
    )
    return products.flatten(1)


def _lag_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    n, h, w, c = x.shape
    dtype, tables = precision(x), _tap_tables(x.device)
    pivot = x.mean((0, 1, 2), dtype=dtype)
    y = x - pivot
    below = F.pad(y, (0, 0, 0, 0, 0, 2))
    product = _lag_products(y, below, (3, 5), [0, 2])[:, tables["forward lag"]]  # [C, 9, 9]
    for name, edge in (("top", y[:, :1]), ("bottom", y[:, -1:]), ("left", y[:, :, :1]), ("right", y[:, :, -1:])):
        across = name in ("top", "bottom")
        edge = edge.contiguous()
        lags = _lag_products(edge, edge, (1, 5) if across else (5, 1))
        product = product - lags[:, tables["dx" if across else "dy"]] * tables[name]
    corners = y[:, :: max(h - 1, 1), :: max(w - 1, 1)].square().sum(0)  # [1|2, 1|2, C]
    for i, j, tap in CORNERS:
        product[:, tap, tap] += corners[i, j]
    # with x = pivot + y inside and 0 outside: how often a tap is inside, and y's sum over a tap while another is
    rows, columns = _sees(h, dtype, x.device), _sees(w, dtype, x.device)
    seen = torch.einsum("klh,mnw,hwc->ckmln", rows, columns, y.sum(0)).reshape(c, 9, 9) / (n * h * w)
    inside = torch.einsum("kl,mn->kmln", rows.sum(2), columns.sum(2)).reshape(9, 9) / (h * w)
    mean, share = seen[:, 4], inside[4]  # the middle tap is always inside
    cross = seen - share[:, None] * mean[:, None]
    pivot = pivot[:, None]
    cov = product / (n * h * w) - mean[:, :, None] * mean[:, None]
    cov += pivot[..., None] * (cross + cross.transpose(1, 2))
    cov += pivot.square()[..., None] * (inside - share[:, None] * share)
    return mean + pivot * share, cov


def _add_lag_adjoint(dx: Tensor, x: Tensor, S: Tensor, t: Tensor) -> Tensor:
    _, h, w, c = x.shape
    tables = _tap_tables(x.device)

    def lags(pairs: Tensor, index: Tensor, count: int) -> Tensor:
        return pairs.new_zeros(c, count).index_add_(1, index.flatten(), pairs.flatten(1)).to(x.dtype)

    def correlate(pixels: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
        padding = (size[0] // 2, size[1] // 2)
        return F.conv2d(_images(pixels), kernel.view(c, 1, *size), None, 1, padding, 1, c).permute(0, 2, 3, 1)

    dx += correlate(x, lags(S, tables["lag"], 25), (5, 5))
    for name, edge in (("top", 0), ("bottom", h - 1)):
        part = x[:, edge : edge + 1]
        dx[:, edge : edge + 1] -= correlate(part, lags(S * tables[name], tables["dx"], 5), (1, 5))
    for name, edge in (("left", 0), ("right", w - 1)):
        part = x[:, :, edge : edge + 1]
        dx[:, :, edge : edge + 1] -= correlate(part, lags(S * tables[name], tables["dy"], 5), (5, 1))
    for i, j, tap in CORNERS:
        dx[:, i, j] += x[:, i, j] * S[:, tap, tap].to(x.dtype)
    rows, columns = _sees(h, t.dtype, x.device)[1], _sees(w, t.dtype, x.device)[1]
    dx += torch.einsum("lh,nw,cln->hwc", rows, columns, t.view(c, 3, 3)).to(x.dtype)
    return dx
