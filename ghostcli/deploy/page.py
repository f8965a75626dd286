"""One HTML file with a network in it, which a browser computes without any server; and asking such a file.

Invariant: the page needs nothing from outside itself, and the code that is proven is the code in the file.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ghostcli.deploy.about import About
from ghostcli.deploy.onnxfile import INPUT, OUTPUT, read
from ghostcli.errors import GhostError, UsageError

#: Of attributes that a node may leave out.
DEFAULTS = {"auto_pad": b"NOTSET", "dilations": [1], "group": 1, "strides": [1, 1], "pads": [0, 0, 0, 0]}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MOST_SECONDS = 600


def encode(content: bytes, about: About, samples: list[tuple[str, np.ndarray]]) -> bytes:
    """The page of a float ONNX file; `samples` are (label, uint8 [S, S, 3]) images to try it on.

    GhostError for a network with an operator that the page does not compute.
    """
    graph = _Graph(read(content, "onnx")[0].graph)
    network = {
        "about": asdict(about),
        "size": about.size,
        "input": INPUT,
        "output": OUTPUT,
        "nodes": graph.nodes,
        "constants": graph.constants,
        "samples": [{"label": label, "pixels": _base64(pixels.tobytes())} for label, pixels in samples],
        "weights": _base64(np.concatenate(graph.weights).astype("<f2").tobytes()),
    }
    text = json.dumps(network, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = _source("page.html").replace("@SCRIPT@", _source("network.js"))
    return page.replace("@NETWORK@", text).encode()


def _source(name: str) -> str:
    return files("ghostcli.deploy").joinpath(name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Graph:
    """The operators of an ONNX graph as the page's list, constant inputs as plain numbers."""

    def __init__(self, graph: Any) -> None:
        import onnx

        self.tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.weights: list[np.ndarray] = []
        self.placed: dict[str, dict[str, Any]] = {}
        self.length = 0
        self.constants: dict[str, dict[str, Any]] = {}
        self.nodes = [self._node(node) for node in graph.node]
        readers = {name: i for i, node in enumerate(self.nodes) for name in node["inputs"]}
        for i, node in enumerate(self.nodes):  # what nobody reads later is forgotten
            node["last"] = sorted({n for n in node["inputs"] if readers[n] == i and n not in self.constants})

    def _node(self, node: Any) -> dict[str, Any]:
        import onnx

        attributes = DEFAULTS | {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        make = OPERATORS.get(node.op_type)
        operation = make(self, node, attributes) if make else None
        if operation is None:
            raise GhostError(f"html: the page cannot compute the operator {node.op_type} as this network uses it")
        operation = {"op": node.op_type, "inputs": [node.input[0]]} | operation
        for name in operation["inputs"]:
            if name in self.tensors and name not in self.constants:
                self.constants[name] = self.place(name, _as_map)
        return operation | {"output": node.output[0]}

    def place(self, name: str, shaped: Callable[[np.ndarray], np.ndarray] = lambda array: array) -> dict[str, Any]:
        """Where a tensor lies among all weights; each is kept once."""
        if name not in self.placed:
            array = shaped(self.tensors[name])
            self.placed[name] = {"shape": list(array.shape), "at": self.length}
            self.weights.append(array.astype(np.float32).ravel())
            self.length += array.size
        return self.placed[name]

    def optional(self, node: Any, place: int) -> dict[str, Any] | None:
        return self.place(node.input[place]) if len(node.input) > place and node.input[place] else None


def _as_map(array: np.ndarray) -> np.ndarray:
    """A constant as [channels, height, width]."""
    return array.reshape((1,) * (3 - array.ndim) + array.shape) if array.ndim < 3 else array.reshape(array.shape[-3:])


def _conv(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    if set(attributes["dilations"]) != {1} or attributes["auto_pad"] != b"NOTSET":
        return None
    kept = {key: attributes[key] for key in ("group", "strides", "pads")}
    return {"weight": graph.place(node.input[1]), "bias": graph.optional(node, 2), **kept}


def _gemm(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    scaled = {attributes.get("alpha", 1), attributes.get("beta", 1)} != {1}
    if scaled or attributes.get("transA") or not attributes.get("transB"):
        return None
    return {"weight": graph.place(node.input[1]), "bias": graph.optional(node, 2)}


def _pool(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    padded = node.op_type != "MaxPool" and any(attributes["pads"])
    if padded or attributes.get("ceil_mode") or set(attributes["dilations"]) != {1}:
        return None
    return {"kernel": attributes["kernel_shape"], "strides": attributes["strides"], "pads": attributes["pads"]}


def _mean(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    """The mean of whole maps."""
    if node.op_type == "ReduceMean":
        axes = attributes.get("axes", graph.tensors[node.input[1]] if len(node.input) > 1 else ())
        if sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            return None
    return {"op": "AveragePool"}


def _concat(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    return {"inputs": list(node.input)} if attributes["axis"] in (1, -3) else None


def _slice(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    begin, end, axes, *steps = (graph.tensors[name].tolist() for name in node.input[1:])
    if axes not in ([1], [-3]) or (steps and steps[0] != [1]) or begin[0] < 0 or end[0] < 0:
        return None
    return {"range": [begin[0], end[0]]}


def _resize(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    scales = graph.tensors.get(node.input[2]) if len(node.input) > 2 else None
    spelled = [attributes.get(key) for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if spelled != [b"nearest", b"asymmetric", b"floor"] or scales is None or len(scales) != 4:
        return None
    if (scales[:2] != 1).any() or (scales < 1).any():
        return None
    return {"factors": scales[2:].tolist()}


def _clip(graph: _Graph, node: Any, attributes: dict[str, Any]) -> dict[str, Any] | None:
    low, high = (float(graph.tensors[name]) if name else None for name in [*node.input[1:], "", ""][:2])
    return None if low is None or high is None else {"low": low, "high": high}


OPERATORS: dict[str, Callable[[_Graph, Any, dict[str, Any]], dict[str, Any] | None]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), lambda graph, node, attributes: {"inputs": list(node.input)}),
    "Concat": _concat,
    "Slice": _slice,
    "Resize": _resize,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze"), lambda graph, node, attributes: {"op": "Flatten"}),
    **dict.fromkeys(("Relu", "Sigmoid"), lambda graph, node, attributes: {}),
    "HardSigmoid": lambda graph, node, attributes: {
        "alpha": attributes.get("alpha", 0.2),
        "beta": attributes.get("beta", 0.5),
    },
    "Clip": _clip,
}


def run(content: bytes, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(logits [N, C], milliseconds [N], engine and version) of a page's own code on uint8 pixels [N, S, S, 3].

    It is run by node or by a browser without a window. UsageError where there is neither.
    """
    for name in ("node", *BROWSERS):
        if program := shutil.which(name):
            break
    else:
        raise UsageError("html: no node and no chromium is here to prove the page in; install one of them")
    network, script = _parts(content)
    driver = (
        f"{script}\nconst asked = JSON.parse({json.dumps(network)});"
        f"const found = JSON.stringify(answers(load(asked), bytesOf({json.dumps(_base64(pixels.tobytes()))})));"
    )
    with tempfile.TemporaryDirectory() as folder:
        if name == "node":
            file = Path(folder) / "page.js"
            file.write_text(f"{driver}\nprocess.stdout.write(found);", encoding="utf-8")
            command = [program, str(file)]
        else:
            file = Path(folder) / "page.html"
            file.write_text(f"<pre id=found></pre><script>{driver}\ndocument.body.textContent = found;</script>")
            quiet = ["--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={folder}/profile"]
            command = [program, *quiet, "--dump-dom", file.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise GhostError(f"html: {name} did not finish in {MOST_SECONDS} seconds") from error
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    match = re.search(r'\{"logits".*\}', done.stdout, re.DOTALL)
    if not match:
        raise GhostError(f"html: {name} gave no answer: {(done.stderr.strip().splitlines() or ['nothing'])[-1][:160]}")
    answer, number = json.loads(match[0]), re.search(r"\d+(\.\d+)*", version)
    engine = f"{name} {number[0]}" if number else name
    return np.array(answer["logits"], np.float32), np.array(answer["times"]), engine


def _parts(content: bytes) -> tuple[str, str]:
    """(the network's JSON, the arithmetic) out of a page."""
    text = content.decode()
    network = re.search(r'<script type="application/json" id="network">(.*?)</script>', text, re.DOTALL)
    script = re.search(r"<script>\n(.*?)\n</script>", text, re.DOTALL)
    assert network and script
    return network[1], script[1]
