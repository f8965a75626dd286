"""A re-parameterizable sum of parallel convolution + batch norm branches, with stacked parameters.

Invariant: a `RepConv` computes the same function in every mode. The mode only selects the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.zoo import folded, kernels

Mode = Literal["plain", "folded"]

EPS = folded.EPS
MOMENTUM = 0.1


class Chain(nn.Sequential):
    """Convolutions, batch norms and ReLUs in a row.

    In training in mode "folded" the compiled kernels, where there are some, compute a 1x1 convolution, its batch norm
    and its ReLU as one. Those on a GPU compute a depthwise convolution likewise, those on a CPU compute it alone, and
    other batch norms with their ReLU.
    """

    mode: Mode = "plain"

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.mode == "folded" and kernels.of(x).NAME != "pytorch":
            return self.folded(x)
        return super().forward(x)

    @folded.uncompiled
    def folded(self, x: Tensor) -> Tensor:
        """The output of `forward` by the compiled kernels. What lies between other modules is one node of autograd."""
        ops, left, together = kernels.of(x), list(self), []
        while left:
            module, *after = left
            step, left = _step(module, after, ops, x)
            if step is not None:
                together.append(step)
                continue
            x = module(folded.run(x, together) if together else x)
            together = []
        return folded.run(x, together) if together else x


def _step(
    module: nn.Module, after: list[nn.Module], ops: ModuleType, x: Tensor
) -> tuple[tuple[folded.Step, folded.Given] | None, list[nn.Module]]:
    """The step of folded.py that begins with `module`, with its parameters, or None; and the modules that are left."""
    on_cpu = ops.NAME == "c++"
    if on_cpu and (torch.is_autocast_enabled("cpu") or getattr(module, "weight", x).dtype != x.dtype):
        return None, after
    if on_cpu and isinstance(module, nn.BatchNorm2d):
        relu, after = _relu_of(after)
        return (folded.Normalise(module.eps, relu, _running(module)), (module.weight, module.bias)), after
    conv = isinstance(module, nn.Conv2d) and module.bias is None
    if on_cpu and conv and _depthwise(module, ops.WINDOWS):
        return (folded.Depthwise(module.stride[0]), (module.weight,)), after
    if not (conv and after and (_pointwise(module) or _depthwise(module, ops.WINDOWS))):
        return None, after
    norm, *after = after
    relu, after = _relu_of(after)
    one = folded.Branches(module.weight[None], norm.weight[None], norm.bias[None])
    return (folded.Sum(folded.Shape(module.kernel_size, module.stride[0], relu), _running(norm)), one), after


def _relu_of(left: list[nn.Module]) -> tuple[bool, list[nn.Module]]:
    """Whether the next module is a ReLU, and the modules after it."""
    relu = bool(left) and isinstance(left[0], nn.ReLU)
    return relu, left[relu:]


def _pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.groups == 1


def _depthwise(conv: nn.Conv2d, windows: tuple[tuple[int, int], ...]) -> bool:
    """Whether it is a depthwise convolution of one of these windows."""
    known = conv.kernel_size in windows and conv.stride in ((1, 1), (2, 2))
    return known and conv.groups == conv.in_channels == conv.out_channels


def _running(norm: nn.BatchNorm2d) -> folded.Running:
    return folded.Running(((norm.running_mean, norm.running_var),), norm.momentum, norm.num_batches_tracked)


class RepConv(nn.Module):
    """Sum of `branches` parallel conv + BN (1x1 dense, or k x k depthwise), then ReLU if `relu`.

    Two more terms: a 1x1 depthwise conv + BN (`scale`) if kernel > 1, and a BN of the input (`identity`) if input and
    output have the same shape. Input [N, I, H, W], output [N, O, ceil(H/s), ceil(W/s)].

    `weight` is [B, O, I/groups, k, k]; `gamma`, `beta`, `running_mean`, `running_var` are [B, O], and [O] for
    scale and identity. The state dict has one entry per branch and tensor: `branches.J.conv.weight`,
    `branches.J.bn.weight`, `scale.conv.weight`, `identity.bias` and so on.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        relu: bool = True,
        branches: int = 3,
        mode: Mode = "plain",
    ) -> None:
        super().__init__()
        if kernel_size > 1 and in_channels != out_channels:
            raise ValueError(f"a depthwise RepConv keeps its channels: {in_channels} in, {out_channels} out")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, kernel_size // 2
        self.groups = in_channels if kernel_size > 1 else 1
        self.branches, self.relu, self.mode = branches, relu, mode
        self.has_scale = kernel_size > 1
        self.has_identity = in_channels == out_channels and stride == 1
        #: What the names of each norm's tensors begin with, in the order of `folded.Branches`.
        self.prefixes = ("", *["scale_"] * self.has_scale, *["identity_"] * self.has_identity)

        shape = (branches, out_channels, in_channels // self.groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self._norm("", (branches, out_channels))
        if self.has_scale:
            self.scale_weight = nn.Parameter(torch.empty(out_channels))
            self._norm("scale_", (out_channels,))
        if self.has_identity:
            self._norm("identity_", (out_channels,))
        self.reset_parameters()

    def _norm(self, prefix: str, shape: tuple[int, ...]) -> None:
        self.register_parameter(prefix + "gamma", nn.Parameter(torch.ones(shape)))
        self.register_parameter(prefix + "beta", nn.Parameter(torch.zeros(shape)))
        self.register_buffer(prefix + "running_mean", torch.zeros(shape))
        self.register_buffer(prefix + "running_var", torch.ones(shape))

    def reset_parameters(self) -> None:
        """torch's default initialisation of a Conv2d, for each branch separately."""
        for kernel in self.kernels():
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    def reset_norms(self) -> None:
        """Reset every batch norm: gain 1, shift 0, running mean 0 and variance 1."""
        for prefix in self.prefixes:
            for tensor, value in zip(self._norm_of(prefix), (1.0, 0.0, 0.0, 1.0), strict=True):
                nn.init.constant_(tensor, value)

    def kernels(self) -> Iterator[Tensor]:
        """The convolution weight [O, I/groups, k, k] of each branch as a view; the scale branch is last."""
        yield from self.weight.detach()
        if self.has_scale:
            yield self.scale_weight.detach().view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "plain":
            y = self.plain(x)
        elif self.training:
            return self.folded(x)
        else:
            y = F.conv2d(x, *self.fold(), self.stride, self.padding, 1, self.groups)
        return F.relu(y, inplace=True) if self.relu else y

    @folded.uncompiled
    def folded(self, x: Tensor) -> Tensor:
        """The output of `plain` in training, with ReLU, computed by one convolution; see folded.py."""
        return folded.run(x, [(folded.Sum(self.shape, self.running()), self.stacked())])

    @property
    def shape(self) -> folded.Shape:
        return folded.Shape((self.kernel_size, self.kernel_size), self.stride, self.relu)

    def stacked(self) -> folded.Branches:
        return folded.Branches(*(getattr(self, name, None) for name in folded.Branches._fields))

    def running(self) -> folded.Running:
        """The running statistics, in the order of `folded.Branches`."""
        return folded.Running(tuple(self._norm_of(prefix)[2:] for prefix in self.prefixes), MOMENTUM)

    def plain(self, x: Tensor) -> Tensor:
        """The reference: the sum of the branches before the ReLU, each branch computed separately."""
        y = self._normalise(x, "identity_") if self.has_identity else None
        for j in range(self.branches):
            z = F.conv2d(x, self.weight[j], None, self.stride, self.padding, 1, self.groups)
            z = self._normalise(z, "", j)
            y = z if y is None else y + z
        if self.has_scale:
            z = F.conv2d(x, self.scale_weight.view(-1, 1, 1, 1), None, self.stride, 0, 1, self.groups)
            y = y + self._normalise(z, "scale_")
        return y

    def _normalise(self, z: Tensor, prefix: str, index: Any = ...) -> Tensor:
        gamma, beta, mean, var = self._norm_of(prefix)
        return F.batch_norm(
            z, mean[index], var[index], gamma[index], beta[index], self.training, momentum=MOMENTUM, eps=EPS
        )

    def _norm_of(self, prefix: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self, prefix + name) for name in ("gamma", "beta", "running_mean", "running_var"))

    def fold(self) -> tuple[Tensor, Tensor]:
        """One kernel [O, I/groups, k, k] and one bias [O] equal to the sum of branches in eval mode."""
        gain, bias = self._affine("")  # [B, O] each
        kernel, bias = (gain[..., None, None, None] * self.weight).sum(0), bias.sum(0)
        centre = torch.zeros_like(bias)  # the contribution of scale and identity to each channel's central weight
        if self.has_scale:
            gain, shift = self._affine("scale_")
            centre, bias = centre + gain * self.scale_weight, bias + shift
        if self.has_identity:
            gain, shift = self._affine("identity_")
            centre, bias = centre + gain, bias + shift
        if self.groups > 1:
            kernel = kernel + F.pad(centre.view(-1, 1, 1, 1), (self.padding,) * 4)
        elif self.has_identity:
            kernel = kernel + torch.diag(centre)[..., None, None]
        return kernel, bias

    def _affine(self, prefix: str) -> tuple[Tensor, Tensor]:
        """Batch norm in eval mode as y = gain x + shift."""
        gamma, beta, mean, var = self._norm_of(prefix)
        gain = gamma * torch.rsqrt(var + EPS)
        return gain, beta - gain * mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RepConv:
        # torch applies a memory format to 4-D and 5-D tensors, but channels_last is for 4-D tensors only
        def on_kernels(t: Tensor) -> Tensor:
            return fn(t.flatten(0, 1)).unflatten(0, t.shape[:2]) if t.dim() == 5 else fn(t)

        return super()._apply(on_kernels, recurse)

    def named_branches(self) -> dict[str, Tensor]:
        """Readable name of each branch's tensor -> its view of the stacked tensor."""
        named: dict[str, Tensor] = {}
        of_norm = ("weight", "bias", "running_mean", "running_var")

        def norm(readable: str, prefix: str, index: Any = ...) -> None:
            for name, tensor in zip(of_norm, self._norm_of(prefix), strict=True):
                named[f"{readable}.{name}"] = tensor[index]

        for j in range(self.branches):
            named[f"branches.{j}.conv.weight"] = self.weight[j]
            norm(f"branches.{j}.bn", "", j)
        if self.has_scale:
            named["scale.conv.weight"] = self.scale_weight.view(-1, 1, 1, 1)
            norm("scale.bn", "scale_")
        if self.has_identity:
            norm("identity", "identity_")
        return named

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.named_branches().items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        named = {prefix + name: tensor.detach() for name, tensor in self.named_branches().items()}
        for key, tensor in named.items():
            value = state_dict.get(key)
            if value is None:
                missing_keys.append(key)
            elif value.shape != tensor.shape:
                error_msgs.append(f"{key} has shape {tuple(value.shape)}; this network needs {tuple(tensor.shape)}.")
            else:
                tensor.copy_(value)
        if strict:
            mine = (key for key in state_dict if key.startswith(prefix) and key not in named)
            unexpected_keys.extend(key for key in mine if not key.endswith(".num_batches_tracked"))
