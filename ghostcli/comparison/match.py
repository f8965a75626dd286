"""Finds the printed row of a run. Invariant: it depends on student, teachers and data, not on budget or recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from ghostcli.comparison.groups import SHARE_BASELINES, RunGroup, grouped, members
from ghostcli.paper import PaperRow, paper
from ghostcli.records.model import RunSetup
from ghostcli.zoo.names import slug

#: In the id of a run without teachers.
PLAIN = re.compile(r"-plain-[0-9a-f]{8}/")


def matches(about: RunSetup, row: PaperRow) -> bool:
    """Whether a run belongs to a printed row, for any budget and recipe. Controls belong to no row."""
    if (about.student, about.strategy) != (row.student, row.strategy) or about.data != paper().source.data:
        return False
    if about.teachers and about.recipe.distill.blind:
        return False
    if about.family in SHARE_BASELINES and about.kind not in (None, paper().source.kind):
        return False
    # Outside chains the paper's teachers had no teachers. A chain's path names all of its networks.
    if about.strategy != "chain" and not all(PLAIN.search(teacher.run) for teacher in about.teachers):
        return False
    return members(about.path, about.strategy) == members(row.teachers, row.strategy)


@cache
def _by_student() -> dict[tuple[str, str], list[PaperRow]]:
    """The rows by student and strategy: a sweep asks for thousands of runs."""
    return grouped(paper().rows, lambda row: (row.student, row.strategy))


def rows_of(about: RunSetup, table: str | None = None) -> list[PaperRow]:
    """The printed rows to which a run belongs, of one table or of all."""
    candidates = _by_student().get((about.student, about.strategy), ())
    return [row for row in candidates if table in (None, row.table) and matches(about, row)]


def may_match(run_id: str, row: PaperRow) -> bool:
    """The same for a run with an unreadable record, by its id."""
    return run_id.startswith(f"{slug(row.student)}-{row.strategy}-")


def ranked(groups: Sequence[RunGroup], family: str, row: PaperRow) -> list[RunGroup]:
    """The groups of a row, best first: with the settings of the paper (in its families), then with the most seeds."""
    source = paper().source

    def rank(group: RunGroup) -> tuple[bool, bool, float, int, str]:
        distill = group.recipe.distill
        faithful = (distill.alpha, distill.temperature) == (source.alpha, source.temperature)
        named = family != "published" or group.about.recipe_name == row.published
        plain = 0.0 if group.teachers else -group.smoothing
        return faithful or family not in SHARE_BASELINES, named, plain, len(group.runs), group.about.run

    return sorted(groups, key=rank, reverse=True)
