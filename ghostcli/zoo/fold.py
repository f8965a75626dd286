"""The deploy form: every re-parameterizable sum and every batch norm folded into one convolution with bias.

Invariant: outputs equal the train form's in eval mode up to rounding; the network given is left untouched.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ghostcli.zoo.branches import RepConv
from ghostcli.zoo.ghost import ConvBN, GhostNet
from ghostcli.zoo.teachers import Enlarged


class FoldedConv(nn.Conv2d):
    """A convolution with bias, then ReLU where `relu`."""

    relu: bool = False

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.relu(y, inplace=True) if self.relu else y


def deploy(model: nn.Module) -> nn.Module:
    """A new network for inference: the same function as `model.eval()`, folded, frozen, on the same device.

    The running statistics are used whatever mode `model` is in; a deploy form gives an equal copy. Of the
    other networks those batch norms are folded that directly follow a convolution (half of DenseNet's do
    not); timm's are only copied.
    """
    device = next(model.parameters()).device
    folded = copy.deepcopy(model).cpu().eval()  # folding is done in float64, which not every device has
    net = folded.net if isinstance(folded, Enlarged) else folded
    if isinstance(net, GhostNet):
        _fold_ghost(net)
        net.deployed = True
    elif type(net).__module__.startswith("torchvision."):
        _fold_followers(net)
    return folded.requires_grad_(False).to(device)


def build_deployed(name: str, classes: int = 10) -> nn.Module:
    """The deploy form of `name` to load a folded state dict into."""
    from ghostcli.zoo import build

    return deploy(build(name, classes))


def _fold_ghost(module: nn.Module) -> None:
    """Replace what folds below `module`, in place."""
    for name, child in module.named_children():
        if isinstance(child, RepConv):
            setattr(module, name, _fold_branches(child))
        elif isinstance(child, ConvBN):
            setattr(module, name, _fold_norm(child.conv, child.bn, relu=True))
        elif isinstance(child, nn.Sequential):
            _fold_chain(child)
        else:
            _fold_ghost(child)


def _fold_chain(chain: nn.Sequential) -> None:
    for i in reversed(range(len(chain) - 1)):
        conv, norm = chain[i], chain[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            chain[i] = _fold_norm(conv, norm)
            del chain[i + 1]


def _fold_branches(rep: RepConv) -> FoldedConv:
    dtype = rep.weight.dtype
    conv = FoldedConv(rep.in_channels, rep.out_channels, rep.kernel_size, rep.stride, rep.padding, groups=rep.groups)
    conv.relu = rep.relu
    kernel, bias = rep.double().fold()
    conv.weight.data, conv.bias.data = kernel.detach().to(dtype), bias.detach().to(dtype)
    return conv


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, relu: bool = False) -> nn.Conv2d:
    dtype = conv.weight.dtype
    fused = fuse_conv_bn_eval(conv.double(), norm.double()).to(dtype)
    if not relu:
        return fused
    folded = FoldedConv(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
    folded.relu = True
    folded.weight, folded.bias = fused.weight, fused.bias
    return folded


def _fold_followers(net: nn.Module) -> None:
    """Fold each batch norm into the convolution whose output it alone reads, as traced; in place."""
    modules = dict(net.named_modules())
    for node in list(fx.symbolic_trace(net).graph.nodes):
        source = node.args[0] if node.op == "call_module" else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv, norm = modules[source.target], modules[node.target]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            net.set_submodule(source.target, _fold_norm(conv, norm))
            net.set_submodule(node.target, nn.Identity())
