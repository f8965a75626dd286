"""The algebra of a folded sum in plain PyTorch: branches to one convolution, and gradients back; see folded.py.

Invariant: every other implementation must agree with this one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5


class Branches(NamedTuple):
    """Stacked parameters of one sum: [B, O, I/groups, k, k], [B, O], [B, O]; the rest [O] or None."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    scale_weight: Tensor | None = None
    scale_gamma: Tensor | None = None
    scale_beta: Tensor | None = None
    identity_gamma: Tensor | None = None
    identity_beta: Tensor | None = None


class Running(NamedTuple):
    """Running (mean, variance), [B, O] or [O] each, in the order of the branches. They follow each batch's.

    `batches`, an integer of a norm that counts them, is raised by one.
    """

    norms: tuple[tuple[Tensor, Tensor], ...]
    momentum: float
    batches: Tensor | None = None


class Fold(NamedTuple):
    """One convolution, kernel [O, T] and bias [O], with the values for its backward pass. B' counts all branches."""

    kernel: Tensor
    bias: Tensor
    rows: Tensor | None  # [B', O, T]; None where the gradient is computed from the branches themselves
    rows_cov: Tensor  # rows R
    gain: Tensor  # [B', O]
    rstd: Tensor
    mean: Tensor
    var: Tensor
    patch_mean: Tensor  # [T], or [O, T] for a depthwise


def _stack(p: Branches, depthwise: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [B', O, T], gamma and beta [B', O] of all branches: the given ones, scale, identity."""

    def stacked(given: Tensor, *others: Tensor | None) -> Tensor:
        return torch.cat([given.to(dtype), *(t[None].to(dtype) for t in others if t is not None)])

    rows = p.weight.flatten(2)
    o, t = rows.shape[1:]
    unit = torch.eye(t, dtype=dtype, device=rows.device)
    unit = unit[t // 2].expand(o, t) if depthwise else unit
    scale = None if p.scale_weight is None else p.scale_weight[:, None] * unit
    identity = None if p.identity_gamma is None else unit
    gamma, beta = stacked(p.gamma, p.scale_gamma, p.identity_gamma), stacked(p.beta, p.scale_beta, p.identity_beta)
    return stacked(rows, scale, identity), gamma, beta


def _unstack(branches: Branches, drows: Tensor, dgamma: Tensor, dbias: Tensor) -> list[Tensor | None]:
    """Gradients in the order of `Branches`. The beta of each branch has the gradient of the bias."""
    p, b = branches, branches.gamma.shape[0]
    grads = [drows[:b].reshape(p.weight.shape), dgamma[:b], dbias.expand(b, -1), None, None, None, None, None]
    if p.scale_gamma is not None:
        grads[3:6] = drows[b, :, drows.shape[2] // 2], dgamma[b], dbias
    if p.identity_gamma is not None:
        grads[6:8] = dgamma[-1], dbias
    return [None if g is None else g.to(t.dtype) for g, t in zip(grads, p, strict=True)]


def fold(branches: Branches, mean: Tensor, cov: Tensor, running: Running | None = None, count: int = 0) -> Fold:
    """Fold the branches, given `mean` [T] and `cov` [T, T] of `count` patches; [O, T] and [O, T, T] for a depthwise.

    The running statistics, if they are given, follow.
    """
    depthwise = mean.dim() == 2
    rows, gamma, beta = _stack(branches, depthwise, mean.dtype)
    if depthwise:
        rows_cov = (rows.transpose(0, 1) @ cov).transpose(0, 1)
        branch_mean = (rows * mean).sum(-1)
    else:
        rows_cov, branch_mean = rows @ cov, rows @ mean
    var = (rows_cov * rows).sum(-1).clamp_(min=0)
    rstd = (var + EPS).rsqrt_()
    gain = gamma * rstd
    kernel = (gain[..., None] * rows).sum(0)
    bias = (beta - gain * branch_mean).sum(0)
    if running is not None:
        track(branch_mean, var, count, running)
    return Fold(kernel, bias, rows, rows_cov, gain, rstd, branch_mean, var, mean)


def unfold(
    branches: Branches, fold: Fold, dkernel: Tensor, dbias: Tensor, count: int
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Gradients in the order of `Branches`, and S and t of the patches' gradient, from those of kernel and bias."""
    dgain = (dkernel * fold.rows).sum(-1).addcmul_(dbias, fold.mean, value=-1)  # [B', O]
    dmean = -dbias * fold.gain
    dvar = -0.5 * dgain * fold.gain * fold.rstd.square()
    dgamma = dgain * fold.rstd
    drows = fold.gain[..., None] * dkernel
    drows.addcmul_(dmean[..., None], fold.patch_mean).addcmul_(dvar[..., None], fold.rows_cov, value=2)
    weighted = fold.rows * (dvar[..., None] * (2 / count))
    if fold.patch_mean.dim() == 2:
        S = weighted.permute(1, 2, 0) @ fold.rows.transpose(0, 1)
        t = (fold.rows * dmean[..., None]).sum(0).div_(count)
        t = t - (S @ fold.patch_mean[..., None])[..., 0]
    else:
        S = weighted.flatten(0, 1).t() @ fold.rows.flatten(0, 1)
        t = (dmean.flatten() @ fold.rows.flatten(0, 1)).div_(count) - S @ fold.patch_mean
    return _unstack(branches, drows, dgamma, dbias), S, t


def track(mean: Tensor, var: Tensor, count: int, running: Running) -> None:
    """Move running means and variances, in place, towards those of a batch of `count` values.

    `mean` and `var` [B', O] have the rows of all of `running`, one after the other. `var` is biased; batch norm keeps
    the unbiased one.
    """
    means, unbiased = mean.flatten(), (var * (count / (count - 1))).flatten()
    statistics, batch, at = [], [], 0
    for of_mean, of_var in running.norms:
        rows = slice(at, at + of_mean.numel())
        statistics += [of_mean, of_var]
        batch += [part[rows].view_as(of_mean).to(of_mean.dtype) for part in (means, unbiased)]
        at = rows.stop
    torch._foreach_lerp_(statistics, batch, running.momentum)
    if running.batches is not None:
        running.batches.add_(1)
