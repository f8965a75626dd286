"""The kinds of distillation, one class per kind. A new kind is a class here and a section in `recipe/models.py`.

Invariant: parameters are the only state of a kind. It never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ghostcli.distill import losses
from ghostcli.distill.features import angle, attention, distance, hint, regressor
from ghostcli.recipe import models
from ghostcli.recipe.models import DistillBase
from ghostcli.zoo.stages import Features, FeatureShape, common, nearest

Shapes = Sequence[FeatureShape]


class Kind(nn.Module):
    """The loss terms of a kind. A kind whose section has `features = True` also defines `forward`."""

    section: ClassVar[type[DistillBase]]
    #: Whether a kind with features compares maps, which an MLP has not.
    maps: ClassVar[bool] = True

    def __init__(self, distill: DistillBase) -> None:
        super().__init__()
        self.distill = distill

    def prepare(self, student: FeatureShape, teachers: Shapes) -> None:
        """Look up, for the shapes of the networks' features, what `forward` needs. Torch's generator draws weights."""

    def logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """A scalar from logits [B, C] of student and teacher and labels [B]. Feature kinds: KD times `kd_weight`."""
        return self.distill.kd_weight * losses.kd(z, target, self.distill.temperature)

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        """One weighted scalar per teacher, from the networks' features."""
        return [student.pooled.new_zeros(())] * len(teachers)

    def warmup(self, epoch: int) -> float:
        """The factor of the soft term in `epoch` (counted from 0)."""
        return 1.0


class KD(Kind):
    section = models.KD

    def logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return losses.kd(z, target, self.distill.temperature)


class DKD(Kind):
    section = models.DKD

    def logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        a, b = self.distill.target_weight, self.distill.other_weight
        return losses.dkd(z, target, labels, self.distill.temperature, a, b)

    def warmup(self, epoch: int) -> float:
        epochs = self.distill.warmup_epochs
        return min((epoch + 1) / epochs, 1.0) if epochs else 1.0


class DIST(Kind):
    section = models.DIST

    def logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        distill = self.distill
        return losses.dist(z, target, distill.temperature, distill.inter_weight, distill.intra_weight)


class Hint(Kind):
    """One hint per teacher, at stage `distill.stage` or the nearest stage that both networks have.

    Each regressor ends in a batch norm. So its gradient does not grow with the student's maps, and the student's
    learning rate works for the regressor too.
    """

    section = models.Hint

    def prepare(self, student: FeatureShape, teachers: Shapes) -> None:
        self.pairs = []
        for teacher in teachers:
            both = common(student, teacher)
            self.pairs.append(both[nearest([student.levels[i] for i, _ in both], self.distill.stage - 1)])
        self.regressors = nn.ModuleList(
            nn.Sequential(regressor(student.channels[i], teacher.channels[j]), nn.BatchNorm2d(teacher.channels[j]))
            for (i, j), teacher in zip(self.pairs, teachers, strict=True)
        )

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.weight * hint(regress(student.maps[i]), teacher.maps[j])
            for (i, j), regress, teacher in zip(self.pairs, self.regressors, teachers, strict=True)
        ]


class AT(Kind):
    """The attention loss per teacher, summed over all levels that student and teacher share."""

    section = models.AT

    def prepare(self, student: FeatureShape, teachers: Shapes) -> None:
        self.pairs = [common(student, teacher) for teacher in teachers]

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.weight * torch.stack([attention(student.maps[i], teacher.maps[j]) for i, j in pairs]).sum()
            for pairs, teacher in zip(self.pairs, teachers, strict=True)
        ]


class RKD(Kind):
    """The distance and angle losses on the penultimate features, per teacher."""

    section = models.RKD
    maps = False

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.distance_weight * distance(student.pooled, teacher.pooled)
            + self.distill.angle_weight * angle(student.pooled, teacher.pooled)
            for teacher in teachers
        ]


def of(distill: DistillBase) -> type[Kind]:
    return next(kind for kind in Kind.__subclasses__() if kind.section is type(distill))


def build(distill: DistillBase, student: FeatureShape | None, teachers: Shapes) -> Kind:
    """The kind of a [distill] section. `student` and `teachers`: shapes of features, None and empty without any."""
    kind = of(distill)(distill)
    if student is not None:
        kind.prepare(student, teachers)
    return kind
