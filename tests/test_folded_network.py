"""A whole network trained folded: beside the plain one, copied, compiled, distributed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.zoo.branches import RepConv
from ghostcli.zoo.ghost import GhostNet, Row

ROWS = (Row(3, 16, 16, 0, 1), Row(3, 32, 20, 0, 2), Row(3, 40, 20, 0.25, 1), Row(5, 48, 32, 0, 2))


def network(mode: str, seed: int = 0) -> GhostNet:
    torch.manual_seed(seed)
    return GhostNet(ROWS, 0.5, mode=mode).train()


def images(n: int = 6, side: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, side, side, generator=g), torch.randint(10, (n,), generator=g)


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("side", [8, 12, 15])
def test_an_update_is_the_plain_one(side):
    x, labels = images(side=side)
    models = [network(mode).double() for mode in ("plain", "folded")]
    losses = [step(model, x.double(), labels) for model in models]
    torch.testing.assert_close(*losses, rtol=1e-11, atol=0)
    plain, folded = (model.state_dict() for model in models)
    assert plain.keys() == folded.keys()
    for name, value in plain.items():
        torch.testing.assert_close(folded[name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("choice", ["auto", "pytorch"])
def test_float32_update_is_the_plain_one_within_rounding(choice, monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", choice)
    x, labels = images(32)
    reference, folded = network("plain").double(), network("folded")
    theirs, ours = step(reference, x.double(), labels), step(folded, x, labels)
    assert abs(float(ours) - float(theirs)) < 1e-4
    for name, value in reference.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(folded.state_dict()[name].double(), value, rtol=1e-3, atol=1e-4)


def test_a_copy_trains_alike_and_apart():
    x, labels = images()
    model = network("folded")
    twin = copy.deepcopy(model)
    assert torch.equal(step(model, x, labels), step(twin, x, labels))
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.long
def test_a_compiled_network_trains_alike():
    x, labels = images()
    model = network("folded")
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    torch.testing.assert_close(step(compiled, x, labels), step(model, x, labels))
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(compiled.eval()(x), model.eval()(x))


def test_distributed_data_parallel(tmp_path):
    x, labels = images()
    model = network("folded")
    alone = copy.deepcopy(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(step(wrapped, x, labels), step(alone, x, labels))
    finally:
        dist.destroy_process_group()
    for a, b in zip(model.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_autograd_keeps_and_runs():
    """A ghost module is one node of the graph, and keeps its input, its output and nothing of their size."""
    kept: list[Tensor] = []
    x, _ = images(16, 16)
    module = network("folded").bottlenecks[1].expand
    x = torch.randn(16, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, *_ = module.folded(x)
    large = {t.data_ptr() for t in kept if t.numel() >= x.numel() // 2}
    assert large == {x.data_ptr(), y.data_ptr()}
    parents = {type(node).__name__ for node, _ in y.grad_fn.next_functions if node is not None}
    assert parents == {"_GhostBackward"}


def test_eval_and_plain_share_weights():
    x, labels = images()
    model = network("folded")
    step(model, x, labels)
    plain = network("plain", seed=1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    for module in model.modules():
        if isinstance(module, RepConv):
            module.mode = "plain"
    torch.testing.assert_close(plain(x), model(x))
