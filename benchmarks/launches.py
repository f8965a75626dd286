"""Counts what one training step launches on a GPU, without a GPU: kernels by part, as Markdown and JSON.

    python benchmarks/launches.py [MODEL...] [--json]      default: gns:1.0
    python benchmarks/launches.py --write                  the budget that a test holds: results/launches.json

The step runs on `meta` tensors, which have shapes and no values. Each operation that writes a tensor is a launch, and a
view is none. The Triton kernels are counted where they would start. A count cannot know how many kernels cuDNN, a
reduction or a batch norm takes: `KERNELS` says what is assumed. The optimiser is left out, because it is fused.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ghostcli import zoo
from ghostcli.zoo import folded, kernels
from ghostcli.zoo.ghost import ConvBN, SqueezeExcite
from ghostcli.zoo.kernels import pytorch, triton_algebra, triton_depthwise, triton_pointwise, triton_weigh

RECORD = Path(__file__).parent / "results" / "launches.json"
BATCH = 256
SMALL = 1 << 20  # bytes: a kernel that touches less takes as long as its launch
#: Kernels an operation takes, where it is not one.
KERNELS = {
    "aten::native_batch_norm": 2,
    "aten::native_batch_norm_backward": 2,
    "aten::convolution_backward": 2,
    "aten::cudnn_batch_norm": 2,
    "aten::_log_softmax": 1,
}
#: Operations without a kernel: memory that is only reserved, and names for what is there.
FREE = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided"}
FREE |= {"aten::detach", "aten::_unsafe_view", "aten::lift_fresh", "aten::set_", "aten::promote_types"}


def _bytes(t: torch.Tensor) -> int:
    """An expanded tensor is counted as it lies in memory."""
    own = (size for size, stride in zip(t.shape, t.stride(), strict=True) if stride)
    return math.prod(own) * t.element_size()


class Launches(TorchDispatchMode):
    """`small` and `large` count kernels by name; `touched` adds up the bytes they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.small: Counter[str] = Counter()
        self.large: Counter[str] = Counter()
        self.touched = 0
        self.paused = False

    def note(self, name: str, tensors: list[torch.Tensor], count: int = 1) -> None:
        size = sum(_bytes(t) for t in {id(t): t for t in tensors}.values())
        (self.small if size < SMALL else self.large)[name] += count
        self.touched += size

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] as [N, H, W, C]: on a GPU a view, because a convolution of channels_last answers in it."""
        self.paused = True
        x = x.permute(0, 2, 3, 1)
        x = x if pytorch.pitch(x) else x.contiguous()
        self.paused = False
        return x

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not (view or self.paused or name in FREE):
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.note(name, tensors, KERNELS.get(name, 1))
        return found


class Start:
    """A Triton kernel that is counted and not run."""

    def __init__(self, launches: Launches, name: str) -> None:
        self.launches, self.name = launches, name

    def __getitem__(self, grid: Any) -> Start:
        return self

    def __call__(self, *arguments: Any, **_: Any) -> None:
        self.launches.note(f"triton:{self.name}", [a for a in arguments if isinstance(a, torch.Tensor)])


@contextmanager
def on_a_gpu(launches: Launches) -> Iterator[None]:
    """Meta tensors are taken for CUDA's, and each Triton kernel for a count."""
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(kernels, "of", lambda x: triton_depthwise))
        enter(mock.patch.object(torch, "is_autocast_enabled", lambda *_: False))  # autocast does not know this device
        enter(mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()))
        for module in (pytorch, folded):
            enter(mock.patch.object(module, "_pixels", launches.pixels))
        for module in (triton_depthwise, triton_pointwise, triton_algebra, triton_weigh):
            for name in [name for name, value in vars(module).items() if hasattr(value, "params")]:
                enter(mock.patch.object(module, name, Start(launches, name.strip("_"))))
        yield


def count(model: str, precision: torch.dtype = torch.float32) -> dict[str, Any]:
    """One forward and one backward pass of `model` in training: {"small", "large", "gigabytes", "by name"}.

    `precision` is that of the maps. In bfloat16 the layers that are torch's own have bfloat16 weights, which autocast
    would make for each step; these small copies are not counted.
    """
    net = zoo.build(model).train()
    for module in net.modules():
        if isinstance(module, ConvBN):
            module.conv.to(precision)
        elif isinstance(module, SqueezeExcite):
            module.to(precision)
    net.head.to(precision)
    net.classifier.to(precision)
    net = net.to("meta").to(memory_format=torch.channels_last)
    x = torch.empty(BATCH, 3, 32, 32, device="meta", dtype=precision).to(memory_format=torch.channels_last)
    labels = torch.empty(BATCH, dtype=torch.long, device="meta")
    launches = Launches()
    with on_a_gpu(launches), launches:
        F.cross_entropy(net(x).float(), labels).backward()
    by_name = launches.small + launches.large
    return {
        "small": sum(launches.small.values()),
        "large": sum(launches.large.values()),
        "kernels": sum(by_name.values()),
        "gigabytes": round(launches.touched / 1e9, 2),
        "by name": dict(by_name.most_common()),
    }


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("models", nargs="*", default=["gns:1.0"])
    asks.add_argument("--json", action="store_true")
    asks.add_argument("--write", action="store_true", help="keep the counts of gns:1.0 and gns:0.25 as the budget")
    chosen = asks.parse_args()
    models = ["gns:1.0", "gns:0.25"] if chosen.write else chosen.models
    found = {model: count(model) for model in models}
    for model, one in found.items():
        one["gigabytes in bfloat16"] = count(model, torch.bfloat16)["gigabytes"]
    if chosen.write:
        RECORD.write_text(json.dumps({"torch": torch.__version__, "batch": BATCH, "models": found}, indent=1) + "\n")
    if chosen.json:
        print(json.dumps(found, indent=1))
        return
    print("| model | kernels | of them under 1 MB | GB | GB in bfloat16 |\n|---|---|---|---|---|")
    for model, one in found.items():
        print(f"| {model} | {one['kernels']} | {one['small']} | {one['gigabytes']} | {one['gigabytes in bfloat16']} |")


if __name__ == "__main__":
    main()
