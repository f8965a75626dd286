"""The loss of a run: the hard term and the soft term of its teachers.

Invariant: `total = alpha * hard + (1 - alpha) * soft` for all teachers and kinds. All terms are computed in float32
(float64 if the logits are float64). Nothing waits for the device.

The soft term:

- One teacher or an ensemble: the kind's logit loss against the combined logits, plus the mean over teachers of the
  kind's feature loss.
- Dense (DGKD, Son 2021; not with adaptive): the mean over teachers of each teacher's logit and feature loss. The paper
  has (n + 1)(1 - lambda) CE + lambda (the sum of n + 1 KD terms: first teacher and n assistants). Here it is divided
  by n + 1, so alpha and the learning rate mean the same for any n. Stochastic: the paper drops each teacher's term at
  random. Here exactly `drop` of the n + 1 terms are dropped, never all and never the hard term. The mean is over the
  kept terms, so the expected loss equals the loss without dropping.
- Adaptive (AMTML-KD, Liu 2020): the logit loss against the mixture of the teachers' soft targets with per-example
  weights, each teacher's feature loss times its mean weight over the batch, the angle loss between the student's
  probabilities and the mixture, and grouped hints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.distill import kinds, losses
from ghostcli.distill.adaptive import GroupedHints, TeacherWeights
from ghostcli.distill.features import angle
from ghostcli.recipe.models import DistillSection
from ghostcli.zoo.stages import Features, FeatureShape


class Losses(NamedTuple):
    """Scalars on the logits' device. `total` is minimised."""

    total: Tensor
    hard: Tensor
    soft: Tensor


def kept_terms(teachers: int, drop: int, seed: int, step: int) -> list[int]:
    """Indices of the teachers whose terms are kept at this step: all but `drop`, at least one. Pure in (seed, step)."""

    def rank(i: int) -> bytes:
        return hashlib.sha256(f"{seed}/drop/{step}/{i}".encode()).digest()

    return sorted(sorted(range(teachers), key=rank)[min(drop, teachers - 1) :])


class Objective(nn.Module):
    """Computes `Losses` from a batch's logits, labels and teacher outputs. Without teachers: plain cross-entropy.

    Its parameters are trained with the student's. The saved network does not contain them. The shapes of features are
    those of the student and of each teacher, if `distill.needs_features`. Torch's generator draws the regressors and
    the adaptive weights.
    """

    def __init__(
        self,
        distill: DistillSection,
        *,
        teachers: int,
        label_smoothing: float = 0.0,
        student_features: FeatureShape | None = None,
        teacher_features: Sequence[FeatureShape] = (),
    ) -> None:
        super().__init__()
        self.distill, self.teachers, self.label_smoothing = distill, teachers, label_smoothing
        self.needs_features = teachers > 0 and distill.needs_features
        self.kind = self.teacher_weights = self.hints = None
        if teachers:
            self.kind = kinds.build(distill, student_features, teacher_features)
        if teachers and distill.weighting == "adaptive":
            self.teacher_weights = TeacherWeights(student_features.pooled, teachers)
            self.hints = GroupedHints(student_features, teacher_features)

    def schedule(self, seed: int, epoch: int, step: int) -> tuple[float, ...]:
        """Weights of the soft term's parts at update `step` of the run, in `epoch` (both counted from 0).

        One per teacher if dense, else one; none without teachers. They include DKD's linear warm-up and dropped terms.
        """
        if self.teachers == 0:
            return ()
        warm = self.kind.warmup(epoch)
        if not self.distill.dense:
            return (warm,)
        terms = kept_terms(self.teachers, self.distill.drop, seed, step)
        return tuple(warm / len(terms) if i in terms else 0.0 for i in range(self.teachers))

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None = None,
        features: Features | None = None,
        teacher_features: Sequence[Features] | None = None,
        weights: Sequence[float] | Tensor = (),
    ) -> Losses:
        """Logits [B, C], labels [B], teachers' logits [T, B, C], and features if needed.

        `weights` is the result of `schedule` for this step. As a tensor on the device, it can be read by a captured
        step; the loop refills it between replays.
        """
        with torch.autocast(logits.device.type, enabled=False):
            z = _full(logits)
            hard = F.cross_entropy(z, labels, label_smoothing=self.label_smoothing)
            if self.teachers == 0:
                return Losses(hard, hard, torch.zeros_like(hard))
            soft = self._soft(
                z,
                labels,
                _full(teacher_logits.detach()),
                features and _full_features(features),
                teacher_features and [_full_features(f, detach=True) for f in teacher_features],
                weights,
            )
            alpha = self.distill.alpha
            return Losses(alpha * hard + (1 - alpha) * soft, hard, soft)

    def _soft(
        self,
        z: Tensor,
        labels: Tensor,
        t: Tensor,
        features: Features | None,
        teacher_features: list[Features] | None,
        weights: Sequence[float] | Tensor,
    ) -> Tensor:
        extra = self.kind(features, teacher_features) if self.distill.features else [0.0] * self.teachers
        if self.distill.dense:
            return sum(weights[i] * (self._logit_loss(z, t[i], labels) + extra[i]) for i in range(self.teachers))
        if self.teacher_weights is None:
            target = losses.combine(t, self.distill.combine, self.distill.temperature)
            return weights[0] * (self._logit_loss(z, target, labels) + sum(extra) / self.teachers)

        temperature = self.distill.temperature
        log_share = self.teacher_weights(features.pooled)  # [B, T]
        target = losses.mixture(t, log_share, temperature)
        share = log_share.exp().mean(0)
        soft = self._logit_loss(z, target, labels) + sum(share[i] * extra[i] for i in range(self.teachers))
        structure = angle(F.softmax(z / temperature, -1), F.softmax(target / temperature, -1))
        soft = soft + self.distill.adaptive_angle * structure
        return weights[0] * (soft + self.distill.adaptive_hint * self.hints(features, teacher_features))

    def _logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        distill = self.distill
        if distill.standardize:
            z, target = losses.standardize(z), losses.standardize(target)
        return self.kind.logit_loss(z, target, labels)


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _full_features(features: Features, detach: bool = False) -> Features:
    maps, pooled = [_full(m) for m in features.maps], _full(features.pooled)
    return Features([m.detach() for m in maps], pooled.detach()) if detach else Features(maps, pooled)
