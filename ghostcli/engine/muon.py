"""Muon: momentum with orthogonalised matrices (Jordan 2024, "Muon: an optimizer for hidden layers").

Invariant: a parameter [..., rows, columns] is a stack of matrices. Each matrix is updated separately.
torch's Muon takes single matrices only. Here a sum of branches is a stack, and stacks of equal shape are computed
together, so Muon is cheap for networks with many small matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the quintic iteration: five steps map singular values in (0, 1] to about 0.7 to 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5
EPS = 1e-7


def orthogonalise(stack: Tensor) -> Tensor:
    """Move the singular values of each matrix of [n, rows, columns] close to 1, by the Newton-Schulz iteration.

    The precision stays float32 or float64. A matrix with one row becomes a vector of length about 1. Zeros stay zeros.
    """
    wide = stack.shape[-2] <= stack.shape[-1]
    x = stack if wide else stack.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised matrix by matrix, with decoupled weight decay.

    The step of a `rows` x `columns` matrix is its orthogonal factor times the rate times sqrt(max(1, rows / columns)),
    so the change of the outputs does not depend on the shape (Jordan 2024). Parameters [stack..., out, in, 1, 1] are
    matrices [out, in]. Other convolutions [out, in, k, k] are matrices [out, in k k].
    """

    def __init__(self, groups: Sequence[dict[str, Any]], momentum: float, nesterov: bool) -> None:
        """Each group has its `lr` (a number, or a tensor on the device) and its `weight_decay`."""
        super().__init__(groups, {"momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                matrices = as_matrices(update)
                stacks[matrices.shape[1:]].append((p, matrices))
            for (rows, columns), members in stacks.items():
                factors = orthogonalise(torch.cat([matrices for _, matrices in members]))
                factors = factors * max(1.0, rows / columns) ** 0.5
                for (p, _), factor in zip(members, factors.split([len(m) for _, m in members]), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(factor.reshape(p.shape) * group["lr"])


def as_matrices(weight: Tensor) -> Tensor:
    """The weight of a dense convolution, of a stack of convolutions or of a linear layer, as [n, out, in k k]."""
    if weight.ndim == 2:
        return weight[None]
    return weight.reshape(-1, weight.shape[-4], weight.shape[-3:].numel())
