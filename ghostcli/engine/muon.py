"""Muon: momentum whose every matrix is orthogonalised (Jordan 2024, "Muon: an optimizer for hidden layers").

Invariant: a parameter [..., rows, columns] is a stack of matrices, and each of them is updated by itself.
torch's own Muon takes single matrices only; a sum of branches is a stack, and stacks of one shape are worked on
together, which is what makes Muon cheap for networks of many small matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the quintic iteration: they map singular values of (0, 1] to some 0.7 to 1.2 in five steps.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5
EPS = 1e-7


def orthogonalise(stack: Tensor) -> Tensor:
    """[n, rows, columns] with the singular values of each matrix brought near 1, by Newton and Schulz's iteration.

    float32 or float64 throughout. A matrix of one row becomes a vector of length about 1; zeros stay zeros.
    """
    wide = stack.shape[-2] <= stack.shape[-1]
    x = stack if wide else stack.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised matrix by matrix; weight decay is decoupled.

    A matrix of `rows` x `columns` takes a step of rate sqrt(max(1, rows / columns)) times its orthogonal factor, so
    that the outputs change alike whatever the shape (Jordan 2024). Parameters [stack..., out, in, 1, 1] count as
    matrices [out, in]; other convolutions [out, in, k, k] as [out, in k k].
    """

    def __init__(self, groups: Sequence[dict[str, Any]], momentum: float, nesterov: bool) -> None:
        """`groups` bring their `lr` (a number, or a tensor on the device) and their `weight_decay`."""
        super().__init__(groups, {"momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
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
    """A dense convolution's weight, or a stack of them, or a linear map's, as matrices [n, out, in k k]."""
    if weight.ndim == 2:
        return weight[None]
    return weight.reshape(-1, weight.shape[-4], weight.shape[-3:].numel())
