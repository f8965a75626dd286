"""Distillation: losses as pure functions, the objective, teachers and their tables.

Invariant: importing this package imports no torch. Building an objective does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ghostcli.errors import UsageError, printable

if TYPE_CHECKING:
    from torch import nn

    from ghostcli.distill.objective import Objective
    from ghostcli.recipe.models import Recipe
    from ghostcli.zoo.stages import FeatureShape


def build_for(recipe: Recipe, student: nn.Module, teachers: Sequence[nn.Module], size: int) -> Objective:
    """The objective for these networks and square images of `size` pixels. Torch's generator draws its weights."""
    from ghostcli.distill.objective import Objective

    shapes = {}
    if teachers and recipe.distill.needs_features:
        shapes["student_features"] = feature_shape(recipe, student, size)
        shapes["teacher_features"] = [feature_shape(recipe, teacher, size) for teacher in teachers]
    smoothing = recipe.train.label_smoothing
    return Objective(recipe.distill, teachers=len(teachers), label_smoothing=smoothing, **shapes)


def feature_shape(recipe: Recipe, network: nn.Module, size: int) -> FeatureShape:
    """The shape of a network's features for images of `size` pixels. UsageError if it lacks those that are compared."""
    from ghostcli.distill import kinds
    from ghostcli.zoo.stages import Tap

    distill = recipe.distill
    try:
        shape = Tap(network, size).shape
    except ValueError:
        lacks, instead = "features", "distill.kind=kd, or dkd or dist"
    else:
        if shape.levels or not (distill.weighting == "adaptive" or kinds.of(distill).maps):
            return shape
        lacks, instead = "feature maps", "distill.kind=kd, or dkd, dist or rkd"
    key = f"distill.kind={distill.kind}"
    if distill.weighting == "adaptive":
        key, instead = "distill.weighting=adaptive", "distill.weighting=mean"
    raise UsageError(f"{printable(network.spec.name)}: has no {lacks}, which {key} compares; use -s {instead}")
