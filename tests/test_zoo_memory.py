"""Blocks run again in the backward pass: the same training to the bit, in a fraction of the memory."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.engine import train
from ghostcli.recipe import load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("efficientnetv2", 3).train()


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """Loss, gradients and state after a step with dropout and stochastic depth; bytes kept for the backward pass."""
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.data_ptr(), tensor)
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), torch.tensor([0, 2]))
    size = sum(tensor.nbytes for tensor in kept.values())
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}, model.state_dict(), size


def test_it_is_the_same_step_in_less_memory(network):
    again = copy.deepcopy(network)
    zoo.recompute(again)
    assert zoo.recomputing(again) and not zoo.recomputing(network)
    assert zoo.recomputing(copy.deepcopy(again))
    loss, gradients, state, size = step(copy.deepcopy(network))
    other_loss, other_gradients, other_state, other_size = step(again)
    assert torch.equal(loss, other_loss)
    assert list(state) == list(other_state)
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
    assert not torch.equal(
        state["net.features.1.0.block.0.1.running_mean"],
        network.state_dict()["net.features.1.0.block.0.1.running_mean"],
    )
    assert other_size < size / 4
    with torch.no_grad():
        assert torch.equal(again.eval()(torch.ones(1, 3, 32, 32)), again(torch.ones(1, 3, 32, 32)))


def test_what_a_step_keeps_is_known_beforehand(network):
    _, _, _, size = step(copy.deepcopy(network))
    parameters = sum(p.nbytes for p in network.parameters())
    assert 2 * zoo.kept_bytes(network) == pytest.approx(size - parameters, rel=0.15)
    assert zoo.kept_bytes(zoo.build("gns:0.2")) == 0


@pytest.mark.parametrize(
    ("asked", "free", "expected"),
    [
        (None, 1 << 40, False),
        (None, 20 << 30, True),
        ("true", 1 << 40, True),
        ("false", 1 << 20, False),
    ],
)
def test_memory_decides_unless_the_recipe_does(network, monkeypatch, asked, free, expected):
    monkeypatch.setattr(train, "free_bytes", lambda device: free)
    recipe = load("paper", [f"engine.recompute={asked}"] if asked else []).recipe
    assert train.must_recompute(recipe, network, CPU) is expected


def test_a_network_without_such_blocks_never_does(monkeypatch):
    monkeypatch.setattr(train, "free_bytes", lambda device: 1)
    model = zoo.build("resnet18")
    assert not train.must_recompute(load("paper").recipe, model, CPU)
    zoo.recompute(model)
    assert not zoo.recomputing(model)
