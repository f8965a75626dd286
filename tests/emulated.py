"""A GPU that is not there: CUDA tensors whose values lie in ordinary memory, for tests of the device's path.

Invariant: code under test sees what a device would show it. `tensor.device` is cuda:0, an operation that mixes the
two sides fails as CUDA's does, and each time the host waits for the device is noted. The numbers are real, so that
whole commands run: training, evaluation, checkpoints, tables.

What it cannot see: cuDNN's and cuBLAS's own limits (an engine that is missing, an algorithm that is not deterministic),
rounding on the device, streams and their races, memory that runs out, Triton's compiler, blocks that are run again in
the backward pass, and what a real capture refuses. The backward pass is walked in Python: torch's own engine asks the
driver for a context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
#: Operations that end on the host, whatever their arguments.
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}
#: These take a tensor of the host beside one of the device: a copy says so, and an index is sent over.
MIXES = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *torch.ops.aten.native_batch_norm(x, *rest), x.new_empty(0, dtype=torch.uint8)


def _batch_norm_backward(x: Tensor, dy: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *statistics, eps, _ = rest
    return torch.ops.aten.native_batch_norm_backward(dy, x, weight, *statistics, True, eps, [True] * 3)


#: What only a GPU has, by what is the same on a CPU.
SAME = {"aten::cudnn_batch_norm": _batch_norm, "aten::cudnn_batch_norm_backward": _batch_norm_backward}


class OnDevice(Tensor):
    """A tensor that says it is on cuda:0. `values` is the ordinary tensor behind it."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
        )
        made.values = values
        return made

    def __init__(self, values: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Emulated(TorchDispatchMode):
    """While it is entered, tensors can be made on CUDA. `waits` names the operations the host waited in."""

    current: Emulated | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.forbidden = False
        self.doubles = True  # whether the device has float64
        self.recording: Graph | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def wait(self, name: str) -> None:
        if self.forbidden:
            raise AssertionError(f"{name}: the host waits for the device inside a step")
        self.waits.append(name)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """For this thread: another one sees no card until it enters it too."""
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes it here, then sends it
        try:
            with self:
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        self.forbidden = True
        try:
            yield
        finally:
            self.forbidden = False


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, OnDevice)]
    asked = kwargs.get("device")
    there = bool(ours) if asked is None else torch.device(asked).type == "cuda"
    if asked is not None and there:
        kwargs = {**kwargs, "device": CPU}
    if ours and any(not isinstance(t, OnDevice) and t.dim() for t in tensors) and name not in MIXES:
        raise RuntimeError(f"Expected all tensors to be on the same device, cuda:0 and cpu, in {name}")
    _note(name, args, ours, there, len(tensors))
    wrappers = {id(t.values): t for t in ours}
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda t: t.values, (args, kwargs))
    call = SAME.get(name, func)
    found = call(*plain_args, **plain_kwargs)
    mode = Emulated.current
    doubles = [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.dtype == torch.float64]
    if doubles and there and mode is not None and not mode.doubles:
        raise TypeError(f"{name}: this device has no float64")
    if mode is not None and mode.recording is not None:
        mode.recording.operations.append((call, plain_args, plain_kwargs, found))
    if name == "aten::copy_" and not isinstance(args[0], OnDevice):
        there = False
    return (
        tree_map_only(Tensor, lambda t: wrappers[id(t)] if id(t) in wrappers else OnDevice(t), found)
        if there
        else found
    )


def _note(name: str, args: Any, ours: list[OnDevice], there: bool, tensors: int) -> None:
    mode = Emulated.current
    if mode is None or not (ours or there):
        return
    crosses = name in ("aten::copy_", "aten::_to_copy") and (len(ours) < tensors if ours else there)
    back = name == "aten::_to_copy" and bool(ours) and not there
    back |= name == "aten::copy_" and not isinstance(args[0], OnDevice)
    mixed = name in MIXES and name not in ("aten::copy_", "aten::_to_copy") and len(ours) < tensors
    if name in READS or crosses or back or mixed:
        mode.wait(name)


def backward(root: Tensor, gradient: Tensor | None = None) -> None:
    """`Tensor.backward` in this thread: torch's own engine asks the driver for a context, and there is no driver."""
    waiting: dict[Any, int] = {}
    seen, stack = set(), [root.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for after, _ in node.next_functions:
            if after is not None:
                waiting[after] = waiting.get(after, 0) + 1
                stack.append(after)
    gradients: dict[Any, dict[int, Tensor]] = {root.grad_fn: {0: torch.ones_like(root)}}
    ready = [root.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            got = gradients.pop(node, {})
            inputs = [got.get(i) for i in range(len(node._input_metadata))]
            if type(node).__name__ == "AccumulateGrad":
                leaf = node.variable
                if inputs[0] is not None:
                    laid_out = torch.empty_like(leaf).copy_(inputs[0])  # as torch does: fused optimisers rely on it
                    leaf.grad = laid_out if leaf.grad is None else leaf.grad + laid_out
                continue
            if hasattr(node, "apply"):  # of a Python function, whose inputs need not all be tensors
                out = node.apply(*inputs)
                out = [value for value, needed in zip(out, node.needs_input_grad, strict=True) if needed]
                edges = [edge for edge in node.next_functions if edge[0] is not None]
            else:
                out = node(*inputs)
                out, edges = out if isinstance(out, tuple) else (out,), node.next_functions
            for (after, place), value in zip(edges, out, strict=True):
                if after is None:
                    continue
                if value is not None:
                    wanted = after._input_metadata[place]
                    value = value.sum_to_size(wanted.shape).to(wanted.dtype)
                    slot = gradients.setdefault(after, {})
                    slot[place] = slot[place] + value if place in slot else value
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)


class Stream:
    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)


class Graph:
    """The operations of one step with the very tensors they read and wrote; replaying runs these and nothing else.

    A real capture runs nothing. Here it does run, and stands for the first replay, which always follows at once.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self.mode = ""  # which threads' calls would spoil the capture

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, found in self.operations if self.replays > 1 else ():
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new.reshape(old.shape))


@contextlib.contextmanager
def _graph(graph: Graph, capture_error_mode: str, **_: Any) -> Iterator[None]:
    mode, graph.mode = Emulated.current, capture_error_mode
    mode.recording = graph
    with mode.no_waiting():
        yield
    mode.recording = None


@contextlib.contextmanager
def gpu(monkeypatch: Any) -> Iterator[Emulated]:
    """One card, "Emulated", with 16 GB: what torch.cuda is asked for in ghostcli, answered."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "Emulated",
        "mem_get_info": (8 << 30, 16 << 30),
        "memory_allocated": 1 << 20,
        "max_memory_allocated": 2 << 20,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("_lazy_init", "synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: None)
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "CUDAGraph": Graph,
        "graph": _graph,
        "graph_pool_handle": lambda: (0, 0),
        "default_generators": (torch.default_generator,),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda _: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be wrapped
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._ensureCUDADeviceGuardSet()
    mode = Emulated()
    Emulated.current = mode
    try:
        with mode.entered():
            yield mode
    finally:
        Emulated.current = None
        torch.__future__.set_swap_module_params_on_conversion(swap)
