"""The deploy form: every re-parameterizable sum and every batch norm is folded into one convolution with bias.

Invariant: outputs equal those of the train form in eval mode, up to rounding. The given network is not changed.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ghostcli.zoo import kernels
from ghostcli.zoo.branches import RepConv
from ghostcli.zoo.ghost import ConvBN, GhostModule, GhostNet
from ghostcli.zoo.teachers import bare


class FoldedConv(nn.Conv2d):
    """A convolution with bias, then ReLU if `relu`."""

    relu: bool = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.relu(y, inplace=True) if self.relu else y


class FoldedGhost(GhostModule):
    """A ghost module of two `FoldedConv`s.

    The compiled kernels, if available, write both outputs side by side into one map and apply the gate at its own
    resolution. Otherwise, and under gradients, tracing or export, PyTorch's operations compute the same.
    """

    def __init__(self, module: GhostModule) -> None:
        nn.Module.__init__(self)
        self.out_channels = module.out_channels
        self.primary, self.cheap, self.gate = module.primary, module.cheap, module.gate

    def forward(self, x: Tensor) -> Tensor:
        if not _direct(x):
            return super().forward(x)
        pixels, half, ops = x.permute(0, 2, 3, 1), self.primary.out_channels, kernels.of(x)
        pixels = pixels if kernels.pitch(pixels) else pixels.contiguous()
        y = pixels.new_empty(*pixels.shape[:3], 2 * half)
        z = y[..., :half]
        for conv, source, out in ((self.primary, pixels, z), (self.cheap, z, y[..., half:])):
            kernel, bias = conv.weight.flatten(1), conv.bias
            ops.convolve(source, kernel, bias, conv.kernel_size, 1, conv.relu, out)
        y = y[..., : self.out_channels]
        if self.gate is not None:
            logits = self.gate.logits(ops.pool(pixels).permute(0, 3, 1, 2))
            y = ops.weigh(y, ops.opened(logits.permute(0, 2, 3, 1).contiguous()), None)
        return y.permute(0, 3, 1, 2)


def _direct(x: Tensor) -> bool:
    """Whether the compiled kernels can process `x`: no gradients, tracing or export."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or (x.requires_grad and torch.is_grad_enabled())
    return type(x) is Tensor and x.is_cpu and not watched and kernels.of(x).NAME != "pytorch"


def deploy(model: nn.Module) -> nn.Module:
    """A new network for inference: the same function as `model.eval()`, folded, frozen, on the same device.

    It uses the running statistics, in any mode of `model`. A deploy form gives an equal copy. In torchvision's networks
    each batch norm directly after a convolution is folded (half of DenseNet's are not). timm's networks are copied.
    """
    device = next(model.parameters()).device
    # Folding uses float64, which some devices lack.
    folded = copy.deepcopy(model).to("meta" if device.type == "meta" else "cpu").eval()
    net = bare(folded)
    if isinstance(net, GhostNet):
        _fold_ghost(net)
        net.deployed = True
    elif type(net).__module__.startswith("torchvision."):
        _fold_followers(net)
    return folded.eval().requires_grad_(False).to(device)


def _fold_ghost(module: nn.Module) -> None:
    """Fold all foldable modules below `module`, in place."""
    for name, child in module.named_children():
        if isinstance(child, RepConv):
            setattr(module, name, _fold_branches(child))
        elif isinstance(child, ConvBN):
            setattr(module, name, _fold_norm(child.conv, child.bn, relu=True))
        elif isinstance(child, nn.Sequential):
            _fold_chain(child)
        else:
            _fold_ghost(child)
            if isinstance(child, GhostModule):
                setattr(module, name, FoldedGhost(child))


def _fold_chain(chain: nn.Sequential) -> None:
    for i in reversed(range(len(chain) - 1)):
        conv, norm = chain[i], chain[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            chain[i] = _fold_norm(conv, norm)
            del chain[i + 1]


def _fold_branches(rep: RepConv) -> FoldedConv:
    dtype = rep.weight.dtype
    weight, bias = (nn.Parameter(folded.detach().to(dtype)) for folded in rep.double().fold())
    return _folded_conv(rep, weight, bias, rep.relu)


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, relu: bool = False) -> nn.Conv2d:
    dtype = conv.weight.dtype
    fused = fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype)
    return _folded_conv(conv, fused.weight, fused.bias, relu) if relu else fused


def _folded_conv(of: RepConv | nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter, relu: bool) -> FoldedConv:
    shape = (of.in_channels, of.out_channels, of.kernel_size, of.stride, of.padding)
    conv = FoldedConv(*shape, groups=of.groups, device=weight.device)
    conv.weight, conv.bias, conv.relu = weight, bias, relu
    return conv


def _fold_followers(net: nn.Module) -> None:
    """Fold each batch norm into its convolution, if no other module reads that output (by tracing). In place."""
    modules = dict(net.named_modules())
    for node in list(fx.symbolic_trace(net).graph.nodes):
        source = node.args[0] if node.op == "call_module" else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv, norm = modules[source.target], modules[node.target]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            net.set_submodule(source.target, _fold_norm(conv, norm))
            net.set_submodule(node.target, nn.Identity())
