"""Losses on features (hints, attention, relations) as pure functions, and the regressors that hints need.

Invariant: any student can be paired with any teacher, stage by stage (see zoo/stages.py). The larger of two maps is
average-pooled to the side of the smaller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_side(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W], pooled to the smaller side of the two."""
    side = min(a.shape[-1], b.shape[-1])
    return tuple(x if x.shape[-1] == side else F.adaptive_avg_pool2d(x, side) for x in (a, b))


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of (r - t)^2 for the regressed student's map r (FitNets, Romero 2015, equation 3).

    The factor 1/2 and the sum over elements of the equation are left to the weight.
    """
    return F.mse_loss(*same_side(student, teacher))


def attention_map(maps: Tensor) -> Tensor:
    """The channels' mean of squares, as unit vectors: [B, C, H, W] -> [B, H W] (Zagoruyko 2017, section 3.1)."""
    return F.normalize(maps.square().mean(1).flatten(1))


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples and places of (Q_s - Q_t)^2, attention maps Q (Zagoruyko 2017, equation 2, squared).

    The usual weight of 1000 belongs to this mean over places, not to a sum.
    """
    student, teacher = same_side(student, teacher)
    return F.mse_loss(attention_map(student), attention_map(teacher))


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between pairwise distances, each divided by its network's mean distance (RKD, Park 2019, eq. 5, 6).

    Features [B, D]; the two widths D may differ. Mean over pairs of different samples; 0 for a batch of one.
    """
    (s, _), (t, _) = _pairwise(student), _pairwise(teacher)
    pairs = max(len(s) * (len(s) - 1), 1)
    tiny = torch.finfo(s.dtype).tiny
    s, t = (x / (x.sum() / pairs).clamp_min(tiny) for x in (s, t))
    return F.smooth_l1_loss(s, t, reduction="sum") / pairs


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles of triples of samples (RKD, Park 2019, eq. 7, 8).

    Features [B, D]; the two widths D may differ. Mean over triples of different samples; 0 for a batch below three.
    """
    b = len(student)
    triples = max(b * (b - 1) * (b - 2), 1)
    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="sum") / triples


def cosines(x: Tensor) -> Tensor:
    """[B, D] -> [B, B, B]: entry (j, i, k) is the cosine of the angle at sample j between samples i and k.

    It is 0 where i or k coincides with j. The Gram matrix g gives (x_i - x_j)(x_k - x_j) = g_ik - g_ij - g_jk + g_jj.
    So memory is B^3 numbers, not B^2 D or more.
    """
    distances, gram = _pairwise(x)
    apart = distances > 0
    inverse = torch.where(apart, 1 / distances.where(apart, 1.0), 0.0)
    dots = gram[None] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    return dots * inverse[:, :, None] * inverse[:, None, :]


def _pairwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between rows [B, B], and their Gram matrix. A distance that is only rounding error is 0."""
    x = x - x.mean(0)  # the distances do not change, and less precision is lost to cancellation
    gram = x @ x.T
    sizes = gram.diagonal()[:, None] + gram.diagonal()[None, :]
    squares = sizes - 2 * gram
    apart = squares > 8 * torch.finfo(x.dtype).eps * sizes
    # The gradient of sqrt at 0 is infinite, so equal rows must not pass through sqrt.
    return torch.where(apart, squares.where(apart, 1.0).sqrt(), 0.0), gram


def regressor(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution from the student's to the teacher's channels. Torch's generator draws it, variance 1 / in."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    with torch.no_grad():
        conv.weight.normal_(0, in_channels**-0.5)
        conv.bias.zero_()
    return conv
