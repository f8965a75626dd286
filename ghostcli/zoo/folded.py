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

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ghostcli.zoo import kernels
from ghostcli.zoo.kernels import sums
from ghostcli.zoo.kernels.algebra import EPS, Branches, Running
from ghostcli.zoo.kernels.pytorch import DENSE

__all__ = ["EPS", "Branches", "Depthwise", "Given", "Normalise", "Running", "Shape", "Step", "Sum"]
__all__ += ["excite", "ghost", "run", "uncompiled", "weigh"]


Given = Sequence[Tensor | None]

CHEAP = (3, 3)  # the window of the second convolution of a ghost module; the first one's is DENSE


@functools.cache
def _disable_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(function)


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.disable` for our own kernels, without its slow import if nothing is compiled.

    The import takes seconds, and only compiled networks need it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        chosen = _disable_compiler(function) if torch.compiler.is_compiling() else function
        return chosen(*args, **kwargs)

    return call


class Shape(NamedTuple):
    """The settings of a sum of branches, without its parameters."""

    window: tuple[int, int] = (1, 1)
    stride: int = 1
    relu: bool = False


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] in any memory format as [N, H, W, C] with regular pixel strides. Copied only if necessary."""
    return _regular(x.permute(0, 2, 3, 1))


def _regular(x: Tensor) -> Tensor:
    return x if kernels.pitch(x) else x.contiguous()


def _images(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """No autocast on the device of `x`. Entering torch's own context takes longer than to ask."""
    device = x.device.type
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


class Sum(NamedTuple):
    """A sum of branches; its parameters are those of `Branches`."""

    shape: Shape
    running: Running

    def forward(self, ops: ModuleType, x: Tensor, parameters: Given) -> tuple[Tensor, Given]:
        z, kept = sums.forward(ops, x, Branches(*parameters), self.running, *self.shape)
        return z, (x, z if self.shape.relu else None, *kept)

    def backward(
        self, ops: ModuleType, dz: Tensor, parameters: Given, kept: Given, needed: bool
    ) -> tuple[Tensor | None, Given]:
        (x, z, *kept), (k, stride, _) = kept, self.shape
        if z is not None and 0 in dz.stride():  # of a mean: the mask makes it a map
            dz, z = torch.ops.aten.threshold_backward(dz, z, 0), None
        return sums.backward(ops, _regular(dz), z, x, Branches(*parameters), kept, k, stride, needed=needed)


class Depthwise(NamedTuple):
    """A depthwise convolution with zeros around and no bias; its parameter is the weight [C, 1, kh, kw]."""

    stride: int

    def forward(self, ops: ModuleType, x: Tensor, parameters: Given) -> tuple[Tensor, Given]:
        [weight] = parameters
        kernel = weight.flatten(1)
        no_bias = kernel.new_zeros(len(kernel))
        return ops.convolve(x, kernel, no_bias, tuple(weight.shape[2:]), self.stride, False), (x,)

    def backward(
        self, ops: ModuleType, dz: Tensor, parameters: Given, kept: Given, needed: bool
    ) -> tuple[Tensor | None, Given]:
        [weight], [x] = parameters, kept
        kernel, window = weight.flatten(1), tuple(weight.shape[2:])
        step = ops.reduce(_regular(dz), None, x, kernel, None, window, self.stride)
        dx = ops.adjoint(step, x, kernel, None, None, window, self.stride) if needed else None
        return dx, (step.dkernel.view_as(weight),)


class Normalise(NamedTuple):
    """Batch norm and, perhaps, ReLU, by the kernels of a CPU; its parameters are gamma and beta."""

    eps: float
    relu: bool
    running: Running

    def forward(self, ops: ModuleType, x: Tensor, parameters: Given) -> tuple[Tensor, Given]:
        x = x.contiguous()
        y, mean, var = ops.normalise(x, *parameters, self.eps, self.relu)
        ops.track(mean, var, sums.count(x, 1), self.running)
        return y, (x, y if self.relu else None, mean, var)

    def backward(
        self, ops: ModuleType, dy: Tensor, parameters: Given, kept: Given, needed: bool
    ) -> tuple[Tensor | None, Given]:
        x, y, mean, var = kept
        dx, *grads = ops.normalise_backward(dy.contiguous(), y, x, parameters[0], self.eps, mean, var)
        return dx, tuple(grads)


Step = Sum | Depthwise | Normalise


class _Steps(torch.autograd.Function):
    """Steps in a row, [N, C, H, W] -> output, as one node of autograd: a node takes time whatever it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: tuple[Step, ...], counts: tuple[int, ...], *parameters: Tensor) -> Tensor:
        x, ops, every, taken = _pixels(x), kernels.of(x), [], iter(parameters)
        for step, count in zip(steps, counts, strict=True):
            x, kept = step.forward(ops, x, tuple(itertools.islice(taken, count)))
            every.append(kept)
        ctx.ops, ctx.steps, ctx.counts, ctx.kept = ops, steps, counts, tuple(map(len, every))
        ctx.save_for_backward(*parameters, *itertools.chain(*every))
        return _images(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        saved, grads, first = ctx.saved_tensors, [], ctx.needs_input_grad[0]
        own_start, kept_start, dz = sum(ctx.counts), len(ctx.saved_tensors), dz.permute(0, 2, 3, 1)
        with _no_autocast(dz):
            for place in reversed(range(len(ctx.steps))):
                own_start, kept_start = own_start - ctx.counts[place], kept_start - ctx.kept[place]
                parameters = saved[own_start : own_start + ctx.counts[place]]
                needed = first or place > 0
                back = ctx.steps[place].backward
                dz, of_step = back(ctx.ops, dz, parameters, saved[kept_start : kept_start + ctx.kept[place]], needed)
                grads = [*of_step, *grads]
        return None if dz is None or not first else _images(dz), None, None, *grads


class _Ghost(torch.autograd.Function):
    """A 1x1 sum, and a depthwise 3x3 sum of its output, both written into one map, + `add` where it is given.

    [N, C, H, W] -> [N, 2 O, H, W], the input itself, and its average pool if `pool`. The gradients of these two are
    added where the input's gradient is written, so who else reads the input takes it from here. Backward needs only
    input and output, or with `add` the first half before the addition.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        add: Tensor | None,
        relu: bool,
        pool: bool,
        running: tuple[Running, Running],
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # who else reads the input may be nobody
        x, primary, cheap = _pixels(x), Branches(*parameters[:8]), Branches(*parameters[8:])
        ops, half = kernels.of(x), primary.weight.shape[1]
        ctx.ops, ctx.relu = ops, relu
        y = x.new_empty(*x.shape[:3], 2 * half if add is None else half)
        z, dense = sums.forward(ops, x, primary, running[0], DENSE, 1, relu, out=y[..., :half])
        added = {"out": y[..., half:]} if add is None else {"add": _pixels(add)}
        out, depthwise = sums.forward(ops, z, cheap, running[1], CHEAP, 1, relu, **added)
        ctx.dense = len(dense)
        ctx.save_for_backward(x, y, *parameters, *dense, *depthwise)
        return _images(y if add is None else out), _images(x), _images(ops.pool(x)) if pool else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dx: Tensor | None, dpool: Tensor | None) -> tuple[Any, ...]:
        x, y, *rest = ctx.saved_tensors
        primary, cheap = Branches(*rest[:8]), Branches(*rest[8:16])
        dense, depthwise = rest[16 : 16 + ctx.dense], rest[16 + ctx.dense :]
        half, ops, dadd, dy = primary.weight.shape[1], ctx.ops, dy, _pixels(dy)
        z, z_cheap = ops.whole(y[..., :half]), y[..., half:] if ctx.relu else None
        more = {"add": None if dx is None else _pixels(dx), "pooled": None if dpool is None else _pixels(dpool)}
        with _no_autocast(x):
            beside, dy = {"add": dy[..., :half], "mask": ctx.relu}, dy[..., half:]
            dz, grads_cheap = sums.backward(ops, dy, z_cheap, z, cheap, depthwise, CHEAP, 1, **beside)
            needed = ctx.needs_input_grad[0]
            dx, grads_primary = sums.backward(ops, dz, None, x, primary, dense, DENSE, 1, needed=needed, **more)
        dx = _images(dx) if needed else None
        return dx, dadd if ctx.needs_input_grad[1] else None, None, None, None, *grads_primary, *grads_cheap


class _Weigh(torch.autograd.Function):
    """[N, C, H, W] times an opened gate [N, C, h, w], enlarged to the nearest pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        x, ops = _pixels(x), kernels.of(x)
        gate = ops.opened(gate.permute(0, 2, 3, 1).contiguous())
        ctx.save_for_backward(x, gate)
        return _images(ops.weigh(x, gate, None))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        dx, dgate = kernels.of(x).weigh_backward(_pixels(dout), x, gate, None, None)
        return _images(dx), _images(dgate)


class _Excited:
    """What the two steps of a squeeze-excite share: the first one's gradient needs the second one's."""

    gate: Tensor | None = None
    dout: Tensor | None = None
    scale: Tensor | None = None


class _Total(torch.autograd.Function):
    """The sums [N, C] of [N, C, H, W] times its gate. Its backward pass gives the input's gradient for both steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor | None, both: _Excited) -> Tensor:
        x, ops = _pixels(x), kernels.of(x)
        both.gate = None if gate is None else ops.opened(gate.permute(0, 2, 3, 1).contiguous())
        ctx.both = both
        ctx.save_for_backward(x, both.gate)
        return ops.total(x, both.gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (x, gate), both = ctx.saved_tensors, ctx.both
        dx, dgate = kernels.of(x).weigh_backward(both.dout, x, gate, both.scale, dtotal.contiguous())
        both.dout = both.scale = None
        return _images(dx), None if dgate is None else _images(dgate), None


class _Scale(torch.autograd.Function):
    """[N, C, H, W] times its gate times `scale` [N, C]. Only the scale gets its gradient here."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, x: Tensor, both: _Excited) -> Tensor:
        x, ctx.both = _pixels(x), both
        gate, both.gate = both.gate, None
        ctx.save_for_backward(x, gate, scale)
        return _images(kernels.of(x).weigh(x, gate, scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        (x, gate, scale), both = ctx.saved_tensors, ctx.both
        both.dout, both.scale = _pixels(dout), scale
        return kernels.of(x).total(x, gate, both.dout).to(scale.dtype), None, None


def _apply(function: type[torch.autograd.Function], x: Tensor, *arguments: Any) -> Tensor:
    """The result for `x`, under autocast for `x` in its precision."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with _no_autocast(x):
        return function.apply(x, *arguments)


def run(x: Tensor, steps: Sequence[tuple[Step, Given]]) -> Tensor:
    """The output of `steps`, each with its parameters, one after the other, of `x` [N, C, H, W] in training.

    It is in channels_last. Running statistics follow, with the unbiased variance as batch norm has it. Under autocast
    the output has its precision; moments stay float32. ValueError if there is one value per channel.
    """
    values, parameters = zip(*steps, strict=True)
    return _apply(_Steps, x, values, tuple(map(len, parameters)), *itertools.chain(*parameters))


def ghost(
    x: Tensor,
    primary: Branches,
    cheap: Branches,
    relu: bool,
    running: tuple[Running, Running],
    *,
    pool: bool = False,
    add: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sum `primary` (1x1), then of its output the sum `cheap` (depthwise 3x3).

    Returns both outputs side by side [N, 2 O, H, W] without a copy, + `add` (not with `relu`); then `x`, for others
    that read it, and its average over 2 x 2 pixels if `pool`.
    """
    return _apply(_Ghost, x, add, relu, pool, running, *primary, *cheap)


def weigh(x: Tensor, gate: Tensor) -> Tensor:
    """`x` [N, C, H, W] times the sigmoid of `gate` [N, C, h, w], enlarged to the nearest pixel, in channels_last."""
    return _Weigh.apply(x, gate.to(x.dtype))


def excite(x: Tensor, gate: Tensor | None, scale_of: Callable[[Tensor], Tensor]) -> Tensor:
    """`weigh`, if there is a gate, then times `scale_of` the means [N, C] over its pixels, in channels_last."""
    both = _Excited()
    total = _Total.apply(x, None if gate is None else gate.to(x.dtype), both)
    scale = scale_of((total / (x.shape[2] * x.shape[3])).to(x.dtype))
    return _Scale.apply(scale.to(x.dtype), x.detach(), both)
