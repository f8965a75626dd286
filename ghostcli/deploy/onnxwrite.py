"""A deploy form as an ONNX file of few, plain operators.

Invariant: the graph computes the network's function; what differs is only how a layer is spelled, so that runtimes and
the quantiser meet operators which they have integer kernels for.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli import __version__
from ghostcli.deploy import about as description
from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import INPUT, OUTPUT, require
from ghostcli.zoo.ghost import GhostModule, GhostNet, SqueezeExcite

OPSET = 18  # the lowest that torch's exporter writes by itself


@torch.no_grad()
def spelled(program: nn.Module, top: Literal[1, 6] = 1) -> nn.Module:
    """A copy whose layers are spelled in the operators that ONNX has. What can be computed beforehand is.

    The hard sigmoid, min(max(x / 6 + 1 / 2, 0), 1), is a clamp at `top`: at 6 it is ReLU6, which LiteRT has in 8 bits.
    """
    plain = copy.deepcopy(program)
    net, mean, std = plain.net, plain.mean, plain.std
    if isinstance(net, GhostNet):
        net.stem.weight.copy_(net.stem.weight / std)  # padding is zero before the division and after it
        plain.forward = lambda images: net(images - mean)
    else:
        plain.forward = lambda images: net((images - mean) / std)
    for module in plain.modules():
        if isinstance(module, SqueezeExcite):
            module.expand.weight.copy_(module.expand.weight * (top / 6))
            module.expand.bias.copy_(module.expand.bias * (top / 6) + top / 2)
            module.forward = _excite(module, top)
        elif isinstance(module, GhostModule):
            module.forward = _ghost(module)
    return plain.to(memory_format=torch.contiguous_format)


def _excite(module: SqueezeExcite, top: Literal[1, 6]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate = module.expand(F.relu(module.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * (gate.clamp(0, 1) if top == 1 else F.relu6(gate) * (1 / 6))

    return forward


def _ghost(module: GhostModule) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y = module.primary(x)
        y = torch.cat([y, module.cheap(y)], dim=1)
        if y.shape[1] != module.out_channels:
            y = y[:, : module.out_channels]
        if module.gate is None:
            return y
        gate = module.gate(x)
        sides = zip(gate.shape[-2:], y.shape[-2:], strict=True)
        # By constant factors, since sizes would be computed in the graph. One that is no whole number is a trifle too
        # large: no runtime's rounding loses the last row, and no pixel gets another neighbour.
        factors = [large / small if large % small == 0 else (large + 1e-3) / small for small, large in sides]
        return y * F.interpolate(gate, scale_factor=factors, mode="nearest")

    return forward


def encode(program: nn.Module, about: About) -> bytes:
    """The ONNX file of a program (float32 [N, 3, S, S] in 0..1 to logits), with its description inside."""
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    import logging

    example = torch.rand(2, 3, about.size, about.size)
    batch = torch.export.Dim("batch", min=1)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                spelled(program),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    return finish(exported.model_proto, about)


def finish(model: object, about: About) -> bytes:
    """The model's bytes: described, without the exporter's notes, each constant once, names as short as numbers."""
    import onnx
    import onnx_ir
    from onnx_ir.passes import Sequential, common

    _pool_globally(model.graph)
    share, drop = common.DeduplicateHashedInitializersPass(), common.RemoveUnusedNodesPass()
    passes = Sequential(share, drop, common.ClearMetadataAndDocStringPass())
    model = onnx_ir.to_proto(passes(onnx_ir.from_proto(model)).model)
    graph = model.graph
    del graph.value_info[:]
    _shorten(graph)
    graph.name = about.model
    model.producer_name, model.producer_version = "ghost", __version__
    onnx.helper.set_model_props(model, {description.KEY: description.encode(about)})
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")  # the passes leave them
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _pool_globally(graph: object) -> None:
    """The mean of whole maps by the operator that is made for it: runtimes have it in integers too."""
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = onnx.numpy_helper.to_array(constants[node.input[1]])
        keeps = [entry.i for entry in node.attribute if entry.name == "keepdims"] in ([], [1])
        if keeps and sorted(axis % 4 for axis in axes.tolist()) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _shorten(graph: object) -> None:
    """Rename tensors and nodes; a large part of a small network's file is their names."""
    names = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}

    def short(name: str) -> str:
        return names.setdefault(name, f"t{len(names):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
