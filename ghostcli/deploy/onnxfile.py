"""An ONNX file read without trust, and asked through onnxruntime or OpenVINO. No torch.

Invariant: a file is taken only where it is whole in itself (no weights outside it), of standard operators alone, and
maps [N, 3, S, S] in 0..1 to [N, classes] as its own description says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from ghostcli.deploy import about as description
from ghostcli.deploy.about import About
from ghostcli.errors import UsageError, printable
from ghostcli.machine import cores

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "logits"
MOST = 1 << 30  # bytes
Ask = Callable[[np.ndarray], np.ndarray]


def require(extra: str, *packages: str) -> None:
    """UsageError with what to install where one of `packages`, all of the optional `extra`, is not there."""
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        verb = "are" if missing[1:] else "is"
        raise UsageError(f"{', '.join(missing)} {verb} not installed: pip install 'ghostcli[{extra}]'")


def threads() -> int:
    """The cores that this process may use: those it is bound to, or fewer, by OMP_NUM_THREADS as in torch."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(limit)) if limit.isdecimal() and int(limit) else cores()


def read(content: bytes, file: str) -> tuple[onnx.ModelProto, About]:
    """The model and its description. UsageError naming the file where it is not what this module's invariant says."""
    require("onnx", "onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    where = printable(file)
    if len(content) > MOST:
        raise UsageError(f"{where}: {len(content):,} bytes is more than any network of ghost's; refused unread")
    try:
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{where}: is no ONNX file, or one cut short; export it again") from error
    if not model.graph.node:
        raise UsageError(f"{where}: is no ONNX file, or one without operators; export it again")
    described = [entry.value for entry in model.metadata_props if entry.key == description.KEY]
    if not described:
        raise UsageError(f"{where}: does not say what its images and classes are; name a file that ghost export wrote")
    about = description.decode(described[0], file)
    attributes = [entry for node in model.graph.node for entry in node.attribute]
    if model.functions or any(entry.HasField("g") or entry.graphs for entry in attributes):
        raise UsageError(f"{where}: has operators within operators, which no network of ghost's has; refused")
    domains = {node.domain for node in model.graph.node} | {entry.domain for entry in model.opset_import}
    if foreign := sorted(domains - {"", "ai.onnx"}):
        raise UsageError(f"{where}: has custom operators ({printable(', '.join(foreign))}); refused")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UsageError(f"{where}: keeps weights in another file; refused, export it again as one file")
        if any(side < 0 for side in tensor.dims) or int(np.prod(tensor.dims, dtype=object)) > len(content):
            raise UsageError(f"{where}: the tensor {printable(tensor.name)} claims more values than the file holds")
    _require_shapes(model, about, where)
    return model, about


def _require_shapes(model: onnx.ModelProto, about: About, where: str) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    wanted = {INPUT: (3, about.size, about.size), OUTPUT: (len(about.classes),)}
    for values, name in ((inputs, INPUT), (model.graph.output, OUTPUT)):
        kinds = [(value.name, value.type.tensor_type) for value in values]
        shapes = [(own, kind.elem_type, [side.dim_value for side in kind.shape.dim][1:]) for own, kind in kinds]
        if shapes != [(name, 1, list(wanted[name]))]:
            sides = ", ".join(map(str, wanted[name]))
            raise UsageError(f"{where}: its {name} are not float32 [N, {sides}] alone, as it says; export it again")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in model.graph.node:
        for entry in node.attribute:
            yield from ([entry.t] if entry.HasField("t") else entry.tensors)


def session(content: bytes, file: str, optimised: str | None = None) -> Any:
    """onnxruntime's session on the CPU. `optimised` is where it writes the graph as it really runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4
    if optimised:
        options.optimized_model_filepath = optimised
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        reason = printable(str(error).splitlines()[0][:160])
        raise UsageError(f"{printable(file)}: onnxruntime cannot load it ({reason})") from error


def ask_onnxruntime(content: bytes, file: str) -> tuple[Ask, str]:
    """(float32 [N, 3, S, S] in 0..1 -> logits [N, classes], the runtime's name and version)."""
    ort_session = session(content, file)
    return lambda images: ort_session.run([OUTPUT], {INPUT: images})[0], f"onnxruntime {version('onnxruntime')}"


def ask_openvino(content: bytes, file: str) -> tuple[Ask, str]:
    """The same through OpenVINO, which reads the same file."""
    require("openvino", "openvino")
    import openvino

    core = openvino.Core()
    try:
        options = {"INFERENCE_NUM_THREADS": threads(), "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(content), "CPU", options)
    except RuntimeError as error:
        raise UsageError(f"{printable(file)}: OpenVINO cannot load it ({printable(str(error)[:160])})") from error
    request = compiled.create_infer_request()
    return lambda images: request.infer([images])[0].copy(), f"openvino {version('openvino')}"
