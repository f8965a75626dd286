"""The kinds of teaching: one class each, beside its section in `recipe/models.py`. A new kind is one more of both.

Invariant: a kind has no state but its parameters. Nothing in it waits for the device.
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


class Kind(nn.Module):
    """What a kind adds to the objective. Kinds whose section has `features = True` also define `forward`.

    `student` and `teachers` are the shapes of the networks' features; None and empty for kinds of logits.
    `generator` draws the kind's own weights.
    """

    section: ClassVar[type[DistillBase]]

    def __init__(
        self,
        distill: DistillBase,
        student: FeatureShape | None = None,
        teachers: Sequence[FeatureShape] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.distill = distill

    def logit_loss(self, z: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """A scalar from logits [B, C] of student and teacher and labels [B]. Feature kinds: their share of KD."""
        return self.distill.kd_weight * losses.kd(z, target, self.distill.temperature)

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        """One weighted scalar a teacher from the networks' features."""
        return [student.pooled.new_zeros(())] * len(teachers)

    def warmup(self, epoch: int) -> float:
        """The factor of the soft term in `epoch` (from 0)."""
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
    """One hint a teacher, at the stage that is asked for or the nearest that both networks have.

    Each hint has a regressor that ends in a batch norm: its slope then does not grow with the student's maps, and a
    learning rate that suits the student suits it too.
    """

    section = models.Hint

    def __init__(
        self,
        distill: DistillBase,
        student: FeatureShape,
        teachers: Sequence[FeatureShape],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(distill)
        self.pairs = []
        for teacher in teachers:
            both = common(student, teacher)
            self.pairs.append(both[nearest([student.levels[i] for i, _ in both], distill.stage - 1)])
        self.regressors = nn.ModuleList(
            nn.Sequential(
                regressor(student.channels[i], teacher.channels[j], generator), nn.BatchNorm2d(teacher.channels[j])
            )
            for (i, j), teacher in zip(self.pairs, teachers, strict=True)
        )

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.weight * hint(regress(student.maps[i]), teacher.maps[j])
            for (i, j), regress, teacher in zip(self.pairs, self.regressors, teachers, strict=True)
        ]


class AT(Kind):
    """For each teacher the attention loss, summed over all levels that it and the student have."""

    section = models.AT

    def __init__(
        self,
        distill: DistillBase,
        student: FeatureShape,
        teachers: Sequence[FeatureShape],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(distill)
        self.pairs = [common(student, teacher) for teacher in teachers]

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.weight * torch.stack([attention(student.maps[i], teacher.maps[j]) for i, j in pairs]).sum()
            for pairs, teacher in zip(self.pairs, teachers, strict=True)
        ]


class RKD(Kind):
    """For each teacher the distance and angle losses of the penultimate features."""

    section = models.RKD

    def forward(self, student: Features, teachers: Sequence[Features]) -> list[Tensor]:
        return [
            self.distill.distance_weight * distance(student.pooled, teacher.pooled)
            + self.distill.angle_weight * angle(student.pooled, teacher.pooled)
            for teacher in teachers
        ]


def build(
    distill: DistillBase,
    student: FeatureShape | None = None,
    teachers: Sequence[FeatureShape] = (),
    generator: torch.Generator | None = None,
) -> Kind:
    """The kind that belongs to a [distill] section."""
    found = next(kind for kind in Kind.__subclasses__() if kind.section is type(distill))
    return found(distill, student, teachers, generator)
