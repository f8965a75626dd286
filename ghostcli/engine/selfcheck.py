"""The self-check of the fast path: one real step, once per process and device.

Invariant: a part that fails is not used. Compiled kernels are compared with float64, and a replayed graph with its
step. A part that raises or gives a wrong result is switched off. The reason is kept for a warning and for env.json.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghostcli.engine import turns
from ghostcli.zoo import kernels
from ghostcli.zoo.ghost import Bottleneck, Row
from ghostcli.zoo.names import is_ghost

IMAGES, CHANNELS, SIDE = 4, 8, 8
WARM = 2  # steps before a capture: they compile the kernels
SLACK = 20.0  # allowed error, in units of plain float32's error: kernels sum in another order, nothing else
LEAST = 1e-5  # relative error that is always allowed


@dataclass(frozen=True)
class Verdict:
    """The faults of the kernels and of a captured graph (None: no fault). `tried`: the parts that were run."""

    kernels: str | None = None
    graph: str | None = None
    tried: frozenset[str] = frozenset()

    @property
    def warnings(self) -> list[str]:
        lines = []
        if self.kernels:
            lines.append(f"the compiled kernels failed the self-check, so plain PyTorch is used: {self.kernels}")
        if self.graph:
            lines.append(f"a captured step failed the self-check, so steps run eagerly: {self.graph}")
        return lines

    @property
    def record(self) -> dict[str, str]:
        """For env.json: part -> "passed", "not tried" or the fault."""
        parts = {"kernels": self.kernels, "graph": self.graph}
        return {name: fault or ("passed" if name in self.tried else "not tried") for name, fault in parts.items()}


def verdict_for(network: str, branches: str, device: torch.device) -> Verdict | None:
    """The verdict for a network. None, without a check, if it has no fast path."""
    return check(device) if branches == "folded" and is_ghost(network) else None


@functools.cache
def check(device: torch.device) -> Verdict:
    """The verdict for `device`. Kernels that fail are switched off in this process.

    It takes a fraction of a second on a CPU. On a GPU it also compiles the kernels, which the first step needs anyway.
    OutOfMemoryError is raised, because it says nothing about the fast path.
    """
    wrong, tried = None, set()
    if kernels.of(torch.empty(0, device=device)).NAME != "pytorch":
        tried.add("kernels")
        wrong = _fault_of(lambda: _kernel_fault(device))
        if wrong:
            kernels.switch_off(device.type, wrong)
    if device.type != "cuda":
        return Verdict(wrong, None, frozenset(tried))
    return Verdict(wrong, _fault_of(lambda: _graph_fault(device)), frozenset(tried | {"graph"}))


def _fault_of(check: Callable[[], str | None]) -> str | None:
    """The fault that `check` returns, or the first line of its exception. Compilers and drivers raise any class."""
    try:
        return check()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no message'}"


def _trial(device: torch.device, dtype: torch.dtype = torch.float32) -> Callable[[], dict[str, Tensor]]:
    """A step of a gated bottleneck. It returns outputs, gradients and running statistics by name.

    The bottleneck uses all kernels of stride 1: a 1x1 sum, a depthwise sum, both in one map, a gate, a squeeze-excite
    and a shortcut.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        row = Row(kernel=3, expansion=2 * CHANNELS, out=CHANNELS, se=0.25, stride=1)
        module = Bottleneck(CHANNELS, row.expansion, row.out, row, gated=True, mode="folded").train()
    draw = torch.Generator().manual_seed(1)
    size = (IMAGES, CHANNELS, SIDE, SIDE)
    x = torch.randn(size, generator=draw).add_(0.5).to(device, dtype, memory_format=torch.channels_last)
    weight = torch.randn(size, generator=draw).to(device, dtype, memory_format=torch.channels_last)
    module: nn.Module = module.to(device, dtype, memory_format=torch.channels_last)
    x.requires_grad_()

    def step() -> dict[str, Tensor]:
        y = module(x)
        (y * weight).sum().backward()
        results = {"output": y, "input gradient": x.grad}
        results |= {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
        results |= {name: t for name, t in module.named_buffers() if t.is_floating_point()}
        results = {name: t.detach().clone() for name, t in results.items()}
        x.grad = None
        module.zero_grad(set_to_none=True)
        return results

    return step


def _kernel_fault(device: torch.device) -> str | None:
    """The fault of the kernels, compared with plain PyTorch in float64. The bound depends on plain float32's error."""
    cpu = torch.device("cpu")
    exact = _trial(cpu, torch.float64)()
    with kernels.plain():
        usual = _trial(cpu)()
    trial = _trial(device)()
    for name, value in exact.items():
        scale = value.norm().clamp(min=1e-2)
        distance, known = (float((t[name].cpu().double() - value).norm() / scale) for t in (trial, usual))
        bound = max(LEAST, SLACK * known)
        if not distance <= bound:  # also true for NaN
            return f"the {name} of a trial step has a relative error of {distance:.1e}; {bound:.1e} is allowed"
    return None


def _graph_fault(device: torch.device) -> str | None:
    """The difference between a replayed graph of a trial step and the step. A failed capture raises."""
    expected_step, step = _trial(device), _trial(device)
    for _ in range(WARM + 1):
        expected = expected_step()
    stream, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode=turns.capture_mode()):
        replayed = step()
    graph.replay()
    for name, value in expected.items():
        if not torch.allclose(replayed[name], value, rtol=1e-3, atol=1e-4):  # atomics can sum in another order
            return f"the {name} of a replayed trial step differs from that of the step"
    return None
