"""Optimisers by name: against torch's own, against float64 algebra, and what a checkpoint keeps of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ghostcli import zoo
from ghostcli.engine import optimizers
from ghostcli.engine.muon import Muon, as_matrices, orthogonalise
from ghostcli.recipe import load
from ghostcli.recipe.keys import VARIANTS

CPU = torch.device("cpu")
NAMES = list(VARIANTS["optim"].models)


def section(name: str, *more: str):
    return load("paper", [f"optim.name={name}", *more]).recipe.optim


def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.init_kaiming(zoo.build("gns:0.2"), torch.Generator().manual_seed(0))


def make(model: nn.Module, name: str, *more: str) -> tuple[torch.optim.Optimizer, ...]:
    return optimizers.make(model, nn.Linear(3, 2), section(name, *more), CPU)


def steps(model: nn.Module, made: tuple[torch.optim.Optimizer, ...], count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        optimizers.set_rate(made, 0.01 * (1 + step))
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + i))
        for optimizer in made:
            optimizer.step()


def test_every_name_has_an_optimiser_and_a_section():
    assert set(optimizers.OPTIMIZERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decay", ["all", "weights"])
def test_each_parameter_is_in_one_group(name, decay):
    model = network()
    made = make(model, name, f"optim.decay={decay}")
    held = [id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters())) + 2  # and the objective's two
    undecayed = {id(p) for o in made for group in o.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    norms = {id(p) for n, p in model.named_parameters() if n.endswith(("gamma", "beta", "bias", "bn.weight"))}
    assert undecayed == set() if decay == "all" else norms <= undecayed


def test_muon_takes_dense_convolutions_and_sgd_the_rest():
    model = network()
    matrices, rest = make(model, "muon")
    assert isinstance(matrices, Muon) and isinstance(rest, torch.optim.SGD)
    taken = {id(p) for group in matrices.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert {"bottlenecks.0.expand.primary.weight", "stem.conv.weight", "head.weight"} <= names
    assert not any("cheap" in name or "classifier" in name or "gamma" in name for name in names)
    optimizers.set_rate((matrices, rest), 0.005)  # half of a peak of 0.01: both follow one schedule
    assert matrices.param_groups[0]["lr"] == 0.005 and rest.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 4, 9), (3, 9, 4), (1, 1, 7), (2, 7, 1)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(stack, full_matrices=False)
    rotated = u.mT @ orthogonalise(stack) @ vt.mT  # diagonal in the singular vectors' basis
    values = rotated.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(rotated, torch.diag_embed(values), atol=1e-9)
    assert (values > 0.3).all() and (values < 1.3).all()


def test_a_stack_is_its_matrices_one_by_one():
    stack = torch.randn(3, 5, 4, 1, 1, generator=torch.Generator().manual_seed(2))
    alone = [orthogonalise(as_matrices(matrix)) for matrix in stack]
    assert torch.allclose(orthogonalise(as_matrices(stack)), torch.cat(alone), atol=1e-6)
    assert not orthogonalise(torch.zeros(2, 3, 4)).any()


def test_muon_agrees_with_torchs_own_on_a_matrix():
    """torch iterates in bfloat16, so the two agree to its three digits."""
    ours, theirs = (nn.Parameter(torch.randn(6, 10, generator=torch.Generator().manual_seed(3))) for _ in range(2))
    start = ours.detach().clone()
    mine = Muon([{"params": [ours], "lr": 0.05, "weight_decay": 0.1}], momentum=0.95, nesterov=True)
    other = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, nesterov=True)
    for step in range(3):
        for p in (ours, theirs):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        mine.step()
        other.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved


def test_adamw_is_torchs():
    model, other = network(), network()
    made = make(model, "adamw", "optim.lr=0.01", "optim.weight_decay=0.1", "optim.beta2=0.99")
    theirs = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for step in range(3):
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        optimizers.set_rate(made, 0.01)
        made[0].step()
        theirs.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_state_is_kept(name):
    whole, half, again = network(), network(), network()
    steps(whole, make(whole, name), 6)
    first = make(half, name)
    steps(half, first, 3)
    saved = {key: value.clone() for key, value in optimizers.tensors(first).items()}
    again.load_state_dict(half.state_dict())
    second = make(again, name)
    optimizers.restore(second, saved)
    steps(again, second, 3, first=3)
    for (key, p), q in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q), key
