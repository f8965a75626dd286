"""Optimisers by name, their learning rates, and their whole state as tensors.

Invariant: each parameter is in exactly one group of one optimiser. The rate of a group is `scale` times the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ghostcli.engine.muon import Muon
from ghostcli.recipe import models
from ghostcli.recipe.models import OptimSection

#: A parameter with its full name.
Named = tuple[str, nn.Parameter]
Group = dict[str, Any]


def sgd(named: Sequence[Named], optim: models.SGD, device: torch.device) -> list[Optimizer]:
    return [_sgd(by_decay(named, optim, optim.lr, device), optim.momentum, optim.nesterov, device)]


def _sgd(groups: list[Group], momentum: float, nesterov: bool, device: torch.device) -> Optimizer:
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov and momentum > 0, fused=has_fused(device))


def adamw(named: Sequence[Named], optim: models.AdamW, device: torch.device) -> list[Optimizer]:
    groups = by_decay(named, optim, optim.lr, device)
    how = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps, "fused": has_fused(device)}
    return [torch.optim.AdamW(groups, **how, capturable=has_graphs(device))]


def muon(named: Sequence[Named], optim: models.Muon, device: torch.device) -> list[Optimizer]:
    """Muon for the weights of dense convolutions; SGD for depthwise weights, norms, biases and linear layers."""
    dense = {name for name, p in named if is_weight(name, p) and p.ndim >= 4 and p.shape[-3] > 1}
    matrices = by_decay([(name, p) for name, p in named if name in dense], optim, optim.lr, device)
    others = by_decay([(name, p) for name, p in named if name not in dense], optim, optim.rest_lr, device)
    optimizers: list[Optimizer] = [Muon(matrices, optim.momentum, optim.nesterov)] if matrices else []
    if others:
        optimizers.append(_sgd(others, optim.rest_momentum, optim.nesterov, device))
    return optimizers


#: `optim.name` -> what makes its optimisers from (named parameters, [optim] section, device).
OPTIMIZERS: dict[str, Callable[[Sequence[Named], Any, torch.device], list[Optimizer]]] = {
    "sgd": sgd,
    "adamw": adamw,
    "muon": muon,
}


def make(model: nn.Module, objective: nn.Module, optim: OptimSection, device: torch.device) -> tuple[Optimizer, ...]:
    """The optimisers of a run, for the parameters of the student and of the objective."""
    named = [*model.named_parameters(), *((f"objective.{name}", p) for name, p in objective.named_parameters())]
    return tuple(OPTIMIZERS[optim.name]([(name, p) for name, p in named if p.requires_grad], optim, device))


def by_decay(named: Sequence[Named], optim: models.OptimBase, lr: float, device: torch.device) -> list[Group]:
    """One group, or two if norms and biases have no decay. On CUDA the rate is a tensor, which a graph can read."""
    weights = [p for name, p in named if optim.decay == "all" or is_weight(name, p)]
    chosen = {id(p) for p in weights}
    others = [p for _, p in named if id(p) not in chosen]
    return [
        {
            "params": params,
            "weight_decay": decay,
            "lr": torch.tensor(lr, device=device) if has_graphs(device) else lr,
            "scale": lr / optim.lr,
        }
        for params, decay in ((weights, optim.weight_decay), (others, 0.0))
        if params
    ]


def is_weight(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a convolution or linear layer (stacked norms also have two dimensions)."""
    if name.startswith("objective."):
        return parameter.ndim > 1
    leaf = name.rpartition(".")[2]
    return leaf == "scale_weight" or (leaf == "weight" and parameter.ndim > 1)


def has_fused(device: torch.device) -> bool:
    """Whether torch has fused optimisers on this device."""
    return device.type in ("cpu", "cuda")


def has_graphs(device: torch.device) -> bool:
    """Whether a step may be captured here. Optimisers that count their steps have to know it before."""
    return device.type == "cuda"


def set_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Set the rate of every group: `rate` times its scale."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["scale"])
            else:
                group["lr"] = rate * group["scale"]


def tensors(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The whole state of the optimisers. `0.12.exp_avg` belongs to parameter 12 of optimiser 0."""
    state_tensors = {}
    for number, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    state_tensors[f"{number}.{i}.{key}"] = torch.as_tensor(value)
    return state_tensors


def restore(optimizers: Sequence[Optimizer], saved: dict[str, Tensor]) -> None:
    """Restore the result of `tensors`.

    A tensor with its parameter's shape also gets the parameter's memory format, so the next steps are bit-identical.
    """
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in saved.items():
        number, i, key = name.split(".", 2)
        states[int(number)].setdefault(int(i), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, values in state.items():
            for key, value in values.items():
                p = parameters[i]
                values[key] = torch.empty_like(p).copy_(value) if value.shape == p.shape else value.clone()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
