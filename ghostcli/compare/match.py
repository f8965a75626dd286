"""Which printed row a run belongs to. Invariant: who teaches whom on which data decides it, not budget or recipe."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcli.compare.groups import SHARE_BASELINES, RunGroup, members
from ghostcli.paper import PaperRow, paper
from ghostcli.records.model import RunSetup
from ghostcli.zoo.names import slug


def matches(about: RunSetup, row: PaperRow) -> bool:
    """Whether a run is of a printed row's kind, whatever its budget and recipe. Controls are of none."""
    if about.data != paper().source.data or (about.teachers and about.recipe.distill.blind):
        return False
    if about.family in SHARE_BASELINES and about.kind not in (None, paper().source.kind):
        return False
    same = (about.student, about.strategy) == (row.student, row.strategy)
    return same and members(about.path, about.strategy) == members(row.teachers, row.strategy)


def may_match(run_id: str, row: PaperRow) -> bool:
    """The same for a run whose record cannot be read, by its id."""
    return run_id.startswith(f"{slug(row.student)}-{row.strategy}-")


def ranked(groups: Sequence[RunGroup], family: str, row: PaperRow) -> list[RunGroup]:
    """The groups of a row, the one to show first: the paper's own settings in its families, then most seeds."""
    source = paper().source

    def rank(group: RunGroup) -> tuple[bool, bool, float, int, str]:
        distill = group.recipe.distill
        faithful = (distill.alpha, distill.temperature) == (source.alpha, source.temperature)
        named = family != "published" or group.about.recipe_name == row.published
        plain = 0.0 if group.teachers else -group.smoothing
        return faithful or family not in SHARE_BASELINES, named, plain, len(group.runs), group.about.run

    return sorted(groups, key=rank, reverse=True)
