"""A float ONNX file as one of 8-bit integers: static, per channel, by onnxruntime's quantiser.

Invariant: ranges are taken from training images alone; a file is given only where the runtime really computes every
convolution in integers but those that were asked to stay in float.

Activations are unsigned. onnxruntime on x86 turns signed ones into unsigned ones, but only where one layer reads them.
In a ghost module two layers read them; both kinds would meet there, and the convolutions around fall back to float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import INPUT, read, require, session
from ghostcli.errors import GhostError
from ghostcli.machine import cpuinfo

if TYPE_CHECKING:
    import onnx

AT_A_TIME = 16  # images whose activations are held at once
WEIGHTED = ("Conv", "Gemm", "MatMul")  # the operators with weights

#: For each tensor, the (lowest, highest) real value that its integers stand for.
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Observed:
    """What activations were: `extremes` over all images; `trimmed` without the outermost values of each batch."""

    extremes: Ranges
    trimmed: Ranges

    @classmethod
    def of(cls, batches: Mapping[str, Sequence[np.ndarray]]) -> Observed:
        """From the lowest, low, high and highest value of each activation in each batch."""
        ends = {name: np.stack(parts) for name, parts in batches.items()}
        return cls(
            {name: (float(each[:, 0].min()), float(each[:, 3].max())) for name, each in ends.items()},
            {name: (float(each[:, 1].mean()), float(each[:, 2].mean())) for name, each in ends.items()},
        )


def observe(content: bytes, images: np.ndarray, outside: float) -> Observed:
    """The ranges of every activation of an ONNX file on `images` (float32 [N, 3, S, S] in 0..1).

    `outside` is the fraction of values that lies beyond each end of a trimmed range; its mean over batches is taken.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(read(content, "onnx")[0])
    known = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    names = [name for name, kind in known.items() if kind == onnx.TensorProto.FLOAT]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    ort_session = session(model.SerializeToString(), "onnx")
    last = ort_session.get_outputs()[0].name
    quantiles: dict[str, list[np.ndarray]] = {name: [] for name in (INPUT, last, *names)}
    for begin in range(0, len(images), AT_A_TIME):
        part = images[begin : begin + AT_A_TIME]
        values = [part, *ort_session.run([last, *names], {INPUT: part})]
        for name, value in zip(quantiles, values, strict=True):
            quantiles[name].append(np.quantile(value, [0.0, outside, 1.0 - outside, 1.0]))
    return Observed.of(quantiles)


def weighted(content: bytes) -> dict[str, int]:
    """The operators with weights in the order of their computation: name of the output -> number of weights."""
    graph = read(content, "onnx")[0].graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {
        node.output[0]: sizes[node.input[1]]
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in sizes
    }


def quantise(
    content: bytes, about: About, images: np.ndarray, ranges: Ranges, in_float: Sequence[str] = ()
) -> tuple[bytes, str]:
    """(the int8 file of a float one, how many operators compute in integers, such as `90 of 90`).

    `images` are a few to run the quantiser with; `ranges` decide. The operators with the outputs `in_float` stay as
    they are. GhostError where the runtime would compute others in float too.
    """
    require("onnx", "onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization as ort

    from ghostcli.deploy.onnxwrite import finish
    from ghostcli.deploy.tflite import silent

    model = onnx.shape_inference.infer_shapes(_pool_by_convolution(read(content, "onnx")[0]))
    for node in model.graph.node:
        node.name = node.output[0]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fixed = {
        name: (float(a.min()), float(a.max())) for name, a in constants.items() if a.dtype == np.float32 and a.size
    }
    parts = [(*node.input, *node.output) for node in model.graph.node if node.op_type == "Concat"]
    ranges = joined(ranges, parts, fixed)
    batches = iter([{INPUT: images[:AT_A_TIME]}])
    with tempfile.TemporaryDirectory() as folder, silent():
        path = Path(folder) / "int8.onnx"
        ort.quantize_static(
            model,
            path,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=narrow(),
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=list(in_float),
            extra_options={
                "QuantizeBias": False,  # the runtime does it: a file with integers has a scale a channel more
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()
                },
            },
        )
        int8_model = onnx.load(path)
    used = {node.domain or "" for node in int8_model.graph.node}
    opsets = [entry for entry in int8_model.opset_import if entry.domain in used]
    del int8_model.opset_import[:]
    int8_model.opset_import.extend(opsets)
    _round_gemm_bias(int8_model.graph)
    _leave_zeros_out(int8_model.graph)
    finished = finish(int8_model, about)
    return finished, _require_integers(finished, len(in_float))


