"""Losses on logits as pure functions, with equation and paper, and the combination of several teachers' logits.

Invariant: no function has parameters, randomness or state, and none waits for the device.

Notation: Logits z (student) and t (teacher), [B, C]. At temperature T, q = softmax(z / T), p = softmax(t / T).
KL(p || q) = sum over the classes of p (log p - log q). Losses are means over the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Combine = Literal["logits", "probabilities", "standardized"]

#: Keeps the correlation of almost constant vectors near 0, as DIST's published code does.
CORRELATION_EPS = 1e-8


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q), the soft term of the paper's equation (1) (Hinton 2015, "Distilling the Knowledge").

    T^2 makes the gradient's size independent of T. For T -> infinity the loss tends to half the mean
    squared difference of the centred logits.
    """
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * _kl(log_p, log_q).mean()


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float | Tensor = 1.0,
    other_weight: float | Tensor = 8.0,
) -> Tensor:
    """T^2 (a KL(b_p || b_q) + b KL(p' || q')), decoupled KD (Zhao 2022, equations 6 and 7).

    b_p = [p_y, 1 - p_y] is the probability of the labelled class and of all others together. p' is the softmax over the
    other classes. The weights a and b are numbers, or [B] with one per sample. KD is a = 1, b = 1 - p_y.
    """
    z, t = student / temperature, teacher / temperature
    binary = _kl(_target_or_other(t, labels), _target_or_other(z, labels))
    others = _kl(F.log_softmax(_others(t, labels), -1), F.log_softmax(_others(z, labels), -1))
    return temperature**2 * (target_weight * binary + other_weight * others).mean()


def dist(
    student: Tensor, teacher: Tensor, temperature: float, inter_weight: float = 1.0, intra_weight: float = 1.0
) -> Tensor:
    """T^2 (b L_inter + g L_intra), DIST (Huang 2022, equations 8 to 10, with the published code's T^2).

    L_inter = 1 - mean over samples of the correlation of q's and p's row; L_intra = 1 - mean over classes of
    the correlation of q's and p's column. A positive affine change of each row (or column) of q or p does not
    change L_inter (or L_intra).
    """
    q = F.softmax(student / temperature, -1)
    p = F.softmax(teacher / temperature, -1)
    inter = 1 - correlation(q, p).mean()
    intra = 1 - correlation(q.T, p.T).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension, [..., N] -> [...]; 0 if x or y is constant."""
    x = x - x.mean(-1, keepdim=True)
    y = y - y.mean(-1, keepdim=True)
    size = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    return (x * y).sum(-1) / (size + CORRELATION_EPS)


def standardize(logits: Tensor) -> Tensor:
    """(z - mean) / std of each row (Sun 2024, "Logit Standardization"); a constant row becomes zeros.

    It is applied to student and teacher before any loss on logits. The loss then depends on the order and relative
    spacing of the logits, not on their size. std divides by C. The authors' code divides by C - 1: at C = 10 that is a
    T larger by 5 %.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / _deviation(centred).clamp_min(1e-7)


def combine(teachers: Tensor, how: Combine, temperature: float) -> Tensor:
    """Combine teachers' logits [N, B, C] into logits [B, C] of one teacher. A single teacher is unchanged.

    logits: the mean of the logits (the paper's ensembles). probabilities: T log of the mean softmax(t / T); its softmax
    at T is that mean. standardized: the mean of the standardised logits, rescaled to the teachers' average mean and
    standard deviation. So each teacher has equal weight, whatever the size of its logits.
    """
    if how == "probabilities":
        equal = torch.full_like(teachers[:, :, 0].T, -math.log(len(teachers)))
        return mixture(teachers, equal, temperature)
    if how == "standardized":
        middle = teachers.mean(-1, keepdim=True)
        scale = _deviation(teachers - middle)
        return standardize(teachers).mean(0) * scale.mean(0) + middle.mean(0)
    return teachers.mean(0)


def mixture(teachers: Tensor, log_weights: Tensor, temperature: float) -> Tensor:
    """T log of sum_i w_i softmax(t_i / T): logits [B, C] whose softmax at T is the weighted mixture.

    `teachers` [N, B, C], `log_weights` [B, N] of weights that sum to 1.
    """
    log_p = F.log_softmax(teachers / temperature, -1) + log_weights.T.unsqueeze(-1)
    return temperature * torch.logsumexp(log_p, 0)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean entropy of softmax(logits / T) in nats, a scalar: how soft the targets of a teacher are."""
    log_p = F.log_softmax(logits / temperature, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def smoothed_entropy(epsilon: float, classes: int) -> float:
    """Entropy in nats of a label smoothed by e = `epsilon`: 1 - e + e / C on its class, e / C on each other class."""
    other = epsilon / classes
    target = 1 - (classes - 1) * other
    return -sum(n * p * math.log(p) for n, p in ((1, target), (classes - 1, other)) if p > 0)


def matched_smoothing(target_entropy: float, classes: int) -> float:
    """The label smoothing whose targets have entropy `target_entropy` in nats (see `entropy`).

    It tells a user how soft a teacher's targets are, in a familiar unit. ValueError outside 0 to log(classes).
    """
    from scipy.optimize import brentq  # slow to import, and no training needs it

    highest = math.log(classes)
    if not 0 <= target_entropy <= highest * (1 + 1e-9):
        raise ValueError(f"the entropy of {classes} classes is 0 to {highest:.4f} nats, not {target_entropy}")
    if target_entropy >= highest:
        return 1.0
    return brentq(lambda epsilon: smoothed_entropy(epsilon, classes) - target_entropy, 0.0, 1.0, xtol=1e-15)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _deviation(centred: Tensor) -> Tensor:
    return torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(centred.shape[-1])


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of all classes but the labelled one, [B, C - 1]."""
    index = torch.arange(logits.shape[-1] - 1, device=logits.device).expand(len(labels), -1)
    return logits.gather(-1, index + (index >= labels[:, None]))


def _target_or_other(logits: Tensor, labels: Tensor) -> Tensor:
    """Log probabilities of the labelled class and of all others together, [B, 2]."""
    target = logits.gather(-1, labels[:, None])
    other = torch.logsumexp(_others(logits, labels), -1, keepdim=True)
    return F.log_softmax(torch.cat([target, other], -1), -1)
