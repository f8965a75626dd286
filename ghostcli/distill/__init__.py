"""Distillation: losses as pure functions, the objective, teachers and their tables.

Invariant: importing this package imports no torch. Building an objective does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ghostcli.distill.objective import Objective
    from ghostcli.recipe.models import Recipe


def build_for(recipe: Recipe, student: nn.Module, teachers: Sequence[nn.Module], size: int) -> Objective:
    """The objective for these networks and square images of `size` pixels. Torch's generator draws its weights."""
    from ghostcli.distill import objective
    from ghostcli.zoo.stages import Tap

    shapes = {}
    if teachers and recipe.distill.needs_features:
        shapes["student_features"] = Tap(student, size).shape
        shapes["teacher_features"] = [Tap(teacher, size).shape for teacher in teachers]
    smoothing = recipe.train.label_smoothing
    return objective.build(recipe.distill, teachers=len(teachers), label_smoothing=smoothing, **shapes)
