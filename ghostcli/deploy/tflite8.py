"""A float LiteRT file as one of 8-bit integers: static, weights with a scale a channel, by ai-edge-quantizer.

Invariant: ranges are taken from training images alone; a file is given only where every convolution and matrix product
in it is one of integers. Its input and output are integers too, as microcontrollers want them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ghostcli.deploy import tflite
from ghostcli.deploy.about import About
from ghostcli.deploy.int8 import AT_A_TIME, Observed, Ranges, joined
from ghostcli.deploy.onnxfile import require
from ghostcli.errors import GhostError

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
#: An activation that never changes still needs a scale. A tiny one would push the biases that it scales out of 32 bits.
NARROWEST = 2.0**-6


def observe(content: bytes, images: np.ndarray, outside: float) -> Observed:
    """The ranges of every activation of a float file on `images`; see `int8.observe`."""
    step = min(AT_A_TIME, len(images))
    with tflite.silent():
        interpreter = tflite.interpreter(content, "tflite", whole=True)
        source = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(source, (step, *images.shape[1:]))
        interpreter.allocate_tensors()
    names = {one["index"]: one["name"] for one in interpreter.get_tensor_details()}
    wanted = [source, *sorted({int(index) for node in _nodes(interpreter) for index in node["outputs"]})]
    parts: dict[int, list[np.ndarray]] = {index: [] for index in wanted}
    for begin in range(0, len(images) - step + 1, step):
        interpreter.set_tensor(source, images[begin : begin + step])
        interpreter.invoke()
        for index, quantiles in parts.items():
            quantiles.append(np.quantile(interpreter.get_tensor(index), [0.0, outside, 1.0 - outside, 1.0]))
    return Observed.of({names[index]: quantiles for index, quantiles in parts.items()})


def quantise(content: bytes, about: About, images: np.ndarray, ranges: Ranges) -> tuple[bytes, str]:
    """(the int8 file of a float one, how many operators compute in integers, such as `88 of 88`).

    `ranges` decide; `images` are not looked at. GhostError where an operator with weights would stay in float.
    """
    require("litert", "ai_edge_quantizer", "ai_edge_litert")
    with tflite.silent():
        from ai_edge_quantizer import quantizer, recipe

        interpreter = tflite.interpreter(content, "tflite", whole=True)
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]["name"]
        ends = _joined(interpreter, {**ranges, source: (0.0, 1.0)})  # so that a pixel p becomes p - 128
        depth = {one["name"]: len(one["shape"]) for one in interpreter.get_tensor_details()}
        converter = quantizer.Quantizer(content)
        converter.load_quantization_recipe(recipe.static_wi8_ai8())
        statistics = {name: _statistics(*ends[name], depth[name]) for name in ends}
        int8_content = bytes(
            converter.quantize(statistics, enable_progress_bar=False, enable_progress_report=False).quantized_model
        )
        whole, count = _integers(int8_content)
        if whole < count or not whole:
            raise GhostError(f"tflite-int8: {count - whole} of {count} convolutions and matrix products stay in float")
        pixels, logits = _ends(int8_content, about)
        described = replace(about, input=pixels, output=logits)
    return tflite.described(int8_content, described), f"{whole} of {count}"


def _statistics(low: float, high: float, depth: int) -> dict[str, Any]:
    """A range as the quantiser takes it: with zero, and never so narrow that biases overflow."""
    low, high = min(low, 0.0), max(high, 0.0)
    high = max(high, low + NARROWEST)
    shape = (1,) * depth
    return {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32), "num_samples": np.array(1)}


def _joined(interpreter: Any, ranges: Ranges) -> dict[str, tuple[float, float]]:
    names = {one["index"]: one["name"] for one in interpreter.get_tensor_details()}
    nodes = [node for node in _nodes(interpreter) if node["op_name"] == "CONCATENATION"]
    parts = [[names[int(index)] for index in (*node["inputs"], *node["outputs"])] for node in nodes]
    return joined(ranges, parts, {})


def _integers(content: bytes) -> tuple[int, int]:
    """(operators with weights whose input and weights are 8-bit integers, operators with weights)."""
    interpreter = tflite.interpreter(content, "tflite-int8", whole=True)
    kinds = {one["index"]: one["dtype"] for one in interpreter.get_tensor_details()}
    weighted = [node for node in _nodes(interpreter) if node["op_name"] in WEIGHTED]
    whole = sum(all(kinds[int(index)] is np.int8 for index in node["inputs"][:2]) for node in weighted)
    return whole, len(weighted)


def _nodes(interpreter: Any) -> list[dict[str, Any]]:
    return interpreter._get_ops_details()  # the runtime has no public list of its operators


def _ends(content: bytes, about: About) -> tuple[str, str]:
    """What the file takes and gives, in words."""
    interpreter = tflite.interpreter(content, "tflite-int8")
    scale, zero = interpreter.get_input_details()[0]["quantization"]
    to_scale, to_zero = interpreter.get_output_details()[0]["quantization"]
    pixels = f"red, green, blue p in 0..1 as round(p / {scale:.8g}) + {zero}; the file normalises them itself"
    logits = f"a logit is (value - {to_zero}) * {to_scale:.8g}"
    return f"int8 [N, 3, {about.size}, {about.size}], {pixels}", f"int8 [N, {len(about.classes)}], {logits}"
