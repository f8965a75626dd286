"""Teacher weights per example (AMTML-KD: Liu 2020, "Adaptive multi-teacher multi-level KD").

Invariant: teacher factors, the score and the hints' regressors are module parameters. The optimiser gets them from
`Objective.parameters()` and trains them with the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.distill.features import hint, regressor
from ghostcli.zoo.stages import Features, FeatureShape, nearest


class TeacherWeights(nn.Module):
    """w_i(x) = softmax over teachers i of v . (theta_i * f(x)) / sqrt(D), f the student's pooled features [B, D].

    theta_i is the latent factor of teacher i and v is the score; both are learned. The paper has no sqrt(D). It keeps
    the initial weights away from 0 and 1 for any feature width.
    """

    def __init__(self, width: int, teachers: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(teachers, width))
        self.score = nn.Parameter(torch.randn(width))

    def forward(self, pooled: Tensor) -> Tensor:
        """Log weights [B, teachers]."""
        scores = pooled @ (self.factors * self.score).T
        return F.log_softmax(scores / pooled.shape[-1] ** 0.5, -1)


class GroupedHints(nn.Module):
    """Hints from the teachers to groups of the student's stages, in order: one teacher per group.

    With more teachers than stages, a stage has hints of several teachers. The teacher's stage is the nearest in level.
    Both maps are unit vectors over the channels, as in the published code. The loss is the mean over all hints.
    """

    def __init__(self, student: FeatureShape, teachers: Sequence[FeatureShape]) -> None:
        super().__init__()
        stages, n = len(student.levels), len(teachers)
        self.groups: list[tuple[int, int, int]] = []  # (student's stage, teacher, teacher's stage)
        self.regressors = nn.ModuleList()
        for k in range(max(stages, n)):
            i, who = k * stages // max(stages, n), k * n // max(stages, n)
            j = nearest(teachers[who].levels, student.levels[i])
            self.groups.append((i, who, j))
            self.regressors.append(regressor(student.channels[i], teachers[who].channels[j]))

    def forward(self, student: Features, teachers: Sequence[Features]) -> Tensor:
        terms = [
            hint(regress(F.normalize(student.maps[i])), F.normalize(teachers[who].maps[j]))
            for (i, who, j), regress in zip(self.groups, self.regressors, strict=True)
        ]
        return torch.stack(terms).mean()
