"""Which printed row a run is one of. Invariant: budget and recipe do not decide it, only who teaches whom on what."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcli.compare.groups import SHARE_BASELINES, Arm, members
from ghostcli.paper import PaperRow, paper
from ghostcli.records.model import RunResult
from ghostcli.zoo.names import slug


def fits(result: RunResult, row: PaperRow) -> bool:
    """Whether a run is one of a printed row's kind (of whatever budget and recipe)."""
    if result.data != paper().source.data:
        return False
    if result.family in SHARE_BASELINES and result.kind not in (None, paper().source.kind):
        return False
    same = (result.student, result.strategy) == (row.student, row.strategy)
    return same and members(result.strategy, result.path) == members(row.strategy, row.teachers)


def may_fit(run_id: str, row: PaperRow) -> bool:
    """The same, of a run without a result, by its id."""
    return run_id.startswith(f"{slug(row.student)}-{row.strategy}-")


def most_telling(arms: Sequence[Arm], family: str, row: PaperRow) -> list[Arm]:
    """The arms of a row, that to be shown first: the paper's own settings in its own families, then seeds, then age."""
    source = paper().source

    def rank(arm: Arm) -> tuple[bool, bool, float, int, float]:
        distill = arm.recipe["distill"]
        faithful = all(
            distill.get(key, getattr(source, key)) == getattr(source, key) for key in ("alpha", "temperature")
        )
        named = family != "published" or arm.about.recipe_name == row.published
        plain = 0.0 if arm.teachers else -arm.smoothing
        return faithful or family not in SHARE_BASELINES, named, plain, len(arm.runs), arm.newest

    return sorted(arms, key=rank, reverse=True)