def _pool_by_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """Means of 2 x 2 pixels as depthwise convolutions by 1/4: onnxruntime's integer pooling is several times slower."""
    import onnx

    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type != "AveragePool" or attributes["kernel_shape"] != [2, 2] or attributes.get("strides") != [2, 2]:
            continue
        if any(attributes.get("pads", [])) or attributes.get("ceil_mode") or node.input[0] not in shapes:
            continue
        channels = shapes[node.input[0]][1].dim_value
        weight = onnx.numpy_helper.from_array(np.full((channels, 1, 2, 2), 0.25, np.float32), f"{node.output[0]}_mean")
        model.graph.initializer.append(weight)
        conv = onnx.helper.make_node(
            "Conv", [node.input[0], weight.name], list(node.output), kernel_shape=[2, 2], strides=[2, 2], group=channels
        )
        node.CopyFrom(conv)
    return model


def joined(ranges: Ranges, parts: Iterable[Sequence[str]], fixed: Ranges) -> dict[str, tuple[float, float]]:
    """One range for all `parts` of a concatenation, its result among them: with one scale it is a copy of bytes.

    `fixed`: the ranges of constants, which get no range of their own. Parts that have no range are whole numbers, such
    as a shape, and stay as they are.
    """
    merged = dict(ranges)
    for names in parts:
        known = [merged.get(name) or fixed.get(name) for name in names]
        if None not in known:
            low, high = zip(*known, strict=True)
            merged |= {name: (min(low), max(high)) for name in names if name in merged}
    return merged


def _round_gemm_bias(graph: onnx.GraphProto) -> None:
    """The bias of a matrix product in 32 bits: without it onnxruntime computes the product in float."""
    import onnx

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Gemm" or len(node.input) < 3 or not {node.input[0], node.input[1]} <= scales.keys():
            continue
        scale = constants[scales[node.input[0]]] * constants[scales[node.input[1]]]
        bias = constants.get(node.input[2])
        if bias is None:
            continue
        whole = np.clip(np.round(bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)
        names = [f"{node.output[0]}_bias{end}" for end in ("", "_scale", "_real")]
        graph.initializer.append(onnx.numpy_helper.from_array(whole, names[0]))
        graph.initializer.append(onnx.numpy_helper.from_array(np.broadcast_to(scale, whole.shape).copy(), names[1]))
        node.input[2] = names[2]
        graph.node.insert(place, onnx.helper.make_node("DequantizeLinear", names[:2], names[2:], axis=0))


def _leave_zeros_out(graph: onnx.GraphProto) -> None:
    """A weight's zero points are all zero, which is what a file means that names none."""
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept_for = {name for node in graph.node if node.op_type == "Gemm" for name in node.input}  # which asks for them
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants or node.output[0] in kept_for:
            continue
        if len(node.input) == 3 and not onnx.numpy_helper.to_array(constants[node.input[2]]).any():
            del node.input[2]


def narrow() -> bool:
    """Whether weights take 7 bits: without VNNI an x86 CPU adds two 8-bit products in 16 bits, which may overflow."""
    flags = cpuinfo()
    return not flags or ("avx" in flags and "_vnni" not in flags)


def _require_integers(content: bytes, in_float: int) -> str:
    """How many operators with weights the runtime computes in integers, from the graph as it optimised it."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(content, "int8", str(path))
        kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    whole = sum(kinds[kind] for kind in ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"))
    left = sum(kinds[kind] for kind in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"))
    if left > in_float or not whole:
        raise GhostError(
            f"onnx-int8: onnxruntime would compute {left} of {left + whole} convolutions and matrix products in float "
            "here; update it (pip install -U onnxruntime)"
        )
    return f"{whole} of {left + whole}"
